"""Promise: what a user tests with the driver is what runs in a worker, and a mistake in the test says what it is."""

from __future__ import annotations

import datetime as dt
import doctest
import io
import json
from pathlib import Path

import fastavro
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import streamserve.testing
from streamserve.errors import ConfigError, ModelTamperedError, SchemaError, SignatureError, StreamserveError
from streamserve.features.catalogue import Catalogue
from streamserve.models.registry import Registry
from streamserve.records import FeatureStatus
from streamserve.settings import Settings
from streamserve.simulate.adding import NewVersion, add_version
from streamserve.simulate.load import load_schema
from streamserve.testing import Record, StubModel, TestDriver
from streamserve.topology import load_topology

ROOT = Path(__file__).parent.parent
FLIGHTS = ROOT / "topologies" / "flights.py"
DEPARTURE = dt.datetime(2013, 7, 1, 12, 30, tzinfo=dt.UTC)
FLIGHT = {
    "flight_id": "UA1-EWR", "carrier": "UA", "flight": 1, "tailnum": "N1", "origin": "EWR", "dest": "IAH",
    "scheduled_departure": DEPARTURE, "scheduled_arrival": 1130, "distance": 1400,
}  # fmt: skip
VOCABULARIES = {"origin": ["EWR", "JFK", "LGA"], "carrier": ["UA", "AA"], "dest": ["IAH", "LAX"]}
MAY = dt.datetime(2013, 5, 1, tzinfo=dt.UTC)
VIEWS = {
    "carrier": {"UA": (MAY, {"late_rate": 0.5, "mean_delay": 7.0})},
    "route": {("EWR", "IAH"): (DEPARTURE + dt.timedelta(1), {"late_rate": 0.25})},
    "plane": {"N1": (DEPARTURE - dt.timedelta(200), {"seats": 200.0})},
}
topology = load_topology(FLIGHTS)
WIDTH = len(Catalogue(topology).atoms)


def late(x):
    one = 1 / (1 + np.exp(-x[:, 0] / 1000))
    return np.column_stack([1 - one, one])


def driver(model=None, **more):
    words = {"schemas": ROOT / "schemas", "vocabularies": VOCABULARIES, "views": VIEWS, **more}
    return TestDriver(FLIGHTS, model=model or StubModel({"x": WIDTH}, {"probabilities": 2}, late), **words)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """probabilities: one minus, and the sigmoid of the first feature over 1000."""
    weights = np.zeros((WIDTH, 1), np.float32)
    weights[0] = 1 / 1000
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["some"], axis=1),
        helper.make_node("Mul", ["some", "scale"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["one"]),
        helper.make_node("Sub", ["unit", "one"], ["zero"]),
        helper.make_node("Concat", ["zero", "one"], ["probabilities"], axis=1),
    ]
    constants = {"first": np.int64([0]), "scale": np.float32([[0.001]]), "unit": np.float32([[1]])}
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, WIDTH])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return path


def test_the_example_of_the_docstring_runs():
    assert doctest.testmod(streamserve.testing).failed == 0
    assert "driver.score(" in streamserve.testing.__doc__


def test_an_event_is_scored_by_an_onnx_file_with_its_features_and_status(onnx_file):
    (said,) = driver(onnx_file).score([FLIGHT])
    assert said.scores == {"late": pytest.approx(1 / (1 + np.exp(-1.4)), abs=1e-6)}
    assert said.decision == "late"
    assert said.feature_status == {"carrier": "PRESENT", "plane": "STALE", "route": "FUTURE"}
    fed = said.features
    assert len(fed) == WIDTH
    assert (fed["distance"], fed["origin"], fed["dest"], fed["carrier"]) == (1400, 2, 2, 2)
    assert (fed["hour"], fed["minute"], fed["night"]) == (8, 30, 0), "of New York"
    assert (fed["carrier.late_rate"], fed["carrier.mean_delay"]) == (0.5, 7)
    assert fed["carrier.flights_per_day"] == 111, "a field that was left out is the view's default"
    assert fed["plane.seats"] == 136, "a stale row is not used"
    assert np.isnan(fed["weather.temp"])


def test_a_prediction_is_a_record_of_the_topology():
    one = driver()
    (first,), (second,) = one.score([FLIGHT]), one.score([Record(FLIGHT, headers=[("h", b"1")], timestamp=DEPARTURE)])
    assert first.prediction["prediction_id"] == "flights-0-0"
    assert second.prediction["prediction_id"] == "flights-0-1", "offsets go on"
    assert (first.key, first.version) == (b"N1", "test")
    assert second.headers == (("h", b"1"),)
    assert second.prediction["source_timestamp"] == DEPARTURE
    assert first.prediction["event_time"] == DEPARTURE
    assert first.prediction["event_id"] == "UA1-EWR"


def test_results_stand_in_the_order_of_the_events_and_dead_letters_among_them():
    said = driver().score([FLIGHT, b"raw bytes", None, {**FLIGHT, "carrier": "ZZ"}, Record(b"\x00\x00", key=b"k")])
    assert [one.dead_letter.error if one.dead_letter else None for one in said] == [
        None, "WrongMagic", "Tombstone", None, "TooShort",
    ]  # fmt: skip
    assert [one.place for one in said] == list(range(5))
    assert (said[4].dead_letter.key, said[4].dead_letter.value) == (b"k", b"\x00\x00")
    assert said[3].features["carrier"] == 1
    assert said[3].feature_status["carrier"] == "MISSING"
    with pytest.raises(AssertionError, match="event 1 has no prediction, it is a dead letter: decode: WrongMagic"):
        _ = said[1].scores


def test_an_outage_of_the_store_can_be_played():
    one = driver()
    one.outage = FeatureStatus.TIMEOUT
    assert set(one.score([FLIGHT])[0].feature_status.values()) == {"TIMEOUT"}
    one.outage = None
    assert one.score([FLIGHT])[0].feature_status["carrier"] == "PRESENT"


def test_what_the_model_raises_is_the_dead_letter_of_its_event():
    def picky(x):
        if (x[:, 0] == 666).any():
            raise RuntimeError("no")
        return late(x)

    model = StubModel({"x": WIDTH}, {"probabilities": 2}, picky)
    said = driver(model).score([FLIGHT, {**FLIGHT, "distance": 666}])
    assert said[0].decision == "late"
    assert (said[1].dead_letter.stage, said[1].dead_letter.message) == ("score", "no")
    assert model.calls == 3
    assert model.rows == [2, 1, 1]


def test_bytes_of_a_pinned_schema_id_are_read_as_in_production():
    schema = fastavro.parse_schema(json.loads((ROOT / "schemas" / "flight.avsc").read_text()))
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, FLIGHT)
    pinned, unknown = (b"\x00" + number.to_bytes(4) + out.getvalue() for number in (1, 77))
    said = driver().score([pinned, unknown])
    assert said[0].decision == "late"
    assert said[1].dead_letter.error == "UnknownSchemaId"


def test_a_batch_of_nothing_is_no_result():
    assert driver().score([]) == []


@pytest.mark.parametrize(
    ("event", "what"),
    [
        ({**FLIGHT, "distanse": 5}, "event 0 can't be encoded"),
        ({k: v for k, v in FLIGHT.items() if k != "distance"}, "distance"),
        ({**FLIGHT, "distance": "far"}, "event 0 can't be encoded"),
    ],
)
def test_a_dict_that_is_no_event_is_told_from_a_dead_letter(event, what):
    with pytest.raises(ConfigError, match=what):
        driver().score([event])


@pytest.mark.parametrize(
    ("more", "error", "what"),
    [
        ({"views": {"career": {}}}, ConfigError, "views= names 'career'"),
        ({"views": {"route": {"EWR": (0, {})}}}, ConfigError, "has 1 parts"),
        ({"views": {"carrier": {"UA": (0, {"lateness": 1.0})}}}, ConfigError, "lateness"),
        ({"views": {"carrier": {"UA": (dt.datetime(2013, 1, 1), {})}}}, ConfigError, "with a time zone"),  # noqa: DTZ001
        ({"views": {"carrier": {"UA": ("2013-01-01", {})}}}, ConfigError, "with a time zone"),
        ({"vocabularies": {}}, SignatureError, "no vocabulary for carrier, dest, origin"),
        ({"schemas": "nowhere"}, SchemaError, "no such event schema"),
        ({"schemas": {}}, SchemaError, "has no 'flight.avsc'"),
        ({"model": "nowhere.onnx"}, ConfigError, "no such model file"),
        ({"model": StubModel({"x": 3}, {"probabilities": 2}, late)}, SignatureError, "expected 3 columns"),
        ({"model": StubModel({"x": WIDTH}, {"p": 2}, late)}, SignatureError, "reads 'probabilities'"),
    ],
)
def test_a_driver_that_can_not_be_says_why(more, error, what):
    with pytest.raises(error, match=what):
        driver(**more)


def test_a_version_is_taken_from_a_registry_with_its_hash_checked(onnx_file, tmp_path):
    schema = load_schema(Settings(schemas=ROOT / "schemas"), topology)
    vocabularies = {name: tuple(values) for name, values in VOCABULARIES.items()}
    new = NewVersion("v7", onnx_file, MAY, vocabularies)
    from streamserve.adapters.onnx import OnnxSession

    add_version(Registry(tmp_path), Catalogue(topology), schema, new, load=OnnxSession, release="test")
    words = {"registry": tmp_path, "schemas": ROOT / "schemas", "views": VIEWS}
    (said,) = TestDriver.from_registry(FLIGHTS, "v7", **words).score([FLIGHT])
    (other,) = driver(onnx_file).score([FLIGHT])
    assert said.version == "v7"
    assert (said.scores, said.features["dest"]) == (other.scores, 2)
    path = tmp_path / "flight-delay" / "v7" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(ModelTamperedError):
        TestDriver.from_registry(FLIGHTS, "v7", **words)
    with pytest.raises(StreamserveError, match="there: v7"):
        TestDriver.from_registry(FLIGHTS, "v8", **words)
