"""What stands in the output topics of some source events: of each event the prediction of the highest control epoch.

Dense columns over a span of offsets of each partition, some 40 bytes an event, in a file without a name that the
system pages in and out: a long topic costs disk, not memory. Pure but for that file; nothing of routing is known.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamserve.records import Indices, Int64s
from streamserve.simulate.said import Said

Ints = NDArray[np.signedinteger[Any]]
Span = tuple[int, int]  # the first offset, and the one after the last
LETTER, REFUSED = 1, 2
NONE = 0  # in place of an epoch: nothing was predicted. Epochs stand one higher, so that an empty file says so
ROW = np.dtype([("epoch", "<i8"), ("scored_at", "<i8"), ("words", "<i4"), ("letter", "u1"), ("seen", "u1")])


@dataclass(frozen=True, slots=True)
class Rows:
    """Of some source records: which have a prediction, what it says, and which have a dead letter.

    refused: of these, those that were scored, and whose prediction was too large for its topic.
    """

    predicted: NDArray[np.bool_]
    letter: NDArray[np.bool_]
    refused: NDArray[np.bool_]
    said: Said


class Standing:
    """Predictions and dead letters by the position of their event.

    spans: by source partition; what is outside of them is left out, and counted.
    """

    def __init__(self, spans: Mapping[int, Span]) -> None:
        sizes = [max(end - first, 0) for first, end in spans.values()]
        count = max(spans, default=-1) + 1
        self._base, self._first, self._end = (np.zeros(count, np.int64) for _ in range(3))
        for (partition, (first, end)), base in zip(spans.items(), np.cumsum([0, *sizes]).tolist(), strict=False):
            self._base[partition], self._first[partition] = base, first
            self._end[partition] = max(end, first)
        self._size = sum(sizes)
        self._rows = _paged((self._size,), ROW)
        self._bits = _paged((self._size, 1), np.dtype("<i8"))
        self._copies: dict[int, list[Said]] = {}  # of the same epoch as the one that is kept, and other than it
        self.repeated = 0  # records beyond the first of their event
        self.outside = 0

    def __len__(self) -> int:
        return self._size

    def _places(self, partitions: Ints, offsets: Int64s) -> tuple[Indices, Indices]:
        """Which of these are inside, and where."""
        known = np.flatnonzero((partitions >= 0) & (partitions < len(self._end)))
        p, o = partitions[known], offsets[known]
        inside = (o >= self._first[p]) & (o < self._end[p])
        known, p, o = known[inside], p[inside], o[inside]
        self.outside += len(partitions) - len(known)
        return known, self._base[p] + o - self._first[p]

    def predictions(self, said: Said) -> None:
        """Take records, in any order."""
        rows, places = self._places(said.partitions, said.offsets)
        said = said.take(rows)
        self._widen(said.bits.shape[1])
        while len(places):
            # An event may be there twice: the first of each now, the others in the next round
            _, now = np.unique(places, return_index=True)
            self._merge(places[now], said.take(now))
            rest = np.setdiff1d(np.arange(len(places)), now)
            places, said = places[rest], said.take(rest)

    def letters(self, partitions: Int64s, offsets: Int64s, refused: NDArray[np.bool_]) -> None:
        """Take the positions of events that became dead letters. refused: as in Rows."""
        rows, places = self._places(partitions, offsets)
        self.repeated += len(places) - len(np.unique(places)) + int(np.count_nonzero(self._rows["letter"][places]))
        self._rows["letter"][places] = np.where(refused[rows], REFUSED, LETTER)

    def _merge(self, places: Indices, said: Said) -> None:
        held, new = self._rows["epoch"][places], said.epochs + 1
        self.repeated += int(np.count_nonzero(held != NONE))
        higher = new > held
        for place in places[higher & (held != NONE)].tolist():
            self._copies.pop(place, None)
        self._put(places[higher], said.take(np.flatnonzero(higher)))
        same = np.flatnonzero(new == held)
        other = (self._rows["words"][places[same]] != said.words[same]) | (
            self._bits[places[same]] != said.wide(self._bits.shape[1])[same]
        ).any(axis=1)
        for row in same[other].tolist():
            self._copies.setdefault(int(places[row]), []).append(said.take(np.array([row])))

    def _put(self, places: Indices, said: Said) -> None:
        self._rows["epoch"][places] = said.epochs + 1
        self._rows["scored_at"][places] = said.scored_at
        self._rows["words"][places] = said.words
        self._bits[places] = said.wide(self._bits.shape[1])

    def _widen(self, width: int) -> None:
        before = self._bits
        if width > before.shape[1]:
            self._bits = _paged((self._size, width), before.dtype)
            self._bits[:, : before.shape[1]] = before

    def at(self, partitions: Ints, offsets: Int64s) -> Rows:
        """What stands for these source records, all inside of the spans. They are remembered as seen."""
        places = self._base[partitions] + offsets - self._first[partitions]
        self._rows["seen"][places] = 1
        rows = self._rows[places]
        said = Said(
            partitions.astype(np.int64),
            offsets,
            rows["epoch"] - 1,
            rows["words"],
            rows["scored_at"],
            self._bits[places],
        )
        letter = rows["letter"]
        return Rows(rows["epoch"] != NONE, letter != 0, letter == REFUSED, said)

    def copies(self, partitions: Ints, offsets: Int64s) -> list[tuple[int, Said]]:
        """Further predictions of the epoch that is kept, which say something else; by the row of their record."""
        if not self._copies:
            return []
        places = self._base[partitions] + offsets - self._first[partitions]
        return [(row, one) for row, place in enumerate(places.tolist()) for one in self._copies.get(place, ())]

    def unanswered(self) -> int:
        """How many offsets have neither; those of no record are among them."""
        return sum(int(np.count_nonzero((part["epoch"] == NONE) & (part["letter"] == 0))) for part in self._parts())

    def of_no_event(self) -> tuple[int, Sequence[tuple[int, int]]]:
        """Of how many offsets something stands that no record was seen of; and where the first of them are."""
        count, found = 0, list[tuple[int, int]]()
        for at, part in zip(range(0, self._size, PART), self._parts(), strict=True):
            places = at + np.flatnonzero(((part["epoch"] != NONE) | (part["letter"] != 0)) & (part["seen"] == 0))
            count += len(places)
            found += [self._position(place) for place in places[: EXAMPLES - len(found)].tolist()]
        return count, found

    def highest(self) -> dict[int, int]:
        """By partition, the offset after the last that something stands of."""
        found = {}
        for partition in np.flatnonzero(self._end > self._first).tolist():
            base, size = int(self._base[partition]), int(self._end[partition] - self._first[partition])
            part = self._rows[base : base + size]
            there = np.flatnonzero((part["epoch"] != NONE) | (part["letter"] != 0))
            found[partition] = int(self._first[partition]) + (int(there[-1]) + 1 if len(there) else 0)
        return found

    def _parts(self) -> Sequence[NDArray[Any]]:
        return [self._rows[at : at + PART] for at in range(0, self._size, PART)]

    def _position(self, place: int) -> tuple[int, int]:
        sizes = self._end - self._first
        partition = int(np.flatnonzero((self._base <= place) & (place < self._base + sizes))[0])
        return partition, int(self._first[partition] + place - self._base[partition])


PART = 1_000_000  # rows that are looked at together
EXAMPLES = 10


def _paged(shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """Zeros in a file that is gone with the process."""
    if not shape[0]:
        return np.zeros(shape, kind)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, kind, "w+", shape=shape)
