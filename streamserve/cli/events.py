"""`streamserve events`: recorded events into a topology's source topic."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from streamserve.cli.common import out, settings, topology_argument
from streamserve.topology import Topology

EVERY_S = 3.0  # between two lines of progress where there is no terminal
INTERRUPTED = 130


@click.group()
def events() -> None:
    """Send recorded events."""


@events.command()
@topology_argument
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Events a second; unset: as fast as it goes.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many events.")
@click.option(
    "--loop", "loops", type=click.IntRange(min=1), default=1, show_default=True, help="How often to send the file."
)
def replay(topology: Topology, file: Path, rate: float | None, limit: int | None, loops: int) -> None:
    """Send the events of FILE (.parquet, .avro or .jsonl) to the source topic of TOPOLOGY_FILE.

    In the order of the file, in the source's format, keyed by its entity key and stamped with the present. --rate is
    a schedule: what a slow moment delayed is caught up with. Ends when the broker has acknowledged every event;
    Ctrl-C stops sending and still waits for what was sent.
    """
    from streamserve.adapters.kafka import Clients
    from streamserve.adapters.replay import Replay, to_come
    from streamserve.adapters.schema_ids import schema_ids
    from streamserve.simulate.load import load_schema

    found = settings()
    clients, schema = Clients(found), load_schema(found, topology)
    total = to_come(file, schema, limit=limit, loops=loops)
    with _stopping() as stop, _progress(total) as on_progress:
        done = Replay(clients, topology, schema, schema_ids(found)).run(
            file, rate=rate, limit=limit, loops=loops, on_progress=on_progress, stop=stop
        )
    out().print(
        f"{done.acknowledged:,} events acknowledged by {topology.source.topic} "
        f"in {done.seconds:.1f} s ({done.rate:,.0f} events/s)",
        highlight=False,
    )
    if stop.is_set():
        of = "" if total is None else f" of {total:,}"
        out().print(f"stopped after {done.sent:,}{of}", highlight=False)
        raise click.exceptions.Exit(INTERRUPTED)


@contextlib.contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; a second one interrupts as usual."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, otherwise a line now and then; both on stderr."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Lines(console, total)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}/s"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task, started = bar.add_task("", total=total, rate="0"), time.monotonic()
        next_at = 0.0

        def show(sent: int) -> None:
            nonlocal next_at
            elapsed = time.monotonic() - started
            if elapsed >= next_at:
                next_at = elapsed + 0.1
                bar.update(task, completed=sent, rate=f"{sent / max(elapsed, 1e-9):,.0f}")

        yield show


class _Lines:
    def __init__(self, console: Console, total: int | None) -> None:
        self._console, self._total = console, total
        self._last = (time.monotonic(), 0)

    def __call__(self, sent: int) -> None:
        now, (at, before) = time.monotonic(), self._last
        if now - at < EVERY_S:
            return
        self._last = (now, sent)
        of = "" if self._total is None else f" of {self._total:,}"
        self._console.print(f"{sent:,}{of} events sent ({(sent - before) / (now - at):,.0f} events/s)")
