"""Parts of timestamps (hour, weekday, ...) in a time zone, by arithmetic on whole columns.

Zone offsets are asked of `zoneinfo` at both ends of each distinct UTC day, and kept. Where they differ, at both ends
of each quarter of an hour of that day: nearly every zone's offset changes on such a boundary. Where it does not
(St. John's changed at one minute past midnight until 2011), the times of that quarter are asked one by one. No zone of
the tz database changes its offset twice within a UTC day (a test looks at them all).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamserve.features.buffers import numbers, valid

QUARTER_MS = 15 * 60 * 1000
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
FIRST_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0
# Python's datetime ends in 9999 and starts in 1: outside of it a zone's offset is taken as zero
FIRST_MS, LAST_MS = -62_135_596_800_000 + DAY_MS, 253_402_300_800_000 - DAY_MS
PER_MS = {"s": 1000, "ms": 1}


def wall_clock(array: pa.Array, tz: str) -> NDArray[np.int64]:
    """A timestamp or date column as milliseconds of the zone's wall clock since 1970; 0 where null."""
    ms = milliseconds(array)
    if tz == "UTC" or pa.types.is_date32(array.type):  # a date has no hour that a zone could shift
        return ms
    return ms + offsets_ms(ms, tz)


def part_of(wall: NDArray[np.int64], array: pa.Array, part: str) -> NDArray[np.float64]:
    """A part of the column whose wall clock this is, float64 [rows], NaN where the column is null."""
    values = _part(wall, part).astype(np.float64)
    there = valid(array)
    if there is not None:
        values[~there] = np.nan
    return values


def time_part(array: pa.Array, part: str, tz: str) -> NDArray[np.float64]:
    """A part of a timestamp or date column, float64 [rows], NaN where it is null."""
    return part_of(wall_clock(array, tz), array, part)


def milliseconds(array: pa.Array) -> NDArray[np.int64]:
    """A timestamp (any unit), date or integer column as int64 milliseconds since 1970; 0 where null."""
    if pa.types.is_date32(array.type):
        return _whole(array.view(pa.int32())).astype(np.int64) * DAY_MS
    if pa.types.is_timestamp(array.type):
        unit = array.type.unit
        whole = _whole(array.view(pa.int64()))
        if unit in PER_MS:
            return np.asarray(whole * PER_MS[unit])
        return np.asarray(np.floor_divide(whole, 1000 if unit == "us" else 1_000_000))
    return _whole(array).astype(np.int64)


def _whole(array: pa.Array) -> NDArray[np.generic]:
    """Whole numbers; 0 where null."""
    there, values = valid(array), numbers(array, array.type.to_pandas_dtype())
    return values if there is None else np.where(there, values, values.dtype.type(0))


def offsets_ms(ms: NDArray[np.int64], tz: str) -> NDArray[np.int64]:
    """What to add to UTC to get the wall clock of the zone."""
    return _by_span(ms, tz, DAY_MS, lambda inside: _by_span(inside, tz, QUARTER_MS, lambda few: _one_by_one(few, tz)))


def _by_span(
    ms: NDArray[np.int64], tz: str, span: int, within: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """The offset of each span of time that holds one of these; `within` tells those of a span in which it changes."""
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
    if not len(values):
        return values, np.zeros(0, np.intp)
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
