"""Rows of feature views: their keys and bytes, and what a set of answers means for each event.

A row is an int64 feature time (milliseconds) and float32 fields, little-endian, written whole: a reader sees the
old row or the new one. No store is spoken to here; `FeatureStore` is the door through which bytes come.
"""

from __future__ import annotations

import datetime as dt
import math
import struct
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamserve.features import packed
from streamserve.features.buffers import Texts, cut, valid
from streamserve.features.catalogue import view_fingerprint
from streamserve.native import address
from streamserve.records import EventBatch, FeatureStatus, Int32s, Int64s, Uint8s
from streamserve.topology import View

PREFIX = "streamserve"
MAX_GRID = 100_000  # combinations of key parts that are counted on a grid; beyond it they are sorted
SEPARATOR = "\x1f"  # between the values of a composite key; escaped where a value holds it
SEPARATOR_BYTES = SEPARATOR.encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the store said: values in the order of the keys, or None for all of them and the status that tells why."""

    values: Sequence[bytes | None] | None
    status: FeatureStatus = FeatureStatus.PRESENT


class FeatureStore(Protocol):
    def fetch(self, keys: Sequence[bytes]) -> Answer:
        """The rows of these keys in one round trip, within the store's deadline; never raises for an outage."""
        ...


@dataclass(frozen=True, slots=True)
class ViewColumns:
    """A view's values for each event of a batch.

    values: float32 [events, fields], defaults filled in. status: uint8 [events] of FeatureStatus.
    """

    values: NDArray[np.float32]
    status: Uint8s


@dataclass(frozen=True, slots=True)
class _Known:
    """What follows from a view alone, and would cost 40 us a batch."""

    view: View
    prefix: str  # of its rows' keys
    key: packed.Key
    defaults: NDArray[np.float32]
    age_limit: int | None  # milliseconds
    rule: packed.Rule

    @classmethod
    def of(cls, view: View) -> _Known:
        made = _known.get(id(view))
        if made is None or made.view is not view:
            limit = None if view.max_age is None else max(0, view.max_age // dt.timedelta(milliseconds=1))
            defaults = np.ascontiguousarray(view.defaults())
            rule = packed.Rule(
                fields=len(defaults),
                defaults=address(defaults),
                max_age=-1 if limit is None else limit,
                use_stale=view.stale == "use",
                use_future=view.future == "use",
            )
            prefix = f"{PREFIX}:{view.name}:{view_fingerprint(view)}:"
            made = _known[id(view)] = cls(view, prefix, packed.Key.of(prefix.encode(), view.key), defaults, limit, rule)
        return made


_known: dict[int, _Known] = {}  # by identity; a process has few views, and they live as long as it does


def key_prefix(view: View) -> str:
    return _Known.of(view).prefix


@lru_cache
def row_layout(fields: int) -> np.dtype[np.void]:
    return np.dtype([("time", "<i8"), ("values", "<f4", (fields,))])


def row_key(view: View, values: Sequence[str]) -> bytes:
    """The store's key of one row, for writers and for single look-ups."""
    return (key_prefix(view) + SEPARATOR.join(_escape(value) for value in values)).encode()


def pack(feature_time: int, values: NDArray[np.float32]) -> bytes:
    """One row. feature_time: milliseconds since 1970."""
    return struct.pack("<q", feature_time) + values.astype("<f4", copy=False).tobytes()


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(SEPARATOR, "\\" + SEPARATOR)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a view's rows that a batch means."""

    distinct: list[bytes]
    index: NDArray[np.integer]  # of each event; -1: a part of its key is null


def event_keys(views: Sequence[View], texts: Texts) -> list[Keys]:
    """The distinct row keys of a batch, view by view, and which of them each event means."""
    lib, made = packed.library(), None
    if lib is not None and views:
        rules = [_Known.of(view).key for view in views]
        made = texts.packed(lib).distinct_keys(rules)
        if made is None:  # a part of a key is no text
            every = texts.together({path for view in views for path in view.key})
            made = packed.Batch(lib, every).distinct_keys(rules)
    return [_keys(view, texts) for view in views] if made is None else [Keys(*one) for one in made]


def _keys(view: View, texts: Texts) -> Keys:
    parts = [texts.coded(path) for path in view.key]
    prefix, values = key_prefix(view).encode(), [_escaped(part.values) for part in parts]
    if len(parts) == 1:
        return Keys([prefix + value for value in values[0]], parts[0].codes)
    pairs, index = _combine([part.codes for part in parts], [len(found) for found in values])
    columns = [[found[code] for code in codes] for found, codes in zip(values, pairs, strict=True)]
    return Keys([prefix + SEPARATOR_BYTES.join(key) for key in zip(*columns, strict=True)], index)


def _combine(codes: Sequence[Int32s], sizes: Sequence[int]) -> tuple[list[list[int]], NDArray[np.intp]]:
    """The distinct combinations of codes, column by column, and which of them each row has; -1: one is null."""
    there = np.logical_and.reduce([one >= 0 for one in codes])
    if math.prod(sizes) > MAX_GRID:
        rows = np.flatnonzero(there)
        distinct, where = np.unique(np.stack([one[rows] for one in codes]), axis=1, return_inverse=True)
        index = np.full(len(there), -1, np.intp)
        index[rows] = where.ravel()
        return distinct.tolist(), index
    place = np.zeros(len(there), np.intp)
    for one, size in zip(codes, sizes, strict=True):
        place = place * size + one
    number = np.full(math.prod(sizes) + 1, -1, np.intp)  # of each combination; the last stands for null
    place[~there] = len(number) - 1
    number[place] = 0
    number[-1] = -1
    met = np.flatnonzero(number == 0)
    number[met] = np.arange(len(met))
    return [one.tolist() for one in np.unravel_index(met, sizes)], number[place]


def _escaped(values: Sequence[str]) -> list[bytes]:
    """Texts as key parts."""
    together = "".join(values)
    if "\\" in together or SEPARATOR in together:
        return [_escape(value).encode() for value in values]
    return [value.encode() for value in values]


class StoredRows:
    """The rows of a batch's views, fetched in one round trip, each distinct key asked once.

    A view is read under the freshness and the defaults of whoever asks: two versions may pin different ones.
    """

    def __init__(self, views: Sequence[View], events: EventBatch, texts: Texts, store: FeatureStore) -> None:
        self._event_times = events.event_times
        self._keys = dict(zip((view.name for view in views), event_keys(views, texts), strict=True))
        keys = [key for found in self._keys.values() for key in found.distinct]
        answer = store.fetch(keys) if keys else Answer(())
        self._status = answer.status
        self._rows = None if answer.values is None else pa.array(answer.values, pa.binary())
        self._done: dict[int, tuple[View, ViewColumns]] = {}
        self._others: StoredRows | None = None

    def knows(self, view: View) -> bool:
        """Whether this view's rows were asked for."""
        return view.name in self._keys

    def beside(self, others: StoredRows) -> StoredRows:
        """These rows, and those of other views of the same batch."""
        found = copy(self)
        found._others = others  # noqa: SLF001  (one of its own kind)
        return found

    def view(self, view: View) -> ViewColumns:
        if self._others is not None and not self.knows(view):
            return self._others.view(view)
        done = self._done.get(id(view))
        if done is None:
            done = self._done[id(view)] = (view, self._read(view))
        return done[1]

    def _read(self, view: View) -> ViewColumns:
        start = 0
        for name, keys in self._keys.items():
            if name == view.name:
                break
            start += len(keys.distinct)
        keys = self._keys[view.name]
        rows = None if self._rows is None else self._rows[start : start + len(keys.distinct)]
        return _columns(view, keys, rows, self._status, self._event_times)


def _columns(
    view: View, keys: Keys, rows: pa.BinaryArray | None, why: FeatureStatus, event_times: Int64s
) -> ViewColumns:
    """Unpack the distinct rows once, spread them over the events, then judge each against its event's time."""
    known, lib = _Known.of(view), packed.library()
    defaults = known.defaults
    if rows is None:
        values = np.broadcast_to(defaults, (len(keys.index), len(defaults))).copy()
        status = np.full(len(keys.index), why, np.uint8)
        status[keys.index < 0] = FeatureStatus.MISSING
        return ViewColumns(values, status)
    if lib is not None:
        return ViewColumns(*packed.spread(lib, known.rule, rows, keys.index, event_times))
    table, times, found = _unpack(rows, defaults)
    # index -1 (no key) reads the last row of the table: the defaults, MISSING
    values, status, feature_times = table[keys.index], found[keys.index], times[keys.index]
    present = status == FeatureStatus.PRESENT
    future = present & (feature_times > event_times)
    _mark(future, FeatureStatus.FUTURE, view.future, status, values, defaults)
    if known.age_limit is not None:
        # Unsigned, because times of any event and any row may be more than 2**63 apart
        ages = event_times.astype(np.uint64) - feature_times.astype(np.uint64)
        stale = present & ~future & (ages > np.uint64(known.age_limit))
        _mark(stale, FeatureStatus.STALE, view.stale, status, values, defaults)
    return ViewColumns(values, status)


def _mark(
    rows: NDArray[np.bool_],
    kind: FeatureStatus,
    rule: str,
    status: Uint8s,
    values: NDArray[np.float32],
    defaults: NDArray[np.float32],
) -> None:
    if rows.any():
        status[rows] = kind
        if rule == "default":
            values[rows] = defaults


def _unpack(rows: pa.BinaryArray, defaults: NDArray[np.float32]) -> tuple[NDArray[np.float32], Int64s, Uint8s]:
    """Values, feature times and status of the distinct rows; one more row at the end stands for "no key"."""
    dtype = row_layout(len(defaults))
    count = len(rows)
    status = np.full(count + 1, FeatureStatus.MISSING, np.uint8)
    table = np.empty((count + 1, len(defaults)), np.float32)
    times = np.zeros(count + 1, np.int64)
    table[:] = defaults
    there, (starts, data) = valid(rows), cut(rows)
    sizes = np.diff(starts)
    fits = sizes == dtype.itemsize
    status[:-1][~fits] = FeatureStatus.DEFAULTED
    if there is not None:
        status[:-1][~there] = FeatureStatus.MISSING
        fits &= there
    if data is not None and fits.any():
        good = np.flatnonzero(fits)
        status[good] = FeatureStatus.PRESENT
        if (sizes[~fits] == 0).all():  # rows that are there lie one after the other
            packed = np.frombuffer(data, dtype, len(good), starts[good[0]])
        else:
            packed = np.frombuffer(b"".join(rows[at].as_py() for at in good.tolist()), dtype)
        values = packed["values"]
        table[good] = np.where(np.isnan(values), defaults, values)
        times[good] = packed["time"]
    return table, times, status
