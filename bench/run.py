"""The whole benchmark: services of its own, one part after the other, figures to the screen, a file and the docs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.machine import machine
from bench.project import ROOT, Project, copy_schemas
from streamserve.dev import reset, services
from streamserve.errors import DevError
from streamserve.settings import Settings

Results = dict[str, object]
RATES = (1_000.0, 5_000.0, 10_000.0, 20_000.0, 50_000.0)


@dataclass(frozen=True)
class Scale:
    """How much is run. Events, but for the seconds of a latency run."""

    flights: int = 4 * 336_776
    loop: int = 300_000
    faust: int = 15_000
    avro: int = 150_000
    json: int = 60_000
    settle_s: float = 30.0
    warm_s: float = 4.0
    seconds: float = 15.0
    growth: int = 400_000
    memory: int = 10_000_000
    shadow: int = 2 * 336_776
    pairs: int = 8
    commands: int = 100
    axes: Mapping[str, int] = field(default_factory=lambda: {"size": 5})  # axis: its first so many values; else three


QUICK = Scale(
    flights=120_000, loop=25_000, faust=2_500, avro=16_000, json=6_000,
    settle_s=6.0, warm_s=1.0, seconds=3.0, growth=60_000, memory=150_000,
    shadow=100_000, pairs=1, commands=10,
    axes={"features": 2, "views": 1, "partitions": 1, "size": 1, "workers": 1},
)  # fmt: skip
QUICK_RATES = (1_000.0, 10_000.0)


@dataclass(frozen=True)
class Options:
    """only: parts to run; empty: all. settings: environment of the workers. rates: events a second, for latency."""

    only: tuple[str, ...] = ()
    quick: bool = False
    rounds: int | None = None
    json: Path | None = None
    write_docs: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    rates: tuple[float, ...] = ()

    @property
    def scale(self) -> Scale:
        return QUICK if self.quick else Scale()

    @property
    def times(self) -> int:
        """Rounds: as asked, else three, or one for a quick look."""
        return self.rounds or (1 if self.quick else 3)

    @property
    def offered(self) -> tuple[float, ...]:
        """Rates: as asked, else the sweep, or two for a quick look."""
        return self.rates or (QUICK_RATES if self.quick else RATES)


Part = Callable[[Project, Options], Results]


def contest(project: Project, options: Options) -> Results:
    """Five contestants on the flights, and the pipeline's CPU by stage."""
    from bench.contest import contest as run
    from bench.flights import prepare

    scale = options.scale
    world = prepare(project, "bench-flights", scale.flights)
    found = run(world, options.times, scale.loop, scale.faust, tell)
    project.drop(world.topic)
    return found


def uniform(project: Project, options: Options) -> Results:
    """Three contestants on keys that no cache knows."""
    from bench.contest import uniform as run
    from bench.flights import prepare

    scale = options.scale
    world = prepare(project, "bench-uniform", scale.flights, uniform=True)
    found = run(world, options.times, scale.loop, tell)
    project.drop(world.topic)
    return found


def vectors(project: Project, options: Options) -> Results:
    """784 floats an event, in Avro and in JSON."""
    from bench.vectors import prepare
    from bench.vectors import vectors as run

    found: Results = {}
    for kind, events in (("avro", options.scale.avro), ("json", options.scale.json)):
        tell(f"vectors in {kind}")
        found[kind] = run(prepare(project, kind, events), options.times, options.scale.loop, tell)
    return found


def latency(project: Project, options: Options) -> Results:
    """Times from intended sending to arrival, rate by rate; and once more as one would have it who is in a hurry."""
    from bench.flights import prepare
    from bench.latency import HURRY_MS, Plan
    from bench.latency import latency as run

    scale = options.scale
    plan = Plan(options.offered, options.times, scale.settle_s, scale.warm_s, scale.seconds)
    found = run(prepare(project, "bench-latency", 0), plan, tell)
    tell(f"one partition, a target of {HURRY_MS:g} ms")
    hurry = prepare(project, "bench-hurry", 0, partitions=1, target_p99_ms=HURRY_MS)
    return {**found, "hurry": run(hurry, plan, tell)}


def growth(project: Project, options: Options) -> Results:
    """Features, views, partitions, message size, workers."""
    from bench.growth import AXES
    from bench.growth import growth as run

    axes = {axis: values[: options.scale.axes.get(axis, 3)] for axis, values in AXES.items()}
    return run(project, options.times, options.scale.growth, axes, tell)


def restart(project: Project, options: Options) -> Results:
    """How long a partition pauses in a planned restart."""
    from bench.flights import prepare
    from bench.restart import restart as run

    return run(prepare(project, "bench-restart", 0), options.times, tell)


def memory(project: Project, options: Options) -> Results:
    """Resident size over many events; one round, whatever is asked: it is long."""
    from bench.flights import prepare
    from bench.memory import memory as run

    world = prepare(project, "bench-memory", options.scale.memory)
    found = run(world, tell)
    project.drop(world.topic)
    return found


def shadow(project: Project, options: Options) -> Results:
    """What a shadow costs, and whom."""
    from bench.flights import prepare
    from bench.shadow import shadow as run

    scale = options.scale
    world = prepare(project, "bench-shadow", scale.shadow)
    found = run(world, options.times, scale.settle_s, scale.seconds, scale.pairs, tell)
    project.drop(world.topic)
    return found


def commands(project: Project, options: Options) -> Results:
    """From a command to its effect, and a switch of versions under load."""
    from bench.commands import commands as run
    from bench.flights import prepare

    scale = options.scale
    return run(prepare(project, "bench-commands", 0), scale.commands, options.times, scale.settle_s, tell)


def drift(project: Project, options: Options) -> Results:
    """What counting for drift costs, and how soon a window is told."""
    from bench.drift import drift as run
    from bench.flights import prepare

    scale = options.scale
    world = prepare(project, "bench-drift", scale.flights)
    found = run(world, options.times, scale.settle_s, 5 * scale.seconds, tell)
    project.drop(world.topic)
    return found


PARTS: dict[str, Part] = {
    "contest": contest,
    "uniform": uniform,
    "vectors": vectors,
    "latency": latency,
    "growth": growth,
    "memory": memory,
    "restart": restart,
    "shadow": shadow,
    "commands": commands,
    "drift": drift,
}


def tell(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


def run(options: Options) -> None:
    """Measure, print the tables, write what was asked for. A part that is done is in the file whatever comes after.

    Raises:
        DevError: another run uses the same folder, or a service does not start.
        RuntimeError: a contestant ended, or did not come to its end.
    """
    from bench import docs, tables

    folder = (Settings.load().home / "bench").resolve()
    found: Results = {"machine": machine(), "quick": options.quick, "rounds": options.times, "parts": {}}
    parts: Results = {}
    with alone(folder), fresh(folder, options) as project:
        for name in options.only or PARTS:
            tell(f"== {name}")
            started = time.monotonic()
            parts[name] = PARTS[name](project, options)
            tell(f"{name} took {time.monotonic() - started:.0f} s")
            found = {**found, "parts": {**parts}}
            for text in tables.of_part(name, parts[name]).values():
                tell("\n" + text + "\n")
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.write_docs:
        docs.write(ROOT / "docs", found)


def write_docs(file: Path) -> None:
    """Tables and charts of an earlier run into the docs, without measuring anything."""
    from bench import docs

    docs.write(ROOT / "docs", json.loads(file.read_text()))


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One run at a time: two would measure, or disturb, each other.

    Raises:
        DevError: there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DevError("another run uses this folder", where=str(folder), mend="wait for it, or end it") from None
        yield


@contextlib.contextmanager
def fresh(folder: Path, options: Options) -> Iterator[Project]:
    """Services without a trace of earlier runs, and a project of theirs. Data and model files are kept."""
    reset(folder / "services")  # what an earlier run left in the topics would be read again
    for left in ("registry", "home", "schemas"):
        shutil.rmtree(folder / left, ignore_errors=True)
    with services(folder / "services", progress=tell) as endpoints:
        project = replace(Project(folder, endpoints), extra=dict(options.settings))
        copy_schemas(project)
        yield project
