"""Promise: a rule finds the events whose fields hold its values, type by type, and the first rule that does decides."""

from __future__ import annotations

import datetime as dt
import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.records import EventBatch, Rule
from streamserve.rollouts.targeting import TO_CANDIDATE, TO_STABLE, UNDECIDED, decide, holds

pure = settings(deadline=None, derandomize=True, max_examples=200)
BIG = 2**53 + 1  # no float64 holds it, and 2**24 + 1 no float32
VALUES = (
    st.sampled_from(
        ["", "1", "a", "é", "true", "True", 0, 1, -1, True, False, 2**24 + 1, BIG, BIG - 1, 2**63, 2**64 - 1]
    )
    | st.sampled_from([-(2**63), 2**2000, -(2**2000), 2**1023, "\ud800", "a\udfff"])
    | st.integers(-3, 3)
    | st.text(max_size=2)
)
TEXTS = st.sampled_from(["", "1", "a", "é", "true", "True", "b"]) | st.text(max_size=2)
FLOATS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 2.0**24, 2.0**53, float("nan"), float("inf"), -float("inf")])


def whole(bits, *, signed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.integers(max(low, -3), 3) | st.sampled_from([low, high])


COLUMNS = {
    pa.string(): TEXTS,
    pa.large_string(): TEXTS,
    pa.dictionary(pa.int8(), pa.string()): TEXTS,
    pa.dictionary(pa.int32(), pa.large_string()): TEXTS,
    pa.bool_(): st.booleans(),
    pa.int32(): whole(32, signed=True),
    pa.int64(): whole(64, signed=True) | st.sampled_from([BIG, BIG - 1]),
    pa.uint8(): whole(8, signed=False),
    pa.uint64(): whole(64, signed=False),
    pa.float32(): FLOATS | st.floats(width=32),
    pa.float64(): FLOATS | st.floats(),
    pa.timestamp("ms", "UTC"): st.just(dt.datetime.fromtimestamp(0.001, dt.UTC)),
    pa.date32(): st.just(dt.date(1970, 1, 2)),
    pa.binary(): st.sampled_from([b"1", b"a"]),
    pa.decimal128(3, 0): st.just(decimal.Decimal(1)),
    pa.list_(pa.int32()): st.just([1]),
    pa.null(): st.none(),
}


def meets(have, wanted):
    """By Python's own types, one value at a time. Its ints and floats are compared exactly."""
    if isinstance(have, float):
        return type(wanted) is int and have == wanted
    return type(have) in (str, int, bool) and type(have) is type(wanted) and have == wanted


def expected(rules, rows):
    """rows: a dict of path to value for each event."""
    for rule in rules:
        if all(path in rows and any(meets(rows[path], value) for value in values) for path, values in rule.where):
            return TO_CANDIDATE if rule.candidate else TO_STABLE
    return UNDECIDED


def column_of(kind, values):
    """One row more before and after lies in the same buffers."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    array = pa.array([values[-1] if values else None, *values, *values[:1], None], plain)
    return array.cast(kind)[1 : len(values) + 1]


@pytest.mark.parametrize("kind", COLUMNS, ids=str)
@pure
@given(st.data())
def test_a_value_is_found_where_type_and_value_are_the_same(kind, data):
    values = data.draw(st.lists(st.none() | COLUMNS[kind], max_size=12))
    column, wanted = column_of(kind, values), tuple(data.draw(st.lists(VALUES, max_size=5)))
    assert holds(column, wanted).tolist() == [any(meets(v, w) for w in wanted) for v in column.to_pylist()]


@pytest.mark.parametrize(("kind", "bits"), [(pa.float32(), 24), (pa.float64(), 53)])
def test_a_whole_number_that_a_float_can_only_round_is_not_found_in_floats(kind, bits):
    column = pa.array([2.0**bits, 2.0**bits + 2, -(2.0**bits)], kind)
    assert holds(column, (2**bits + 1,)).tolist() == [False, False, False]
    assert holds(column, (2**bits, -(2**bits))).tolist() == [True, False, True]


def test_a_dictionary_may_hold_null_what_is_not_used_and_what_stands_there_twice():
    column = pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2, None, 3], pa.int8()), pa.array(["a", None, "a", "b", "c"])
    )
    assert holds(column, ("a", "c")).tolist() == [True, False, True, False, False]
    full = pa.DictionaryArray.from_arrays(pa.array([127, None, 0], pa.int8()), pa.array(list(map(str, range(128)))))
    assert holds(full, ("127",)).tolist() == [True, False, False]


def test_one_many_and_thousands_of_values():
    column = pa.array([f"N{i}" for i in range(3_000)])
    for count in (0, 1, 2, 2_999):
        assert holds(column, tuple(f"N{i}" for i in range(count))).sum() == count
        assert holds(pa.array(range(3_000)), tuple(range(count))).sum() == count


# ---- rules

PATHS = ("s", "n", "flag", "x.y", "absent")
KINDS = {"s": pa.string(), "n": pa.int64(), "flag": pa.bool_(), "x.y": pa.float32()}
SOME = st.sampled_from(["a", "b", 0, 1, True, False])
RULES = st.lists(
    st.builds(
        Rule,
        st.just("r"),
        st.lists(st.tuples(st.sampled_from(PATHS), st.lists(SOME, max_size=4).map(tuple)), max_size=3).map(tuple),
        st.booleans(),
    ),
    max_size=4,
).map(tuple)
EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "s": st.none() | st.sampled_from(["a", "b", "c"]),
            "n": st.none() | st.integers(0, 2),
            "flag": st.none() | st.booleans(),
            "x.y": st.none() | st.sampled_from([0.0, 0.5, 1.0]),
        }
    ),
    max_size=12,
)


def batch_of(events):
    columns = pa.RecordBatch.from_pydict(
        {path: column_of(kind, [one[path] for one in events]) for path, kind in KINDS.items()}
    )
    return EventBatch(None, np.arange(len(events)), columns, np.zeros(len(events), np.int64))


@settings(pure, max_examples=500)
@given(RULES, EVENTS)
def test_the_first_rule_that_an_event_is_in_decides(rules, events):
    assert decide(rules, batch_of(events)).tolist() == [expected(rules, one) for one in events]


def test_a_rule_that_asks_for_nothing_is_one_that_all_are_in():
    everybody = EventBatch(
        None, np.arange(2), pa.RecordBatch.from_arrays([], schema=pa.schema([])), np.zeros(2, np.int64)
    )
    assert decide((Rule("all", (), candidate=False),), everybody).tolist() == [TO_STABLE] * 2
    assert decide((Rule("none", (("s", ("a",)),), candidate=True),), everybody).tolist() == [UNDECIDED] * 2
