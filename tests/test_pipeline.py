"""Promise: every record of a batch causes exactly one record, the same one however the stream was cut into batches."""

from __future__ import annotations

import datetime as dt
import io
import json
import math
from pathlib import Path

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_features import EVENT_SCHEMA, make

from streamserve.errors import SignatureError
from streamserve.features.catalogue import Catalogue
from streamserve.features.rows import pack, row_key
from streamserve.headers import header_column, unpack
from streamserve.models.manifest import FileRef, Input, Manifest, Tensor
from streamserve.models.plan import FeaturePlan
from streamserve.pipeline.decode import EventDecoder
from streamserve.pipeline.emit import HOUR_MS, TimestampLimits
from streamserve.pipeline.pipeline import LoadedVersion, Pipeline, covers
from streamserve.pipeline.prediction import PINNED_ID
from streamserve.pipeline.score import Scorer
from streamserve.records import ControlView, Cutover, FeatureMatrix, RawBatch, RoutingEpoch, binary
from streamserve.simulate.offline import MemoryStore
from streamserve.simulate.versions import Direct
from streamserve.testing import StubModel
from streamserve.topology import View, argmax, derived, field, output, stored, threshold

pure = settings(deadline=None, derandomize=True, max_examples=60)
PUBLISHED = Path(__file__).parent.parent / "schemas" / "streamserve.prediction.avsc"
NOW = 1_800_000_000_000
VIEW = View("v", key="a", fields=("p", "q"), max_age=dt.timedelta(milliseconds=100), default=(0.5, 1.5))
OTHER = View("w", key="b", fields=("r",), default=2.5)
TOPOLOGY = make(
    field("x"), field("n"), stored(VIEW), stored(OTHER), derived("d", lambda x: x * 3, of="x"),
    event_time="at", key="a", outputs={"y": output("y")}, decision=threshold("y", 4.0, labels=("low", "high")),
)  # fmt: skip
CATALOGUE = Catalogue(TOPOLOGY)


def version(name, features, model, *, scores=None, decision=TOPOLOGY.decision, views=()):
    """A loaded version of a stub model over one float32 input."""
    given_ = Input(name="in", dtype="float32", shape=(None, len(features)), features=features)
    manifest = Manifest(
        model="m", version=name, created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), release="test",
        file=FileRef(path="stub", sha256="0" * 64, bytes=0), inputs=(given_,), outputs=model.outputs,
        scores=scores or {"y": output("y")}, decision=decision, features={},
    )  # fmt: skip
    return LoadedVersion(FeaturePlan((given_,), {}, views), Scorer(manifest, model))


def tripped(x):
    if np.isin(x[:, 0], (13, 14)).any():
        raise RuntimeError(f"can't do {x[:, 0].tolist()[:3]} \ud800")
    return x.astype(np.float64) @ np.arange(1.0, x.shape[1] + 1)


ONE = version("v1", ("x", "d", "v.p"), StubModel({"in": 3}, {"y": 1}, tripped), views=(VIEW,))
TWO = version(
    "v2", ("n",), StubModel({"in": 1}, {"z": 3}, lambda x: np.hstack([x, -x, x * 2])),
    scores={"z": output("z"), "second": output("z", column=1)}, decision=argmax("z", labels=("a", "b", "c")),
)  # fmt: skip
THREE = version("v3", ("w.r", "x"), StubModel({"in": 2}, {"y": 1}, lambda x: x.sum(axis=1)), views=(OTHER, VIEW))


class Versions(dict):
    def get(self, version):
        return self[version]

    def trial(self, version):
        return Direct(self[version])


def pipeline(versions=None, rows=None, topology=TOPOLOGY, catalogue=CATALOGUE, schema_id=PINNED_ID):
    decoder = EventDecoder(EVENT_SCHEMA, format="json", paths=catalogue.paths(), event_time="at", writers=None)
    ticks = iter(range(10**9))
    return Pipeline(
        catalogue, decoder, Versions(versions or {"v1": ONE, "v2": TWO, "v3": THREE}), MemoryStore(rows or ROWS),
        schema_id=schema_id, limits=TimestampLimits(), release="9.9", clock_ns=lambda: next(ticks),
    )  # fmt: skip


ROWS = {row_key(VIEW, [k]): pack(t, np.float32([3, 4])) for k, t in (("old", 0), ("new", 1000), ("late", 5000))}
ROWS |= {row_key(OTHER, ["k"]): pack(1, np.float32([9]))}
STATIC = ControlView("t", (RoutingEpoch(3, "v1"),))


def raw(values, partitions=None, stamps=None, headers=None, first=0):
    """A batch of these values; offsets count up in each partition."""
    count = len(values)
    keys = [None if i % 3 == 2 else f"key{i}".encode() for i in range(count)]
    where = np.zeros(count, np.int32) if partitions is None else np.array(partitions, np.int32)
    offsets = np.zeros(count, np.int64)
    for partition in set(where.tolist()):
        mine = where == partition
        offsets[mine] = first + np.arange(mine.sum())
    return RawBatch(
        topic="events", partitions=where, offsets=offsets,
        timestamps=np.array(stamps if stamps is not None else [NOW] * count, np.int64),
        timestamp_types=np.ones(count, np.uint8), keys=binary(keys),
        values=binary(values), headers=header_column(headers or []),
    )  # fmt: skip


def event(i, **more):
    body = {
        "id": f"e{i}",
        "x": float(i),
        "n": i,
        "a": ("old", "new", "late", None, "none")[i % 5],
        "b": "k",
        "at": 1050,
    }
    return json.dumps({**body, **more}).encode()


@pytest.fixture(scope="module")
def published():
    return fastavro.parse_schema(json.loads(PUBLISHED.read_text()))


def read(value):
    assert value[:5] == b"\x00" + PINNED_ID.to_bytes(4)
    body = io.BytesIO(value[5:])
    found = fastavro.schemaless_reader(body, fastavro.parse_schema(json.loads(PUBLISHED.read_text())))
    assert not body.read()
    return found


def headers_at(out, place):
    return unpack(out.headers[place].as_py()) or None if out.headers is not None else None


def by_row(batch):
    """Topic, key, value, headers and timestamp of the one record that each row caused."""
    found = {}
    for out in batch.outgoing:
        assert out.rows.tolist() == sorted(out.rows.tolist()), "the order of the batch is kept"
        for i, row in enumerate(out.rows.tolist()):
            assert row not in found
            found[row] = (
                out.topic,
                out.keys[i].as_py(),
                out.values[i].as_py(),
                headers_at(out, i),
                int(out.timestamps[i]),
            )
    return found


broken = st.sampled_from([None, b"", b"{", b'{"id": 5}', b"\xff", b"[]"])
good = st.integers(0, 20).map(event)  # 13 and 14 make the first version's model fail
values_ = st.lists(good | broken, min_size=1, max_size=24)


def cut(batch, at):
    """The batch as two, of which each could have come alone."""

    def part(rows):
        return RawBatch(
            batch.topic, batch.partitions[rows], batch.offsets[rows], batch.timestamps[rows],
            batch.timestamp_types[rows], batch.keys[rows], batch.values[rows],
            None if batch.headers is None else batch.headers[rows],
        )  # fmt: skip

    return part(slice(0, at)), part(slice(at, None))


CUTOVERS = {
    ("events", 0): (Cutover(8, 2), Cutover(11, 5)),
    ("events", 1): (Cutover(11, 1),),
    ("other", 2): (Cutover(8, 0),),
}
MOVING = ControlView("t", (RoutingEpoch(3, "v1"), RoutingEpoch(8, "v2"), RoutingEpoch(11, "v3")), CUTOVERS)


@pure
@given(values_, st.data())
def test_any_cut_of_a_stream_gives_the_same_bytes_in_the_same_order(values, data):
    partitions = data.draw(st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values)))
    whole = raw(values, partitions)
    at = data.draw(st.integers(0, len(values)))
    running = pipeline()
    expected = by_row(running.process(whole, MOVING, NOW))
    assert sorted(expected) == list(range(len(values))), "one record for each"
    low, high = (by_row(running.process(half, MOVING, NOW)) for half in cut(whole, at))
    assert {**low, **{row + at: said for row, said in high.items()}} == expected


@pure
@given(values_, st.data())
def test_each_row_is_answered_by_the_version_in_force_at_its_offset(values, data):
    partitions = data.draw(st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values)))
    batch = raw(values, partitions)
    found = by_row(pipeline().process(batch, MOVING, NOW))
    for row, (topic, _, value, headers, _) in found.items():
        place = (int(batch.partitions[row]), int(batch.offsets[row]))
        epoch = 0
        for one in CUTOVERS.get(("events", place[0]), ()):
            if one.offset <= place[1]:
                epoch = (3, 8, 11).index(one.epoch)
        if topic == "t.dead-letters":
            grounds = dict(headers[-8:])
            assert int(grounds["streamserve.source.offset"]) == place[1]
            if grounds["streamserve.stage"] == b"score":
                assert epoch == 0, "the other versions can score these"
            continue
        said = read(value)
        assert said["prediction_id"] == f"events-{place[0]}-{place[1]}"
        assert said["model_version"] == ("v1", "v2", "v3")[epoch]
        assert said["control_epoch"] == (3, 8, 11)[epoch]
        i = int(said["event_id"][1:])
        status = ("PRESENT", "PRESENT", "FUTURE", "MISSING", "MISSING")
        v = "STALE" if i % 5 == 0 else status[i % 5]
        p = 3.0 if v in ("PRESENT", "FUTURE") else 0.5
        assert (
            said["scores"]
            == (
                {"y": i + 6.0 * i + 3 * p},
                {"z.0": i, "z.1": -i, "z.2": 2 * i, "second": -i},
                {"y": 9.0 + i},
            )[epoch]
        )
        assert said["feature_status"] == ({"v": v}, {}, {"w": "PRESENT", "v": v})[epoch]
        decision = ("high" if i + 6.0 * i + 3 * p >= 4 else "low", "a" if i == 0 else "c", None)[epoch]
        assert said["decision"] == (decision if epoch < 2 else "high")


def test_a_dead_letter_carries_the_event_untouched_and_its_grounds():
    headers = [[("trace", b"1"), ("trace", None)], None, [], [("streamserve.stage", b"forged")]]
    batch = raw([b"{", event(13), None, event(1, x="text")], stamps=[5, -1, NOW, NOW], headers=headers, first=40)
    done = pipeline().process(batch, STATIC, NOW)
    (predicted, dead) = done.outgoing
    assert len(predicted.rows) == 0
    assert dead.topic == "t.dead-letters"
    assert (dead.keys, dead.values) == (batch.keys, batch.values)
    assert dead.timestamps.tolist() == [0] * 4, "the present, so that retention counts from now"
    for row, sent in enumerate(headers):
        own, all_of_them = sent or [], headers_at(dead, row)
        assert all_of_them[: len(own)] == own
        added = dict(all_of_them[len(own) :])
        assert all(isinstance(text, bytes) for text in added.values())
        assert added["streamserve.stage"] == (b"score" if row == 1 else b"decode")
        assert added["streamserve.source.topic"] == b"events"
        assert added["streamserve.source.offset"] == str(40 + row).encode()
        assert added["streamserve.source.timestamp"] == str(batch.timestamps[row]).encode()
        assert added["streamserve.release"] == b"9.9"
    assert dict(headers_at(dead, 1))["streamserve.message"] == rb"can't do [13.0] \ud800"
    assert [reject.error for reject in done.rejects] == ["NotJson", "Tombstone", "DoesNotFit", "RuntimeError"]


def test_an_empty_batch_and_a_batch_of_nothing_but_broken_events():
    assert not by_row(pipeline().process(raw([]), STATIC, NOW))
    batch = raw([b"{", None])
    done = pipeline().process(batch, MOVING, NOW)
    assert set(by_row(done)) == {0, 1}
    assert done.events == 0
    assert done.covers == {("events", 0): (0, 2)}


def test_a_prediction_keeps_key_headers_and_the_record_timestamp():
    headers = [[("n", b"1"), ("n", None)], None]
    done = by_row(pipeline().process(raw([event(1), event(2)], stamps=[NOW - 7, -1], headers=headers), STATIC, NOW))
    assert [one[1] for one in done.values()] == [b"key0", b"key1"]
    assert [one[3] for one in done.values()] == headers
    assert [one[4] for one in done.values()] == [NOW - 7, NOW]
    stamps = [read(one[2])["source_timestamp"] for one in done.values()]
    assert stamps == [dt.datetime.fromtimestamp((NOW - 7) / 1000, dt.UTC), None]


def test_an_event_without_any_time_says_so():
    said = read(by_row(pipeline().process(raw([event(1, at=None)], stamps=[-1]), STATIC, NOW))[0][2])
    assert (said["event_time"], said["source_timestamp"]) == (None, None)
    told = read(by_row(pipeline().process(raw([event(1, at=-1)], stamps=[5]), STATIC, NOW))[0][2])
    assert told["event_time"] == dt.datetime.fromtimestamp(-0.001, dt.UTC)


@pytest.mark.parametrize("at", [2**63 - 1, -(2**63), 2**52, 253_402_300_800_000, -62_135_596_800_001])
def test_a_time_beyond_the_calendar_does_not_make_a_prediction_unreadable(at):
    """Python's datetime ends at the year 9999: a consumer with the published schema failed on the whole record."""
    said = read(by_row(pipeline().process(raw([event(1, at=at)], stamps=[2**52]), STATIC, NOW))[0][2])
    assert (said["event_time"], said["source_timestamp"]) == (None, None)


@pytest.mark.parametrize("at", [253_402_300_799_999, -62_135_596_800_000])
def test_the_first_and_the_last_moment_of_the_calendar_are_kept(at):
    said = read(by_row(pipeline().process(raw([event(1, at=at)], stamps=[max(at, 0)]), STATIC, NOW))[0][2])
    assert said["event_time"] == dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=at)
    assert said["source_timestamp"] == dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=max(at, 0))


@pure
@given(
    st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=6),
    st.integers(0, 2**42),
    st.integers(0, 2**40) | st.just(2**62),
    st.integers(0, 2**40),
)
def test_every_timestamp_is_one_that_the_broker_takes(stamps, now, before, after):
    limits = TimestampLimits(before_ms=before, after_ms=after)
    found = limits.clamp(np.array(stamps, np.int64), now)
    low = max(0, now - before + limits.slack_ms)
    high = max(low, now + after - limits.slack_ms)
    expected = [min(max(now if t < 0 else t, low), high) for t in stamps]
    assert found.tolist() == expected


def test_a_stamp_two_hours_ahead_is_clamped_and_its_own_is_kept():
    done = by_row(pipeline().process(raw([event(1)], stamps=[NOW + 2 * HOUR_MS]), STATIC, NOW))
    assert NOW < done[0][4] < NOW + HOUR_MS
    assert read(done[0][2])["source_timestamp"] == dt.datetime.fromtimestamp((NOW + 2 * HOUR_MS) / 1000, dt.UTC)


# ---- scores and decisions


def score(values, *, scores, decision, width=1, dtype=np.float64):
    """What a scorer makes of a model that answers `values`."""
    said = np.array(values, dtype)
    model = StubModel({"in": 1}, {"y": width}, lambda _: said)
    found = version("v", ("x",), model, scores=scores, decision=decision).scorer
    rows = np.arange(len(said))
    matrix = FeatureMatrix(
        "v", rows, {"in": np.zeros((len(said), 1), np.float32)}, (), np.empty((len(said), 0), np.uint8)
    )
    return found.score(matrix, rows)


edges = st.sampled_from([0.4, np.nextafter(0.4, 0), np.nextafter(0.4, 1), math.inf, -math.inf, math.nan])


@pure
@given(st.lists(edges | st.floats(), min_size=1, max_size=10))
def test_a_threshold_takes_its_own_value_and_nan_is_no_decision(values):
    said = score(values, scores={"y": output("y")}, decision=threshold("y", 0.4, labels=("no", "yes")))
    expected = [-1 if math.isnan(v) else int(v >= 0.4) for v in values]
    assert said.decisions.tolist() == expected
    np.testing.assert_array_equal(said.values[:, 0], values)


@pure
@given(st.lists(st.lists(st.floats(width=32) | st.just(1.0), min_size=3, max_size=3), min_size=1, max_size=8))
def test_argmax_is_the_first_of_the_largest_and_nan_is_no_decision(values):
    said = score(values, scores={"y": output("y")}, decision=argmax("y"), width=3, dtype=np.float32)
    assert said.names == ("y.0", "y.1", "y.2")
    assert said.labels == ("0", "1", "2")
    expected = [-1 if any(map(math.isnan, row)) else row.index(max(row)) for row in values]
    assert said.decisions.tolist() == expected


def test_a_nan_score_is_published_with_no_decision():
    topology, catalogue = TOPOLOGY, CATALOGUE
    nan = version("v1", ("x",), StubModel({"in": 1}, {"y": 1}, lambda x: np.where(x == 1, np.nan, x)))
    found = by_row(
        pipeline({"v1": nan}, topology=topology, catalogue=catalogue).process(raw([event(1), event(5)]), STATIC, NOW)
    )
    said = [read(one[2]) for one in found.values()]
    assert math.isnan(said[0]["scores"]["y"])
    assert [one["decision"] for one in said] == [None, "high"]


def test_classes_that_share_a_label_are_counted_together():
    model = StubModel({"in": 1}, {"z": 3}, lambda x: np.eye(3)[x[:, 0].astype(int) % 3])
    one = version("v1", ("x",), model, scores={"z": output("z")}, decision=argmax("z", labels=("low", "low", "high")))
    done = pipeline({"v1": one}).process(raw([event(i) for i in range(6)]), STATIC, NOW)
    assert done.decisions == {"low": 4, "high": 2}


@pytest.mark.parametrize(
    ("scores", "decision", "what"),
    [
        ({"y": output("y")}, threshold("y", 0.5), "threshold is on output 'y', which has 3 columns"),
        ({"y": output("y")}, argmax("y", labels=("a", "b")), "names 2 labels, the output 'y' has 3 columns"),
        ({"y": output("y"), "y.1": output("y", column=1)}, None, "two scores have one name"),
    ],
)
def test_a_decision_that_does_not_fit_its_output_is_refused_before_an_event_comes(scores, decision, what):
    with pytest.raises(SignatureError, match=what):
        score([[1, 2, 3]], scores=scores, decision=decision, width=3)


def test_a_column_that_the_model_does_not_give_stops_and_is_no_fault_of_the_events():
    open_width = Tensor(name="y", dtype="float32", shape=(None, None))
    model = StubModel({"in": 1}, {"y": 1}, lambda x: x)
    model.outputs = (open_width,)
    one = version("v1", ("x",), model, scores={"y": output("y", column=4)})
    with pytest.raises(SignatureError, match="reads column 4 of 'y', and the model gave 1"):
        pipeline({"v1": one}).process(raw([event(1), event(2)]), STATIC, NOW)


@pure
@given(st.lists(st.sampled_from([1.0, 13.0, 14.0, 2.0]), min_size=1, max_size=30))
def test_rows_that_make_the_model_fail_are_rejected_alone_and_the_others_keep_their_bits(values):
    events = [event(i, x=x, a=None) for i, x in enumerate(values)]
    done = pipeline().process(raw(events), STATIC, NOW)
    bad = [i for i, x in enumerate(values) if x in (13, 14)]
    assert sorted(r.row for r in done.rejects) == bad
    for row, (topic, _, value, _, _) in by_row(done).items():
        assert (topic == "t.dead-letters") == (row in bad)
        if row not in bad:
            assert read(value)["scores"] == {"y": 7 * values[row] + 1.5}


def test_a_model_that_gives_another_number_of_rows_is_rejected_row_by_row():
    model = StubModel({"in": 1}, {"y": 1}, lambda x: np.append(x, 1))
    done = pipeline({"v1": version("v1", ("x",), model)}).process(raw([event(1), event(2)]), STATIC, NOW)
    assert [r.message for r in done.rejects] == ["output y has shape [2] for 1 rows"] * 2


# ---- the record


def test_the_published_schema_is_the_one_that_is_written(published):
    from streamserve.pipeline.prediction import SCHEMA

    assert json.loads(PUBLISHED.read_text()) == SCHEMA
    assert published["name"] == "streamserve.Prediction"


def test_the_counts_of_a_batch_are_those_of_its_records():
    done = pipeline().process(raw([event(i) for i in range(10)] + [b"{", event(13)]), STATIC, NOW)
    said = [read(value) for topic, _, value, _, _ in by_row(done).values() if topic == "t.predictions"]
    assert done.events == len(said) == 10
    assert sum(done.decisions.values()) == 10
    assert done.statuses == {("v", 0): 2, ("v", 1): 2, ("v", 2): 2, ("v", 3): 5}
    assert set(done.times.wall) == {"decode", "route", "enrich", "score", "emit"}


@pure
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=20))
def test_a_batch_covers_each_partition_from_its_first_to_after_its_last_offset(steps):
    at = dict.fromkeys(range(4), 0)
    places = []
    for partition, step in steps:  # offsets may jump: markers of transactions, compaction
        at[partition] += step
        places.append((partition, at[partition]))
    batch = raw([b"{"] * len(places), [p for p, _ in places])
    batch.offsets[:] = [o for _, o in places]
    expected = {}
    for partition, offset in places:
        first, _ = expected.get(("events", partition), (offset, 0))
        expected["events", partition] = (first, offset + 1)
    assert covers(batch) == expected
