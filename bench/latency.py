"""Latency under an offered rate: from the time at which an event should leave to its prediction at a consumer.

One worker serves all rates, one after the other. Generator and checker are processes of their own, so that neither
waits for the other's Python lock; what they cost is in the results, since they share the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.contest import Results, Tell
from bench.flights import World
from bench.measure import PAUSE, busy_seconds, cpu_seconds
from bench.schedule import answered_in_time, latencies_ms, percentiles
from bench.workers import Rows, Worker, process, rows_of, workers

SETTLE_RATE = 4_000.0  # a broker that has just started needs the machine for itself, some 15 s of it, to compile
HURRY_MS = 10.0  # the target of a topology in a hurry
ECHO_WARM_S = 2.0  # by then it is there
AHEAD_S = 2.0  # what the generator needs to be ready before its first event is due
DRAIN_S = 20.0  # what answers may take after the last event; later ones count as missing


@dataclass(frozen=True)
class Window:
    """One rate: `warm` seconds that are not counted, then `seconds` that are."""

    rate: float
    warm: float
    seconds: float

    @property
    def skip(self) -> int:
        return int(self.rate * self.warm)

    @property
    def count(self) -> int:
        return self.skip + int(self.rate * self.seconds)


@dataclass(frozen=True)
class Reading:
    """Counters of the worker and of the machine at one moment."""

    at: float
    cpu: float
    busy: float
    rows: Rows

    @classmethod
    def of(cls, worker: Worker) -> Reading:
        return cls(time.monotonic(), cpu_seconds(worker.process.pid), busy_seconds(), rows_of([worker]))


@dataclass(frozen=True)
class Plan:
    """What is offered. settle: seconds before the first round, at SETTLE_RATE; warm, seconds: of every rate."""

    rates: Sequence[float]
    rounds: int
    settle: float
    warm: float
    seconds: float


def latency(world: World, plan: Plan, tell: Tell) -> Results:
    """Every rate once a round, by one worker; before them, what compiles the broker's code and is not counted."""
    found: dict[str, list[dict[str, object]]] = {f"{rate:.0f}": [] for rate in plan.rates}
    with workers(world.project, world.topology) as (worker,):
        limit = time.monotonic() + 60
        while not worker.owns:
            if worker.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError("the worker did not come to serve")
            PAUSE.wait(0.1)
        offer(world, worker, Window(SETTLE_RATE, 0, plan.settle))
        for number in range(plan.rounds):
            for rate in plan.rates:
                one = offer(world, worker, Window(rate, plan.warm, plan.seconds))
                found[f"{rate:.0f}"].append(one)
                tell(f"round {number + 1}  {rate:>7,.0f}/s  {in_words(one)}")
    world.project.forget(f"streamserve.{world.name}")
    return {"rates": found, "echo": echo(world, plan, tell), "settings": dict(world.project.extra)}


def echo(world: World, plan: Plan, tell: Tell) -> dict[str, list[dict[str, object]]]:
    """The same rates once, answered by a client that does nothing: what the broker and the measuring take."""
    found = {}
    words = (world.project.endpoints.bootstrap, world.topic, f"{world.name}.predictions")
    command = [sys.executable, "-m", "bench.loops.echo", *words]
    with process(command, world.project.environ, world.project.folder / "echo.log") as started:
        for rate in plan.rates:
            one = offer(world, Worker(started, 0), Window(rate, max(plan.warm, ECHO_WARM_S), plan.seconds))
            found[f"{rate:.0f}"] = [one]
            tell(f"echo     {rate:>7,.0f}/s  {in_words(one)}")
    return found


def in_words(one: dict[str, object]) -> str:
    """A line for the screen."""
    keys = ("p50", "p90", "p99", "p99.9", "max", "worker_us", "rows", "late_p99_ms")
    return "  ".join(f"{key} {one[key]:.2f}" for key in keys)


def offer(world: World, worker: Worker, window: Window) -> dict[str, object]:
    """Offer one rate to a worker that serves."""
    arrivals = world.topology.parent / "arrivals.npy"
    bootstrap = world.project.endpoints.bootstrap
    limit = AHEAD_S + window.warm + window.seconds + DRAIN_S
    checker = child(
        world, "bench.checker", bootstrap, f"{world.name}.predictions", window.skip, window.count, arrivals, limit
    )
    try:
        expect_ready(checker)
        start_ns = time.monotonic_ns() + int(AHEAD_S * 1e9)
        words = (bootstrap, world.topic, world.sample, window.rate, window.skip, window.count, start_ns)
        generator = child(world, "bench.generator", *words)
        before, after = _watch(worker, start_ns, window)
        generated, checked = finish(generator), finish(checker)
    finally:
        checker.kill()
        checker.wait()
    return summary(np.load(arrivals), start_ns, window, (before, after), generated, checked)


def summary(
    arrivals: np.ndarray,
    start_ns: int,
    window: Window,
    readings: tuple[Reading, Reading],
    generated: dict[str, float],
    checked: dict[str, float],
) -> dict[str, object]:
    """Everything that is known of one rate. Times in milliseconds, CPU in microseconds an event."""
    before, after = readings
    passed = after.at - before.at
    return {
        **percentiles(latencies_ms(arrivals, start_ns, window.rate, window.skip)),
        "answered": answered_in_time(arrivals, start_ns, window.rate, window.skip),
        "worker_us": (after.cpu - before.cpu) / (window.rate * passed) * 1e6,
        "rows": after.rows.mean_since(before.rows) or 0.0,
        "machine": (after.busy - before.busy) / (passed * (os.cpu_count() or 1)),
        **{name: generated[name] for name in ("late_p50_ms", "late_p99_ms", "late_max_ms")},
        "generator_us": generated["cpu_us"],
        "checker_us": checked["cpu_us"],
        "missing": checked["missing"],
        "repeated": checked["repeated"],
    }


def _watch(worker: Worker, start_ns: int, window: Window) -> tuple[Reading, Reading]:
    """Readings at both ends of what is counted."""
    found = []
    for seconds in (window.warm, window.warm + window.seconds):
        PAUSE.wait(max(start_ns / 1e9 + seconds - time.monotonic(), 0))
        found.append(Reading.of(worker))
    return found[0], found[1]


def child(world: World, module: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.Popen(
        command, cwd=Path(world.project.folder), env=world.project.environ, stdout=subprocess.PIPE, text=True
    )


def expect_ready(checker: subprocess.Popen[str]) -> None:
    assert checker.stdout is not None  # noqa: S101
    if checker.stdout.readline().strip() != "ready":
        raise RuntimeError("the checker did not get ready")


def finish(of: subprocess.Popen[str]) -> dict[str, float]:
    said, _ = of.communicate()
    if of.returncode:
        raise RuntimeError(f"{of.args!r} ended with {of.returncode}")
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found
