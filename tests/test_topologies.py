"""The example topologies run from file to prediction, by the commands that a user types, and say what they should.

Three shapes: a table with stored views and a tree model, a picture and a network, a scikit-learn pipeline whose inputs
have names and types of their own. What `streamserve check` draws of each lies in tests/topologies.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import fastavro
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Project
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import BooleanTensorType, FloatTensorType, Int64TensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from support import (
    Broker,
    Position,
    Record,
    bits,
    by_source,
    direct,
    framed,
    linear_model,
    renamed,
    save,
    serve_until,
    view_tables,
    with_schemas,
)
from support import flights as all_flights

pytestmark = pytest.mark.services
DAY_MS = 86_400_000
NAMES = ("churn", "digits", "flights")


@dataclass(frozen=True)
class Served:
    """A topology after its events went through a worker. drawn: what `check` said of its file."""

    sent: list[Record]
    places: list[Position]
    found: dict[Position, tuple[Record, dict[str, object]]]
    dead: dict[Position, Record]
    drawn: str
    model: Path

    @property
    def said(self) -> list[dict[str, object]]:
        """The predictions, in the order in which their events were sent."""
        return [self.found[place][1] for place in self.places if place in self.found]


def serve(project: Project, name: str, records: list[Record], *add: object, views: dict[str, pa.Table]) -> Served:
    """Every step of a user's, with the commands of a user. add: the end of `models add`."""
    file, folder, broker = ROOT / "topologies" / f"{name}.py", project.folder, Broker(project.endpoints.bootstrap)
    topology = renamed(project, file, f"example-{name}")
    project.ok("topics", "apply", topology)
    for view, table in views.items():
        pq.write_table(table, folder / f"{view}.parquet")
        project.ok("features", "load", topology, f"{view}={folder / view}.parquet")
    project.ok("models", "add", topology, "v1", folder / f"{name}.onnx", *add)
    drawn = project.ok("check", file)
    project.ok("topology", "init", topology, "--version", "v1")
    places = broker.produce(f"example-{name}.events", records)
    worker = project.worker(topology)
    try:
        serve_until(worker, len(records))
        assert worker.stop() == 0, worker.log.read_text()
    finally:
        worker.process.kill()
    letters = {
        (int(one.header["source.partition"]), int(one.header["source.offset"])): one
        for one in broker.read(f"example-{name}.dead-letters")
    }
    found = by_source(broker.read(f"example-{name}.predictions"))
    assert sorted([*letters, *found]) == sorted(places)
    return Served(records, places, found, letters, drawn, folder / f"{name}.onnx")


@pytest.fixture(scope="module")
def project(endpoints, tmp_path_factory) -> Project:
    made = Project(tmp_path_factory.mktemp("examples"), endpoints)
    with_schemas(made)
    return made


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# ---- the files as a user reads them


@pytest.mark.parametrize("name", NAMES)
def test_an_example_fits_on_a_page_and_says_what_it_is(name):
    text = (ROOT / "topologies" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 40
    assert text.startswith('"""')
    assert "?" in text.splitlines()[0]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_drawn_as_ever(name, request):
    """Names, types and fingerprints: another fingerprint of an unchanged file would disown every version in use."""
    drawn = re.sub(r"sha256 [0-9a-f]{12}", "sha256 ...", request.getfixturevalue(name).drawn)
    assert drawn == (ROOT / "tests" / "topologies" / f"{name}.txt").read_text()


# ---- flights: a table, stored views, nulls


@pytest.fixture(scope="module")
def flights_rows() -> np.ndarray:
    return np.linspace(0, all_flights().num_rows - 1, 400).astype(int)


def table_of(rows: np.ndarray) -> pa.Table:
    return all_flights().take(rows)


@pytest.fixture(scope="module")
def flights(project, flights_rows) -> Served:
    table, folder = table_of(flights_rows), project.folder
    linear_model(folder / "flights.onnx", np.linspace(-0.01, 0.01, 33))
    words = {"origin": ["JFK"], "carrier": ["UA", "B6"], "dest": ["IAH"]}
    (folder / "words.json").write_text(json.dumps(words))
    pq.write_table(table, folder / "golden.parquet")
    schema = fastavro.schema.load_schema(str(ROOT / "schemas" / "flight.avsc"))
    events = table.cast(with_zone(table.schema)).to_pylist()
    records = [Record(key=text(event["tailnum"]), value=framed(schema, event, 1)) for event in events]
    golden = ("--vocabularies", folder / "words.json", "--golden", folder / "golden.parquet", "--golden-rows", 20)
    return serve(project, "flights", records, *golden, views=view_tables())


def with_zone(schema: pa.Schema) -> pa.Schema:
    """Fastavro takes a time without a zone for one of this machine's."""
    zoned, weather = pa.timestamp("ms", "UTC"), schema.field("weather").type
    inner = pa.struct([f.with_type(zoned) if f.name == "observed" else f for f in weather])
    types = {"scheduled_departure": zoned, "weather": inner}
    return pa.schema([f.with_type(types.get(f.name, f.type)) for f in schema])


def text(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


def test_a_flight_of_unknown_weather_has_a_score_that_is_no_number_and_no_decision(flights, flights_rows):
    weather = pd.DataFrame([one or {} for one in table_of(flights_rows)["weather"].to_pylist()])
    gaps = weather.drop(columns=["observed", "dewp", "wind_gust"]).isna().any(axis=1)
    scores = np.array([one["scores"]["late"] for one in flights.said])
    assert len(scores) == len(flights_rows)
    assert 0 < gaps.sum() < len(gaps)
    assert (np.isnan(scores) == gaps).all()
    assert [one["decision"] for one in flights.said] == [
        None if gap else ("late" if score >= 0.4 else "on_time") for gap, score in zip(gaps, scores, strict=True)
    ]


def test_no_flight_is_a_dead_letter(flights):
    assert not flights.dead


# ---- digits: pictures, a network, JSON


@dataclass(frozen=True)
class Network:
    """784 pixels, a hidden layer of random features, ten classes by least squares. weights: [784, 64], [64, 10]."""

    hidden: np.ndarray
    classes: np.ndarray

    @classmethod
    def fit(cls, pictures: np.ndarray, labels: np.ndarray) -> Network:
        hidden = np.random.default_rng(5).normal(0, 0.05, (784, 64)).astype(np.float32)
        active = np.maximum(pictures @ hidden, 0)
        wanted = np.eye(10, dtype=np.float32)[labels] * 8
        return cls(hidden, np.linalg.lstsq(active, wanted, rcond=None)[0].astype(np.float32))

    def write(self, path: Path) -> None:
        nodes = [
            helper.make_node("MatMul", ["pixels", "hidden"], ["sums"]),
            helper.make_node("Relu", ["sums"], ["active"]),
            helper.make_node("MatMul", ["active", "classes"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ]
        sides = [("pixels", 784), ("probabilities", 10)]
        given, said = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, width]) for n, width in sides]
        weights = [numpy_helper.from_array(self.hidden, "hidden"), numpy_helper.from_array(self.classes, "classes")]
        save(helper.make_graph(nodes, "network", [given], [said], weights), path)


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Real handwritten digits, three pixels for one and a margin: float32 [1797, 784] from 0 to 1, and labels."""
    small, labels = load_digits(return_X_y=True)
    large = np.kron(small.reshape(-1, 8, 8), np.ones((1, 3, 3)))
    return np.pad(large, ((0, 0), (2, 2), (2, 2))).reshape(-1, 784).astype(np.float32) / 16, labels


def digit(pixels: object, at: int = 0) -> bytes:
    event = {"picture_id": f"p{at}", "camera": f"c{at % 7}", "taken": "2026-03-01T12:00:00.250Z", "pixels": pixels}
    return json.dumps(event).encode()


BLANK = [0.0] * 784
BROKEN_DIGITS = {
    digit(BLANK[1:]): ("enrich", "WrongLength"),
    digit([*BLANK, 1]): ("enrich", "WrongLength"),
    digit([]): ("enrich", "WrongLength"),
    digit(None): ("decode", "DoesNotFit"),
    digit([None, *BLANK[1:]]): ("decode", "DoesNotFit"),
    digit(["0.5", *BLANK[1:]]): ("decode", "DoesNotFit"),
    digit([True, *BLANK[1:]]): ("decode", "DoesNotFit"),
    digit([1e39, *BLANK[1:]]): ("decode", "DoesNotFit"),
    digit({"0": 0.5}): ("decode", "DoesNotFit"),
    digit([float("nan"), *BLANK[1:]]): ("decode", "NotJson"),
    digit([float("-inf"), *BLANK[1:]]): ("decode", "NotJson"),
    b'{"picture_id": "p", "camera": null, "taken": 0}': ("decode", "DoesNotFit"),
    b'{"picture_id": "p", "pixels"': ("decode", "NotJson"),
    b"[]": ("decode", "NotJson"),
    b"a picture": ("decode", "NotJson"),
    b"\xff\xd8\xff\xe0": ("decode", "NotJson"),
    b"\x00\x00\x00\x00\x01\x02p0": ("decode", "NotJson"),
    b"": ("decode", "Tombstone"),
    None: ("decode", "Tombstone"),
}


@pytest.fixture(scope="module")
def digits(project) -> Served:
    inputs, labels = pictures()
    Network.fit(inputs, labels).write(project.folder / "digits.onnx")
    (project.folder / "golden.jsonl").write_bytes(b"\n".join(digit(row.tolist()) for row in inputs[:10]))
    records = [Record(key=f"c{at % 7}".encode(), value=digit(row.tolist(), at)) for at, row in enumerate(inputs[:500])]
    broken = [Record(b"c0", value, [("kept", b"\x00")]) for value in BROKEN_DIGITS]
    for at, one in enumerate(broken):
        records.insert(20 * at, one)
    return serve(project, "digits", records, "--golden", project.folder / "golden.jsonl", views={})


def test_a_network_says_of_each_picture_what_it_says_directly(digits):
    inputs, labels = pictures()
    (expected,) = direct(digits.model, {"pixels": inputs[:500]}, ["probabilities"])
    said = digits.said
    scores = np.array([[one["scores"][f"probability.{i}"] for i in range(10)] for one in said])
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert [one["decision"] for one in said] == [str(i) for i in expected.argmax(axis=1)]
    assert (expected.argmax(axis=1) == labels[:500]).mean() > 0.9
    assert [one["event_id"] for one in said] == [f"p{at}" for at in range(500)]
    assert {one["event_time"] for one in said} == {dt.datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=dt.UTC)}


def test_what_is_no_picture_is_a_dead_letter_and_its_neighbours_go_on(digits):
    letters = digits.dead.values()
    assert len(digits.said) == 500
    assert {one.value: (one.header["stage"], one.header["error"]) for one in letters} == {
        (value or None): why for value, why in BROKEN_DIGITS.items()
    } | {b"": BROKEN_DIGITS[b""]}
    assert all(one.key == b"c0" and one.headers[0] == ("kept", b"\x00") for one in letters)


# ---- churn: a scikit-learn pipeline, inputs of four types by name, a view by the record's own time

TEXTS, WHOLES = ("plan", "region", "payment"), ("tenure_months", "lines")
REALS = ("monthly_charge", "usage_minutes", "usage_calls", "usage_data_gb")
DEFAULTS = {"usage_minutes": 180.0, "usage_calls": 0.4, "usage_data_gb": 6.0}
CUSTOMERS = 900


def customers() -> list[dict[str, object]]:
    random = np.random.default_rng(6)

    def perhaps(value: object, share: float = 0.15) -> object:
        return None if random.random() < share else value

    return [
        {
            "customer_id": f"n\u00ba {at}",
            "plan": str(random.choice(["BASIC", "PLUS", "FAMILY"])),
            "region": perhaps(str(random.choice(["north", "south", "west"]))),
            "tenure_months": perhaps(int(random.integers(0, 80)), 0.05),
            "lines": perhaps(int(random.integers(1, 6))),
            "paperless": bool(random.random() < 0.5),
            "contract": {
                "payment": perhaps(str(random.choice(["card", "invoice", "transfer"]))),
                "monthly_charge": perhaps(round(float(random.normal(45, 12)), 2)),
            },
        }
        for at in range(CUSTOMERS)
    ]


def usage(now: int) -> pd.DataFrame:
    """What three in four customers used; every fifth row is too old, every seventh of tomorrow."""
    random, at = np.random.default_rng(8), np.flatnonzero(np.arange(CUSTOMERS) % 4)
    age = np.where(at % 5 == 0, 40, np.where(at % 7 == 0, -1, 10))
    return pd.DataFrame(
        {
            "customer_id": [f"n\u00ba {i}" for i in at],
            "feature_time": pd.to_datetime(now - age * DAY_MS, unit="ms", utc=True).as_unit("ms"),
            "minutes": random.normal(180, 60, len(at)).astype(np.float32),
            "calls": random.poisson(0.4, len(at)).astype(np.float32),
            "data_gb": random.gamma(2, 3, len(at)).astype(np.float32),
        }
    )


def inputs_of(events: list[dict[str, object]], used: pd.DataFrame) -> pd.DataFrame:
    """What the pipeline is given, by pandas alone."""
    flat = pd.DataFrame([{**event, **event["contract"]} for event in events])
    known = used[used["age"] <= 35].rename(columns=lambda name: f"usage_{name}" if f"usage_{name}" in REALS else name)
    flat = flat.merge(known, how="left", on="customer_id")
    flat = flat.fillna({"region": "unknown", "payment": "unknown", "lines": 1, "monthly_charge": 40.0, **DEFAULTS})
    kinds = {**dict.fromkeys(WHOLES, np.int64), **dict.fromkeys(REALS, np.float32), "paperless": bool}
    return flat[[*TEXTS, *WHOLES, *REALS, "paperless"]].astype(kinds)


def pipeline() -> Pipeline:
    columns = [
        ("text", OneHotEncoder(handle_unknown="ignore"), list(TEXTS)),
        ("whole", StandardScaler(), list(WHOLES)),
        ("real", StandardScaler(), list(REALS)),
        ("flags", "passthrough", ["paperless"]),
    ]
    return Pipeline([("columns", ColumnTransformer(columns)), ("model", LogisticRegression(max_iter=500))])


@dataclass(frozen=True)
class Churn:
    served: Served
    fitted: Pipeline
    events: list[dict[str, object]]  # those that can be scored, in the order in which they were sent
    used: pd.DataFrame


@pytest.fixture(scope="module")
def trained(project) -> Churn:
    now, folder = now_ms(), project.folder
    events, used = customers(), usage(now)
    rows = pa.Table.from_pandas(used, preserve_index=False)
    used["age"] = (now - used.pop("feature_time").astype("int64")) / DAY_MS
    whole = [event for event in events if event["tenure_months"] is not None]
    known = inputs_of(whole, used)
    leaves = np.random.default_rng(9).random(len(known)) < 0.2 + 0.5 * (known["plan"] == "BASIC")
    fitted = pipeline().fit(known, leaves.astype(int))
    kinds = [(c, StringTensorType) for c in TEXTS] + [(c, Int64TensorType) for c in WHOLES]
    kinds += [(c, FloatTensorType) for c in REALS] + [("paperless", BooleanTensorType)]
    types = [(name, kind([None, 1])) for name, kind in kinds]
    model = to_onnx(fitted, initial_types=types, options={"zipmap": False}, target_opset=17)
    (folder / "churn.onnx").write_bytes(model.SerializeToString())
    schema = fastavro.schema.load_schema(str(ROOT / "schemas" / "customer.avsc"))
    with (folder / "golden.avro").open("wb") as stream:
        fastavro.writer(stream, schema, whole[:30])
    named = [f"--input={name}={name.replace('usage_', 'usage.')}" for name in DEFAULTS]
    records = [Record(text(e["customer_id"]), framed(schema, e, 2), timestamp=now) for e in events]
    served = serve(project, "churn", records, *named, "--golden", folder / "golden.avro", views={"usage": rows})
    return Churn(served, fitted, whole, used)


@pytest.fixture(scope="module")
def churn(trained) -> Served:
    return trained.served


def test_a_pipeline_says_what_scikit_learn_says(trained):
    said = trained.served.said
    known = inputs_of(trained.events, trained.used)
    scores = np.array([one["scores"]["leaves"] for one in said])
    np.testing.assert_allclose(scores, trained.fitted.predict_proba(known)[:, 1], atol=1e-5)
    assert len(np.unique(scores)) > 500
    assert [one["decision"] for one in said] == np.where(scores >= 0.5, "leaves", "stays").tolist()


def test_a_pipeline_s_scores_have_the_bits_of_a_direct_run(trained):
    known = inputs_of(trained.events, trained.used)
    kinds = dict.fromkeys(TEXTS, object)
    inputs = {name: known[name].to_numpy(kinds.get(name, known[name].dtype)).reshape(-1, 1) for name in known}
    (expected,) = direct(trained.served.model, inputs, ["probabilities"])
    scores = np.array([one["scores"]["leaves"] for one in trained.served.said])
    assert (bits(scores) == bits(expected[:, 1])).all()


def test_a_view_is_as_old_as_the_record_says_where_events_have_no_time(trained):
    ages = pd.Series([e["customer_id"] for e in trained.events]).map(trained.used.set_index("customer_id")["age"])
    names = np.select([ages.isna(), ages > 35, ages < 0], ["MISSING", "STALE", "FUTURE"], "PRESENT")
    assert [one["feature_status"]["usage"] for one in trained.served.said] == names.tolist()
    assert set(names) == {"MISSING", "STALE", "FUTURE", "PRESENT"}
    assert {one["event_time"] for one in trained.served.said} == {None}
    assert {one["event_id"] for one in trained.served.said} == {None}


def test_a_null_for_a_whole_number_without_a_default_is_a_dead_letter(trained):
    letters = trained.served.dead.values()
    assert len(letters) == CUSTOMERS - len(trained.events) > 10
    assert {(one.header["stage"], one.header["error"]) for one in letters} == {("enrich", "NullInput")}
    assert {"tenure_months" in one.header["message"] for one in letters} == {True}
