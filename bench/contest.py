"""The contest: the same flights, views and model for ONNX Runtime alone, streamserve, a careful loop and stock Faust.

The floor is ONNX Runtime as it comes. Beside it stand what its trees cost once they are compiled, and what streamserve
costs where they are not.

Contestants are interleaved, forwards in odd rounds and backwards in even ones, each in processes of its own, against
one broker and one Redis on this machine. CPU is the client processes', from the first tenth of the output to the last.
The uniform part is the same for three of them, on keys that no cache knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.flights import VERSION, World
from bench.measure import Cost
from bench.workers import drain, script

FLOOR, TREES = "ONNX Runtime alone", "ONNX Runtime, compiled trees"
STREAMSERVE, ONCE, TWO = "streamserve", "streamserve, exactly once", "streamserve, two workers"
OWN = "streamserve, trees uncompiled"
LOOP, FAUST, SUM = "careful loop", "stock Faust", "summed floor"
STAGES = ("decode", "route", "enrich", "score", "emit")
REST = "Kafka client and the rest"
FLIGHTS = 336_776  # events that are no repetition
ROWS = 2000  # where a worker's own batches are not known
Tell = Callable[[str], None]
Results = dict[str, object]


@dataclass(frozen=True)
class Contestant:
    """events: how many of the topic's it is given; slow ones get fewer."""

    name: str
    events: int
    run: Callable[[int], Cost]


def contestants(world: World, loop_events: int, faust_events: int) -> list[Contestant]:
    """All eight."""
    uncompiled = replace(world.project, extra={**world.project.extra, "STREAMSERVE_COMPILED_TREES": "false"})
    few, fewest = min(loop_events, world.events), min(faust_events, world.events)

    def by_hand(module: str) -> Callable[[int], Cost]:
        return lambda events: script(world.project, module, world.topic, events, world.careful)

    return [
        Contestant(FLOOR, world.events, lambda events: floor(world, events)),
        Contestant(TREES, world.events, lambda events: floor(world, events, "trees")),
        Contestant(STREAMSERVE, world.events, lambda n: drain(world.project, world.topology, world.name, n)),
        Contestant(ONCE, world.events, lambda n: drain(world.project, world.exactly_once, world.name, n)),
        Contestant(TWO, world.events, lambda n: drain(world.project, world.topology, world.name, n, 2)),
        Contestant(OWN, world.events, lambda n: drain(uncompiled, world.topology, world.name, n)),
        Contestant(LOOP, few, by_hand("bench.loops.plain_loop")),
        Contestant(FAUST, fewest, by_hand("bench.loops.stock_faust")),
    ]


def floor(world: World, events: int, kind: str = "ort") -> Cost:
    """ONNX Runtime alone, on the same matrices, one thread. kind: `trees` for the compiled ones in it."""
    return alone(world, kind, world.model, world.matrix, "features", events)


def alone(world: World, *words: object) -> Cost:
    """One part of the work in a process of its own."""
    return Cost.of(world.project.child("bench.alone", *words))


def in_rounds(entries: list[Contestant], rounds: int, tell: Tell) -> dict[str, list[Cost]]:
    """Every contestant once a round, in turns forwards and backwards."""
    found: dict[str, list[Cost]] = {entry.name: [] for entry in entries}
    for number in range(rounds):
        for entry in entries if number % 2 == 0 else entries[::-1]:
            cost = entry.run(entry.events)
            found[entry.name].append(cost)
            tell(
                f"round {number + 1}  {entry.name:<26} {cost.rate:>9,.0f}/s  {cost.us:7.2f} us  {cost.rss[1]:5.0f} MiB"
            )
    return found


def as_results(found: dict[str, list[Cost]]) -> Results:
    """For the JSON file."""
    return {"runs": {name: [cost.as_dict() for cost in costs] for name, costs in found.items()}}


def contest(world: World, rounds: int, loop_events: int, faust_events: int, tell: Tell) -> Results:
    """All contestants, and the pipeline's CPU by stage, in batches as large as the worker's were."""
    found = in_rounds(contestants(world, loop_events, faust_events), rounds, tell)
    return {**as_results(found), "stages": stages(world, found[STREAMSERVE], rounds, tell)}


def stages(world: World, seen: list[Cost], rounds: int, tell: Tell) -> list[dict[str, object]]:
    """CPU microseconds an event by stage, once a round."""
    sizes = [cost.rows for cost in seen if cost.rows]
    rows = round(sum(sizes) / len(sizes)) if sizes else ROWS
    words = (world.topology, VERSION, world.sample, rows, min(world.events, FLIGHTS))
    found = [world.project.child("bench.stages", *words) for _ in range(rounds)]
    tell(f"stages, {rows} rows a batch: {found[-1]}")
    return [{"rows": rows, **one} for one in found]


def uniform(world: World, rounds: int, loop_events: int, tell: Tell) -> Results:
    """The floor, streamserve and the careful loop on uniformly drawn keys."""
    wanted = (FLOOR, STREAMSERVE, LOOP)
    entries = [entry for entry in contestants(world, loop_events, 0) if entry.name in wanted]
    return as_results(in_rounds(entries, rounds, tell))
