"""Simulated worlds: the product's folds, ledger, router and takeovers over a broker in memory, under seeded schedules.

    python tests/world.py 100000                  # so many schedules; the seed of the first is 1
    python tests/world.py 1000 --seed 77 --jobs 1 # by one process; else there is one a core
    python tests/world.py --replay 77             # one of them, step by step
    python tests/world.py 1000 --plant order      # with an error in the product (world_planted.py): is it found?

Two or three workers sleep, are kicked, crash, fail and start; what they send lands late or never; partitions move;
commands come at any moment. A schedule is a list of steps, drawn from its seed; then the faults end, and all must be
well. `world_laws.py` says what holds of every one. A failure is told with its seed, and the fewest steps that show it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from world_laws import Broken
from world_planted import planted
from world_steps import Step, World
from world_worker import wired

SHARE = 100  # schedules that a process takes at a time
OF_A_WORKER = frozenset(("run", "send", "read", "hear", "tell", "sleep", "wake", "crash", "stop", "spoil", "time_out"))


def carry_out(world: World, steps: Iterable[Step], told: Callable[[Step], None] = lambda _: None) -> World:
    """Take every step that can be taken, then see that all comes to rest.

    Raises:
        Broken: a law was.
    """
    try:
        for step in steps:
            if world.take(step):
                told(step)
        world.settle()
    finally:
        world.close()
    return world


def one(seed: int) -> World:
    """The world of a seed, from its beginning to its end."""
    return carry_out(*World.of(seed))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The product wired to worlds; what workers log of their faults is no news here.

    Worlds are small and many: the collector has no business in each of them.
    """
    before, often = logging.root.manager.disable, gc.get_threshold()
    logging.disable(logging.CRITICAL)
    gc.freeze()
    gc.set_threshold(100_000, *often[1:])
    try:
        with wired():
            yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*often)
        logging.disable(before)


def many(count: int, first: int = 1) -> Counter[str]:
    """So many schedules; in how many of them each thing happened."""
    found: Counter[str] = Counter()
    with quiet():
        for seed in range(first, first + count):
            try:
                found.update(one(seed).laws.coverage)
            except Broken as error:
                error.seed = seed
                raise
    return found


def _share(first: int, count: int) -> Counter[str] | tuple[int, int, str]:
    """Of one process: what `many` finds, or the seed that breaks a law, the law, and how."""
    try:
        return many(count, first)
    except Broken as error:
        return error.seed, error.law, error.what


def beside(count: int, first: int, jobs: int) -> Counter[str]:
    """The same as `many`, by several processes.

    Raises:
        Broken: one of the schedules breaks a law.
    """
    shares = [(seed, min(SHARE, first + count - seed)) for seed in range(first, first + count, SHARE)]
    found: Counter[str] = Counter()
    with multiprocessing.get_context("fork").Pool(jobs) as pool:  # forked: what is planted is planted there, too
        for told in [pool.apply_async(_share, share) for share in shares]:
            match told.get():
                case Counter() as happened:
                    found.update(happened)
                case seed, law, what:
                    error = Broken(law, what)
                    error.seed = seed
                    raise error
    return found


def shrunk(seed: int, law: int) -> list[Step]:
    """Of a schedule that breaks a law, steps that are enough for it."""
    steps = list(_taken(seed))
    size = len(steps) // 2
    while size:
        for start in range(0, len(steps), size):
            fewer = steps[:start] + steps[start + size :]
            if len(fewer) < len(steps) and _breaks(seed, fewer) == law:
                steps = fewer
        size //= 2
    return steps


def _taken(seed: int) -> list[Step]:
    world, steps = World.of(seed)
    with contextlib.suppress(Broken):
        carry_out(world, steps)
    return world.steps


def _breaks(seed: int, steps: Sequence[Step]) -> int | None:
    """The law that these steps break in the world of a seed."""
    try:
        carry_out(World.of(seed)[0], steps)
    except Broken as error:
        return error.law
    return None


def story(seed: int, steps: Iterable[Step] | None = None) -> Iterator[str]:
    """A schedule, step by step, and what came of it. steps: in place of those that the seed draws."""
    world, drawn = World.of(seed)
    lines: list[str] = []
    yield f"{world.delivery}, {len(world.broker.ends)} partitions"
    try:
        carry_out(world, drawn if steps is None else steps, lambda step: lines.append(_line(world, step)))
        lines.append("no law broken")
    except Broken as error:
        lines.append(str(error))
    yield from lines


def _line(world: World, step: Step) -> str:
    broker = world.broker
    workers = [f"{w.name}{'~' if w.asleep else ''} {w.where()}" for w in world.workers if not w.dead]
    logs = f"control {len(broker.control)} progress {len(broker.progress)} events {broker.ends} done {world.laws.upto}"
    said = f"{step[0]} {world.whom}" if step[0] in OF_A_WORKER else " ".join(map(str, step))
    return f"{said:14} {logs}   {', '.join(workers)}"


def _report(count: int, first: int, jobs: int) -> None:
    began = time.monotonic()
    found = beside(count, first, jobs)
    spent = time.monotonic() - began
    for what, times in sorted(found.items(), key=lambda item: -item[1]):
        sys.stdout.write(f"{times:10,}  {what}\n")
    sys.stdout.write(f"{count:,} schedules, no law broken; {count / spent * 60:,.0f} a minute\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; a core each, unless said")
    parser.add_argument("--replay", type=int, metavar="SEED")
    parser.add_argument("--plant", default="", help="names of world_planted.py, joined by +")
    asked = parser.parse_args()
    with planted(*filter(None, asked.plant.split("+"))):
        if asked.replay is not None:
            with quiet():
                sys.stdout.writelines(f"{line}\n" for line in story(asked.replay))
            return
        try:
            _report(asked.count, asked.seed, asked.jobs)
        except Broken as error:
            with quiet():
                lines = list(story(error.seed, shrunk(error.seed, error.law)))
            sys.exit("\n".join([f"seed {error.seed}: {error}", "The fewest steps that still show it:", *lines]))


if __name__ == "__main__":
    main()
