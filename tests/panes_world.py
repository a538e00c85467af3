"""Random worlds of workers that count into `T.panes`, what the windows must be, and errors planted in the fold."""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
from planting import planted_in

from streamserve.drift.chunks import Cell, Chunk
from streamserve.drift.fold import Fold
from streamserve.drift.windows import Window, WindowRule, told

BINS = 4
PANE = 10
TOPIC = "flights"
STEP_MS = 100  # between two records of T.panes
LIFE = "killed before", "killed after", "sleeps", "again"  # what befalls a worker with a chunk
LOSS = "lost", "cut", "rewound"


@dataclass(frozen=True)
class Event:
    partition: int
    offset: int
    time: int
    version: str
    segment: str | None
    bin: int


@dataclass(frozen=True)
class World:
    rule: WindowRule
    partitions: int
    events: list[list[Event]]  # by partition
    end: int  # all windows that end by here must be said
    log: list[Chunk]

    @property
    def has_sleepers(self) -> bool:
        """Words that come after a later owner's."""
        epochs = [[one.owner_epoch for one in self.log if one.partition == p] for p in range(self.partitions)]
        return any(each != sorted(each) for each in epochs)


def chunk_of(events, start, stop, epoch, *, idle=False, partition=None, shed=0, sample_bp=10_000) -> Chunk:
    """What a worker writes of these events. An event is a cell of its version, and of its segment where it has one."""
    counts = defaultdict(lambda: [0, 0, np.zeros(BINS, np.int64)])
    for one in events[start:stop]:
        for segment in {None, one.segment}:
            cell = counts[one.version, segment, one.time // PANE * PANE]
            cell[0] += 1
            cell[1] = max(cell[1], one.time)
            cell[2][one.bin] += 1
    cells = tuple(Cell(v, "r" + v, s, pane, n, n, late, c) for (v, s, pane), (n, late, c) in counts.items())
    partition = events[0].partition if partition is None else partition
    return Chunk(TOPIC, partition, start, stop, epoch, idle, shed, sample_bp, cells)


def world(seed: int, *, lossy: bool = False, wild: bool = False) -> World:
    """1 to 8 workers. lossy: some chunks are lost, or cut otherwise than the commits. wild: some clocks are wrong."""
    rng = np.random.default_rng(seed)
    slide = PANE * int(rng.integers(1, 5))
    patient = rng.random() < 0.3
    rule = WindowRule(
        size_ms=slide * int(rng.integers(1, 4)),
        slide_ms=slide,
        lateness_ms=100_000 if patient else PANE * int(rng.integers(0, 4)),
        pane_ms=PANE,
        block_chunks=int(rng.choice([1, 4, 64])),
    )
    partitions = int(rng.integers(1, 5))
    pace = int(rng.choice([1, 3, 10]))
    events = [_events(rng, p, pace, rule, wild=wild) for p in range(partitions)]
    end = max(e.time for some in events for e in some if e.time < 10**6) // PANE * PANE + 10 * PANE + rule.size_ms
    after = end + rule.size_ms + (0 if patient else rule.lateness_ms)  # the idle are not waited for
    logs = []
    for p, some in enumerate(events):
        log, epoch = _counted(rng, some, lossy=lossy, idling=patient)
        some += [Event(p, len(some) + n, after, "a", None, 0) for n in range(100)]  # the end: everything passes
        log.append(chunk_of(some, len(some) - 100, len(some), epoch))
        logs.append(log)
    merged = _merged(rng, logs)
    return World(rule, partitions, events, end, merged)


def _events(rng, partition, pace, rule, *, wild) -> list[Event]:
    count = int(rng.integers(1, 100))
    steps = np.cumsum(rng.integers(0, pace + 1, count)) + np.cumsum(rng.random(count) < 0.02) * 40 * PANE
    behind = np.where(rng.random(count) < 0.3, rng.integers(0, min(rule.lateness_ms, 50) + 1, count), 0)
    times = 1_000 + np.maximum(steps - behind, 0)
    if wild:  # at most 2 of any 64, never among the first
        at = np.arange(20 + int(rng.integers(0, 20)), count, 33)
        times[at] = 10**6 + rng.integers(0, 10**6, len(at))
    canary, segments = rng.random(), rng.random() < 0.4
    return [
        Event(
            partition,
            offset,
            int(time),
            "b" if rng.random() < canary / 3 else "a",
            str(rng.choice(["x", "y"])) if segments else None,
            int(rng.integers(0, BINS)),
        )
        for offset, time in enumerate(times)
    ]


def _counted(rng, events, *, lossy, idling) -> tuple[list[Chunk], int]:
    """One partition's chunks in the order of the log, by owners that die, sleep and try again."""
    log: list[Chunk] = []
    sleeping: list[tuple[int, Chunk]] = []  # lands when the log is so long
    committed, epoch, size = 0, int(rng.integers(0, 9)), int(rng.integers(1, 30))
    trouble = rng.choice([0.0, 0.3, 0.6])
    while committed < len(events):
        stop = min(committed + 1 + int(rng.integers(0, size)), len(events))
        chunk, what = chunk_of(events, committed, stop, epoch), "well"
        if rng.random() < trouble:
            what = str(rng.choice([*LIFE, *(LOSS if lossy and log else ())]))
        if what in {"well", "killed after", "again", "cut"}:
            log.append(chunk)
        elif what == "sleeps":
            sleeping.append((len(log) + int(rng.integers(0, 6)), chunk))
        committed = _committed(rng, what, committed, stop)
        if what == "well" and rng.random() < 0.2:
            log.append(chunk_of(events, stop, stop, epoch, idle=idling or stop == len(events)))
        if what not in {"well", "again"}:
            epoch += int(rng.integers(1, 9))
        for landed in [one for one in sleeping if one[0] <= len(log)]:
            sleeping.remove(landed)
            log.append(landed[1])
    return [*log, *(chunk for _, chunk in sleeping)], epoch


def _committed(rng, what, committed, stop) -> int:
    if what == "cut":  # it had several commits, and the last one did not come about
        return int(rng.integers(committed, stop))
    if what == "rewound":  # by an operator
        return int(rng.integers(0, committed + 1)) if rng.random() < 0.3 else committed
    return stop if what in {"well", "lost"} else committed


def _merged(rng, logs) -> list[Chunk]:
    """All partitions' chunks in one log: each in its own order."""
    order = rng.permutation([p for p, log in enumerate(logs) for _ in log])
    each = [iter(log) for log in logs]
    return [next(each[p]) for p in order]


# ---- what the windows must be


def expected(world: World) -> dict:
    """(start, version, segment) -> (rows, counts), from the events alone."""
    found: dict = {}
    rule = world.rule
    for event in (one for some in world.events for one in some):
        for start in range(0, world.end - rule.size_ms + 1, rule.slide_ms):
            if start <= event.time < start + rule.size_ms:
                for segment in {None, event.segment}:
                    counts = found.setdefault((start, event.version, segment), [0] * BINS)
                    counts[event.bin] += 1
    return {key: (sum(counts), tuple(counts)) for key, counts in found.items()}


def fold_of(world: World, earlier=None) -> Fold:
    return Fold(world.rule, {TOPIC: world.partitions}, earlier)


def run(world: World, *, every: int = 1) -> list[Window]:
    """All that is said. every: how many records are read at once."""
    fold, said, mark = fold_of(world), [], None
    for offset, chunk in enumerate(world.log):
        fold.add(chunk, offset, offset * STEP_MS)
        if (offset + 1) % every == 0:
            said += fold.due()
        assert mark is None or fold.watermark >= mark, "the watermark went back"
        mark = fold.watermark
    return [*said, *fold.due()]


def last(said, end) -> dict:
    """What stands in the end: (start, version, segment) -> Window."""
    return {(w.start_ms, w.series.version, w.series.segment): w for w in said if w.end_ms <= end}


def figures(said, end) -> dict:
    return {key: (w.rows, tuple(w.counts.tolist())) for key, w in last(said, end).items() if w.rows}


def words(said) -> list:
    """What a record says, but for what depends on when it was said."""
    return [(w.start_ms, w.series, w.revision, w.rows, w.digest, w.sample_bp, w.complete) for w in said]


# ---- laws


def no_revision_is_in_vain(said) -> None:
    before: dict = {}
    for one in said:
        was = before.get((one.start_ms, one.series))
        assert one.revision == (was.revision + 1 if was else 0)
        assert was is None or was.digest != one.digest
        before[one.start_ms, one.series] = one


def check_exact(seed: int) -> None:
    """Each event counts once, whoever counted it, and every window is complete."""
    made = world(seed)
    said = run(made, every=1 + seed % 7)
    assert figures(said, made.end) == expected(made)
    assert all(one.complete and not one.late and not one.wild for one in said)
    no_revision_is_in_vain(said)


def check_lossy(seed: int) -> None:
    """Where something is missing, the window says so; nothing counts twice."""
    made = world(seed, lossy=True)
    said, wanted = run(made, every=1 + seed % 7), expected(made)
    got = figures(said, made.end)
    for key, window in last(said, made.end).items():
        assert got.get(key) == wanted.get(key) or not window.complete, f"{key} lacks something"
        assert window.rows <= wanted.get(key, (0,))[0], f"{key} has something twice"
    no_revision_is_in_vain(said)


def check_wild(seed: int) -> None:
    """A wild minority moves nothing, and is told; the others' windows are what they would be."""
    made = world(seed, wild=True)
    said = run(made)
    calm = replace(made, events=[[e for e in some if e.time < 10**6] for some in made.events])
    assert figures([w for w in said if w.start_ms < 10**5 or made.rule.lateness_ms > 10**4], made.end) == expected(calm)
    assert not any(w.late for w in said if w.end_ms <= made.end)


def check_restart(seed: int) -> None:
    """A fold that begins at `panes_from`, told what was written, goes on as if nothing had been."""
    made, rng = world(seed, lossy=seed % 3 == 0), np.random.default_rng([seed, 1])
    whole = run(made)
    written: list[Window] = []
    fold, offset, lives = fold_of(made), 0, 4
    while offset < len(made.log):
        fold.add(made.log[offset], offset, offset * STEP_MS)
        said = fold.due()
        offset += 1
        if lives and rng.random() < 0.1:  # it dies in the middle of writing
            lives -= 1
            written += said[: int(rng.integers(0, len(said) + 1))]
            fold, offset = fold_of(made, told(written)), written[-1].panes_from if written else 0
        else:
            written += said
    if made.has_sleepers and words(written) != words(whole):  # it may doubt what the first one knew, and no more
        assert figures(written, made.end) == figures(whole, made.end)
        stands, known = last(written, made.end), last(whole, made.end)
        assert all(known[key].complete for key in known if stands[key].complete)
        return
    assert words(written) == words(whole)


# ---- errors


PLANTED = {  # what goes wrong: module, old, new, the law that it breaks
    "nothing is replaced": (
        "chains", "replaced = self.entries[at:after]", "replaced = self.entries[after:after]", check_exact
    ),
    "what is replaced stays in the sum": ("fold", "self._totals.take(one)", "pass", check_exact),
    "the same owner's are not replaced": (
        "chains", "bisect_right(self.entries, entry.epoch,", "bisect_left(self.entries, entry.epoch,", check_exact
    ),
    "epochs are ignored": (
        "chains", "bisect_right(self.entries, entry.epoch, key=_epoch)", "len(self.entries)", check_exact
    ),
    "a sleeper may lie over a later owner": ("chains", "max(entry.stop, entry.start + 1)", "entry.start", check_lossy),
    "an older one that reaches over stays": (
        "chains", "if at and self.entries[at - 1].stop > entry.start:", "if False:", check_lossy
    ),
    "blocks are made before the commit": (
        "chains", "one.settled and other.settled and one.stop", "one.stop", check_exact
    ),
    "blocks reach over holes": ("chains", "and one.stop == other.start and one.block", "and one.block", check_lossy),
    "holes are not told": ("chains", "if one.stop < other.start]", "if False]", check_lossy),
    "a hole has no time before it": (
        "fold", "left.reach - lateness < end", "left.reach < end - lateness - 100", check_lossy
    ),
    "wild times are believed": ("watermark", "return pane + self._quorum.ahead_ms", "return max(panes)", check_wild),
    "any event is a quorum": (
        "watermark", "need, seen = self._quorum.of(panes.total()), 0", "need = seen = 1", check_wild
    ),
    "the fastest partition leads": ("watermark", "min(heard) if active", "max(heard) if active", check_exact),
    "who never spoke is not waited for": ("watermark", "len(heard) >= len(active)", "True", check_exact),
    "windows close as they pass": ("windows", "+ self.size_ms + self.lateness_ms", "+ self.size_ms", check_exact),
    "a pane lacks its first window": (
        "windows", "* self.slide_ms + self.slide_ms, last", "* self.slide_ms + 2 * self.slide_ms, last", check_exact
    ),
    "nothing is mended": ("fold", "{key[0] for key in entry.cells if key[0] < self._floor}", "()", check_exact),
    "what closes is not mended before": ("fold", "self._say_mended(now)", "pass", check_exact),
    "what was said is forgotten": ("fold", "was is None or was.digest != mark", "True", check_exact),
    "a new fold is told nothing": (
        "fold", "self._said.setdefault(start, {})[series] = emitted", "pass", check_restart
    ),
    "a new fold speaks while it reads again": (
        "fold", "self._next is None or self._next < self._again", "False", check_restart
    ),
    "a new fold begins too late": (
        "fold", "return self._from() * self._block", "return self._next or 0", check_restart
    ),
    "a window is done with its first series": (
        "fold", "if passed is not None and number == len(changed):", "if passed is not None:", check_restart
    ),
}  # fmt: skip


def planted(name: str) -> AbstractContextManager[None]:
    """The fold with this error in it."""
    where, old, new, _ = PLANTED[name]
    return planted_in(f"streamserve.drift.{where}", old, new, name)
