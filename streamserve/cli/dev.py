"""`streamserve dev`: the local Kafka and Redis, up, down, looked at and reset."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streamserve import dev as services
from streamserve.errors import DevError
from streamserve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LOOK_SECONDS = 1.0  # how often --foreground looks whether the services still run


@click.group()
def dev() -> None:
    """Local services: a real one-node Kafka and a real Redis, with Java and Maven or with Docker.

    They keep everything in one folder, .streamserve/dev (or $STREAMSERVE_HOME/dev), and listen on 127.0.0.1
    only. The other commands find them there when STREAMSERVE_BOOTSTRAP and STREAMSERVE_REDIS_URL are not set.
    """


@dev.command()
@click.option(
    "--foreground",
    is_flag=True,
    help="Stay here until Ctrl-C, then stop what was started; for a terminal or CI.",
)
def up(foreground: bool) -> None:
    """Start Kafka and Redis, and wait until they answer.

    Run again, it tells the addresses. The first start fetches Kafka with Maven (36 MB) into
    ~/.cache/streamserve (or $STREAMSERVE_CACHE). A usual port that is taken (9092, 6379) is replaced by a
    free one, which is taken again the next time.

    What can't run here (Kafka needs Java 17+ and Maven) runs in Docker, if that is there. STREAMSERVE_DEV
    set to native allows no containers; set to docker, it runs both services in containers.

    A service whose address is set (STREAMSERVE_BOOTSTRAP, STREAMSERVE_REDIS_URL) is not started.
    """
    settings, console = Settings.load(), Console(highlight=False, soft_wrap=True)
    kafka, redis = settings.bootstrap is None, settings.redis_url is None
    for name, variable, local in (
        ("Kafka", "STREAMSERVE_BOOTSTRAP", kafka),
        ("Redis", "STREAMSERVE_REDIS_URL", redis),
    ):
        if not local:
            console.print(f"[dim]{name} is not started: {variable} points elsewhere[/]")
    if not (kafka or redis):
        return
    begun = time.monotonic()
    progress = _progress(console)
    if foreground:
        _stay(settings.home, console, progress, kafka=kafka, redis=redis)
        return
    endpoints = services.up(settings.home, progress=progress, kafka=kafka, redis=redis)
    _show(console, endpoints, settings.home, time.monotonic() - begun)
    console.print("[dim]They stay until `streamserve dev down`.[/]")


@dev.command()
def down() -> None:
    """Stop Kafka and Redis. Their data stays for the next `up`."""
    begun = time.monotonic()
    stopped = services.down(Settings.load().home)
    click.echo(f"stopped ({time.monotonic() - begun:.1f} s)" if stopped else "nothing was running")


@dev.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list on standard output, for programs.")
def status(as_json: bool) -> None:
    """Show what runs, where, and where its log is. Exit code 1 if a service does not run."""
    found = services.status(Settings.load().home)
    if as_json:
        click.echo(json.dumps([{**vars(one), "log": str(one.log)} for one in found], indent=2))
    else:
        table = Table("service", "state", "address", "pid", "uptime", box=None, pad_edge=False)
        table.add_column("log", overflow="fold")  # never shortened: it is there to be copied
        for one in found:
            uptime = "" if one.uptime is None else f"{one.uptime:.0f} s"
            colour = {"running": "green", "unhealthy": "red"}.get(one.state, "yellow")
            pid = "" if one.pid is None else str(one.pid)
            state = f"[{colour}]{one.state}[/]{' (docker)' if one.docker else ''}"
            table.add_row(one.name, state, one.address or "", pid, uptime, escape(_short(one.log)))
        Console(highlight=False, soft_wrap=True).print(table)
    if any(one.state != "running" for one in found):
        raise click.exceptions.Exit(1)


@dev.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(yes: bool) -> None:
    """Stop both and delete their data, logs and Docker volumes. The fetched Kafka stays."""
    home = Settings.load().home
    if not yes:
        click.confirm(f"Delete every topic and every key of the local services in {home / 'dev'}?", abort=True)
    services.reset(home)
    click.echo("stopped, data deleted")


def _progress(console: Console) -> Callable[[str], None]:
    def show(line: str) -> None:
        console.print(f"[dim]{escape(line)}[/]")

    return show


def _show(console: Console, endpoints: services.Endpoints, home: Path, seconds: float) -> None:
    if endpoints.bootstrap:
        console.print(f"Kafka  [bold]{endpoints.bootstrap}[/]")
    if endpoints.redis_url:
        console.print(f"Redis  [bold]{endpoints.redis_url}[/]")
    console.print(f"logs   {escape(_short(home.resolve() / 'dev' / 'logs'))}   [dim](up in {seconds:.1f} s)[/]")


def _short(path: Path) -> str:
    """Relative to here where that is below: what a reader can copy, without a line of folders."""
    here = os.path.relpath(path)
    return str(path) if here.startswith("..") else here


def _stay(home: Path, console: Console, progress: Callable[[str], None], *, kafka: bool, redis: bool) -> None:
    ended = threading.Event()
    begun = time.monotonic()
    with services.services(home, progress=progress, kafka=kafka, redis=redis) as endpoints:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: ended.set())
        _show(console, endpoints, home, time.monotonic() - begun)
        console.print("[dim]Ctrl-C stops what was started here.[/]")
        while not ended.wait(_LOOK_SECONDS):
            if services.running(home) != endpoints:
                raise DevError(
                    "a local service has ended",
                    where=str(home / "dev" / "logs"),
                    mend="read the end of kafka.log and redis.log there, then `streamserve dev up`",
                )
