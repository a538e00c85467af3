"""Rows of feature views: their keys and bytes, and what a set of answers means for each event.

A row is an int64 feature time (milliseconds) and float32 fields, little-endian, written whole: a reader sees the
old row or the new one. No store is spoken to here; `FeatureStore` is the door through which bytes come.
"""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamserve.features.catalogue import view_fingerprint
from streamserve.records import EventBatch, FeatureStatus, Int64s, Uint8s
from streamserve.topology import View

PREFIX = "streamserve"
ESCAPED = r"[\\\x1f]"
SEPARATOR = "\x1f"  # between the values of a composite key; escaped where a value holds it


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


def key_prefix(view: View) -> str:
    return f"{PREFIX}:{view.name}:{view_fingerprint(view)}:"


def row_key(view: View, values: Sequence[str]) -> bytes:
    """The store's key of one row, for writers and for single look-ups."""
    return (key_prefix(view) + SEPARATOR.join(_escape(value) for value in values)).encode()


def pack(feature_time: int, values: NDArray[np.float32]) -> bytes:
    """One row. feature_time: milliseconds since 1970."""
    return struct.pack("<q", feature_time) + values.astype("<f4", copy=False).tobytes()


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(SEPARATOR, "\\" + SEPARATOR)


@dataclass(frozen=True, slots=True)
class _Keys:
    distinct: list[bytes]
    index: NDArray[np.intp]  # of each event; -1: a part of its key is null


def event_keys(view: View, events: EventBatch) -> _Keys:
    """The distinct row keys of a batch, and which of them each event means."""
    columns = [_escaped(events.columns.column(path)) for path in view.key]
    joined = columns[0]
    if len(columns) > 1:  # null where one of the parts is
        joined = pc.binary_join_element_wise(*(column.dictionary_decode() for column in columns), SEPARATOR)
    coded = joined if pa.types.is_dictionary(joined.type) else joined.dictionary_encode()
    index = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.intp)
    keys = pc.binary_join_element_wise(key_prefix(view), coded.dictionary, "").cast(pa.binary())
    return _Keys(keys.to_pylist(), index)


def _escaped(column: pa.Array) -> pa.DictionaryArray:
    """A key column's texts, each distinct one escaped once."""
    text = column if pa.types.is_string(column.type) else column.cast(pa.string())
    coded = text.dictionary_encode()
    if not pc.any(pc.match_substring_regex(coded.dictionary, ESCAPED)).as_py():
        return coded
    plain = pc.replace_substring(coded.dictionary, "\\", "\\\\")
    return pa.DictionaryArray.from_arrays(coded.indices, pc.replace_substring(plain, SEPARATOR, "\\" + SEPARATOR))


class StoredRows:
    """The rows of a batch's views, fetched in one round trip, each distinct key asked once.

    A view is read under the freshness and the defaults of whoever asks: two versions may pin different ones.
    """

    def __init__(self, views: Sequence[View], events: EventBatch, store: FeatureStore) -> None:
        self._event_times = events.event_times
        self._keys = {view.name: event_keys(view, events) for view in views}
        keys = [key for found in self._keys.values() for key in found.distinct]
        self._answer = store.fetch(keys) if keys else Answer(())
        self._done: dict[int, tuple[View, ViewColumns]] = {}

    def view(self, view: View) -> ViewColumns:
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
        values = self._answer.values
        rows = None if values is None else values[start : start + len(self._keys[view.name].distinct)]
        return _columns(view, self._keys[view.name], rows, self._answer.status, self._event_times)


def _columns(
    view: View, keys: _Keys, rows: Sequence[bytes | None] | None, why: FeatureStatus, event_times: Int64s
) -> ViewColumns:
    """Unpack the distinct rows once, spread them over the events, then judge each against its event's time."""
    defaults = view.defaults()
    if rows is None:
        values = np.broadcast_to(defaults, (len(keys.index), len(defaults))).copy()
        status = np.full(len(keys.index), why, np.uint8)
        status[keys.index < 0] = FeatureStatus.MISSING
        return ViewColumns(values, status)
    table, times, found = _unpack(rows, defaults)
    # index -1 (no key) reads the last row of the table: the defaults, MISSING
    values, status, feature_times = table[keys.index], found[keys.index], times[keys.index]
    present = status == FeatureStatus.PRESENT
    future = present & (feature_times > event_times)
    status[future] = FeatureStatus.FUTURE
    if view.max_age is not None:
        age_limit = np.uint64(max(0, view.max_age // dt.timedelta(milliseconds=1)))
        # Unsigned, because times of any event and any row may be more than 2**63 apart
        ages = event_times.astype(np.uint64) - feature_times.astype(np.uint64)
        status[present & ~future & (ages > age_limit)] = FeatureStatus.STALE
    for kind, rule in ((FeatureStatus.STALE, view.stale), (FeatureStatus.FUTURE, view.future)):
        if rule == "default":
            values[status == kind] = defaults
    return ViewColumns(values, status)


def _unpack(rows: Sequence[bytes | None], defaults: NDArray[np.float32]) -> tuple[NDArray[np.float32], Int64s, Uint8s]:
    """Values, feature times and status of the distinct rows; one more row at the end stands for "no key"."""
    size = 8 + 4 * len(defaults)
    dtype = np.dtype([("time", "<i8"), ("values", "<f4", (len(defaults),))])
    status = np.array(
        [
            FeatureStatus.MISSING
            if row is None
            else (FeatureStatus.PRESENT if len(row) == size else FeatureStatus.DEFAULTED)
            for row in rows
        ]
        + [FeatureStatus.MISSING],
        np.uint8,
    )
    table = np.empty((len(status), len(defaults)), np.float32)
    table[:] = defaults
    times = np.zeros(len(status), np.int64)
    good = status == FeatureStatus.PRESENT
    if good.any():
        packed = np.frombuffer(
            b"".join(row for row, ok in zip(rows, good, strict=False) if ok and row is not None), dtype
        )
        values = packed["values"]
        table[good] = np.where(np.isnan(values), defaults, values)
        times[good] = packed["time"]
    return table, times, status
