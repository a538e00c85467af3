"""Parts of timestamps (hour, weekday, ...) in a time zone, by arithmetic on whole columns.

Zone offsets are asked of `zoneinfo` at both ends of each distinct UTC day, and kept. Where they differ, at both ends
of each quarter of an hour of that day: nearly every zone's offset changes on such a boundary. Where it does not
(St. John's changed at one minute past midnight until 2011), the times of that quarter are asked one by one. No zone of
the tz database changes its offset twice within a UTC day (a test looks at them all).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamserve.features import packed
from streamserve.features.buffers import Mask, numbers, valid
from streamserve.records import Int32s

DATE, TIMESTAMP = pa.date32().id, pa.timestamp("ms").id
QUARTER_MS = 15 * 60 * 1000
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
FIRST_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0
# Python's datetime ends in 9999 and starts in 1: outside of it a zone's offset is taken as zero
FIRST_MS, LAST_MS = -62_135_596_800_000 + DAY_MS, 253_402_300_800_000 - DAY_MS
PACKED = ("minute", "hour", "weekday")  # parts that the compiled part knows
DAYS, NEAR = 47_482, 32  # days until 2100; how many are learnt at a time
FEW_SPANS = 8  # days that a batch of live traffic may touch: if all have one offset, nothing is asked event by event


@dataclass(frozen=True, slots=True)
class Clock:
    """What a clock of some zone showed. wall: milliseconds since 1970; valid: what is not null, None: all of it."""

    wall: NDArray[np.int64]
    valid: Mask | None

    def part(self, part: str) -> NDArray[np.float64]:
        """A part of the time, float64 [rows], NaN where it is null."""
        values = _part(self.wall, part).astype(np.float64)
        if self.valid is not None:
            values[~self.valid] = np.nan
        return values


def packed_parts(batch: packed.Batch, path: str, tz: str, parts: Sequence[str]) -> NDArray[np.float64] | None:
    """Several of PACKED side by side, float64 [rows, parts]; None: they must be had one by one."""
    days, letters = None if tz == "UTC" else _days(tz), "".join(part[0] for part in parts).encode()
    while True:
        found = batch.parts(path, days, letters)
        if not isinstance(found, int):
            return found
        if days is None or not _learn(days, found, tz):
            return None


@lru_cache(maxsize=64)
def _days(tz: str) -> Int32s:  # noqa: ARG001
    """The zone's offset on each day, as `Batch.parts` wants it; learnt as days are met."""
    return np.full(DAYS, packed.UNKNOWN, np.int32)


def _learn(days: Int32s, day: int, tz: str) -> bool:
    """Note the offsets of a day and of those around it; False: it has not one alone, or lies too far off."""
    if not 0 <= day < len(days):
        return False
    first = day - day % NEAR
    for one in range(first, min(first + NEAR, len(days))):
        start, end = _span_offsets(one, DAY_MS, tz)
        if start == end:
            days[one] = start
    return bool(days[day] != packed.UNKNOWN)


def wall_clock(array: pa.Array, tz: str) -> Clock:
    """A timestamp or date column as the zone's clocks showed it."""
    ms = milliseconds(array)
    if tz == "UTC" or array.type.id == DATE:  # a date has no hour that a zone could shift
        return Clock(ms, valid(array))
    return Clock(ms + offsets_ms(ms, tz), valid(array))


def time_part(array: pa.Array, part: str, tz: str) -> NDArray[np.float64]:
    """A part of a timestamp or date column, float64 [rows], NaN where it is null."""
    return wall_clock(array, tz).part(part)


def milliseconds(array: pa.Array) -> NDArray[np.int64]:
    """A timestamp (any unit), date or integer column as int64 milliseconds since 1970; 0 where null."""
    kind = array.type
    if kind.id == DATE:
        return _whole(array, np.int32).astype(np.int64) * DAY_MS
    if kind.id != TIMESTAMP:
        return _whole(array, kind.to_pandas_dtype()).astype(np.int64)
    whole, unit = _whole(array, np.int64), kind.unit
    if unit == "ms":
        return np.asarray(whole, np.int64)
    if unit == "s":
        return np.asarray(whole * 1000)
    return np.asarray(np.floor_divide(whole, 1000 if unit == "us" else 1_000_000))


def _whole(array: pa.Array, dtype: type[np.generic]) -> NDArray[np.generic]:
    """Whole numbers; 0 where null."""
    there, values = valid(array), numbers(array, dtype)
    return values if there is None else np.where(there, values, values.dtype.type(0))


def offsets_ms(ms: NDArray[np.int64], tz: str) -> NDArray[np.int64]:
    """What to add to UTC to get the wall clock of the zone."""
    return _by_span(ms, tz, DAY_MS, lambda inside: _by_span(inside, tz, QUARTER_MS, lambda few: _one_by_one(few, tz)))


def _by_span(
    ms: NDArray[np.int64], tz: str, span: int, within: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """The offset of each span of time that holds one of these; `within` tells those of a span in which it changes."""
    if not len(ms):
        return np.zeros(0, np.int64)
    low, high = int(ms.min()) // span, int(ms.max()) // span
    if high - low < FEW_SPANS:
        offsets = {offset for number in range(low, high + 1) for offset in _span_offsets(number, span, tz)}
        if len(offsets) == 1:
            return np.full(len(ms), offsets.pop())
    spans, where = _distinct(np.floor_divide(ms, span))
    ends = [_span_offsets(one, span, tz) for one in spans.tolist()]
    found = np.array([first for first, _ in ends], np.int64)[where]
    for place, (first, last) in enumerate(ends):
        if first != last:
            inside = where == place
            found[inside] = within(ms[inside])
    return found


def _distinct(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """The distinct values, and of each row which it is; without sorting where all lie close together, as times do."""
    low, high = int(values.min()), int(values.max())
    if high - low >= len(values):
        distinct, where = np.unique(values, return_inverse=True)
        return distinct, where
    steps = values - low
    there = np.zeros(high - low + 1, bool)
    there[steps] = True
    return np.flatnonzero(there) + low, (np.cumsum(there) - 1)[steps]


def _one_by_one(ms: NDArray[np.int64], tz: str) -> NDArray[np.int64]:
    return np.array([_offset_ms(one, tz) for one in ms.tolist()], np.int64)


@lru_cache(maxsize=100_000)
def _span_offsets(number: int, span: int, tz: str) -> tuple[int, int]:
    """The zone's offset at the first and the last millisecond of a span of time."""
    return _offset_ms(number * span, tz), _offset_ms((number + 1) * span - 1, tz)


def _offset_ms(ms: int, tz: str) -> int:
    if not FIRST_MS <= ms <= LAST_MS:
        return 0
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=ms)
    offset = moment.astimezone(ZoneInfo(tz)).utcoffset()
    return 0 if offset is None else int(offset.total_seconds() * 1000)


def _part(ms: NDArray[np.int64], part: str) -> NDArray[np.int64]:
    if part == "minute":
        return np.asarray(np.floor_divide(ms, MINUTE_MS) % 60)
    if part == "hour":
        return np.asarray(np.floor_divide(ms, HOUR_MS) % 24)
    days = np.floor_divide(ms, DAY_MS)
    if part == "weekday":
        return np.asarray((days + FIRST_WEEKDAY) % 7)
    dates = days.astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    if part == "day":
        return np.asarray((dates - months).astype(np.int64) + 1)
    if part == "month":
        return months.astype(np.int64) % 12 + 1
    if part == "dayofyear":
        return np.asarray((dates - dates.astype("datetime64[Y]")).astype(np.int64) + 1)
    raise ValueError(part)
