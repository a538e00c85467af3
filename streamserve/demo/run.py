"""The demo: a year's flights from New York, from an empty folder to served predictions and their AUC.

It runs the commands that a user would run, shows them, and ends by itself with everything stopped again.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from streamserve.adapters.kafka import Clients
from streamserve.adapters.replay import Replay
from streamserve.adapters.schema_ids import schema_ids
from streamserve.demo import picture, train
from streamserve.demo.data import write_demo_files
from streamserve.demo.model import APRIL, MARCH, train_version, window
from streamserve.demo.screen import Screen
from streamserve.demo.story import BETTER, BROKEN, Story, write_broken
from streamserve.demo.views import view_tables
from streamserve.demo.watch import Totals, Watch
from streamserve.dev import services
from streamserve.dev.probe import free_ports
from streamserve.errors import ConfigError, StreamserveError
from streamserve.features.catalogue import Catalogue
from streamserve.models.registry import Registry
from streamserve.settings import Settings
from streamserve.simulate.load import load_schema
from streamserve.simulate.tallying import REFERENCE
from streamserve.topology import load_topology

TOPOLOGY = Path("topologies/flights.py")
VERSION = "v1"
GOLDEN_ROWS = 64
SWAPPED = ("hour", "distance")
BEGIN = 28_000  # events, most of April's: then the second version can have learned from them
REST_S = 90.0  # for what is left of the story when the stream has ended
READY_S, END_S, STOP_S = 30.0, 60.0, 30.0
MALFORMED = (b"not an event", b"\x00\x00\x00\x00\x63 of a schema that nobody knows", b"\x00\x00\x00\x00\x01\x02")
Command = Callable[[list[str]], None]
Notes = list[tuple[float, str]]  # seconds of the stream, and what was done then


@dataclass(frozen=True, slots=True)
class Options:
    rate: float | None
    limit: int | None
    story: bool = True


def run_demo(settings: Settings, options: Options, command: Command, console: Console) -> None:
    """Everything from data to AUC. command: runs a streamserve command line in this process.

    Raises:
        StreamserveError: what went wrong, and how to mend it.
    """
    if not TOPOLOGY.is_file():
        raise ConfigError(
            f"there is no {TOPOLOGY} here", where=str(Path.cwd()), mend="run the demo in the root of the repository"
        )
    began = time.monotonic()
    folder = settings.home / "demo"
    served = _prepare_data(folder, console)
    say = lambda text: console.print(f"  [dim]{text}[/]")  # noqa: E731
    console.print("[bold]services[/]")
    ours = settings.bootstrap is None, settings.redis_url is None
    with services(settings.home, progress=say, kafka=ours[0], redis=ours[1]) as found:
        settings = settings.model_copy(
            update={
                "bootstrap": settings.bootstrap or found.bootstrap,
                "redis_url": settings.redis_url or found.redis_url,
            }
        )
        _tell(settings)
        _prepare(settings, folder, served, command, console)
        totals, sent, notes = _stream(settings, options, served, console, began)
        _tell_drift(folder, command, console)
    _report(totals, sent, folder, console)
    _draw(totals, notes, folder, console)
    _point_on(totals, console)


def _prepare_data(folder: Path, console: Console) -> Path:
    """flights, labels and views as Parquet; the flights from April on are what is served."""
    console.print("[bold]data[/]")
    flights, _ = write_demo_files(folder)
    served = folder / "served.parquet"
    if not served.exists() or served.stat().st_mtime < flights.stat().st_mtime:
        for name, table in view_tables().items():
            pq.write_table(table, folder / f"{name}.parquet")
        draft = folder / ".served.parquet"
        pq.write_table(window(pq.read_table(flights), MARCH[1], None), draft)
        draft.replace(served)
    count = pq.ParquetFile(served).metadata.num_rows
    console.print(f"  [dim]{count:,} flights from April on, in {served}[/]")
    return served


def _tell(settings: Settings) -> None:
    """Commands that run in this process or in the worker find the same services."""
    os.environ["STREAMSERVE_BOOTSTRAP"] = settings.bootstrap or ""
    os.environ["STREAMSERVE_REDIS_URL"] = settings.redis_url or ""


def _prepare(settings: Settings, folder: Path, served: Path, command: Command, console: Console) -> None:
    def run(*words: str) -> None:
        console.print(f"[bold]$ streamserve {shlex.join(words)}[/]", highlight=False)
        command(list(words))

    topology = load_topology(TOPOLOGY)
    run("topics", "apply", str(TOPOLOGY))
    run("features", "load", str(TOPOLOGY), *(f"{v.name}={folder / v.name}.parquet" for v in topology.views))
    registry = Registry(settings.registry)

    def add(version: str, path: Path, learned: str) -> None:
        run(
            "models", "add", str(TOPOLOGY), version, str(path),
            "--vocabularies", str(folder / f"{learned}.vocabularies.json"),
            "--training", str(folder / f"{learned}.training.json"),
            "--golden", str(served), "--golden-rows", str(GOLDEN_ROWS),
        )  # fmt: skip

    for version, month, between in ((VERSION, "March", MARCH), (BETTER, "April", APRIL)):
        if version not in registry.versions(topology.model):
            console.print(f"[bold]training {version} on {month}[/]")
            schema = load_schema(settings, topology)
            add(version, train_version(Catalogue(topology), schema, folder, version, between=between), version)
        if registry.attached(topology.model, version, REFERENCE) is None:
            learned = folder / f"{version}.flights.parquet"
            pq.write_table(window(pq.read_table(folder / "flights.parquet"), *between), learned)
            like = [] if version == VERSION else ["--like", VERSION]
            run("drift", "reference", str(TOPOLOGY), version, "--events", str(learned), *like)
    if BROKEN not in registry.versions(topology.model):
        (given,) = registry.manifest(topology.model, BETTER).inputs
        add(BROKEN, write_broken(folder / f"{BETTER}.onnx", given.features, SWAPPED), BETTER)
    run("topology", "init", str(TOPOLOGY), "--version", VERSION, "--if-new")


def _tell_drift(folder: Path, command: Command, console: Console) -> None:
    """What moved with the seasons. A short stream has passed no window yet."""
    words = ["drift", "report", str(TOPOLOGY), "--html", str(folder / "drift.html")]
    console.print(f"[bold]$ streamserve {shlex.join(words)}[/]", highlight=False)
    try:
        command(words)
    except ConfigError as error:
        console.print(f"  [dim]{error.what}[/]", highlight=False)


def _stream(
    settings: Settings, options: Options, served: Path, console: Console, began: float
) -> tuple[Totals, int, Notes]:
    topology = load_topology(TOPOLOGY)
    clients, ids = Clients(settings), schema_ids(settings)
    schema = load_schema(settings, topology)
    watch = Watch(clients, topology, ids)
    total = pq.ParquetFile(served).metadata.num_rows
    total = min(total, options.limit or total)
    replay, stop, sent = Replay(clients, topology, schema, ids), threading.Event(), [0]
    failure: list[BaseException] = []

    def feed() -> None:
        try:
            replay.run(served, rate=options.rate, limit=options.limit, on_progress=sent.append, stop=stop)
        except BaseException as error:  # noqa: BLE001  (raised again by the demo's own thread)
            failure.append(error)

    with _worker(settings, console) as worker:
        _send_broken(clients, topology.source.topic)
        watch.start()
        feeder = threading.Thread(target=feed, name="feeder", daemon=True)
        feeder.start()
        quiet_until = time.monotonic() + END_S
        with Screen(console, watch, total) as screen:
            story = _story(watch, console, min(BEGIN, total // 4), settings.home / "demo") if options.story else None
            seen = -1
            while watch.totals.predictions + watch.totals.dead_letters < total + len(MALFORMED):
                screen.update(sent[-1])
                if watch.totals.predictions != seen:
                    seen, quiet_until = watch.totals.predictions, time.monotonic() + END_S
                _check(worker, watch, failure, quiet_until, settings)
                threading.Event().wait(0.1)
            screen.update(sent[-1])
            if story is not None:
                story.finish(REST_S)
        feeder.join(STOP_S)
        if watch.totals.first_at is not None:
            console.print(f"  [dim]first prediction {watch.totals.first_at - began:.1f} s after the start[/]")
    watch.close()
    return watch.totals, total, [] if story is None else story.notes


def _story(watch: Watch, console: Console, first: int, folder: Path) -> Story:
    story = Story(
        str(TOPOLOGY),
        first,
        str(folder),
        dict(os.environ),
        predictions=lambda: watch.totals.predictions,
        now=lambda: watch.seconds,
        tell=console.print,
    )
    story.start()
    return story


def _check(
    worker: subprocess.Popen[bytes],
    watch: Watch,
    failure: list[BaseException],
    until: float,
    settings: Settings,
) -> None:
    problem = failure[0] if failure else watch.failure
    if problem is not None:
        raise problem
    log = settings.home / "demo" / "worker.log"
    if worker.poll() is not None:
        raise StreamserveError(f"the worker ended with {worker.returncode}", where=str(log), mend=_tail(log))
    if time.monotonic() > until:
        raise StreamserveError(f"no prediction came for {END_S:.0f} s", where=str(log), mend=_tail(log))


@contextlib.contextmanager
def _worker(settings: Settings, console: Console) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process, ready when this yields, stopped by SIGTERM at the end."""
    port, log = free_ports(1)[0], settings.home / "demo" / "worker.log"
    words = ["worker", str(TOPOLOGY), "--web-port", str(port)]
    console.print(f"[bold]$ streamserve {shlex.join(words)} &[/]", highlight=False)
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-m", "streamserve", *words], stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + READY_S
        while not _answers(f"http://127.0.0.1:{port}/ready"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise StreamserveError("the worker did not get ready", where=str(log), mend=_tail(log))
            threading.Event().wait(0.1)
        console.print(f"  [dim]ready; metrics at http://127.0.0.1:{port}/metrics, log in {log}[/]")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.returncode:
        raise StreamserveError(f"the worker ended with {process.returncode}", where=str(log), mend=_tail(log))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):  # noqa: S310  (loopback)
            return True
    except (OSError, urllib.error.HTTPError):
        return False


def _tail(log: Path) -> str:
    return "the end of its log:\n" + "\n".join(log.read_text("utf-8", "replace").splitlines()[-8:])


def _send_broken(clients: Clients, topic: str) -> None:
    """Three events that nobody can decode: they end in dead letters, the stream goes on."""
    producer = clients.producer()
    for value in MALFORMED:
        producer.produce(topic, value)
    producer.flush(10)


def _report(totals: Totals, total: int, folder: Path, console: Console) -> None:
    labels = pq.read_table(folder / "labels.parquet", columns=["flight_id", "late"])
    late = dict(zip(labels.column("flight_id").to_pylist(), labels.column("late").to_pylist(), strict=True))
    truth = np.array([late[name] for name in totals.event_ids], np.int8)
    scores = np.concatenate(totals.scores)
    p50, p99 = totals.percentiles()
    table = Table(title="what was served", box=None, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_row("events sent, and predicted", f"{total:,} / {totals.predictions:,}")
    table.add_row("broken events sent, and dead letters", f"{len(MALFORMED)} / {totals.dead_letters}")
    table.add_row("latency p50, p99", f"{p50:.0f} ms, {p99:.0f} ms")
    if 0 < truth.sum() < len(truth):
        table.add_row("AUC against what really happened", f"{train.auc(scores, truth):.3f}")
    for view in sorted({view for view, _ in totals.statuses}):
        parts = {s: c for (v, s), c in totals.statuses.items() if v == view}
        shares = ", ".join(f"{s} {c / sum(parts.values()):.1%}" for s, c in sorted(parts.items()))
        table.add_row(f"view {view}", shares)
    console.print(table)


def _draw(totals: Totals, notes: Notes, folder: Path, console: Console) -> None:
    """Which version answered when."""
    if len(totals.versions) > 1:
        console.print(picture.table(totals.versions, notes))
        path = folder / "versions.svg"
        path.write_text(picture.svg(totals.versions, notes))
        console.print(f"  [dim]the same as a picture: {path}[/]")


def _point_on(totals: Totals, console: Console) -> None:
    console.print("\nwhere to look next (the data is kept):", style="bold")
    for line in (
        "streamserve dev up",
        f"streamserve predictions tail {TOPOLOGY} --from -5 --no-follow",
        f"streamserve explain {TOPOLOGY} {totals.last_id}",
        f"streamserve rollout history {TOPOLOGY}",
        f"streamserve shadow report {TOPOLOGY}",
        f"streamserve drift report {TOPOLOGY}",
        f"streamserve dead-letters list {TOPOLOGY}",
        f"streamserve check {TOPOLOGY}",
        "streamserve dev down",
    ):
        console.print(f"  {line}", highlight=False)
