"""Promise: a shadow decision says of its event what both versions said, as a reader of both would work it out.

The oracle below goes row by row in plain Python and shares nothing with the code.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shadow_support import LATER, compared, decision, shadow, stub, under
from test_features import EVENT_SCHEMA, make
from test_pipeline import NOW, pipeline, raw

from streamserve.errors import SignatureError
from streamserve.features.catalogue import Catalogue
from streamserve.models.manifest import Input
from streamserve.models.plan import FeaturePlan
from streamserve.pipeline import record_packed, shadow_columns, shadow_packed
from streamserve.pipeline.decode import EventDecoder
from streamserve.pipeline.pipeline import LoadedVersion
from streamserve.pipeline.shadow import LONGEST, _texts, sheets
from streamserve.pipeline.shadow_compare import compare, decide
from streamserve.pipeline.shadow_decision import PINNED_ID
from streamserve.records import FeatureMatrix, RawBatch, Reject, Scores, Stage
from streamserve.testing import StubModel
from streamserve.topology import category, field, threshold

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
FIRST, LAST = -62_135_596_800_000, 253_402_300_799_999  # years 1 to 9999
scores = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, 1.7976931348623157e308])
labels = st.sampled_from([("low", "high"), ("high", "low"), ("no", "yes", "é"), ()])
names = st.sampled_from([("y",), ("y", "z"), ("z", "y"), ("q",), ("y.0", "y.1", "z")])
texts = st.none() | st.sampled_from(["", "k", "a\x00b", "é\U0001f600", "x" * 300, "\U0001f600" * 201])
moments = st.sampled_from([0, 1, -1, FIRST, FIRST - 1, LAST, LAST + 1, 2**52, NOW]) | st.integers(-(2**50), 2**50)


@dataclass
class Said:
    """What one version says of some rows: names, scores, labels, decisions, and rows that it fails on."""

    names: tuple[str, ...]
    values: np.ndarray
    labels: tuple[str, ...]
    decisions: np.ndarray
    fails: tuple[bool, ...] = ()


@st.composite
def saids(draw, count):
    named, known = draw(names), draw(labels)
    values = draw(st.lists(st.lists(scores, min_size=len(named), max_size=len(named)), min_size=count, max_size=count))
    decided = draw(st.lists(st.integers(-1, len(known) - 1), min_size=count, max_size=count))
    fails = draw(st.lists(st.booleans() | st.just(False), min_size=count, max_size=count))
    array = np.array(values, np.float64).reshape(count, len(named))
    return Said(named, array, known, np.array(decided, np.int32), tuple(fails))


class Told:
    """A candidate that says what it was told to, of each row by its place."""

    def __init__(self, said: Said, raises: Exception | None = None) -> None:
        self.said, self.names, self.labels, self.raises = said, said.names, said.labels, raises

    def score(self, matrix: FeatureMatrix, raw_rows) -> Scores:
        if self.raises is not None:
            raise self.raises
        assert all(len(values) == len(matrix.rows) for values in matrix.inputs.values())
        said, rows = self.said, matrix.rows
        fails = np.array(said.fails, bool)[rows]
        rejects = tuple(Reject(int(raw_rows[row]), Stage.SCORE, "Odd", "") for row in rows[fails].tolist())
        rows = rows[~fails]
        return Scores("v9", rows, said.names, said.values[rows], said.labels, said.decisions[rows], rejects)


# ---- the oracle


def same(one: object, other: object) -> bool:
    """Equal, NaN to NaN too."""
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return one == other


def moment(milliseconds: int | None) -> dt.datetime | None:
    there = milliseconds is not None and FIRST <= milliseconds <= LAST
    return EPOCH + dt.timedelta(milliseconds=milliseconds) if there else None


def time_of(at: int | None, stamp: int) -> dt.datetime | None:
    """An event's own -1 can't be told from that of a record without a time, nor is it in predictions."""
    return None if stamp < 0 and at in (None, stamp) else moment(stamp if at is None else at)


def label_of(said: Said, row: int) -> str | None:
    return said.labels[said.decisions[row]] if said.decisions[row] >= 0 else None


def farthest(mine: dict[str, float], others: dict[str, float]) -> float | None:
    apart = [abs(others[name] - mine[name]) for name in mine if name in others]
    apart = [one for one in apart if not math.isnan(one)]
    return max(apart) if apart else None


def expected(
    row: int, event: dict, place: tuple[int, int], stamp: int, stable: Said, candidate: Said, error: str | None
):
    mine = dict(zip(stable.names, stable.values[row].tolist(), strict=True))
    others = {} if error else dict(zip(candidate.names, candidate.values[row].tolist(), strict=True))
    one, other = label_of(stable, row), None if error else label_of(candidate, row)
    held = {"a": event["a"], "n": event["n"] if event["n"] is None else str(event["n"]),
            "flag": {None: None, True: "true", False: "false"}[event["flag"]]}  # fmt: skip
    return {
        "prediction_id": f"events-{place[0]}-{place[1]}",
        "topology": "t",
        "event_id": event["id"],
        "event_time": time_of(event["at"], stamp),
        "source_timestamp": moment(stamp if stamp >= 0 else None),
        "compared_at": moment(LATER),
        "model": "m",
        "rollout_id": "r1",
        "control_epoch": 3,
        "stable_version": "v1",
        "candidate_version": "v9",
        "stable_scores": mine,
        "candidate_scores": others,
        "stable_decision": one,
        "candidate_decision": other,
        "agreement": None if one is None or other is None else one == other,
        "difference": farthest(mine, others),
        "error": error,
        "segments": {name: text[:LONGEST] for name, text in held.items() if text is not None},
    }


TOPOLOGY = make(field("x"), field("n"), event_time="at", key="a")
CATALOGUE = Catalogue(TOPOLOGY)
SEGMENTS = ("a", "n", "flag", "list", "not there")
STABLE = StubModel({"in": 1}, {"y": 1}, lambda x: x)
PLANS = {
    "the same": FeaturePlan((Input(name="in", dtype="float32", shape=(None, 1), features=("x",)),), {}, ()),
    "whole": FeaturePlan(
        (Input(name="in", dtype="int64", shape=(None,), features=("n",)),
         Input(name="text", dtype="string", shape=(None, 1), features=("a",))), {}, (),
    ),
}  # fmt: skip
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
numbers = st.floats(allow_nan=False, allow_infinity=False)
events = st.fixed_dictionaries(
    {"id": plain, "a": texts, "x": numbers,
     "n": st.none() | st.integers(-(2**63), 2**63 - 1), "flag": st.none() | st.booleans(), "at": st.none() | moments,
     "list": st.just([1.0]) | st.none()}
)  # fmt: skip


@st.composite
def cases(draw):
    """Events with their places and stamps; of which `chosen` are shadowed; and what both versions say of them."""
    count = draw(st.integers(1, 7))
    many = {"min_size": count, "max_size": count}
    values = draw(st.lists(events, **many))
    stamps = draw(st.lists(st.just(-1) | st.integers(0, 2**52), **many))
    partitions = draw(st.lists(st.integers(0, 2), **many))
    chosen = draw(st.lists(st.booleans() | st.just(True), **many).filter(any))
    stable = draw(saids(sum(chosen)))
    return values, stamps, partitions, np.flatnonzero(chosen), stable, draw(saids(sum(chosen)))


def asked(case, plan: FeaturePlan, first=0) -> tuple[pa.RecordBatch, RawBatch]:
    """What the candidate is told of a case."""
    values, stamps, partitions, chosen, stable, _ = case
    batch = raw([json.dumps(one).encode() for one in values], partitions, stamps, first=first)
    known = LoadedVersion(PLANS["the same"], stub(STABLE, ("x",)).scorer)
    made = pipeline({"v1": known}, topology=TOPOLOGY, catalogue=CATALOGUE)
    made._decoder = EventDecoder(
        EVENT_SCHEMA, format="json", paths={*CATALOGUE.paths(), *SEGMENTS[:-1], "a", "n"}, event_time="at", writers=None
    )
    shadowed = made.run(batch, under(shadow(segments=SEGMENTS))).shadowed
    ((matrix, said, plan_),) = shadowed.answers
    assert len(said.rows) == len(values)
    said = Scores("v1", chosen, stable.names, stable.values, stable.labels, stable.decisions)
    shadowed = replace(shadowed, answers=((matrix, said, plan_),))
    (sheet,) = sheets([(shadowed, shadowed.columns)], plan)
    assert sheet.timestamps.tolist() == batch.timestamps[chosen].tolist()
    return sheet.table, batch


def found(case, plan: FeaturePlan, raises: Exception | None = None, first=0):
    """What the code makes of a case: the records, and what is told of them."""
    table, batch = asked(case, plan, first)
    told = compare(table, Told(case[-1], raises), PINNED_ID, LATER)
    return [decision(value) for value in told.values.to_pylist()], told, batch


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    cases(),
    st.sampled_from(list(PLANS)),
    st.sampled_from([None, SignatureError("another shape")]),
    st.sampled_from([0, 2**62]),
)
def test_each_record_says_what_both_versions_said_of_its_event(case, plan, raises, first):
    values, stamps, _, chosen, stable, candidate = case
    records, told, batch = found(case, PLANS[plan], raises, first)
    wanted = []
    for row, at in enumerate(chosen.tolist()):
        error = "SignatureError" if raises else "Odd" if candidate.fails[row] else None
        if plan == "whole" and values[at]["n"] is None:
            error = "NullInput"
        place = int(batch.partitions[at]), int(batch.offsets[at])
        wanted.append(expected(row, values[at], place, stamps[at], stable, candidate, error))
    assert len(records) == len(wanted)
    for one, other in zip(records, wanted, strict=True):
        assert {k: (one[k], other[k]) for k in other if not same(one[k], other[k])} == {}
        assert one.keys() == other.keys()
    errors = [one["error"] for one in wanted if one["error"]]
    assert dict(told.errors) == {name: errors.count(name) for name in errors}
    assert told.decided == sum(one["agreement"] is not None for one in wanted)
    assert told.agreed == sum(one["agreement"] is True for one in wanted)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    cases(),
    st.sampled_from(list(PLANS)),
    st.sampled_from([None, SignatureError("another shape")]),
    st.sampled_from([0, 33_151, 2**31 - 1]),
    st.integers(0, 2**50),
)
def test_both_encoders_write_the_same_bytes(case, plan, raises, schema_id, now):
    assert record_packed.library() is not None
    table, _ = asked(case, PLANS[plan])
    table = pa.concat_batches([table.slice(0, 1), table]).slice(1)  # with an offset, and another's bytes before it
    made = decide(table, Told(case[-1], raises))
    packed = shadow_packed.encode(made, schema_id, now)
    packed.validate(full=True)
    assert packed.to_pylist() == shadow_columns.encode(made, schema_id, now).to_pylist()
    other = replace(made, difference=np.where(np.isnan(made.difference), 0.5, np.nan))
    assert packed.to_pylist() != shadow_columns.encode(other, schema_id, now).to_pylist(), "what differs is seen"


def test_an_error_is_told_of_its_own_event_where_another_can_not_be_fed():
    values = [
        {"id": str(n), "a": "k", "x": 1.0, "n": n, "flag": None, "at": 0, "list": None}
        for n in (None, 1, 2, 3, None, 5)
    ]
    well = Said(("y",), np.ones((6, 1)), (), np.full(6, -1, np.int32), (False,) * 6)
    ill = replace(well, fails=(False, True, False, False, False, True))
    records, told, _ = found((values, [0] * 6, [0] * 6, np.arange(6), well, ill), PLANS["whole"])
    assert [one["error"] for one in records] == ["NullInput", "Odd", None, None, "NullInput", "Odd"]
    assert [one["candidate_scores"] for one in records] == [{}, {}, {"y": 1.0}, {"y": 1.0}, {}, {}]
    assert told.errors == {"NullInput": 2, "Odd": 2}


def columns_of(**columns: pa.Array) -> SimpleNamespace:
    return SimpleNamespace(events=SimpleNamespace(columns=pa.record_batch(columns)))


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pa.array([b"a", b"\xff", None]), [None] * 3),
        (pa.array([[1.0], [], None]), [None] * 3),
        (pa.array([None] * 3, pa.int32()), [None] * 3),
        (pa.array([2**63 - 1, -(2**63), 0]), [str(2**63 - 1), str(-(2**63)), "0"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array([0, None, 19_000], pa.date32()), ["1970-01-01", None, "2022-01-08"]),
        (pa.array([1.5, -0.0, 1e300]), ["1.5", "-0", "1e+300"]),
    ],
)
def test_a_segment_is_what_its_field_holds_whatever_else_the_batch_holds(column, wanted):
    whole = columns_of(a=column)
    assert _texts(whole, "a", np.arange(3)).to_pylist() == wanted
    for row in range(3):
        assert _texts(whole, "a", np.array([row])).to_pylist() == [wanted[row]]


WORDED = Catalogue(make(field("x"), category("a"), decision=threshold("y", 2.5)))
WORDS = {"v1": ("old", "new"), "v9": ("new", "late", "old")}


def worded(name: str, seen: list[list[float]]) -> LoadedVersion:
    """A version of two features, the second under a vocabulary of its own."""
    inputs = (Input(name="in", dtype="float32", shape=(None, 2), features=("x", "a")),)
    model = StubModel({"in": 2}, {"y": 1}, lambda x: seen.extend(x.tolist()) or x.sum(axis=1))
    return LoadedVersion(FeaturePlan(inputs, {"a": WORDS[name]}, ()), stub(model, ("x", "a"), name).scorer)


def test_a_candidate_of_another_vocabulary_is_fed_its_own_codes():
    seen = {name: [] for name in WORDS}
    versions = {name: worded(name, seen[name]) for name in WORDS}
    made = pipeline(versions, catalogue=WORDED, topology=WORDED.topology)
    words = ["old", "new", "late", None, "none"]
    values = [json.dumps({"id": "e", "x": i, "a": word}).encode() for i, word in enumerate(words)]
    batch = made.run(raw(values), under(shadow())).shadowed
    found = compared(batch, versions["v9"])
    codes = {"v1": [2, 3, 1, 0, 1], "v9": [4, 2, 3, 0, 1]}  # 0: none, 1: unknown, then by place
    assert {name: [row[1] for row in rows] for name, rows in seen.items()} == codes
    assert [row[0] for row in seen["v9"]] == [0, 1, 2, 3, 4]
    assert [one["difference"] for one in found] == [abs(a - b) for a, b in zip(*codes.values(), strict=True)]
