"""Which chunks count: each source offset once, whoever counted it, and however often. Pure.

A `Chain` is what is believed of one source partition: entries in the order of their offsets, none overlapping another,
owner epochs never falling. `Totals` is the sum of all chains by pane. An entry is a chunk, or a *block* of chunks that
can't be replaced any more in ordinary operation: what was committed is not read again. Blocks are cut at multiples of a
number of `T.panes` offsets, so that every fold has the same ones, wherever it began to read.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter

import numpy as np

from streamserve.drift.chunks import Chunk, Series
from streamserve.drift.watermark import Belief
from streamserve.records import Int64s

Key = tuple[int, Series, int]  # pane, series, sample_bp: what is not the same there is not added up
Span = tuple[int, int]  # event times, both ends included

_start = attrgetter("start")
_epoch = attrgetter("epoch")


@dataclass(slots=True)
class Sum:
    """Counts that were added up. counts are its own, and change."""

    rows: int
    counted: int
    counts: Int64s

    def add(self, other: Sum, sign: int = 1) -> None:
        self.rows += sign * other.rows
        self.counted += sign * other.counted
        self.counts += sign * other.counts

    def copy(self) -> Sum:
        return Sum(self.rows, self.counted, self.counts.copy())


@dataclass(slots=True, eq=False)
class Entry:
    """A chunk or a block. block: the number of the block of `T.panes` offsets that it came in.

    reach: the partition's believed event time after it; None: there was none yet. until: the latest event time that
    rows just before it may have, None: there is no telling; it may change until it is judged. settled: its end was
    committed. shed: rows, by the panes that they may belong to, first and last.
    """

    start: int
    stop: int
    epoch: int
    block: int
    reach: int | None = None
    until: int | None = None
    judged: bool = False
    settled: bool = False
    cells: dict[Key, Sum] = field(default_factory=dict)
    shed: dict[Span, int] = field(default_factory=dict)

    def absorb(self, later: Entry) -> None:
        """The one that follows it becomes part of it."""
        self.stop, self.epoch, self.reach = later.stop, later.epoch, later.reach
        for key, cell in later.cells.items():
            if key in self.cells:
                self.cells[key].add(cell)
            else:
                self.cells[key] = cell
        for span, rows in later.shed.items():
            self.shed[span] = self.shed.get(span, 0) + rows


def entry_of(chunk: Chunk, block: int, pane_ms: int) -> Entry:
    """A chunk by itself, with panes of this length; shorter panes are added up."""
    entry = Entry(chunk.start, chunk.stop, chunk.owner_epoch, block)
    for cell in chunk.cells:
        key = cell.pane_ms // pane_ms * pane_ms, cell.series, chunk.sample_bp
        one = Sum(cell.rows, cell.counted, cell.counts.copy())
        if key in entry.cells:
            entry.cells[key].add(one)
        else:
            entry.cells[key] = one
    return entry


class Chain:
    """One partition. holes: neighbours with offsets between that nobody counted. frontier: how far it ever came."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.holes: list[tuple[Entry, Entry]] = []
        self.frontier = -1

    def place(self, entry: Entry) -> list[Entry] | None:
        """Take it in. Returns what it replaces; None: it does not count, and nothing was changed.

        It replaces all of its own or lower epochs that start where it does or later, and one that reaches over its
        start, whose first part is lost thereby. It gives way to a higher epoch that starts before its end.
        """
        at = bisect_left(self.entries, entry.start, key=_start)
        after = bisect_right(self.entries, entry.epoch, key=_epoch)
        if after < len(self.entries) and self.entries[after].start < max(entry.stop, entry.start + 1):
            return None
        if at and self.entries[at - 1].stop > entry.start:
            at -= 1
        replaced = self.entries[at:after]
        self.entries[at:after] = [entry]
        if not at and replaced and replaced[0].start < entry.start:  # nothing is left that would show the hole
            self.entries.insert(0, Entry(replaced[0].start, replaced[0].start, -1, replaced[0].block))
        self.frontier = max(self.frontier, entry.stop)
        if replaced or at + 1 < len(self.entries) or (at and self.entries[at - 1].stop < entry.start):
            self._find_holes()
        return replaced

    def reach_before(self, entry: Entry) -> int | None:
        at = bisect_left(self.entries, entry.start, key=_start)
        return self.entries[at - 1].reach if at else None

    @property
    def is_behind(self) -> bool:
        """Not all that was counted once is counted again yet."""
        return bool(self.entries) and self.entries[-1].stop < self.frontier

    def _find_holes(self) -> None:
        self.holes = [(one, other) for one, other in pairwise(self.entries) if one.stop < other.start]

    def settle(self, entry: Entry) -> None:
        """What is followed without a gap was committed; committed neighbours of one block become one."""
        at = bisect_left(self.entries, entry.start, key=_start)
        for one, other in pairwise(self.entries[max(at - 1, 0) : at + 2]):
            one.settled = one.settled or one.stop == other.start
        for left in range(min(at, len(self.entries) - 2), max(at - 3, -1), -1):
            one, other = self.entries[left : left + 2]
            if one.settled and other.settled and one.stop == other.start and one.block == other.block:
                one.absorb(other)
                del self.entries[left + 1]
                self._find_holes()

    def learn(self, belief: Belief, lateness_ms: int) -> None:
        """How late the rows in a hole may be: as late as those behind it, once there are enough of them to believe.

        Before, those few may all be behind their time, by as much as the lateness.
        """
        since, newest = belief.recent
        for _, right in self.holes:
            if not right.judged:
                right.judged = since is not None and right.start < since
                is_heard = newest is not None and right.start <= newest
                latest = belief.latest if is_heard else None
                right.until = belief.reach if right.judged else None if latest is None else latest + lateness_ms

    def trim(self, block: int) -> None:
        """Whatever came in earlier blocks may be forgotten, but for how far the partition is."""
        gone = 0
        while gone < len(self.entries) - 1 and self.entries[gone].block < block:
            gone += 1
        if gone:
            del self.entries[:gone]
            self._find_holes()


class Totals:
    """The sum of all that counts, by pane. Whole numbers: what is taken out again leaves no trace.

    blocks: of each pane, the first block that it has counts from. bins: how long a series' counts are.
    """

    def __init__(self) -> None:
        self.panes: dict[int, dict[tuple[Series, int], Sum]] = {}
        self.blocks: dict[int, int] = {}
        self.bins: dict[tuple[str, str], int] = {}
        self.shed: dict[Span, int] = {}

    def misfit(self, chunk: Chunk) -> str:
        """Why its counts can't be added to those that are here; "": they can."""
        lengths: dict[tuple[str, str], int] = {}
        for cell in chunk.cells:
            name = cell.version, cell.reference
            known = self.bins.get(name, lengths.setdefault(name, len(cell.counts)))
            if known != len(cell.counts):
                return f"{len(cell.counts)} counts of {cell.version} by reference {cell.reference!r}, which has {known}"
        self.bins.update(lengths)
        return ""

    def put(self, entry: Entry) -> None:
        for (pane, series, sample), cell in entry.cells.items():
            held = self.panes.setdefault(pane, {})
            self.blocks[pane] = min(self.blocks.get(pane, entry.block), entry.block)
            if (series, sample) in held:
                held[series, sample].add(cell)
            else:
                held[series, sample] = cell.copy()
        for span, rows in entry.shed.items():
            self.shed[span] = self.shed.get(span, 0) + rows

    def take(self, entry: Entry) -> None:
        """What was put in before goes out again."""
        for (pane, series, sample), cell in entry.cells.items():
            self._less(pane, (series, sample), cell)
        for span, rows in entry.shed.items():
            self.shed[span] = self.shed.get(span, 0) - rows
            if self.shed[span] <= 0:
                del self.shed[span]

    def _less(self, pane: int, name: tuple[Series, int], cell: Sum) -> None:
        held = self.panes[pane]
        held[name].add(cell, -1)
        if not held[name].rows:
            del held[name]
        if not held:
            del self.panes[pane], self.blocks[pane]

    def between(self, start: int, end: int, pane_ms: int) -> dict[Series, tuple[Sum, set[int]]]:
        """Of the panes in [start, end): each series' sum, and the shares that it was sampled at."""
        found: dict[Series, tuple[Sum, set[int]]] = {}
        for pane in range(start, end, pane_ms):
            for (series, sample), cell in self.panes.get(pane, {}).items():
                if series in found:
                    found[series][0].add(cell)
                    found[series][1].add(sample)
                else:
                    found[series] = cell.copy(), {sample}
        return found

    def drop(self, pane: int) -> int:
        """Forget a pane. Returns how many events it had."""
        self.blocks.pop(pane, None)
        return events((series, cell) for (series, _), cell in self.panes.pop(pane, {}).items())


def events(cells: Iterable[tuple[Series, Sum]]) -> int:
    """How many they are: those of segments are among those of all."""
    return sum(cell.rows for series, cell in cells if series.segment is None)


def nothing(bins: int) -> Sum:
    return Sum(0, 0, np.zeros(bins, np.int64))


def shed_of(chunk: Chunk, entry: Entry, limit: int | None) -> dict[Span, int]:
    """Rows that were shed are where the chunk's others are, as far as these are believed; of none, at its reach."""
    panes = sorted(key[0] for key in entry.cells if limit is None or key[0] <= limit)
    if panes:
        return {(panes[0], panes[-1]): chunk.shed}
    return {} if entry.reach is None else {(entry.reach, entry.reach): chunk.shed}
