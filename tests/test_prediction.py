"""A prediction has the same bytes whichever encoder made it, and a plain Avro reader reads what was put in."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.pipeline import framing, prediction_columns, prediction_packed, record_packed
from streamserve.pipeline.prediction import SCHEMA, Predicted, Provenance, decode
from streamserve.records import FeatureStatus, Reason, Variant

PARSED = fastavro.parse_schema(json.loads((ROOT / "schemas" / "streamserve.prediction.avsc").read_text()))
LONGS = st.integers(-(2**63), 2**63 - 1)
TIMES = st.integers(-(2**50), 2**50)
TEXTS = st.text(max_size=80)
NAMES = st.lists(st.text(min_size=1, max_size=70), min_size=0, max_size=4, unique=True).map(tuple)


@st.composite
def batches(draw) -> Predicted:
    count = draw(st.integers(1, 12))
    names, labels, views = draw(NAMES), draw(NAMES), draw(NAMES)
    versions, rollouts = draw(NAMES.filter(bool)), draw(st.lists(st.none() | TEXTS, min_size=1, max_size=3))

    def column(values, dtype, shape=()):
        size = count * math.prod(shape)
        return np.array(draw(st.lists(values, min_size=size, max_size=size)), dtype).reshape(count, *shape)

    ids = draw(st.none() | st.lists(st.none() | TEXTS, min_size=count, max_size=count))
    longer = None if ids is None else pa.array(["before", *ids, "after"], pa.string())
    return Predicted(
        topic=draw(st.text(min_size=1, max_size=200)),
        rows=np.arange(count),
        partitions=column(st.integers(0, 2**31 - 1), np.int32),
        offsets=column(st.integers(0, 2**63 - 1), np.int64),
        event_ids=None if longer is None else longer[1:-1],  # with an offset, and another's bytes around it
        event_times=column(TIMES, np.int64),
        has_event_time=draw(st.none() | st.just(column(st.booleans(), np.bool_))),
        source_timestamps=column(st.just(-1) | st.integers(0, 2**50), np.int64),
        names=names,
        scores=column(st.floats(), np.float64, (len(names),)),
        labels=labels,
        decisions=column(st.integers(-1, len(labels) - 1), np.int32),
        versions=versions,
        version=column(st.integers(0, len(versions) - 1), np.int32),
        variant=column(st.sampled_from(Variant), np.uint8),
        rollouts=tuple(rollouts),
        rollout=column(st.integers(0, len(rollouts) - 1), np.int32),
        control_epoch=column(LONGS, np.int64),
        reason=column(st.sampled_from(Reason), np.uint8),
        views=views,
        statuses=column(st.sampled_from(FeatureStatus), np.uint8, (len(views),)),
    )


abouts = st.builds(
    Provenance, topology=TEXTS, model=TEXTS, event_id=st.none(), has_event_time=st.booleans(),
    schema_id=st.integers(0, 2**32 - 1) | st.sampled_from([33_151, 0x7FA00001, 0xFFFFFFFF]),
)  # fmt: skip


def test_the_compiled_encoder_is_built_here():
    """Without it the comparison below would compare nothing."""
    assert record_packed.library() is not None


@settings(max_examples=300, deadline=None)
@given(batches(), abouts, TIMES)
def test_both_encoders_write_the_same_bytes(made, about, now):
    packed = prediction_packed.encode(made, about, now)
    packed.validate(full=True)
    assert packed.to_pylist() == prediction_columns.encode(made, about, now).to_pylist()


@settings(max_examples=100, deadline=None)
@given(batches(), abouts, TIMES)
def test_a_plain_avro_reader_reads_what_was_put_in(made, about, now):
    for row, value in enumerate(prediction_packed.encode(made, about, now).to_pylist()):
        assert value[: framing.HEADER] == framing.header(about.schema_id)
        body = io.BytesIO(value[framing.HEADER :])
        # Milliseconds as they are: Python's datetime does not hold them all
        said = fastavro.schemaless_reader(body, bare(PARSED))
        assert not body.read(), "nothing is left over"
        assert said["prediction_id"] == f"{made.topic}-{made.partitions[row]}-{made.offsets[row]}"
        assert said["event_id"] == (None if made.event_ids is None else made.event_ids[row].as_py())
        has_time = made.has_event_time is not None and made.has_event_time[row]
        assert said["event_time"] == (made.event_times[row] if has_time else None)
        assert said["scored_at"] == now
        assert repr(said["scores"]) == repr(dict(zip(made.names, made.scores[row].tolist(), strict=True)))
        assert said["decision"] == (made.labels[made.decisions[row]] if made.decisions[row] >= 0 else None)
        assert said["rollout_id"] == made.rollouts[made.rollout[row]]
        assert said["control_epoch"] == made.control_epoch[row]
        names = [FeatureStatus(one).name for one in made.statuses[row]]
        assert said["feature_status"] == dict(zip(made.views, names, strict=True))


def bare(schema):
    """Without logical types."""
    if isinstance(schema, list):
        return [bare(one) for one in schema]
    if isinstance(schema, dict):
        return {name: bare(one) for name, one in schema.items() if name != "logicalType"}
    return schema


@pytest.mark.parametrize("field", ["offsets", "event_times", "scores", "decisions", "statuses", "control_epoch"])
def test_the_comparison_sees_a_value_that_differs(field):
    about = Provenance("t", "m", None, has_event_time=True, schema_id=1)
    made = replace(one(), has_event_time=np.ones(1, bool))
    other = replace(made, **{field: getattr(made, field) - getattr(made, field).dtype.type(1)})
    assert prediction_packed.encode(other, about, 7) != prediction_columns.encode(made, about, 7)


@pytest.mark.parametrize("schema_id", [0, 1, 33_151, 900_001, 2**31 - 1])
def test_readers_of_many_take_records_of_their_schema_alone(schema_id):
    about = Provenance("t", "m", None, has_event_time=False, schema_id=schema_id)
    made = one()
    values = prediction_packed.encode(made, about, 7)
    found = decode(values, schema_id)
    assert found.schema.names == [field["name"] for field in SCHEMA["fields"]]
    assert found.column("prediction_id").to_pylist() == ["s-1-2"]
    for broken in (
        pa.array([*values.to_pylist(), b"\x00\x00\x00\x10\x00rest"], pa.binary()),
        pa.array([None], pa.binary()),
    ):
        with pytest.raises(ValueError, match=f"not framed with schema id {schema_id}"):
            decode(broken, schema_id)


def one() -> Predicted:
    zero = np.zeros(1, np.uint8)
    return Predicted(
        "s", np.arange(1), np.array([1], np.int32), np.array([2]), None, np.array([0]), None, np.array([-1]),
        ("late",), np.array([[0.5]]), ("no", "yes"), np.array([1], np.int32), ("v1",), np.zeros(1, np.int32), zero,
        (None,), np.zeros(1, np.int32), np.array([4]), zero, ("plane",), np.array([[3]], np.uint8),
    )  # fmt: skip
