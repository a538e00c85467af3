"""Promise: for any schema and any bytes, the fast path, the slow path and fastavro itself tell the same."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fastavro
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from test_decode_support import (
    avro,
    bare,
    encode,
    field,
    framed,
    is_fast,
    is_flat,
    logical,
    parse,
    plain,
    raw_batch,
    record,
    told,
)

from streamserve.errors import SchemaError
from streamserve.pipeline import avro_packed

QUIET = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
Draw = Callable[[st.SearchStrategy[Any]], Any]

INTS = st.integers(-(1 << 31), (1 << 31) - 1)
LONGS = st.integers(-(1 << 63), (1 << 63) - 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)
FLOATS = st.floats(width=32, allow_nan=True)
FAST = {
    "boolean": ("boolean", st.booleans()),
    "int": ("int", INTS),
    "long": ("long", LONGS),
    "float": ("float", FLOATS),
    "double": ("double", st.floats()),
    "string": ("string", TEXTS),
    "date": (logical("int", "date"), INTS),
    "time-millis": (logical("int", "time-millis"), INTS),
    "time-micros": (logical("long", "time-micros"), LONGS),
    "millis": (logical("long", "timestamp-millis"), LONGS),
    "micros": (logical("long", "timestamp-micros"), LONGS),
    "nanos": (logical("long", "timestamp-nanos"), LONGS),
    "local-millis": (logical("long", "local-timestamp-millis"), LONGS),
    "local-micros": (logical("long", "local-timestamp-micros"), LONGS),
    "uuid": (logical("string", "uuid"), TEXTS),
}
SLOW = {
    "bytes": ("bytes", st.binary(max_size=5)),
    "decimal": (logical("bytes", "decimal", precision=30, scale=4), st.binary(max_size=9)),
}


class Types:
    """Draws types, and for each the strategy of its values."""

    def __init__(self, draw: Draw, *, slow: bool, flat: bool) -> None:
        self.draw, self.slow, self.names = draw, slow, itertools.count()
        self.deeper = ["record"] if flat else ["record", "array", "map", "union"]

    def record(self, depth: int) -> tuple[Any, st.SearchStrategy[Any]]:
        name = f"R{next(self.names)}"
        drawn = [self.type(depth - 1) for _ in range(self.draw(st.integers(1, 4)))]
        fields = [field(f"f{i}", type) for i, (type, _) in enumerate(drawn)]
        return record(*fields, name=name), st.fixed_dictionaries({f"f{i}": v for i, (_, v) in enumerate(drawn)})

    def type(self, depth: int) -> tuple[Any, st.SearchStrategy[Any]]:  # noqa: PLR0911 (a return a kind)
        kinds = ["leaf", "leaf", "enum", "nullable"] + (self.deeper if depth > 0 else [])
        kind = self.draw(st.sampled_from(kinds))
        if kind == "leaf":
            return self.draw(st.sampled_from(list((FAST | (SLOW if self.slow else {})).values())))
        if kind == "enum":
            symbols = self.draw(st.sampled_from([["A"], ["A", "B", "C"]]))
            return {"type": "enum", "name": f"E{next(self.names)}", "symbols": symbols}, st.sampled_from(symbols)
        if kind == "record":
            return self.record(depth)
        if kind == "union":
            return ["null", "boolean", "string"], st.one_of(st.none(), st.booleans(), TEXTS)
        inner, values = self.type(depth - 1)
        if kind == "array":
            return {"type": "array", "items": inner}, st.lists(values, max_size=3)
        if kind == "map":
            return {"type": "map", "values": inner}, st.dictionaries(TEXTS, values, max_size=3)
        if isinstance(inner, list):
            return inner, values
        return self.draw(st.sampled_from([["null", inner], [inner, "null"]])), st.one_of(st.none(), values)


@st.composite
def schemas(draw: Draw, *, slow: bool = False) -> tuple[Any, st.SearchStrategy[Any], list[str]]:
    schema, values = Types(draw, slow=slow, flat=draw(st.booleans())).record(3)
    return schema, values, draw(st.just(readable(schema)))


def readable(schema: Any) -> list[str]:
    """All paths that make a column, records included."""
    known = parse(schema)
    found = set()
    for path in known.paths():
        steps = path.split(".")
        for n in range(1, len(steps) + 1):
            prefix = ".".join(steps[:n])
            try:
                known.column_type(prefix)
            except SchemaError:
                continue
            found.add(prefix)
    return sorted(found)


def truth(schema: Any, value: bytes, path: str) -> Any:
    found = fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(bare(schema)), None)
    for step in path.split("."):
        found = None if found is None else found[step]
    return found


def alike(found: Any, expected: Any) -> bool:
    """A value of a column is the value that fastavro gives; maps are pairs in Arrow, NaN is itself."""
    if isinstance(expected, dict):
        pairs = dict(found) if isinstance(found, list) else found
        return (
            isinstance(pairs, dict)
            and pairs.keys() == expected.keys()
            and all(alike(pairs[key], expected[key]) for key in expected)
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    if isinstance(expected, bytes) and not isinstance(found, bytes):
        return int(found.scaleb(4)) == int.from_bytes(expected, "big", signed=True)
    return type(found) is type(expected) and repr(found) == repr(expected)


def check_truth(schema: Any, values: list[bytes], paths: list[str], batch: Any) -> None:
    for path in paths:
        found = plain(batch.columns.column(path))
        by_row = dict(zip(batch.rows.tolist(), found, strict=True))
        for row, value in enumerate(values):
            if row in by_row and value is not None:
                assert alike(by_row[row], truth(schema, value, path)), path


@QUIET
@given(schemas(), st.data())
def test_whole_events_read_alike_on_both_paths_and_in_fastavro(drawn: Any, data: st.DataObject) -> None:
    schema, values, paths = drawn
    events = [encode(schema, one) for one in data.draw(st.lists(values, min_size=1, max_size=6))]
    fast, slow = avro(schema, paths), avro(schema, paths, slow=True)
    event(f"fast path: {is_fast(fast)}, compiled: {is_flat(fast)}")
    batch = fast.decode(raw_batch(events))
    assert batch.rejects == ()
    assert told(batch) == told(slow.decode(raw_batch(events)))
    assert told(batch) == told(avro(schema, paths, flat=False).decode(raw_batch(events)))
    check_truth(schema, events, paths, batch)


@QUIET
@given(schemas(slow=True), st.data())
def test_types_of_the_slow_path_read_as_in_fastavro(drawn: Any, data: st.DataObject) -> None:
    schema, values, paths = drawn
    events = [encode(schema, one) for one in data.draw(st.lists(values, min_size=1, max_size=4))]
    batch = avro(schema, paths).decode(raw_batch(events))
    assert batch.rejects == ()
    check_truth(schema, events, paths, batch)


def broken(data: st.DataObject, value: bytes) -> bytes | None:
    kind = data.draw(st.sampled_from(["flip", "flip", "flip", "cut", "grow", "none", "noise", "put"]))
    at = data.draw(st.integers(0, len(value) - 1))
    match kind:
        case "flip":
            return value[:at] + bytes([value[at] ^ (1 << data.draw(st.integers(0, 7)))]) + value[at + 1 :]
        case "cut":
            return value[:at]
        case "grow":
            return value + b"\x00\xff"
        case "none":
            return None
        case "noise":
            return framed(data.draw(st.binary(max_size=12)))
    return value[:at] + data.draw(st.binary(min_size=1, max_size=10)) + value[at:]


@settings(QUIET, max_examples=250)
@given(schemas(), st.data())
def test_broken_events_leave_their_neighbours_in_place_on_both_paths(drawn: Any, data: st.DataObject) -> None:
    schema, values, paths = drawn
    some = [encode(schema, one) for one in data.draw(st.lists(values, min_size=1, max_size=3))]
    events: list[bytes | None] = [some[i % len(some)] for i in range(data.draw(st.sampled_from([1, 5, 40])))]
    hurt = data.draw(st.sets(st.integers(0, len(events) - 1), min_size=1, max_size=5))
    for row in sorted(hurt):
        events[row] = broken(data, events[row] or b"")
    asked = data.draw(st.lists(st.sampled_from(paths), unique=True)) if paths else []
    batch = avro(schema, asked).decode(raw_batch(events))
    assert told(batch) == told(avro(schema, asked, slow=True).decode(raw_batch(events)))
    assert told(batch) == told(avro(schema, asked, flat=False).decode(raw_batch(events)))
    assert {one.row for one in batch.rejects} <= hurt
    assert sorted([*batch.rows.tolist(), *(one.row for one in batch.rejects)]) == list(range(len(events)))
    assert all(len(one.message) <= 300 for one in batch.rejects)
    untouched = [None if row in hurt else value for row, value in enumerate(events)]
    check_truth(schema, untouched, asked, batch)
    event(f"rejects: {len(batch.rejects)}")


PROMOTED = {
    "int": ["int", "long", "float", "double"],
    "long": ["long", "float", "double"],
    "float": ["float", "double"],
}


def evolve(data: st.DataObject, schema: Any) -> Any:
    """Another reader's schema: promotions, nullables, fields added, gone and moved, at every level."""
    if isinstance(schema, list):
        return [evolve(data, one) for one in schema]
    if isinstance(schema, str):
        return data.draw(st.sampled_from(PROMOTED.get(schema, [schema])))
    if schema["type"] != "record":
        return schema
    fields = [field(f["name"], evolve(data, f["type"])) for f in schema["fields"] if data.draw(st.integers(0, 4))]
    for f in fields:
        if data.draw(st.booleans()) and not isinstance(f["type"], list):
            f["type"] = ["null", f["type"]]
        if data.draw(st.integers(0, 3)) == 0:
            f["name"], f["aliases"] = f"renamed_{f['name']}", [f["name"]]
    fields.append(field("added", data.draw(st.sampled_from(["int", "double"])), default=3))
    return record(*data.draw(st.permutations(fields)), name=schema["name"])


@QUIET
@given(schemas(), st.data())
def test_evolved_events_read_alike_on_both_paths_and_in_fastavro(drawn: Any, data: st.DataObject) -> None:
    writer, values, _ = drawn
    reader = evolve(data, writer)
    paths = readable(reader)
    events = [encode(writer, one) for one in data.draw(st.lists(values, min_size=1, max_size=4))]
    fast = avro(reader, paths, writers={1: writer})
    batch = fast.decode(raw_batch(events))
    event(f"fast path: {is_fast(fast)}, compiled: {is_flat(fast)}")
    assert told(batch) == told(avro(reader, paths, writers={1: writer}, slow=True).decode(raw_batch(events)))
    assert batch.rejects == ()
    schemas_ = fastavro.parse_schema(bare(writer)), fastavro.parse_schema(bare(reader))
    for row, value in enumerate(events):
        expected = fastavro.schemaless_reader(io.BytesIO(value[5:]), *schemas_)
        for path in paths:
            want = expected
            for step in path.split("."):
                want = None if want is None else want[step]
            got = plain(batch.columns.column(path).slice(row, 1))[0]
            assert near(got, want), path


def near(got: Any, want: Any) -> bool:
    """As `alike`, but a float column holds a promoted number to 24 bits, and defaults are bare JSON."""
    if isinstance(want, dict) and isinstance(got, dict):
        return got.keys() == want.keys() and all(near(got[key], want[key]) for key in want)
    if isinstance(want, float) and isinstance(got, float) and want == want:  # noqa: PLR0124 (not NaN)
        return got == want or abs(got - want) <= abs(want) * 2**-24
    if isinstance(got, float) and isinstance(want, int):
        return got == want
    return alike(got, want)


def test_the_compiled_reader_is_built_and_reads_what_is_plain() -> None:
    """Without it the comparisons above would compare nothing."""
    assert avro_packed.library() is not None
    within = record(field("y", ["null", "string"]), name="Within")
    schema = record(field("x", "long"), field("r", ["null", within]))
    assert is_flat(avro(schema, ["x", "r.y"]))
    assert is_flat(avro(schema, []))
    assert not is_flat(avro(schema, ["r"])), "a record is no column of its own here"
    assert not is_flat(avro(record(field("x", {"type": "array", "items": "float"})), ["x"]))


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 63, 64, 65, 1000])
def test_the_compiled_reader_reads_batches_of_any_size(rows: int) -> None:
    weather = record(field("wet", ["boolean", "null"]), field("at", ["null", logical("long", "timestamp-millis")]),
                     name="Weather")  # fmt: skip
    enum = {"type": "enum", "name": "E", "symbols": ["A", "B", "CCC"]}
    schema = record(field("n", "int"), field("t", ["null", "string"]), field("w", ["null", weather]),
                    field("e", [enum, "null"]), field("d", "double"), field("ok", "boolean"))  # fmt: skip
    events = [
        encode(schema, {"n": i, "t": None if i % 3 == 0 else "é" * (i % 5), "e": None if i % 7 == 6 else "ABC"[i % 3]
                        .replace("C", "CCC"), "d": i / 7, "ok": i % 2 == 0, "w": None if i % 4 == 1 else
                        {"wet": (True, False, None)[i % 3], "at": None if i % 5 == 0 else -i}})
        for i in range(rows)
    ]  # fmt: skip
    paths = ["n", "t", "w.wet", "w.at", "e", "d", "ok"]
    decoder = avro(schema, paths)
    assert is_flat(decoder)
    values = raw_batch([b"before", *events, b"after"])
    batch = decoder.decode(replace(raw_batch(events), values=values.values[1:-1]))  # with another's bytes around it
    assert told(batch) == told(avro(schema, paths, slow=True).decode(raw_batch(events)))
    assert batch.rejects == ()


def test_the_truth_sees_a_planted_error() -> None:
    schema = record(field("x", "long"))
    values = [encode(schema, {"x": 7})]
    batch = avro(schema, ["x"]).decode(raw_batch([encode(schema, {"x": 8})]))
    with pytest.raises(AssertionError):
        check_truth(schema, values, ["x"], batch)
