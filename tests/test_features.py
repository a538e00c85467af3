"""Promise: a feature is what its definition says, for every event on its own, whichever versions ask for it."""

from __future__ import annotations

import datetime as dt
import json
import math
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.errors import TopologyError
from streamserve.features.buffers import Texts
from streamserve.features.catalogue import Catalogue, view_fingerprint
from streamserve.features.rows import SEPARATOR, Answer, StoredRows, event_keys, key_prefix, pack, row_key
from streamserve.features.timeparts import milliseconds, offsets_ms, time_part
from streamserve.models.manifest import Input
from streamserve.models.plan import FeaturePlan
from streamserve.pipeline.decode import EventDecoder
from streamserve.pipeline.enrich import build_matrix, open_columns
from streamserve.pipeline.schemas import EventSchema
from streamserve.records import FeatureStatus
from streamserve.simulate.describe import check_features
from streamserve.simulate.offline import MemoryStore, raw_batch, training_plan
from streamserve.topology import (
    Source,
    Topology,
    View,
    category,
    derived,
    field,
    output,
    parts,
    stored,
    text,
    vector,
)

pure = settings(deadline=None, derandomize=True, max_examples=150)
STATUS = FeatureStatus


def optional(kind):
    return ["null", kind]


SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "id", "type": "string"},
        *(
            {"name": name, "type": optional(kind), "default": None}
            for name, kind in {
                "a": "string",
                "b": "string",
                "n": "long",
                "i": "int",
                "x": "double",
                "flag": "boolean",
                "at": {"type": "long", "logicalType": "timestamp-millis"},
                "day": {"type": "int", "logicalType": "date"},
                "list": {"type": "array", "items": ["null", "double"]},
            }.items()
        ),
    ],
}
EVENT_SCHEMA = EventSchema.parse(json.dumps(SCHEMA))


def make(*features, event_time=None, key=None, name="t", **more) -> Topology:
    source = Source(topic="events", schema="event.avsc", format="json", key=key, event_time=event_time, id="id")
    words = {"model": "m", "outputs": {"y": output("y", column=0)}, **more}
    return Topology(name=name, source=source, features=features, **words)


def batch_of(topology, events, first_offset=0):
    """Events as dicts; each gets an id of its own and a record timestamp of 0."""
    values = [json.dumps({"id": str(i), **one}).encode() for i, one in enumerate(events)]
    return raw_batch("events", values, first_offset=first_offset)


def decode(topology, events):
    paths, time = Catalogue(topology).paths(), topology.source.event_time
    decoder = EventDecoder(EVENT_SCHEMA, format="json", paths=paths, event_time=time, writers=None)
    found = decoder.decode(batch_of(topology, events))
    assert not found.rejects
    return found


def plan_of(catalogue, names=None, dtype="float32", vocabularies=None, views=None):
    names = tuple(names or catalogue.atoms)
    width = sum(catalogue.pick(name).width for name in names)
    given_ = Input(name="in", dtype=dtype, shape=(None, width), features=names)
    return FeaturePlan((given_,), vocabularies or {}, tuple(catalogue.views.values()) if views is None else views)


def matrix(topology, events, names=None, *, dtype="float32", vocabularies=None, rows=None):
    """The input, the rows that it is of, and the rejects by row."""
    catalogue = Catalogue(topology)
    decoded = decode(topology, events)
    plan = plan_of(catalogue, names, dtype, vocabularies)
    columns = open_columns(catalogue, decoded, [plan], MemoryStore(rows or {}))
    made = build_matrix("v1", plan, columns, np.arange(len(decoded)))
    return made.inputs["in"], made.rows.tolist(), {r.row: r for r in made.rejects}


# ---- categories

texts = st.text(st.characters(codec="utf-8"), max_size=4)


@pure
@given(st.lists(texts, unique=True, max_size=5), st.lists(st.none() | texts, min_size=1, max_size=12))
def test_a_category_is_0_where_missing_1_where_unseen_and_2_and_on_in_the_order_of_the_vocabulary(vocabulary, values):
    codes, _, rejects = matrix(
        make(category("a")), [{"a": v} for v in values], dtype="int64", vocabularies={"a": tuple(vocabulary)}
    )
    expected = [0 if v is None else vocabulary.index(v) + 2 if v in vocabulary else 1 for v in values]
    assert codes[:, 0].tolist() == expected
    assert not rejects


def test_integers_and_booleans_are_categories_by_their_text():
    events = [{"n": 7, "flag": True}, {"n": -7, "flag": False}, {"n": None, "flag": None}, {"n": 2**60, "flag": True}]
    vocabularies = {"n": ("-7", str(2**60)), "flag": ("true",)}
    codes, _, _ = matrix(make(category("n"), category("flag")), events, dtype="int32", vocabularies=vocabularies)
    assert codes.tolist() == [[1, 2], [2, 1], [0, 0], [3, 2]]


def test_two_versions_code_one_category_each_by_its_own_vocabulary():
    topology = make(category("a"))
    catalogue, events = Catalogue(topology), decode(topology, [{"a": "x"}, {"a": "y"}])
    one, two = (plan_of(catalogue, vocabularies={"a": v}) for v in (("x", "y"), ("y",)))
    columns = open_columns(catalogue, events, [one, two], MemoryStore({}))
    found = [build_matrix("v", plan, columns, np.arange(2)).inputs["in"][:, 0].tolist() for plan in (one, two)]
    assert found == [[2, 3], [1, 2]]


def test_a_string_input_is_given_the_text_of_a_category_whatever_its_type():
    events = [{"a": "x", "n": 5, "flag": True}, {"a": None, "n": None, "flag": None}]
    found, _, rejects = matrix(
        make(text("a", default="?"), category("n"), category("flag")),
        events,
        dtype="string",
        vocabularies={"n": ("5",)},
    )
    assert found.tolist() == [["x", "5", "true"], ["?", "", ""]]
    assert not rejects


# ---- keys and rows

awkward = st.text(st.sampled_from(["a", "\\", SEPARATOR, "é", ":"]), max_size=4)
pair = View("pair", key=("a", "b"), fields=("p", "q"), default=(-1.0, -2.0))


@pure
@given(st.lists(st.tuples(awkward, awkward), min_size=2, max_size=20))
def test_keys_of_two_parts_are_equal_only_where_both_parts_are(values):
    made = {value: row_key(pair, value) for value in values}
    assert len(set(made.values())) == len(set(values))


@pure
@given(st.lists(st.tuples(st.none() | awkward, st.none() | awkward), min_size=1, max_size=20))
def test_the_key_that_an_event_asks_for_is_the_one_that_a_writer_wrote(values):
    events = decode(make(stored(pair)), [{"a": a, "b": b} for a, b in values])
    [keys] = event_keys([pair], Texts(events))
    for value, index in zip(values, keys.index.tolist(), strict=True):
        if None in value:
            assert index == -1
        else:
            assert keys.distinct[index] == row_key(pair, value)
    assert len(set(keys.distinct)) == len(keys.distinct)


@pure
@given(awkward)
def test_a_single_key_is_escaped_alike_on_both_sides(value):
    view = View("one", key="a", fields=("p",))
    [keys] = event_keys([view], Texts(decode(make(stored(view)), [{"a": value}])))
    assert keys.distinct == [row_key(view, [value])]


def test_an_integer_key_is_its_decimal_text():
    view = View("one", key="n", fields=("p",))
    [keys] = event_keys([view], Texts(decode(make(stored(view)), [{"n": 2**62 + 1}, {"n": -3}, {"n": None}])))
    assert keys.distinct == [row_key(view, [str(2**62 + 1)]), row_key(view, ["-3"])]
    assert keys.index.tolist() == [0, 1, -1]


def test_another_layout_of_a_view_is_another_key():
    layouts = [pair, View("pair", key=("b", "a"), fields=("p", "q")), View("pair", key=("a", "b"), fields=("q", "p"))]
    assert len({key_prefix(view) for view in layouts}) == 3
    older = View("pair", key=("a", "b"), fields=("p", "q"), max_age=dt.timedelta(1), stale="use", default=0.0)
    assert view_fingerprint(older) == view_fingerprint(pair), "freshness and defaults don't change a row's bytes"


class Store:
    """Answers from a function of the key; counts what it is asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def fetch(self, keys):
        self.asked.append(list(keys))
        return self.answer(keys)


def read(view, rows, times, store=None):
    """Values and status of a view for one event a row; key "k<i>" of event i."""
    topology = make(stored(view), event_time="at")
    events = decode(topology, [{"a": f"k{i}", "at": t} for i, t in enumerate(times)])
    kept = {row_key(view, [f"k{i}"]): row for i, row in enumerate(rows) if row is not None}
    found = StoredRows([view], events, Texts(events), store or MemoryStore(kept)).view(view)
    return found.values, [STATUS(s) for s in found.status]


floats = st.floats(width=32, allow_nan=True, allow_infinity=True)
moments = st.integers(-(2**63), 2**63 - 1)


@pure
@given(st.lists(st.tuples(moments, floats, floats), min_size=1, max_size=8))
def test_a_row_comes_back_as_it_was_packed_and_nan_is_the_default(rows):
    view = View("v", key="a", fields=("p", "q"), default=(7.0, 8.0))
    packed = [pack(time, np.array([p, q], np.float32)) for time, p, q in rows]
    assert all(len(one) == 16 for one in packed)
    values, status = read(view, packed, [2**63 - 1] * len(rows))
    expected = [[d if math.isnan(x) else x for x, d in zip(row[1:], (7.0, 8.0), strict=True)] for row in rows]
    assert values.tolist() == expected
    assert set(status) == {STATUS.PRESENT}


@pure
@given(st.binary(max_size=40).filter(lambda row: len(row) != 16))
def test_a_row_of_another_size_is_defaulted(row):
    view = View("v", key="a", fields=("p", "q"), default=(7.0, 8.0))
    good = pack(1, np.float32([1, 2]))
    values, status = read(view, [good, row, None], [5, 5, 5])
    assert values.tolist() == [[1, 2], [7, 8], [7, 8]]
    assert status == [STATUS.PRESENT, STATUS.DEFAULTED, STATUS.MISSING]


@pure
@given(
    event=moments,
    row=moments,
    age=st.none() | st.integers(0, 10**14),
    stale=st.sampled_from(["use", "default"]),
    future=st.sampled_from(["use", "default"]),
)
def test_freshness_is_judged_at_the_events_own_time(event, row, age, stale, future):
    limit = None if age is None else dt.timedelta(milliseconds=age)
    view = View("v", key="a", fields=("p",), max_age=limit, stale=stale, future=future, default=-1.0)
    values, status = read(view, [pack(row, np.float32([3]))], [event])
    expected = STATUS.FUTURE if row > event else STATUS.PRESENT
    if age is not None and event - row > age:
        expected = STATUS.STALE
    assert status == [expected]
    rule = {STATUS.STALE: stale, STATUS.FUTURE: future}.get(expected, "use")
    assert values.tolist() == [[3.0 if rule == "use" else -1.0]]


@pytest.mark.parametrize("age_ms", [1, 1001, 4_035_000_001, 25_920_000_000])
def test_the_age_limit_is_exact_to_the_millisecond(age_ms):
    view = View("v", key="a", fields=("p",), max_age=dt.timedelta(milliseconds=age_ms))
    row = pack(1_000, np.float32([3]))
    _, status = read(view, [row, row], [1_000 + age_ms, 1_001 + age_ms])
    assert status == [STATUS.PRESENT, STATUS.STALE]


@pytest.mark.parametrize("why", [STATUS.TIMEOUT, STATUS.DEFAULTED])
def test_a_store_that_does_not_answer_means_defaults_and_says_why(why):
    view = View("v", key="a", fields=("p",), default=4.0)
    topology = make(stored(view))
    events = decode(topology, [{"a": "x"}, {"a": None}])
    found = StoredRows([view], events, Texts(events), Store(lambda _: Answer(None, why))).view(view)
    assert found.values.tolist() == [[4.0], [4.0]]
    assert found.status.tolist() == [why, STATUS.MISSING]


def test_the_store_is_asked_once_for_each_distinct_key_of_all_views():
    single = View("single", key="a", fields=("p",))
    topology = make(stored(pair), stored(single))
    events = decode(topology, [{"a": "x", "b": "y"}, {"a": "x", "b": "y"}, {"a": "x", "b": None}])
    store = Store(lambda keys: Answer([None] * len(keys)))
    StoredRows([pair, single], events, Texts(events), store)
    assert store.asked == [[row_key(pair, ["x", "y"]), row_key(single, ["x"])]]


def test_a_batch_without_any_key_does_not_ask():
    store = Store(lambda _: pytest.fail("asked"))
    events = decode(make(stored(pair)), [{}, {}])
    assert StoredRows([pair], events, Texts(events), store).view(pair).status.tolist() == [STATUS.MISSING] * 2


def test_versions_read_one_row_each_under_its_own_freshness_and_defaults():
    fresh = View("v", key="a", fields=("p",), max_age=dt.timedelta(milliseconds=10), default=-1.0)
    loose = View("v", key="a", fields=("p",), max_age=dt.timedelta(milliseconds=1000), default=-2.0)
    doubled = derived("twice", lambda p: 2 * p, of="v.p")
    topology = make(stored(fresh), doubled, event_time="at")
    catalogue = Catalogue(topology)
    events = decode(topology, [{"a": "k", "at": t} for t in (5, 500, 5000)])
    plans = [plan_of(catalogue, views=(view,)) for view in (fresh, loose)]
    store = Store(lambda keys: Answer([pack(0, np.float32([3])) for _ in keys]))
    columns = open_columns(catalogue, events, plans, store)
    made = [build_matrix("v", plan, columns, np.arange(3)) for plan in plans]
    assert made[0].inputs["in"].tolist() == [[3, 6], [-1, -2], [-1, -2]]
    assert made[1].inputs["in"].tolist() == [[3, 6], [3, 6], [-2, -4]], "what is derived of a view is of the same pin"
    assert [m.status[:, 0].tolist() for m in made] == [[0, 1, 1], [0, 0, 1]]
    assert len(store.asked) == 1


# ---- times

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
ZONES = (
    "UTC", "America/New_York", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns",
    "Africa/Monrovia", "Pacific/Apia", "Europe/Amsterdam", "Asia/Kolkata",
)  # fmt: skip
PART_OF = {
    "minute": lambda m: m.minute,
    "hour": lambda m: m.hour,
    "weekday": lambda m: m.weekday(),
    "day": lambda m: m.day,
    "month": lambda m: m.month,
    "dayofyear": lambda m: m.timetuple().tm_yday,
}
in_calendar = st.integers(-62_135_596_800_000 + 86_400_000 * 2, 253_402_300_800_000 - 86_400_000 * 2)
lately = st.integers(-2_208_988_800_000, 4_102_444_800_000)  # 1900 to 2100


@settings(pure, max_examples=400)
@given(st.lists(lately | in_calendar, min_size=1, max_size=8), st.sampled_from(ZONES), st.sampled_from(sorted(PART_OF)))
def test_a_part_of_a_time_is_that_of_the_calendar_in_its_zone(times, zone, part):
    found = time_part(pa.array(times, pa.timestamp("ms", "UTC")), part, zone)
    local = [(EPOCH + dt.timedelta(milliseconds=t)).astimezone(ZoneInfo(zone)) for t in times]
    assert found.tolist() == [PART_OF[part](moment) for moment in local]


@pytest.mark.parametrize(
    ("zone", "change"),
    [
        ("America/New_York", "2013-03-10T07:00:00"),
        ("America/New_York", "2013-11-03T06:00:00"),
        ("America/St_Johns", "2008-03-09T03:31:00"),
        ("Africa/Monrovia", "1972-01-07T00:44:30"),
        ("Australia/Lord_Howe", "2020-10-03T15:30:00"),
        ("Pacific/Apia", "2011-12-30T10:00:00"),
    ],
)
def test_the_clock_changes_in_the_very_millisecond(zone, change):
    at = (dt.datetime.fromisoformat(change + "+00:00") - EPOCH) // dt.timedelta(milliseconds=1)
    times = np.array([at - 900_000, at - 1, at, at + 1, at + 900_000])
    local = [(EPOCH + dt.timedelta(milliseconds=int(t))).astimezone(ZoneInfo(zone)) for t in times]
    expected = [moment.utcoffset() // dt.timedelta(milliseconds=1) for moment in local]
    assert offsets_ms(times, zone).tolist() == expected
    assert expected[1] != expected[2]


def civil(days):
    """Month and day of a day number, by the algorithm of Howard Hinnant's chrono paper: any year."""
    days += 719_468
    _, doe = divmod(days, 146_097)
    yoe = (doe - doe // 1460 + doe // 36_524 - doe // 146_096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    return (mp + 3 if mp < 10 else mp - 9), doy - (153 * mp + 2) // 5 + 1


@pure
@given(st.lists(moments, min_size=1, max_size=8))
def test_times_beyond_any_calendar_still_have_their_parts(times):
    array = pa.array(times, pa.timestamp("ms", "UTC"))
    assert time_part(array, "month", "UTC").tolist() == [civil(t // 86_400_000)[0] for t in times]
    assert time_part(array, "day", "UTC").tolist() == [civil(t // 86_400_000)[1] for t in times]
    assert time_part(array, "hour", "UTC").tolist() == [t // 3_600_000 % 24 for t in times]
    assert time_part(array, "weekday", "Europe/Berlin").shape == (len(times),)


def test_an_unknown_time_has_no_parts_and_a_date_has_no_zone():
    topology = make(parts("at", "hour"), parts("day", "day", "weekday", tz="America/New_York", prefix="date_"))
    found, _, _ = matrix(topology, [{"at": 3_600_000, "day": 15_769}, {}])
    assert found[0].tolist() == [1.0, 5.0, 1.0], "2013-03-05, a Tuesday, in every zone"
    assert np.isnan(found[1]).all()


@pure
@given(st.lists(moments, min_size=1, max_size=5), st.sampled_from(["us", "ns"]))
def test_finer_units_are_cut_to_the_millisecond_that_they_are_in(times, unit):
    found = milliseconds(pa.array(times, pa.timestamp(unit)))
    assert found.tolist() == [t // {"us": 1000, "ns": 1_000_000}[unit] for t in times]


# ---- vectors

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pure
@given(st.lists(st.none() | st.lists(st.none() | numbers, max_size=5), min_size=1, max_size=10))
def test_a_vector_of_another_length_rejects_its_event_alone(values):
    found, rows, rejects = matrix(make(vector("list", 3)), [{"list": v} for v in values])
    assert rows == [i for i, v in enumerate(values) if v is not None and len(v) == 3]
    expected = [[math.nan if x is None else x for x in values[i]] for i in rows]
    np.testing.assert_array_equal(found, np.array(expected, np.float32).reshape(-1, 3))
    assert sorted(rows + list(rejects)) == list(range(len(values)))
    assert {r.error for r in rejects.values()} <= {"WrongLength"}


def test_the_reject_of_a_vector_says_what_was_found():
    _, _, rejects = matrix(make(vector("list", 3)), [{"list": None}, {"list": [1]}])
    assert [r.message for r in rejects.values()] == [
        "list: found null, expected 3",
        "list: found 1 values, expected 3",
    ]


# ---- derived functions


def poison(x):
    if (x == 13).any():
        raise ZeroDivisionError("thirteen")
    return x + 1


@pure
@given(st.lists(st.sampled_from([1.0, 2.0, 13.0]), min_size=1, max_size=40))
def test_a_row_that_makes_a_derived_function_fail_is_rejected_alone(values):
    found, rows, rejects = matrix(make(derived("d", poison, of="x")), [{"x": v} for v in values])
    assert found[:, 0].tolist() == [v + 1 for v in values if v != 13]
    assert rows == [i for i, v in enumerate(values) if v != 13]
    assert all(r.error == "DerivedFailed" and r.message == "d: ZeroDivisionError: thirteen" for r in rejects.values())


@pytest.mark.parametrize("wrong", [lambda x: x.sum(), lambda x: x[:, None], lambda x: np.append(x, 0), lambda _: "a"])
def test_a_derived_function_of_another_shape_rejects_and_says_so(wrong):
    _, rows, rejects = matrix(make(derived("d", wrong, of="x")), [{"x": 1.0}, {"x": 2.0}])
    assert not rows
    assert "returned shape" in rejects[0].message or "could not convert" in rejects[0].message


def test_a_derived_function_is_given_nan_for_null_and_objects_for_text():
    seen = {}

    def keep(x, flag, n, a):
        seen.update(x=x, flag=flag, n=n, a=a)
        return np.array([len(one or "") for one in a])

    topology = make(derived("d", keep, of=("x", "flag", "n", "a")))
    found, _, _ = matrix(topology, [{"x": 1.5, "flag": True, "n": 3, "a": "abc"}, {}])
    assert found[:, 0].tolist() == [3, 0]
    for name, first in (("x", 1.5), ("flag", 1.0), ("n", 3.0)):
        assert seen[name].dtype == np.float64
        assert seen[name][0] == first
        assert np.isnan(seen[name][1])
    assert seen["a"].tolist() == ["abc", None]


def test_a_derived_function_may_read_a_nested_path_with_nulls():
    topology = make(derived("longest", lambda v: np.array([0 if one is None else len(one) for one in v]), of="list"))
    found, _, rejects = matrix(topology, [{"list": [1, 2]}, {"list": None}])
    assert found[:, 0].tolist() == [2, 0]
    assert not rejects


def test_a_derived_function_can_not_change_what_others_see():
    def spoil(x):
        x[:] = -1
        return x

    found, _, _ = matrix(make(field("x"), derived("d", spoil, of="x")), [{"x": 5.0}])
    assert found.tolist() == [[5.0, -1.0]]


def test_what_is_derived_of_a_rejected_value_is_rejected_on_the_same_grounds():
    topology = make(
        vector("list", 2),
        derived("d", poison, of="x"),
        derived("e", np.nan_to_num, of="d"),
        derived("f", lambda v, e: np.nan_to_num(v.sum(axis=1)) + e, of=("list", "e")),
    )
    events = [{"x": 1.0, "list": [1, 2]}, {"x": 13.0, "list": [1, 2]}, {"x": 1.0, "list": [1]}]
    _, rows, rejects = matrix(topology, events, ["e"])
    assert (rows, rejects[1].message) == ([0, 2], "d: ZeroDivisionError: thirteen")
    found, rows, rejects = matrix(topology, events, ["f"])
    assert (rows, found.tolist()) == ([0], [[5.0]])
    assert [rejects[i].error for i in (1, 2)] == ["DerivedFailed", "WrongLength"]


def test_what_two_versions_share_is_computed_once():
    calls = []

    def count(x):
        calls.append(len(x))
        return x

    topology = make(derived("d", count, of="x"), derived("e", lambda d: d * 2, of="d"))
    catalogue, events = Catalogue(topology), decode(topology, [{"x": float(i)} for i in range(5)])
    plans = [plan_of(catalogue), plan_of(catalogue, ["e"]), plan_of(catalogue, ["d"], dtype="float64")]
    columns = open_columns(catalogue, events, plans, MemoryStore({}))
    for plan in plans:
        build_matrix("v", plan, columns, np.arange(5))
    assert calls == [5]


def test_what_one_version_can_not_be_given_is_no_fault_of_the_row_for_another():
    topology = make(field("n"), derived("d", poison, of="x"), vector("list", 2))
    catalogue = Catalogue(topology)
    events = decode(topology, [{"n": 1, "x": 1.0, "list": [1, 2]}, {"n": None, "x": 13.0, "list": None}])
    strict = [plan_of(catalogue, ["n"], dtype="int64"), plan_of(catalogue, ["d"]), plan_of(catalogue, ["list"])]
    easy = plan_of(catalogue, ["n"])
    for order in ([easy, *strict], [*strict, easy]):
        columns = open_columns(catalogue, events, order, MemoryStore({}))
        rows = {id(plan): build_matrix("v", plan, columns, np.arange(2)) for plan in order}
        assert rows[id(easy)].rows.tolist() == [0, 1]
        assert not rows[id(easy)].rejects
        assert [rows[id(plan)].rejects[0].row for plan in strict] == [1, 1, 1]


def test_a_version_rejects_only_rows_that_it_answers_for():
    topology = make(field("n"))
    catalogue, events = Catalogue(topology), decode(topology, [{"n": None}, {"n": 2}, {"n": None}])
    plan = plan_of(catalogue, dtype="int64")
    made = build_matrix("v", plan, open_columns(catalogue, events, [plan], MemoryStore({})), np.array([0, 1]))
    assert made.rows.tolist() == [1]
    assert [r.row for r in made.rejects] == [0]


# ---- numbers into inputs of a type

RANGES = {"int8": 2**7, "int16": 2**15, "int32": 2**31, "int64": 2**63}
edges = st.sampled_from([k + d for k in (0, 2**7, 2**8, 2**31, 2**32, 2**53, 2**63, -(2**63)) for d in (-1, 0, 1)])
longs = (edges | moments).filter(lambda n: -(2**63) <= n < 2**63)


@pure
@given(st.lists(longs, min_size=1, max_size=8), st.sampled_from([*RANGES, "uint8", "uint16", "uint32", "uint64"]))
def test_an_integer_enters_an_integer_input_bit_for_bit_or_rejects_its_event(values, dtype):
    found, rows, rejects = matrix(make(field("n")), [{"n": v} for v in values], dtype=dtype)
    limits = np.iinfo(dtype)
    good = [i for i, v in enumerate(values) if limits.min <= v <= limits.max]
    assert rows == good
    assert found[:, 0].tolist() == [values[i] for i in good]
    assert {r.error for r in rejects.values()} <= {"NotExact"}


@pure
@given(
    st.lists(st.floats() | st.integers(-300, 300).map(float), min_size=1, max_size=8),
    st.sampled_from(["int8", "int64", "uint8", "uint64", "bool"]),
)
def test_a_float_enters_an_integer_input_only_where_it_is_that_integer(values, dtype):
    topology = make(derived("d", lambda n: np.array([values[int(i)] for i in n]), of="n"))
    found, rows, rejects = matrix(topology, [{"n": i} for i in range(len(values))], dtype=dtype)
    low, high = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    good = [i for i, v in enumerate(values) if math.isfinite(v) and v == int(v) and low <= int(v) <= high]
    assert rows == good
    assert [int(x) for x in found[:, 0]] == [int(values[i]) for i in good]
    assert all(r.error == "NotExact" for r in rejects.values())


def test_a_negative_int_does_not_become_a_large_unsigned_one():
    _, rows, rejects = matrix(make(field("i")), [{"i": -1}, {"i": 1}], dtype="uint32")
    assert rows == [1]
    assert rejects[0].message == "i is [-1], which uint32 input in can't hold"


def test_a_null_without_default_rejects_its_event_from_an_integer_input_and_is_nan_in_a_float_one():
    events = [{"n": None}, {"n": 2}]
    _, rows, rejects = matrix(make(field("n")), events, dtype="int64")
    assert (rows, rejects[0].error) == ([1], "NullInput")
    assert "n is null" in rejects[0].message
    found, rows, _ = matrix(make(field("n")), events)
    assert rows == [0, 1]
    assert np.isnan(found[0, 0])


@pytest.mark.parametrize(("default", "dtype"), [(7, "int64"), (-0.0, "int8"), (2.0**60, "int64"), (1, "bool")])
def test_a_null_becomes_the_default(default, dtype):
    found, rows, _ = matrix(make(field("flag", default=default)), [{}, {"flag": True}], dtype=dtype)
    assert rows == [0, 1]
    assert found[:, 0].tolist() == [default, 1]


@pytest.mark.parametrize(
    ("default", "dtype"), [(0.5, "int64"), (math.nan, "int64"), (math.inf, "int32"), (300, "int8")]
)
def test_a_default_that_the_input_can_not_hold_rejects_the_null_and_nothing_else(default, dtype):
    _, rows, rejects = matrix(make(field("n", default=default)), [{}, {"n": 1}], dtype=dtype)
    assert rows == [1]
    assert rejects[0].error == "NotExact"


# ---- the catalogue


@pytest.mark.parametrize(
    ("features", "what"),
    [
        ((field("x"), field("x")), "two features are named 'x'"),
        ((parts("at", "hour"), parts("day", "hour")), "two features are named 'hour'"),
        ((stored(View("v", key="a", fields=("p",))), field("n", name="v.p")), "two features are named 'v.p'"),
        ((derived("x", lambda x: x, of="x"),), "'x' is made of x"),
        ((derived("d", lambda e: e, of="e"), derived("e", lambda d: d, of="d")), "'d' is made of e"),
        ((derived("d", lambda h: h, of="hour"), parts("at", "hour")), "'d' is made of hour"),
    ],
)
def test_a_catalogue_that_does_not_hold_together_is_refused(features, what):
    with pytest.raises(TopologyError, match=what):
        Catalogue(make(*features))


def test_the_closest_name_is_told():
    with pytest.raises(TopologyError, match="close: distance"):
        Catalogue(make(field("x", name="distance"))).pick("distanse")


def test_a_fingerprint_follows_the_meaning_and_not_the_name():
    def print_of(feature):
        return next(iter(Catalogue(make(feature)).atoms.values())).fingerprint

    def one(x):
        return x

    assert print_of(field("x")) == print_of(field("x", name="other"))
    assert len({print_of(f) for f in (field("x"), field("n"), field("x", default=0), category("x"), text("x"))}) == 5
    assert print_of(derived("d", one, of="x")) != print_of(derived("d", one, of="x", version=2))
    assert print_of(parts("at", "hour")) != print_of(parts("at", "hour", tz="Asia/Tokyo"))


def test_a_training_plan_reads_the_views_that_its_features_are_made_of():
    dotted = View("v.w", key="a", fields=("p",), default=3.0)
    topology = make(stored(dotted), derived("twice", lambda p: 2 * p, of="v.w.p"), field("x"))
    catalogue = Catalogue(topology)
    for names in (None, ["twice"], ["x"]):
        plan = training_plan(catalogue, {}, names)
        columns = open_columns(catalogue, decode(topology, [{"a": "k", "x": 1.0}]), [plan], MemoryStore({}))
        made = build_matrix("v", plan, columns, np.arange(1))
        assert made.inputs["features"].tolist() == [{"twice": [6.0], "x": [1.0]}.get((names or [""])[0], [3, 6, 1])]


@pytest.mark.parametrize(
    ("feature", "what"),
    [
        (field("a"), r"feature 'a' \(field\): found null \| string at 'a', expected a number"),
        (category("x"), r"feature 'x' \(category\): found null \| double"),
        (parts("n", "hour"), r"feature 'n' \(parts\): found null \| long"),
        (parts("at", "hour", tz="Europe/Bern2"), "there is no time zone 'Europe/Bern2'"),
        (vector("x", 3), r"feature 'x' \(vector\)"),
        (stored(View("v", key="x", fields=("p",))), "key of view 'v': found null . double"),
    ],
)
def test_a_feature_that_its_path_can_not_give_is_told_with_what_was_found_and_expected(feature, what):
    with pytest.raises(TopologyError, match=what):
        check_features(Catalogue(make(feature)), EVENT_SCHEMA)
