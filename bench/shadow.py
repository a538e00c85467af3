"""What a shadow costs, and whom: throughput and CPU at 100%, and stable's p99 beside candidates good and bad.

Windows with and without the shadow follow each other in turns, under one worker: what drifts on the machine falls on
both. The interval of the ratio is that of a bootstrap over the pairs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.contest import FLOOR, STREAMSERVE, Results, Tell, floor
from bench.flights import World
from bench.latency import SETTLE_RATE, Window, offer
from bench.measure import LOOK_S, PAUSE, Cost, Progress, cpu_seconds, follow, rss_mib, spread
from bench.project import Project
from bench.stuck import LONG, SLOW, write_looping
from bench.workers import DEADLINE_S, Worker, workers

SHADOWED = "streamserve, shadow 100%"
ROOMY = "the same, with room for the backlog"
COUNTS = ("compared", "failed", "unanswered", "shed")
GOOD, SLOWLY, STUCK = "a second model", "one that is slow", "one that hangs"
READY_S = 60.0
ROOM = {"STREAMSERVE_SHADOW_ROWS": "10000000", "STREAMSERVE_SHADOW_BYTES": str(1 << 34)}
RATE, WARM_S = 10_000.0, 1.5
RESAMPLES = 2000


def shadow(world: World, rounds: int, settle: float, seconds: float, pairs: int, tell: Tell) -> Results:
    """Both halves of it. seconds, pairs: of latency windows."""
    return {
        "drains": drains(world, rounds, tell),
        "latency": latency(world, settle, seconds, pairs, tell),
        "rate": RATE,
    }


# ---- throughput


def drains(world: World, rounds: int, tell: Tell) -> dict[str, list[dict[str, object]]]:
    """ONNX Runtime alone, the worker alone, and the worker with its shadow: in turns."""
    add(world, "twin", world.model)
    found: dict[str, list[dict[str, object]]] = {FLOOR: [], STREAMSERVE: [], SHADOWED: [], ROOMY: []}
    run: dict[str, Callable[[], dict[str, object]]] = {
        FLOOR: lambda: floor(world, world.events).as_dict(),
        STREAMSERVE: lambda: drained(world, shadowed=False),
        SHADOWED: lambda: drained(world, shadowed=True),
        ROOMY: lambda: compared(world),
    }
    for number in range(rounds):
        for name in list(found) if number % 2 == 0 else list(found)[::-1]:
            one = run[name]()
            found[name].append(one)
            more = "".join(f"  {key} {one[key]:,.0f}" for key in COUNTS if key in one)
            tell(f"round {number + 1}  {name:<36} {one['rate']:>9,.0f}/s  {one['us']:7.2f} us{more}")
    return found


def drained(world: World, *, shadowed: bool) -> dict[str, object]:
    """A backlog through one worker. The candidate's process counts as the worker's; its start is left out."""
    topology, name = world.topology, world.name
    if shadowed:
        shadow_all(world)
    progress = Progress(world.project.endpoints.bootstrap, f"{name}.predictions")
    before: dict[str, float] = {}
    with workers(world.project, topology) as [worker]:
        pids = [worker.process.pid, *([candidate_of(worker)] if shadowed else ())]

        def started() -> bool:
            if not before:
                before.update({one: outcome(worker, one) for one in COUNTS})
            return True

        cost = follow(pids, progress, world.events, DEADLINE_S, started)
        after = {one: outcome(worker, one) for one in COUNTS}
        queued = worker.metric("streamserve_shadow_rows_waiting")
    world.project.forget(f"streamserve.{name}")
    if not shadowed:
        return cost.as_dict()
    world.project.run("rollout", "rollback", topology, "--timeout", 0)
    return {**cost.as_dict(), **{one: after[one] - before[one] for one in COUNTS}, "queued": queued}


def compared(world: World) -> dict[str, object]:
    """A backlog through one worker that sheds nothing of it, until every pair stands in its topic.

    Counted from the first prediction on; what the start of the candidate's process takes of CPU is left out.
    """
    topology, name, bootstrap = world.topology, world.name, world.project.endpoints.bootstrap
    shadow_all(world)
    predicted, pairs = Progress(bootstrap, f"{name}.predictions"), Progress(bootstrap, f"{name}.shadow-decisions")
    memory: list[float] = []
    with workers(replace(world.project, extra={**world.project.extra, **ROOM}), topology) as [worker]:
        pid, limit, before, done = worker.process.pid, time.monotonic() + DEADLINE_S, 0, 0
        while not before:
            before = predicted.count()
        begun, spent = time.monotonic(), cpu_seconds(pid)
        while not outcome(worker, "compared"):
            PAUSE.wait(LOOK_S)
        unready = {child: cpu_seconds(child) for child in child_of(pid)}
        child = candidate_of(worker)
        while done < world.events:
            if worker.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"{done} of {world.events} pairs")
            memory.append(rss_mib(pid) + rss_mib(child))
            PAUSE.wait(LOOK_S)
            done = pairs.count()
        cpu = cpu_seconds(pid) + cpu_seconds(child) - spent - unready[child]
        cost = Cost(world.events - before, time.monotonic() - begun, cpu, spread(memory))
        counts = {one: outcome(worker, one) for one in COUNTS}
    world.project.forget(f"streamserve.{name}")
    world.project.run("rollout", "rollback", topology, "--timeout", 0)
    return {**cost.as_dict(), **counts}


def shadow_all(world: World) -> None:
    """Begin a rollout of a twin, in shadow."""
    world.project.run("rollout", "start", world.topology, "twin", "--timeout", 0)
    world.project.run("rollout", "shadow", world.topology, "100%", "--timeout", 0)


def candidate_of(worker: Worker) -> int:
    """The process of the candidate that shadows, once it does; at first there is another, in which it is tried."""
    limit = time.monotonic() + READY_S
    while not outcome(worker, "compared") or len(child_of(worker.process.pid)) > 1:
        if time.monotonic() > limit:
            raise RuntimeError("the candidate does not compare")
        PAUSE.wait(LOOK_S)
    return child_of(worker.process.pid)[0]


def child_of(pid: int) -> list[int]:
    """The processes that one has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").parent.parent.glob("*/children")
    return [int(number) for one in found for number in one.read_text().split()]


def outcome(worker: Worker, name: str) -> float:
    """Events of the shadow that came to this."""
    return worker.metric("streamserve_shadow_events_total", outcome=name)


# ---- latency


def latency(world: World, settle: float, seconds: float, pairs: int, tell: Tell) -> dict[str, dict[str, object]]:
    """By candidate: p99 without and with, pair by pair, and the ratio with its interval."""
    folder, width = world.topology.parent, np.load(world.matrix, mmap_mode="r").shape[1]
    candidates = {
        GOOD: add(world, "twin", world.model),
        SLOWLY: add(world, "slow", write_looping(folder / "slow.onnx", width, SLOW)),
        STUCK: add(world, "stuck", write_looping(folder / "stuck.onnx", width, LONG)),
    }
    found: dict[str, dict[str, object]] = {}
    window, topology, run = Window(RATE, WARM_S, seconds), world.topology, world.project.run
    with workers(from_the_end(world), topology) as [worker]:
        while not worker.owns:
            PAUSE.wait(0.1)
        offer(world, worker, Window(SETTLE_RATE, 0, settle))
        for name, version in candidates.items():
            run("rollout", "start", topology, version)
            runs: list[dict[str, object]] = []
            for number in range(pairs):
                pair: dict[str, object] = {}
                for side in ("without", "with") if number % 2 == 0 else ("with", "without"):
                    if side == "with":
                        run("rollout", "shadow", topology, "100%")
                    pair[side] = offer(world, worker, window)
                    if side == "with":
                        pair["counts"] = {one: outcome(worker, one) for one in COUNTS}
                        run("rollout", "shadow", topology, "0%")
                runs.append(pair)
                tell(
                    f"{name}  pair {number + 1}  p99 {_p99(pair, 'without'):.1f} ms, shadowed {_p99(pair, 'with'):.1f}"
                )
            run("rollout", "rollback", topology)
            found[name] = {"pairs": runs, **ratio([(_p99(one, "without"), _p99(one, "with")) for one in runs])}
            tell(f"{name}: {found[name]['ratio']:.2f} ({found[name]['low']:.2f} to {found[name]['high']:.2f})")
    world.project.forget(f"streamserve.{world.name}")
    return found


def from_the_end(world: World) -> Project:
    """Its workers begin where the topic ends: a backlog is not what is measured."""
    return replace(world.project, extra={**world.project.extra, "STREAMSERVE_START": "latest"})


def _p99(pair: dict[str, object], side: str) -> float:
    one = pair[side]
    assert isinstance(one, dict)  # noqa: S101
    return float(one["p99"])


def ratio(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The median over the pairs of with to without, and a 95% interval of it, by resampling the pairs."""
    ratios = np.array([after / before for before, after in pairs])
    drawn = np.random.default_rng(1).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return {"ratio": statistics.median(ratios.tolist()), "low": float(low), "high": float(high)}


def add(world: World, version: str, model: Path) -> str:
    """A version in the registry, unless it is there. What has no vocabulary takes the contest's all the same."""
    if not (world.project.folder / "registry" / "flight-delay" / version).exists():
        vocabularies = world.project.folder / "v1.vocabularies.json"
        world.project.run("models", "add", world.topology, version, model, "--vocabularies", vocabularies)
    return version
