"""Scores through Kafka are bit for bit those of ONNX Runtime over features that pandas computed.

The pandas half of this file is a second implementation: it reads the flights and the view tables as they are on
disk and knows nothing of the package's features or pipeline. The other half is a plain consumer of the predictions.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import fastavro
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Project
from onnx import TensorProto, helper
from support import (
    Broker,
    Record,
    bits,
    by_source,
    direct,
    flights,
    framed,
    late,
    renamed,
    save,
    serve_until,
    source_of,
    view_tables,
    with_schemas,
)

from streamserve.demo.train import export_onnx, train
from streamserve.pipeline.schemas import EventSchema
from streamserve.simulate.recorded import keys_of, to_avro

pytestmark = pytest.mark.services

TOPOLOGY = "bits"
SOURCE, GROUP = f"{TOPOLOGY}.events", f"streamserve.{TOPOLOGY}"
EVENTS, TREES, TRAINED_ON = 6000, 50, 20_000
WEATHER = ("temp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")
DAY_MS = 86_400_000


# ---- the features once more, in pandas


@dataclass(frozen=True)
class ViewRule:
    """A view of topologies/flights.py, copied by hand. Stale rows are replaced, future ones are used."""

    keys: tuple[str, ...]
    fields: tuple[str, ...]
    max_age: int
    default: tuple[float, ...]


RULES = {
    "carrier": ViewRule(
        ("carrier",),
        ("late_rate", "mean_delay", "cancel_rate", "flights_per_day", "median_delay", "mean_departure_delay"),
        300 * DAY_MS,
        (0.259, 6.2, 0.035, 111.0, -3.1, 10.6),
    ),
    "plane": ViewRule(
        ("tailnum",),
        ("late_rate", "mean_delay", "flights", "year", "seats", "engines"),
        180 * DAY_MS,
        (0.259, 6.5, 28.0, 2001.0, 136.0, 2.0),
    ),
    "route": ViewRule(
        ("origin", "dest"),
        ("late_rate", "mean_delay", "std_delay", "mean_air_time", "speed", "flights_per_day"),
        300 * DAY_MS,
        (0.255, 5.7, 37.3, 153.6, 372.0, 9.8),
    ),
}


def frame_of(rows: np.ndarray) -> pd.DataFrame:
    """Some flights, the weather's fields beside the others, times as integers."""
    frame = flights().take(rows).flatten().to_pandas()
    for name in ("scheduled_departure", "weather.observed"):
        frame[name] = frame[name].astype("datetime64[ms]").astype("int64")
    return frame


def vocabularies(frame: pd.DataFrame) -> dict[str, list[str]]:
    """All but the rarest values, so that unseen ones are met."""
    return {name: frame[name].value_counts().index[:-2].tolist() for name in ("origin", "carrier", "dest")}


def code(column: pd.Series, words: list[str]) -> pd.Series:
    return column.map({word: at + 2 for at, word in enumerate(words)}).fillna(1).where(column.notna(), 0)


def look_up(frame: pd.DataFrame, name: str) -> tuple[pd.DataFrame, pd.Series]:
    """A view's fields for each event, and what it had."""
    rule, events = RULES[name], frame.reset_index(drop=True)
    table = view_tables()[name].to_pandas()
    table["feature_time"] = table["feature_time"].dt.tz_localize(None).astype("datetime64[ms]").astype("int64")
    table = table[[*rule.keys, "feature_time", *rule.fields]]
    met = events[[*rule.keys, "scheduled_departure"]].merge(
        table[table[list(rule.keys)].notna().all(axis=1)], how="left", on=list(rule.keys), validate="many_to_one"
    )
    age = met["scheduled_departure"] - met["feature_time"]
    status = pd.Series("PRESENT", met.index)
    status[age < 0] = "FUTURE"
    status[age > rule.max_age] = "STALE"
    status[met["feature_time"].isna()] = "MISSING"
    values = met[list(rule.fields)].astype(np.float32)
    values[status.isin(["STALE", "MISSING"])] = np.nan
    return values.fillna(dict(zip(rule.fields, np.float32(rule.default), strict=True))), status


@dataclass(frozen=True)
class Expected:
    matrix: np.ndarray  # float32 [events, features]
    names: tuple[str, ...]
    status: pd.DataFrame  # by view


def features(frame: pd.DataFrame, words: dict[str, list[str]]) -> Expected:
    """The model's input, in the catalogue's order."""
    clock = pd.to_datetime(frame["scheduled_departure"], unit="ms", utc=True).dt.tz_convert("America/New_York").dt
    columns = {"distance": frame["distance"], **{name: code(frame[name], words[name]) for name in words}}
    columns |= {f"weather.{name}": frame[f"weather.{name}"] for name in WEATHER}
    columns |= {"hour": clock.hour, "minute": clock.minute, "weekday": clock.day_of_week}
    columns["night"] = (clock.hour < 6) | (clock.hour >= 22)
    status = {}
    for view in RULES:
        values, status[view] = look_up(frame, view)
        columns |= {f"{view}.{name}": values[name] for name in values}
    matrix = np.column_stack([np.asarray(values, np.float64).astype(np.float32) for values in columns.values()])
    return Expected(matrix, tuple(columns), pd.DataFrame(status))


# ---- a project that serves it


@dataclass(frozen=True)
class Sent:
    """What was sent, and where it lies. frame: the flights, row by row as the records."""

    frame: pd.DataFrame
    records: list[Record]
    places: list[tuple[int, int]]


@dataclass(frozen=True)
class Setup:
    project: Project
    topology: Path
    model: Path
    words: dict[str, list[str]]
    broker: Broker
    sent: Sent


@pytest.fixture(scope="module")
def setup(endpoints, tmp_path_factory) -> Setup:
    project = Project(tmp_path_factory.mktemp("bits"), endpoints)
    with_schemas(project)
    topology = renamed(project, ROOT / "topologies" / "flights.py", TOPOLOGY)
    chosen = np.sort(np.random.default_rng(1).choice(flights().num_rows, TRAINED_ON, replace=False))
    frame = frame_of(chosen)
    words = vocabularies(frame)
    known = features(frame, words)
    booster = train(known.matrix, late()[chosen], list(known.names), trees=TREES)
    export_onnx(booster, known.matrix.shape[1], project.folder / "model.onnx")
    put_in_force(project, topology, words)
    broker = Broker(endpoints.bootstrap)
    return Setup(project, topology, project.folder / "model.onnx", words, broker, send(broker))


def put_in_force(project: Project, topology: Path, words: dict[str, list[str]]) -> None:
    folder = project.folder
    for name, table in view_tables().items():
        pq.write_table(table, folder / f"{name}.parquet")
    (folder / "words.json").write_text(json.dumps(words))
    pq.write_table(flights().slice(0, 200), folder / "golden.parquet")
    project.ok("topics", "apply", topology)
    project.ok("features", "load", topology, *(f"{name}={folder / name}.parquet" for name in RULES))
    project.ok(
        "models", "add", topology, "v1", folder / "model.onnx",
        "--vocabularies", folder / "words.json", "--golden", folder / "golden.parquet",
    )  # fmt: skip
    project.ok("topology", "init", topology, "--version", "v1")


def send(broker: Broker) -> Sent:
    """Flights from all over the year, and more of those that the views or the weather know little of."""
    table, random = flights(), np.random.default_rng(2)
    bare = np.flatnonzero(table["tailnum"].is_null().to_numpy() | table["weather"].is_null().to_numpy())
    december = np.arange(table.num_rows - 5000, table.num_rows)
    some = [random.choice(table.num_rows, EVENTS - 700), random.choice(bare, 400), random.choice(december, 300)]
    rows = np.sort(np.unique(np.concatenate(some)))
    frame, events = frame_of(rows), table.take(rows).to_pylist()
    schema = fastavro.schema.load_schema(str(ROOT / "schemas" / "flight.avsc"))
    began = time.time_ns() // 1_000_000 - 6 * 3_600_000
    records = [
        Record(
            key=None if event["tailnum"] is None else event["tailnum"].encode(),
            value=framed(schema, utc(event), 1),
            headers=[("trace", bytes([at % 256])), ("twice", b"a"), ("twice", None)] if at % 3 == 0 else None,
            timestamp=began + at,
        )
        for at, event in enumerate(events)
    ]
    return Sent(frame, records, broker.produce(SOURCE, records))


def utc(event: dict[str, object]) -> dict[str, object]:
    """Fastavro takes a time without a zone for one of this machine's."""
    weather = event["weather"]
    if weather is not None:
        weather = {**weather, "observed": weather["observed"].replace(tzinfo=dt.UTC)}
    return {**event, "scheduled_departure": event["scheduled_departure"].replace(tzinfo=dt.UTC), "weather": weather}


def serve(setup: Setup, batch_rows: int, last: int) -> dict[tuple[int, int], tuple[Record, dict[str, object]]]:
    """The predictions of the last so many events of each partition, by position, from a worker of its own."""
    broker, ends = setup.broker, setup.broker.ends(SOURCE)
    starts = {p: max(0, end - last) for p, end in ends.items()}
    broker.move(GROUP, SOURCE, starts)
    before = broker.ends(f"{TOPOLOGY}.predictions")
    worker = setup.project.worker(setup.topology, STREAMSERVE_BATCH_ROWS=str(batch_rows))
    try:
        serve_until(worker, sum(ends.values()) - sum(starts.values()))
        assert worker.stop() == 0, worker.log.read_text()
    finally:
        worker.process.kill()
    assert broker.committed(GROUP, SOURCE) == ends
    assert not broker.read(f"{TOPOLOGY}.dead-letters")
    return by_source(broker.read(f"{TOPOLOGY}.predictions", before))


def scores_of(found: dict[tuple[int, int], tuple[Record, dict[str, object]]], places: list[tuple[int, int]]):
    return np.array([found[place][1]["scores"]["late"] for place in places])


def reference(setup: Setup, *, planted: str = "") -> tuple[Expected, np.ndarray]:
    """What pandas and a direct run say. planted: a feature that is to be off by one."""
    known = features(setup.sent.frame, setup.words)
    if planted:
        known.matrix[:, known.names.index(planted)] += 1
    (probabilities,) = direct(setup.model, {"features": known.matrix}, ["probabilities"])
    return known, probabilities[:, 1].astype(np.float64)


# ---- promises


@pytest.fixture(scope="module")
def served(setup) -> dict[tuple[int, int], tuple[Record, dict[str, object]]]:
    return serve(setup, 2000, last=EVENTS)


def test_the_events_meet_every_state_of_a_view_and_every_gap(setup):
    known, _ = reference(setup)
    assert len(known.matrix) >= 5000
    for view in RULES:
        assert {"PRESENT", "FUTURE", "STALE"} <= set(known.status[view])
    assert "MISSING" in set(known.status["plane"])
    assert "MISSING" in set(known.status["route"])
    frame = setup.sent.frame
    assert frame["tailnum"].isna().sum() > 100
    assert frame["weather.observed"].isna().sum() > 50 or frame["weather.temp"].isna().sum() > 50
    assert ({0.0, 1.0}, True) == (set(known.matrix[:, known.names.index("night")]), (known.matrix[:, 3] == 1).any())


def test_the_manifest_takes_the_features_in_the_order_of_the_topology(setup):
    known, _ = reference(setup)
    manifest = json.loads((setup.project.folder / "registry" / "flight-delay" / "v1" / "manifest.json").read_text())
    assert tuple(manifest["inputs"][0]["features"]) == known.names


def test_scores_through_kafka_have_the_bits_of_a_direct_run(setup, served):
    assert sorted(served) == sorted(setup.sent.places)
    _, expected = reference(setup)
    got = scores_of(served, setup.sent.places)
    assert len(np.unique(expected)) > 1000
    assert (bits(got) == bits(expected)).all()


@pytest.mark.parametrize(("batch_rows", "last"), [(1, 60), (7, 400), (500, EVENTS)])
def test_batch_sizes_change_no_bit(setup, batch_rows, last):
    found = serve(setup, batch_rows, last)
    assert len(found) >= min(last, EVENTS // 2)
    _, expected = reference(setup)
    at = [i for i, place in enumerate(setup.sent.places) if place in found]
    assert len(at) == len(found)
    got = scores_of(found, [setup.sent.places[i] for i in at])
    assert (bits(got) == bits(expected[at])).all()


def test_the_comparison_sees_a_feature_that_is_off_by_one(setup, served):
    got = bits(scores_of(served, setup.sent.places))
    assert (got != bits(reference(setup, planted="minute")[1])).any()
    assert (got != bits(reference(setup, planted="hour")[1])).mean() > 0.01


@pytest.fixture(scope="module")
def mirrored(setup) -> np.ndarray:
    """What a model saw of each event, column by column: its only output is its input."""
    name, project = "bits-mirror", setup.project
    more = "'model': 'mirror', 'outputs': {'seen': output('seen')}, 'decision': None"
    topology = renamed(project, ROOT / "topologies" / "flights.py", name, more=more, topic=SOURCE)
    width = len(reference(setup)[0].names)
    sides = [helper.make_tensor_value_info(side, TensorProto.FLOAT, [None, width]) for side in ("features", "seen")]
    node = helper.make_node("Identity", ["features"], ["seen"])
    save(helper.make_graph([node], "mirror", sides[:1], sides[1:]), project.folder / "mirror.onnx")
    project.ok("topics", "apply", topology)
    words = project.folder / "words.json"
    project.ok("models", "add", topology, "v1", project.folder / "mirror.onnx", "--vocabularies", words)
    project.ok("topology", "init", topology, "--version", "v1")
    worker = project.worker(topology)
    try:
        serve_until(worker, len(setup.sent.records))
        assert worker.stop() == 0, worker.log.read_text()
    finally:
        worker.process.kill()
    found = by_source(setup.broker.read(f"{name}.predictions"))
    rows = [found[place][1]["scores"] for place in setup.sent.places]
    return np.array([[row[f"seen.{at}"] for at in range(width)] for row in rows])


def test_every_feature_has_the_bits_that_pandas_gives_it(setup, mirrored):
    known, _ = reference(setup)
    same = (mirrored == known.matrix) | (np.isnan(mirrored) & np.isnan(known.matrix))
    wrong = {name: int(count) for name, count in zip(known.names, (~same).sum(axis=0), strict=True) if count}
    assert not wrong
    assert np.isnan(known.matrix).any()


def test_the_comparison_of_features_sees_a_minute_too_many(setup, mirrored):
    known, _ = reference(setup, planted="minute")
    at = known.names.index("minute")
    assert (mirrored[:, at] != known.matrix[:, at]).all()


def test_decisions_follow_the_score(setup, served):
    _, expected = reference(setup)
    said = [served[place][1]["decision"] for place in setup.sent.places]
    assert said == np.where(expected >= 0.4, "late", "on_time").tolist()
    assert set(said) == {"late", "on_time"}


def test_the_status_of_each_view_is_what_pandas_joined(setup, served):
    known, _ = reference(setup)
    said = pd.DataFrame([served[place][1]["feature_status"] for place in setup.sent.places])
    pd.testing.assert_frame_equal(said[list(RULES)], known.status, check_dtype=False)
    assert set(said) == set(RULES)


def test_key_headers_and_timestamp_are_those_of_the_event(setup, served):
    for place, sent in zip(setup.sent.places, setup.sent.records, strict=True):
        record, said = served[place]
        assert (record.key, record.headers, record.timestamp) == (sent.key, sent.headers, sent.timestamp)
        assert said["source_timestamp"] == dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(
            milliseconds=sent.timestamp
        )


def test_a_prediction_names_its_event_and_its_grounds(setup, served):
    control = setup.broker.read("streamserve.control")
    (init,) = [one for one in control if one.key == TOPOLOGY.encode()]
    frame = setup.sent.frame
    whens = pd.to_datetime(frame["scheduled_departure"], unit="ms", utc=True)
    for place, name, when in zip(setup.sent.places, frame["flight_id"], whens, strict=True):
        _, said = served[place]
        assert said["prediction_id"] == f"{SOURCE}-{place[0]}-{place[1]}"
        assert source_of(said["prediction_id"]) == place
        assert (said["event_id"], said["event_time"]) == (name, when)
        assert (said["model"], said["model_version"]) == ("flight-delay", "v1")
        assert (said["variant"], said["reason"], said["rollout_id"]) == ("STABLE", "STATIC", None)
        assert (said["topology"], said["control_epoch"]) == (TOPOLOGY, init.offset)


# ---- all flights of the year


def missing_and_repeated(expected: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions that were never found, those found more than once, and those that nobody sent."""
    places, counts = np.unique(found, return_counts=True)
    return np.setdiff1d(expected, places), places[counts > 1], np.setdiff1d(places, expected)


def packed(partition: int, offset: int) -> int:
    return partition << 40 | offset


def test_the_accounting_sees_a_loss_a_repetition_and_a_stranger():
    sent = np.arange(1000)
    whole = np.random.default_rng(3).permutation(sent)
    assert [part.tolist() for part in missing_and_repeated(sent, whole)] == [[], [], []]
    planted = np.append(whole[whole != 17], [400, 5000])
    assert [part.tolist() for part in missing_and_repeated(sent, planted)] == [[17], [400], [5000]]


FIRST_FIELD = fastavro.parse_schema(
    {"type": "record", "name": "Prediction", "fields": [{"name": "prediction_id", "type": "string"}]}
)
BROKEN = {
    b"not an event": "WrongMagic",
    b"\x01\x00\x00\x00\x01wrong magic": "WrongMagic",
    b"\x00\x00\x00\x00\x63of a schema that nobody knows": "UnknownSchemaId",
    b"\x00\x00\x00\x00\x01\x02": "Undecodable",
    b"\x00\x00": "TooShort",
    None: "Tombstone",
}
BROKEN_EVERY = 1000  # flights between two of them


@dataclass(frozen=True)
class Year:
    topology: str
    broken: dict[tuple[int, int], Record]
    predictions: list[Record]
    dead: list[Record]
    exit_code: int


@pytest.fixture(scope="module")
def year(setup) -> Year:
    name, project, broker = "bits-year", setup.project, setup.broker
    topology = renamed(project, ROOT / "topologies" / "flights.py", name)
    project.ok("topics", "apply", topology)
    project.ok("topology", "init", topology, "--version", "v1")
    worker = project.worker(topology)
    try:
        broken = send_the_year(broker, f"{name}.events")
        serve_until(worker, 336_776 + len(broken), seconds=120)
        code = worker.stop()
    finally:
        worker.process.kill()
    return Year(name, broken, broker.read(f"{name}.predictions"), broker.read(f"{name}.dead-letters"), code)


def send_the_year(broker: Broker, topic: str) -> dict[tuple[int, int], Record]:
    """Every flight, and now and then a record that nobody can decode: those by their positions."""
    schema = EventSchema.parse((ROOT / "schemas" / "flight.avsc").read_text())
    producer, broken = broker.producer(), dict[tuple[int, int], Record]()

    def note(odd: Record):
        def delivered(error, message) -> None:  # a delivery report has no headers
            assert error is None
            place = message.partition(), message.offset()
            broken[place] = replace(odd, timestamp=message.timestamp()[1])

        return delivered

    for at, batch in enumerate(flights().to_batches(BROKEN_EVERY)):
        for key, value in zip(keys_of(batch, "tailnum"), to_avro(batch, schema, 1), strict=True):
            producer.produce(topic, value, key)
        headers = [("n", str(at).encode()), ("n", None), ("empty", b"")] if at % 4 else None
        key = f"key {at}".encode() if at % 5 else None
        odd = Record(key, list(BROKEN)[at % len(BROKEN)], headers)
        producer.produce(topic, odd.value, odd.key, headers=odd.headers, on_delivery=note(odd))
        producer.poll(0)
    assert producer.flush(60) == 0
    return broken


def test_every_flight_of_the_year_is_answered_exactly_once_in_a_clean_run(setup, year):
    ends = setup.broker.ends(f"{year.topology}.events")
    sent = np.concatenate([np.arange(packed(p, 0), packed(p, end)) for p, end in ends.items()])
    ids = [fastavro.schemaless_reader(io.BytesIO(one.value[5:]), FIRST_FIELD) for one in year.predictions]
    found = [packed(*source_of(one["prediction_id"])) for one in ids]
    found += [packed(int(one.header["source.partition"]), int(one.header["source.offset"])) for one in year.dead]
    lost, repeated, strange = missing_and_repeated(sent, np.array(found))
    assert (len(lost), len(repeated), len(strange)) == (0, 0, 0)
    assert (len(year.predictions), len(year.dead)) == (336_776, len(year.broken))


def test_a_worker_that_is_asked_to_stop_has_committed_all_that_it_answered(setup, year):
    assert year.exit_code == 0
    source = f"{year.topology}.events"
    assert setup.broker.committed(f"streamserve.{year.topology}", source) == setup.broker.ends(source)


def test_a_dead_letter_is_the_event_untouched_and_its_grounds(year):
    assert len(year.broken) == 337
    for one in year.dead:
        about = one.header
        sent = year.broken[int(about["source.partition"]), int(about["source.offset"])]
        assert (one.key, one.value) == (sent.key, sent.value)
        assert one.headers[: len(sent.headers or ())] == (sent.headers or [])
        assert (about["stage"], about["error"]) == ("decode", BROKEN[sent.value])
        assert (about["source.topic"], about["source.timestamp"]) == (f"{year.topology}.events", str(sent.timestamp))
        assert about["message"]
        assert about["release"] == version("streamserve")
        assert len(one.headers) == len(sent.headers or ()) + len(about)
