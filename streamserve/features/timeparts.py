"""Parts of timestamps (hour, weekday, ...) in a time zone, by arithmetic on whole columns.

Zone offsets are asked of `zoneinfo` at the ends of each distinct quarter of an hour: a micro-batch of live events
spans one or two. Nearly every zone's offset changes on such a boundary; where it does not (St. John's changed at one
minute past midnight until 2011), the times of that quarter are asked one by one.
"""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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
    if array.null_count:
        values[array.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return values


def time_part(array: pa.Array, part: str, tz: str) -> NDArray[np.float64]:
    """A part of a timestamp or date column, float64 [rows], NaN where it is null."""
    return part_of(wall_clock(array, tz), array, part)


def milliseconds(array: pa.Array) -> NDArray[np.int64]:
    """A timestamp (any unit), date or integer column as int64 milliseconds since 1970; 0 where null."""
    if pa.types.is_date32(array.type):
        return _whole(array.cast(pa.int32())).astype(np.int64) * DAY_MS
    if pa.types.is_timestamp(array.type):
        unit = array.type.unit
        whole = _whole(array.cast(pa.int64()))
        if unit in PER_MS:
            return np.asarray(whole * PER_MS[unit])
        return np.asarray(np.floor_divide(whole, 1000 if unit == "us" else 1_000_000))
    return _whole(array.cast(pa.int64()))


def _whole(array: pa.Array) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = array.fill_null(0).to_numpy(zero_copy_only=False)
    return numbers


def offsets_ms(ms: NDArray[np.int64], tz: str) -> NDArray[np.int64]:
    """What to add to UTC to get the wall clock of the zone."""
    quarters, where = np.unique(np.floor_divide(ms, QUARTER_MS), return_inverse=True)
    starts = [quarter * QUARTER_MS for quarter in quarters.tolist()]
    first = np.array([_offset_ms(start, tz) for start in starts], np.int64)
    last = np.array([_offset_ms(start + QUARTER_MS - 1, tz) for start in starts], np.int64)
    found = first[where]
    for split in np.flatnonzero(first != last):
        inside = where == split
        found[inside] = [_offset_ms(one, tz) for one in ms[inside].tolist()]
    return found


@lru_cache(maxsize=100_000)
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
