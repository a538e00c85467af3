"""Whether a worker's memory stays where it is: resident size over ten million events, for both kinds of delivery."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from bench.contest import ONCE, STREAMSERVE, Results, Tell
from bench.flights import World
from bench.measure import PAUSE, Progress, rss_mib
from bench.workers import Worker, workers

LOOK_S = 0.5
STALL_S = 120.0  # without an event
NEAR = 0.1  # of a number of events: samples so far from it count as taken there
Sample = tuple[int, float]  # events so far, MiB


def memory(world: World, tell: Tell) -> Results:
    """Every event of the topic through one worker, once at least and once exactly once."""
    found: dict[str, object] = {}
    for name, topology in ((STREAMSERVE, world.topology), (ONCE, world.exactly_once)):
        progress = Progress(world.project.endpoints.bootstrap, f"{world.name}.predictions")
        with workers(world.project, topology) as [worker]:
            samples = climb(worker, progress, world.events)
        world.project.forget(f"streamserve.{world.name}")
        tenth, whole = near(samples, world.events // 10), near(samples, world.events)
        tell(f"{name}: {tenth:.0f} MiB after a tenth of {world.events:,} events, {whole:.0f} MiB after all")
        found[name] = {"samples": samples, "tenth": tenth, "whole": whole}
    return {"events": world.events, "runs": found}


def climb(worker: Worker, progress: Progress, events: int) -> list[Sample]:
    """Resident size by events, from the first prediction to the last.

    Raises:
        RuntimeError: the worker ended, or stood still.
    """
    samples: list[Sample] = []
    pid, done, limit = worker.process.pid, 0, time.monotonic() + STALL_S
    while done < events:
        PAUSE.wait(LOOK_S)
        before, done = done, progress.count()
        if done > before:
            limit = time.monotonic() + STALL_S
            samples.append((done, rss_mib(pid)))
        elif not Path(f"/proc/{pid}/fd/0").exists() or time.monotonic() > limit:
            raise RuntimeError(f"{done} of {events} events, then nothing")
    return samples


def near(samples: Sequence[Sample], events: int) -> float:
    """The median of what was seen around so many events; where nothing was, the sample that is nearest."""
    found = [mib for done, mib in samples if abs(done - events) <= events * NEAR]
    return statistics.median(found) if found else min(samples, key=lambda one: abs(one[0] - events))[1]
