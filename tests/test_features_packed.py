"""Promise: features have the same bits whether the compiled part, `native/enrich.c`, made them or Python did."""

from __future__ import annotations

import datetime as dt
import struct
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.features import packed, rows
from streamserve.features.buffers import Texts
from streamserve.features.catalogue import Catalogue
from streamserve.features.columns import to_column
from streamserve.features.rows import SEPARATOR, Answer, Keys, StoredRows, event_keys, row_key
from streamserve.models.manifest import Input
from streamserve.models.plan import FeaturePlan
from streamserve.pipeline.enrich import build_matrix, open_columns
from streamserve.records import EventBatch, FeatureStatus
from streamserve.topology import Source, Topology, View, category, derived, field, output, parts, stored

pure = settings(deadline=None, derandomize=True, max_examples=200)
LONGS = st.integers(-(2**63), 2**63 - 1)
# The ends of the range, and where a difference of two wraps round
TIMES = LONGS | st.sampled_from([-(2**63), 2**63 - 1, 0, -1, 1, 2**62, -(2**62), 1_362_096_000_000])
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
TEXTS = st.text(st.sampled_from(["a", "b", "\\", SEPARATOR, "é", "\0", ":"]), max_size=4)
ZONES = ("UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Africa/Monrovia", "Asia/Kathmandu")


@contextmanager
def in_python():
    with patch.object(packed, "library", lambda: None):
        yield


def both(run):
    made = run()
    with in_python():
        return made, run()


def batch_of(columns, times=None):
    """Events of these columns; one more row before and after lies in the same buffers."""
    count = len(next(iter(columns.values()))) - 2
    batch = pa.RecordBatch.from_pydict(columns)[1:-1]
    times = np.zeros(count, np.int64) if times is None else np.array(times, np.int64)
    return EventBatch(None, np.arange(count), batch, times)


def test_the_compiled_part_is_built_here():
    """Without it the comparisons below would compare nothing."""
    assert packed.library() is not None
    with in_python():
        assert packed.library() is None


# ---- keys


@st.composite
def text_batches(draw, *names):
    count = draw(st.integers(2, 14))
    return {
        name: pa.array(draw(st.lists(st.none() | TEXTS, min_size=count, max_size=count)), pa.string()) for name in names
    }


VIEWS = [View("one", key="a", fields=("p",)), View("two", key=("a", "b"), fields=("p",)),
         View("three", key=("b", "c", "a"), fields=("p",)), View("n", key=("n", "a"), fields=("p",))]  # fmt: skip


def asked(keys: Keys):
    """The key of each event, whatever the order of the distinct ones."""
    assert len(set(keys.distinct)) == len(keys.distinct)
    assert set(keys.index.tolist()) - {-1} == set(range(len(keys.distinct))), "no key is asked for that none means"
    return [keys.distinct[at] if at >= 0 else None for at in keys.index.tolist()]


@pure
@given(text_batches("a", "b", "c"), st.lists(st.sampled_from(VIEWS[:3]), unique_by=lambda view: view.name))
def test_events_ask_for_the_same_keys(columns, views):
    events = batch_of(columns)
    made, expected = both(lambda: [asked(keys) for keys in event_keys(views, Texts(events))])
    assert made == expected
    for view, found in zip(views, made, strict=True):
        texts = zip(*(events.columns.column(path).to_pylist() for path in view.key), strict=True)
        assert found == [None if None in text else row_key(view, text) for text in texts]


@pure
@given(st.lists(st.tuples(st.none() | LONGS, st.none() | TEXTS), min_size=2, max_size=9))
def test_numbers_are_parts_of_keys_by_their_text(values):
    events = batch_of({"n": pa.array([n for n, _ in values], pa.int64()), "a": pa.array([a for _, a in values])})
    made, expected = both(lambda: [asked(keys) for keys in event_keys(VIEWS[3:], Texts(events))])
    assert made == expected


@pytest.mark.parametrize("distinct", [1, 7, 5_000])
def test_many_events_ask_for_the_same_keys(distinct):
    chosen = np.random.default_rng(7).integers(0, distinct, (2, 4_002))
    events = batch_of({name: pa.array([f"{name}{i}" for i in one]) for name, one in zip("ab", chosen, strict=True)})
    made, expected = both(lambda: [asked(keys) for keys in event_keys(VIEWS[:2], Texts(events))])
    assert made == expected


def test_keys_that_are_too_large_together_are_made_in_python():
    events = batch_of({"a": pa.array(["x" * 100] * 4)})
    with patch.object(packed, "LARGEST", 300):
        assert texts_of(events).distinct_keys([rows._Known.of(VIEWS[0]).key]) is None
        assert asked(event_keys(VIEWS[:1], Texts(events))[0]) == [row_key(VIEWS[0], ["x" * 100])] * 2


def texts_of(events):
    return Texts(events).packed(packed.library())


# ---- rows


@st.composite
def answers(draw, fields):
    """What a store may say of a row: a whole one, none, or one that is too short or too long."""
    whole = st.builds(
        lambda time, values: struct.pack(f"<q{fields}f", time, *values),
        TIMES,
        st.lists(FLOATS, min_size=fields, max_size=fields),
    )
    short = st.tuples(whole, st.integers(0, 8 + 4 * fields - 1)).map(lambda cut: cut[0][: cut[1]])
    long = st.tuples(whole, st.binary(min_size=1, max_size=9)).map(b"".join)
    return draw(st.lists(whole | whole | st.none() | short | long, min_size=2, max_size=8))


@pure
@given(st.data())
def test_rows_mean_the_same_for_every_event(data):
    fields = data.draw(st.integers(1, 4))
    default = data.draw(FLOATS | st.just(-0.0) | st.lists(FLOATS, min_size=fields, max_size=fields).map(tuple))
    view = View(
        "v", key="a", fields=tuple(f"f{i}" for i in range(fields)), default=default,
        max_age=data.draw(st.none() | st.integers(0, 2**56).map(lambda ms: dt.timedelta(milliseconds=ms))),
        stale=data.draw(st.sampled_from(["use", "default"])), future=data.draw(st.sampled_from(["use", "default"])),
    )  # fmt: skip
    found = pa.array(data.draw(answers(fields)), pa.binary())[1:]
    index = data.draw(st.lists(st.integers(-1, len(found) - 1), max_size=12))
    times = np.array(data.draw(st.lists(TIMES, min_size=len(index), max_size=len(index))), np.int64)
    keys = Keys([], np.array(index, np.int32))
    made, expected = both(lambda: rows._columns(view, keys, found, FeatureStatus.PRESENT, times))
    assert made.values.tobytes() == expected.values.tobytes()
    assert made.values.shape == expected.values.shape == (len(index), fields)
    assert made.status.tolist() == expected.status.tolist()


@pure
@given(st.lists(st.none() | TEXTS, min_size=2, max_size=9), st.sampled_from(FeatureStatus))
def test_a_store_that_says_nothing_means_the_same(values, why):
    class Silent:
        def fetch(self, keys):
            return Answer(None, why)

    events, view = batch_of({"a": pa.array(values, pa.string())}), View("v", key="a", fields=("p",), default=3.0)
    made, expected = both(lambda: StoredRows([view], events, Texts(events), Silent()).view(view))
    assert made.values.tobytes() == expected.values.tobytes()
    assert made.status.tolist() == expected.status.tolist()


def test_an_index_beyond_the_rows_is_not_followed():
    """A store that answers fewer rows than it was asked for."""
    view = View("v", key="a", fields=("p",), default=3.0)
    found = pa.array([struct.pack("<qf", 1, 2.0)], pa.binary())
    index, times = np.array([0, 1, 2**31 - 1, -(2**31)], np.int32), np.ones(4, np.int64)
    values, status = packed.spread(packed.library(), rows._Known.of(view).rule, found, index, times)
    assert values.tolist() == [[2.0], [3.0], [3.0], [3.0]]
    assert status.tolist() == [FeatureStatus.PRESENT, *[FeatureStatus.MISSING] * 3]


# ---- whole inputs

WHOLE = {
    "i8": pa.int8(), "i16": pa.int16(), "i32": pa.int32(), "i64": pa.int64(),
    "u8": pa.uint8(), "u16": pa.uint16(), "u32": pa.uint32(), "u64": pa.uint64(),
}  # fmt: skip
TIMED = {
    "s": pa.timestamp("s"), "ms": pa.timestamp("ms", "UTC"), "us": pa.timestamp("us"), "ns": pa.timestamp("ns"),
}  # fmt: skip
CLOCKS = {"date": (pa.date32(), 32), "t_ms": (pa.time32("ms"), 32), "t_us": (pa.time64("us"), 64)}


@st.composite
def columns(draw):
    count = draw(st.integers(2, 10))

    def made(values, kind):
        found = draw(st.lists(st.none() | values, min_size=count, max_size=count))
        return pa.array(found, kind)

    def viewed(kind, width):
        values = made(st.integers(-(2 ** (width - 1)), 2 ** (width - 1) - 1), pa.int32() if width == 32 else pa.int64())
        return values.view(kind)

    near = st.integers(1_362_000_000_000, 1_364_800_000_000)  # of March 2013, when clocks change
    per = {"s": 1, "ms": 1, "us": 1000, "ns": 1_000_000}
    found = {"a": made(TEXTS, pa.string()), "b": made(TEXTS, pa.string()), "n": made(LONGS, pa.int64())}
    for name, kind in WHOLE.items():
        low, high = np.iinfo(kind.to_pandas_dtype()).min, np.iinfo(kind.to_pandas_dtype()).max
        found[name] = made(st.integers(int(low), int(high)), kind)
    found["f32"], found["f64"] = made(FLOATS, pa.float32()), made(st.floats(), pa.float64())
    found["flag"] = made(st.booleans(), pa.bool_())
    for unit, kind in TIMED.items():
        lately = near.map(lambda ms, by=per[unit]: ms * by)
        found[unit] = made(LONGS | lately | lately, pa.int64()).view(kind)
    found |= {name: viewed(*about) for name, about in CLOCKS.items()}
    times = draw(st.lists(TIMES, min_size=count - 2, max_size=count - 2))
    return batch_of(found, times)


NUMBERS = [*WHOLE, "f32", "f64", "flag", *TIMED, *CLOCKS]
DEFAULTS = st.none() | st.sampled_from([-0.0, 1e300, float("inf"), 16_777_217.0]) | FLOATS
PARTS = ("minute", "hour", "weekday", "day", "month", "dayofyear")
PAIR = View("pair", key=("a", "b"), fields=("p", "q"), max_age=dt.timedelta(days=1), default=(-1.0, float("nan")))
COUNT = View("count", key="n", fields=("r",), future="default", default=5.0)


class Everything:
    """A store that knows a row of every second key."""

    def fetch(self, keys):
        found = []
        for key in keys:
            seed = sum(key)
            fields = 1 if b":count:" in key else 2
            row = struct.pack(f"<q{fields}f", (seed << 48) % 2**63, *[float("nan"), seed][:fields])
            found.append(row if seed % 2 else None)
        return Answer(found)


@settings(pure, max_examples=150)
@given(columns(), st.data())
def test_inputs_and_statuses_have_the_same_bits(events, data):
    numbers = data.draw(st.lists(st.sampled_from(NUMBERS), unique=True, min_size=1, max_size=6))
    units = data.draw(st.lists(st.sampled_from([*TIMED, "date"]), unique=True, max_size=2))
    clocks = [parts(unit, *PARTS, tz=data.draw(st.sampled_from(ZONES)), prefix=f"{unit}_") for unit in units]
    vocabulary = tuple(data.draw(st.lists(TEXTS, unique=True, max_size=5)))
    features = [
        *(field(name, default=data.draw(DEFAULTS)) for name in numbers),
        category("a"), *clocks, stored(PAIR), stored(COUNT), category("n"),
    ]  # fmt: skip
    if units:
        features.append(derived("late", lambda hour: hour > 5, of=f"{units[0]}_hour"))
    topology = Topology(
        name="t", model="m", features=tuple(features), outputs={"y": output("y", column=0)},
        source=Source("events", schema="event.avsc", format="json"),
    )  # fmt: skip
    catalogue = Catalogue(topology)
    names = tuple(data.draw(st.permutations(sorted(catalogue.atoms))))
    dtype = data.draw(st.sampled_from(["float32", "float32", "float64"]))
    vocabularies = {"a": vocabulary, "n": tuple(str(i) for i in events.columns.column("n").to_pylist()[:2] if i)}
    only = Input(name="in", dtype=dtype, shape=(None, len(names)), features=names)
    plan = FeaturePlan((only,), vocabularies, (PAIR, COUNT))

    def fill():
        found = open_columns(catalogue, events, [plan], Everything())
        return build_matrix("v1", plan, found, np.arange(len(events)))

    made, expected = both(fill)
    assert made.inputs["in"].dtype == expected.inputs["in"].dtype
    assert made.inputs["in"].tobytes() == expected.inputs["in"].tobytes()
    assert made.status.tolist() == expected.status.tolist()
    assert made.rejects == expected.rejects


# The last is rounded up as it is, and down if it is made a double first
EDGES = (0, 1, -1, 127, -128, 255, 2**16 - 1, 2**32 - 1, 2**24 + 1, -(2**63), 2**63 - 1, 2**63 + 2**62, 2**64 - 1,
         2**60 + 2**36 + 1)  # fmt: skip


@pytest.mark.parametrize("kind", [*WHOLE.values(), pa.float32(), pa.float64(), pa.bool_()], ids=str)
def test_the_numbers_at_the_ends_of_a_type_are_rounded_alike(kind):
    if pa.types.is_integer(kind):
        about = np.iinfo(kind.to_pandas_dtype())
        values = [one for one in EDGES if about.min <= one <= about.max]
    elif pa.types.is_boolean(kind):
        values = [True, False, True]
    else:
        values = [0.1, -0.0, 1e300, -1e300, 1e-300, float("inf"), float("nan"), 16_777_217.0, 2**60 + 2**36 + 1.0]
    for some in (values, [None, *values, None]):
        array = pa.array([some[0], *some, some[0]], pa.float64() if pa.types.is_floating(kind) else kind)
        events = batch_of({"x": array.cast(kind, safe=False)})
        there = to_column(events.columns.column(0))
        with np.errstate(over="ignore"):
            expected = there.values.astype(np.float32)
        if there.valid is not None:
            expected[~there.valid] = -0.0
        found = texts_of(events).numbers(packed.Fields([("x", -0.0)]))
        assert found[:, 0].tobytes() == expected.tobytes()


TIMES_OF_ALL_KINDS = [
    pa.date32(), pa.date64(), *map(pa.time32, ("s", "ms")), *map(pa.time64, ("us", "ns")),
    *(kind(unit) for kind in (pa.timestamp, pa.duration) for unit in ("s", "ms", "us", "ns")),
    pa.timestamp("ms", "Europe/Berlin"),
]  # fmt: skip


@pytest.mark.parametrize("kind", TIMES_OF_ALL_KINDS, ids=str)
def test_times_of_all_kinds_are_whole_numbers(kind):
    stored = pa.int32() if kind.bit_width == 32 else pa.int64()
    values = [-1, 0, 16_777_217, 2**31 - 1, -(2**31)]
    events = batch_of({"x": pa.array([0, *values, None, 0], stored).view(kind)})
    expected = [*np.array(values).astype(np.float32).tolist(), -7.0]
    assert texts_of(events).numbers(packed.Fields([("x", -7.0)]))[:, 0].tolist() == expected
    assert to_column(events.columns.column(0)).values.tolist() == [*values, 0]


@pure
@given(st.lists(TEXTS, max_size=12), st.lists(st.none() | TEXTS, min_size=2, max_size=12))
def test_words_have_the_same_codes(vocabulary, values):
    """Of a word that stands twice, the last place counts."""
    texts = batch_of({"a": pa.array(values, pa.string())})
    found = texts_of(texts).codes("a", packed.words(packed.library(), tuple(vocabulary)))
    places = {word: place + 2 for place, word in enumerate(vocabulary)}
    assert found.tolist() == [0 if value is None else places.get(value, 1) for value in values[1:-1]]


def test_a_word_that_no_event_can_have_does_no_harm():
    words = packed.words(packed.library(), ("\ud800", "x"))
    assert texts_of(batch_of({"a": pa.array(["", "x", "?", ""])})).codes("a", words).tolist() == [3, 1]


def clock_of(zone):
    return Topology(
        name="t", model="m", features=(parts("at", "minute", "hour", "weekday", tz=zone),),
        outputs={"y": output("y", column=0)}, source=Source("events", schema="event.avsc", format="json"),
    )  # fmt: skip


def parts_of(topology, times):
    found = open_columns(Catalogue(topology), batch_of({"at": times}), [], Everything())
    return [found.column(part).values.tolist() for part in ("minute", "hour", "weekday")]


@pytest.mark.parametrize("unit", TIMED)
@pytest.mark.parametrize("zone", ZONES[:2])
def test_times_of_all_units_have_the_same_parts(unit, zone):
    """Before 1970 and after, with what is finer than a millisecond cut off downwards."""
    per_s = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    random = np.random.default_rng(7)
    for low in (-(10**9), 0, 10**9):
        values = random.integers(low * per_s, (low + 10**9) * per_s, 500)
        made, expected = both(partial(parts_of, clock_of(zone), pa.array(values, pa.timestamp(unit))))
        assert made == expected


@pytest.mark.parametrize("zone", ZONES[1:])
def test_the_clock_changes_in_the_very_millisecond(zone):
    """A year's quarters of an hour, each with the millisecond before it; in 1972 one zone had odd seconds."""
    for year in (1972, 2013):
        start = int(dt.datetime(year, 1, 1, tzinfo=dt.UTC).timestamp() * 1000)
        quarters = start + np.arange(366 * 96, dtype=np.int64) * 900_000
        times = np.sort(np.concatenate([quarters - 1, quarters]))
        for few in (times, *(times[first : first + 40] for first in range(0, len(times) - 40, 1_000))):
            made, expected = both(partial(parts_of, clock_of(zone), pa.array(few, pa.timestamp("ms"))))
            assert made == expected
