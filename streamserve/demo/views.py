"""Feature views of the demo: what was known of each carrier, plane and route on March 1st 2013.

Computed from the flights of January and February only, and of these only from flights whose outcome was known
by then, so that a model trained on March learns from nothing that lay ahead of it. Each row's `feature_time`
is the moment from which that row could be known: keys that fly often have fresh rows, others old ones.

Rates and mean delays are smoothed: (sum + 20 * overall mean) / (flights + 20), as if each key came with 20
average flights. Without it a plane that was late on its only flight has a late rate of 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from streamserve.demo.data import flights_frame, source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pandas import DataFrame, Series
    from pandas.core.groupby import DataFrameGroupBy

TRAINING_START = 1_362_096_000_000  # 2013-03-01T00:00Z, milliseconds since 1970
DAYS = 59  # of January and February
PRIOR_FLIGHTS = 20

KEYS: Mapping[str, tuple[str, ...]] = {
    "carrier": ("carrier",),
    "plane": ("tailnum",),
    "route": ("origin", "dest"),
}


def view_tables(frame: DataFrame | None = None) -> dict[str, pa.Table]:
    """A table per view of `KEYS`, a row per key, sorted by key.

    Columns: the key columns (string), feature_time (timestamp[ms, UTC]), float32 fields with NaN for unknown.

    Args:
        frame: as of `data.flights_frame`, which is called if none is given.
    """
    past = known_flights(flights_frame() if frame is None else frame)
    compute = {"carrier": _carriers, "plane": _planes, "route": _routes}
    tables = {}
    for view, keys in KEYS.items():
        groups = past.dropna(subset=list(keys)).groupby(list(keys), sort=True)
        tables[view] = _table(groups, compute[view](groups, past))
    return tables


def known_flights(frame: DataFrame) -> DataFrame:
    """The flights due to depart before training starts and whose outcome was known by then.

    Adds `settled`, milliseconds since 1970: when a flight arrived or, if it never did, was known to be late.
    """
    settled = frame["arrived"].fillna(frame["known"]).astype("int64")
    return frame.assign(settled=settled)[(frame["scheduled_departure"] < TRAINING_START) & (settled < TRAINING_START)]


def _carriers(groups: DataFrameGroupBy, past: DataFrame) -> dict[str, Series]:
    """Delays in minutes on arrival (negative: early); rates from 0 to 1."""
    return {
        "late_rate": _smooth(groups["late"], past["late"]),
        "mean_delay": _smooth(groups["arr_delay"], past["arr_delay"]),
        "cancel_rate": _cancel_rate(groups, past),
        "flights_per_day": groups.size() / DAYS,
        "median_delay": groups["arr_delay"].median(),
        "mean_departure_delay": _smooth(groups["dep_delay"], past["dep_delay"]),
    }


def _planes(groups: DataFrameGroupBy, past: DataFrame) -> dict[str, Series]:
    """The last three are from the register of planes, which lacks one plane in six."""
    register = source("planes").set_index("tailnum").reindex(groups.size().index)
    return {
        "late_rate": _smooth(groups["late"], past["late"]),
        "mean_delay": _smooth(groups["arr_delay"], past["arr_delay"]),
        "flights": groups.size(),
        "year": register["year"],
        "seats": register["seats"],
        "engines": register["engines"],
    }


def _routes(groups: DataFrameGroupBy, past: DataFrame) -> dict[str, Series]:
    """Air time in minutes, speed in miles per hour over the great circle."""
    air_time = groups["air_time"].mean()
    return {
        "late_rate": _smooth(groups["late"], past["late"]),
        "mean_delay": _smooth(groups["arr_delay"], past["arr_delay"]),
        "std_delay": groups["arr_delay"].std(),
        "mean_air_time": air_time,
        "speed": groups["distance"].mean() / air_time * 60,
        "flights_per_day": groups.size() / DAYS,
    }


def _cancel_rate(groups: DataFrameGroupBy, past: DataFrame) -> Series:
    """Those that did not depart; one that was diverted did."""
    departed = groups["dep_time"].count()
    overall = past["dep_time"].isna().mean()
    return (groups.size() - departed + PRIOR_FLIGHTS * overall) / (groups.size() + PRIOR_FLIGHTS)


def _smooth(values: DataFrameGroupBy, overall: Series) -> Series:
    return (values.sum() + PRIOR_FLIGHTS * overall.mean()) / (values.count() + PRIOR_FLIGHTS)


def _table(groups: DataFrameGroupBy, fields: dict[str, Series]) -> pa.Table:
    known = groups["settled"].max()
    columns = {name: pa.array(known.index.get_level_values(name), pa.string()) for name in known.index.names}
    columns["feature_time"] = pa.array(known.to_numpy(), pa.timestamp("ms", "UTC"))
    for name, values in fields.items():
        columns[name] = pa.array(values.reindex(known.index).to_numpy(np.float32))
    return pa.table(columns)
