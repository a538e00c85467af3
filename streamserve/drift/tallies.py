"""What one batch adds to a version's drift counts, and the sums of it that a commit takes along. Pure.

Events are told apart by source partition, event-time pane and segment: a *group*. Counts are whole numbers, so sums are
exact in any order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping
from ctypes import c_int64, c_void_p
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from streamserve.drift.chunks import Series
from streamserve.native import address, load
from streamserve.records import Int32s, Int64s, TopicPartition

SPAN = 1 << 12  # so many combinations at most are looked up in a table; beyond, the groups are sorted for
Segments = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Groups:
    """Of each event its group, and of each group what its events share.

    pane: milliseconds since 1970, where the pane begins. segment: index into `Tallied.segments`. rows: events.
    latest: the largest of their times.
    """

    of: Int32s
    partition: Int32s
    pane: Int64s
    segment: Int32s
    rows: Int64s
    latest: Int64s

    def __len__(self) -> int:
        return len(self.pane)


_FUNCTIONS = {"group_events": (c_int64, [c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int64, *[c_void_p] * 5])}


@cache
def library() -> ctypes.CDLL | None:
    return load("bins", _FUNCTIONS, ctypes.PyDLL)  # a few microseconds, with the interpreter's lock


def group(partitions: Int32s, event_times: Int64s, pane_ms: int, segments: Int32s | None = None) -> Groups:
    """Group events; all arrays are as long. segments: small whole numbers from 0 on; None: all the same."""
    lib, rows = library(), len(event_times)
    if not rows:
        nobody, nothing = np.empty(0, np.int32), np.empty(0, np.int64)
        return Groups(nobody, nobody, nothing, nobody, nothing, nothing)
    parts = 1 if segments is None else int(segments.max()) + 1
    codes = partitions if segments is None else partitions * np.int32(parts) + segments
    found = _in_numpy(codes, event_times, pane_ms) if lib is None else _compiled(lib, codes, event_times, pane_ms)
    of, code, pane, counts, latest = found
    return Groups(of, (code // parts).astype(np.int32), pane * pane_ms, (code % parts).astype(np.int32), counts, latest)


Found = tuple[Int32s, NDArray[np.integer], Int64s, Int64s, Int64s]  # of each event its group; of each group the rest


def _compiled(lib: ctypes.CDLL, codes: Int32s, event_times: Int64s, pane_ms: int) -> Found:
    rows = len(codes)
    table = np.full(1 << (2 * rows - 1).bit_length(), -1, np.int32)
    of, code = np.empty(rows, np.int32), np.empty(rows, np.int32)
    pane, counts, latest = np.empty(rows, np.int64), np.empty(rows, np.int64), np.empty(rows, np.int64)
    given = np.ascontiguousarray(codes, np.int32), np.ascontiguousarray(event_times, np.int64)
    filled = (address(one) for one in (of, code, pane, counts, latest))
    many = lib.group_events(address(given[0]), address(given[1]), rows, pane_ms, address(table), len(table), *filled)
    return of, code[:many], pane[:many], counts[:many], latest[:many]


def _in_numpy(given: Int32s, event_times: Int64s, pane_ms: int) -> Found:
    codes, panes = given.astype(np.int64), event_times // pane_ms
    first, last = int(panes.min()), int(panes.max())
    width = int(codes.max()) + 1
    if (last - first + 1) * width <= SPAN:  # in whole Python numbers: times may lie at both ends of time
        seen, of = _few((panes - first) * width + codes)
        panes, codes = seen // width + first, seen % width
    else:
        (panes, codes), places = np.unique(np.stack((panes, codes)), axis=1, return_inverse=True)
        of = places.reshape(-1).astype(np.int32)
    latest = np.full(len(panes), np.iinfo(np.int64).min)
    np.maximum.at(latest, of, event_times)
    return of, codes, panes, np.bincount(of, minlength=len(panes)), latest


def _few(keys: Int64s) -> tuple[Int64s, Int32s]:
    """np.unique with the inverse, for small keys: by counting, a tenth of the time that sorting takes."""
    seen = np.flatnonzero(np.bincount(keys))
    places = np.empty(int(seen[-1]) + 1, np.int32)
    places[seen] = np.arange(len(seen), dtype=np.int32)
    return seen, places[keys]


@dataclass(frozen=True, slots=True)
class Tallied:
    """What a version's events of one batch add.

    counted: events of each group that are in `counts`, int32 [groups, bins]: fewer where a share is sampled. reference:
    the fingerprint; "": the version has none, nothing is counted. segments: None, for all of the stream, and values.
    """

    version: str
    reference: str
    groups: Groups
    segments: Segments
    counted: Int64s
    counts: NDArray[np.int32]


def with_whole(tallied: Tallied) -> Tallied:
    """Of events told apart by segment, all of them too; those of segment 0 in no other way."""
    groups = tallied.groups
    if not len(groups):
        return tallied
    order = np.lexsort((groups.pane, groups.partition))
    partition, pane = groups.partition[order], groups.pane[order]
    is_first = np.append(True, (np.diff(partition) != 0) | (np.diff(pane) != 0))
    first = np.flatnonzero(is_first)
    of = np.empty(len(order), np.int32)
    of[order] = is_first.cumsum() - 1
    named = np.flatnonzero(groups.segment)
    rows, counted, counts = (
        np.concatenate((np.add.reduceat(one[order], first, dtype=one.dtype), one[named]))
        for one in (groups.rows, tallied.counted, tallied.counts)
    )
    both = Groups(
        of[groups.of],
        np.concatenate((partition[first], groups.partition[named])),
        np.concatenate((pane[first], groups.pane[named])),
        np.concatenate((np.zeros(len(first), np.int32), groups.segment[named])),
        rows,
        np.concatenate((np.maximum.reduceat(groups.latest[order], first), groups.latest[named])),
    )
    return replace(tallied, groups=both, counted=counted, counts=counts)


@dataclass(slots=True)
class Sum:
    """Of one version, pane and segment of a partition."""

    rows: int = 0
    counted: int = 0
    latest: int = -(2**63)
    counts: Int64s = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, rows: int, counted: int, latest: int, counts: NDArray[np.integer]) -> None:
        self.rows, self.counted, self.latest = self.rows + rows, self.counted + counted, max(self.latest, latest)
        self.counts = self.counts + counts if len(self.counts) else counts.astype(np.int64)


Place = tuple[Series, int]  # whose, and which pane


@dataclass(slots=True)
class _Account:
    """A partition, since its last chunk."""

    sums: dict[Place, Sum] = field(default_factory=dict)
    shed: int = 0


@dataclass(frozen=True, slots=True)
class BatchTallies:
    """What a batch adds, version by version, or its events, by partition, where it could not be counted."""

    of: tuple[Tallied, ...] = ()
    shed: Mapping[int, int] = field(default_factory=dict)


class Tallies:
    """Sums by partition. Its caller serialises the calls.

    most: sums that are kept at most, of all partitions, and more only of segments of what is kept; the events of what
    needs more are shed.
    """

    def __init__(self, most: int) -> None:
        self._accounts: dict[TopicPartition, _Account] = {}
        self._most, self._kept = most, 0

    def add(self, topic: str, partitions: Collection[int], batch: BatchTallies) -> None:
        """Add what a batch has of these partitions."""
        for partition, count in batch.shed.items():
            if partition in partitions:
                self._account((topic, partition)).shed += count
        for tallied in batch.of:
            self._add(topic, partitions, tallied)

    def _add(self, topic: str, partitions: Collection[int], tallied: Tallied) -> None:
        groups = tallied.groups
        whole = zip(
            groups.partition.tolist(), groups.pane.tolist(), groups.segment.tolist(),
            groups.rows.tolist(), tallied.counted.tolist(), groups.latest.tolist(), tallied.counts, strict=True,
        )  # fmt: skip
        for partition, pane, segment, rows, counted, latest, counts in whole:
            if partition in partitions:
                place = Series(tallied.version, tallied.reference, tallied.segments[segment]), pane
                self._put((topic, partition), place, rows, counted, latest, counts)

    def _put(
        self, at: TopicPartition, place: Place, rows: int, counted: int, latest: int, counts: NDArray[np.integer]
    ) -> None:
        account = self._account(at)
        one, (series, pane) = account.sums.get(place), place
        if one is None:
            whole = replace(series, segment=None)  # which comes first: a pane is kept with its segments, or not at all
            if self._kept >= self._most if series == whole else (whole, pane) not in account.sums:
                account.shed += rows if series == whole else 0
                return
            self._kept += 1
            one = account.sums[place] = Sum()
        one.add(rows, counted, latest, counts)

    def _account(self, at: TopicPartition) -> _Account:
        return self._accounts.setdefault(at, _Account())

    def merge(self, at: TopicPartition, other: Tallies) -> None:
        """Add what another has of a partition."""
        sums, shed = other.of(at)
        for place, one in sums.items():
            self._put(at, place, one.rows, one.counted, one.latest, one.counts)
        if shed:
            self._account(at).shed += shed

    def of(self, at: TopicPartition) -> tuple[Mapping[Place, Sum], int]:
        """What there is of a partition, and how many of its events were shed."""
        account = self._accounts.get(at)
        return ({}, 0) if account is None else (account.sums, account.shed)

    def forget(self, at: TopicPartition) -> None:
        """Of this partition, nothing is kept."""
        account = self._accounts.pop(at, None)
        self._kept -= 0 if account is None else len(account.sums)

    def clear(self) -> None:
        self._accounts.clear()
        self._kept = 0
