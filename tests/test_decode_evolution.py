"""Promise: an event written with another schema reads as Avro says, on both paths, or says why it can't."""

from __future__ import annotations

import io
import re
from typing import Any

import fastavro
import numpy as np
import pytest
from test_decode_support import (
    avro,
    bare,
    both,
    encode,
    faults,
    field,
    is_fast,
    logical,
    parse,
    plain,
    raw_batch,
    record,
)

from streamserve.pipeline.decode import EventDecoder


def resolved(writer: Any, reader: Any, value: bytes) -> Any:
    schemas = fastavro.parse_schema(bare(writer)), fastavro.parse_schema(bare(reader))
    return fastavro.schemaless_reader(io.BytesIO(value[5:]), *schemas)


BASE = field("k", "int")
INNER_OLD = record(field("a", "int"), name="Inner")
INNER_NEW = record(field("b", "string", default="new"), field("a", "long"), name="Inner")
EVOLUTIONS: dict[str, tuple[Any, Any, list[Any], bool]] = {
    # name: the writer's field x, the reader's, values, whether the fast path must do it
    "int to long": ("int", "long", [1, -(1 << 31)], True),
    "int to float": ("int", "float", [1, (1 << 24) + 1], True),
    "int to double": ("int", "double", [1], True),
    "long to float": ("long", "float", [(1 << 24) + 1, (1 << 60) + (1 << 36) + 1, (1 << 63) - 1], True),
    "long to double": ("long", "double", [(1 << 53) + 1, -(1 << 63)], True),
    "float to double": ("float", "double", [0.1, float("inf")], True),
    "string to bytes": ("string", "bytes", ["é"], False),
    "bytes to string": ("bytes", "string", [b"abc"], False),
    "made nullable": ("int", ["null", "int"], [1, 2], True),
    "null moved": (["null", "int"], ["int", "null"], [1, None], True),
    "nullable promoted": (["null", "int"], ["null", "double"], [1, None], True),
    "a symbol more in the reader": (
        {"type": "enum", "name": "E", "symbols": ["B", "A"]},
        {"type": "enum", "name": "E", "symbols": ["A", "B", "C"]},
        ["A", "B"],
        True,
    ),
    "a symbol with a default": (
        {"type": "enum", "name": "E", "symbols": ["A", "Z"]},
        {"type": "enum", "name": "E", "symbols": ["A", "B"], "default": "B"},
        ["A", "Z"],
        False,
    ),
    "a logical type more": ("long", logical("long", "timestamp-millis"), [5], True),
    "an inner record": (INNER_OLD, INNER_NEW, [{"a": 1}], False),
    "a list promoted": (
        {"type": "array", "items": "int"},
        {"type": "array", "items": "long"},
        [[1, 2], []],
        False,
    ),
}


@pytest.mark.parametrize("name", EVOLUTIONS)
def test_a_changed_type_reads_as_fastavro_reads_it(name: str) -> None:
    old, new, values, fast = EVOLUTIONS[name]
    writer, reader = record(field("x", old), BASE), record(BASE, field("x", new))
    encoded = [encode(writer, {"x": x, "k": i}) for i, x in enumerate(values)]
    batch = both(reader, ["x", "k"], list(encoded), writers={1: writer})
    assert is_fast(avro(reader, ["x", "k"], writers={1: writer})) == fast
    expected = [resolved(writer, reader, value)["x"] for value in encoded]
    if "float" in name and "double" not in name:
        expected = [np.float32(x).item() for x in expected]
    assert plain(batch.columns.column("x")) == expected
    assert plain(batch.columns.column("k")) == list(range(len(values)))


OLD = record(
    field("gone", "string"),
    field("renamed", "int"),
    field("inner", ["null", record(field("v", "int"), field("gone", "long"), name="Inner")]),
    field("k", "int"),
)
NEW = record(
    field("k", "long"),
    field("fresh", ["null", "double"], default=None),
    field("fresh_text", "string", default="none"),
    field("fresh_bytes", "bytes", default="\u00ff\u0001"),
    field("fresh_time", logical("long", "timestamp-millis"), default=7),
    field("fresh_list", {"type": "array", "items": "int"}, default=[1, 2]),
    field(
        "fresh_record",
        record(field("p", "int", default=4), field("q", "int"), name="Fresh"),
        default={"q": 9},
    ),
    field("name", "double", aliases=["renamed"]),
    field("inner", ["null", record(field("w", "int", default=3), field("v", "long"), name="Inner")]),
)
FRESH = {
    "fresh": None,
    "fresh_text": "none",
    "fresh_bytes": b"\xff\x01",
    "fresh_time": 7,
    "fresh_list": [1, 2],
    "fresh_record": {"p": 4, "q": 9},
    "fresh_record.p": 4,
    "fresh_record.q": 9,
}


def test_added_removed_renamed_and_reordered_fields_stay_on_the_fast_path() -> None:
    paths = [*FRESH, "k", "name", "inner.v", "inner.w"]
    inners = [None if i % 3 == 0 else {"v": i, "gone": 1} for i in range(30)]
    values = [encode(OLD, {"gone": "g", "renamed": i, "inner": inners[i], "k": -i}) for i in range(30)]
    batch = both(NEW, paths, list(values), writers={1: OLD})
    assert is_fast(avro(NEW, paths, writers={1: OLD}))
    got = {path: plain(batch.columns.column(path)) for path in paths}
    assert got["k"] == [-i for i in range(30)]
    assert got["name"] == [float(i) for i in range(30)]
    assert got["inner.v"] == [inner and inner["v"] for inner in inners]
    assert got["inner.w"] == [inner and 3 for inner in inners]
    for path, default in FRESH.items():
        assert got[path] == [default] * 30


def test_broken_rows_of_an_evolved_batch_are_found() -> None:
    values: list[bytes | None] = [encode(OLD, {"gone": "g", "renamed": i, "inner": None, "k": i}) for i in range(100)]
    for row in (0, 50, 51, 99):
        values[row] = (values[row] or b"")[:-1]
    batch = both(NEW, ["k", "fresh_text"], values, writers={1: OLD})
    assert faults(batch) == [(row, "Undecodable") for row in (0, 50, 51, 99)]
    assert plain(batch.columns.column("k")) == [i for i in range(100) if i not in (0, 50, 51, 99)]


INCOMPATIBLE = {
    "no field and no default": (record(field("k", "int")), record(field("x", "int")), "no such field"),
    "another kind": (
        record(field("x", "string")),
        record(field("x", "int")),
        "written as string, read as int",
    ),
    "narrowed": (record(field("x", "long")), record(field("x", "int")), "written as long"),
    "another unit": (
        record(field("x", logical("long", "timestamp-millis"))),
        record(field("x", logical("long", "timestamp-micros"))),
        "timestamp-millis",
    ),
    "another scale": (
        record(field("x", logical("bytes", "decimal", precision=5, scale=2))),
        record(field("x", logical("bytes", "decimal", precision=5, scale=3))),
        "decimal",
    ),
    "another name": (record(field("x", "int"), name="Other"), record(field("x", "int")), "the event"),
    "deep in a list": (
        record(field("x", {"type": "array", "items": record(field("v", "string"), name="I")})),
        record(field("x", {"type": "array", "items": record(field("v", "int"), name="I")})),
        "x\\[\\].v",
    ),
    "both names of an alias": (
        record(field("x", "int"), field("old", "int")),
        record(field("x", "int", aliases=["old"])),
        "old",
    ),
    "no schema": ("{", record(field("x", "int")), "not valid Avro"),
    "no record": ('"int"', record(field("x", "int")), "written as int"),
}


@pytest.mark.parametrize("name", INCOMPATIBLE)
def test_what_can_not_be_read_says_so_for_each_event(name: str) -> None:
    writer, reader, words = INCOMPATIBLE[name]
    batch = both(reader, ["x"], [b"\0\0\0\0\1abc", b"\0\0\0\0\1"], writers={1: writer})
    assert faults(batch) == [(0, "IncompatibleSchema"), (1, "IncompatibleSchema")]
    assert re.search(words, batch.rejects[0].message), batch.rejects[0].message
    assert all(len(one.message) <= 300 for one in batch.rejects)


def test_what_only_some_events_show_rejects_only_those() -> None:
    writer = record(field("x", ["null", "int"]), field("e", {"type": "enum", "name": "E", "symbols": ["A", "Z"]}))
    reader = record(field("x", "int"), field("e", {"type": "enum", "name": "E", "symbols": ["A", "B"]}))
    events = [{"x": 1, "e": "A"}, {"x": None, "e": "A"}, {"x": 2, "e": "Z"}, {"x": 3, "e": "A"}]
    batch = both(reader, ["x", "e"], [encode(writer, one) for one in events], writers={1: writer})
    assert faults(batch) == [(1, "IncompatibleSchema"), (2, "IncompatibleSchema")]
    assert plain(batch.columns.column("x")) == [1, 3]


def test_a_null_where_none_may_be_rejects_its_event_alone() -> None:
    writer, reader = record(field("x", ["null", "int"])), record(field("x", "int"))
    events = [None if i in (3, 30) else i for i in range(60)]
    batch = both(reader, ["x"], [encode(writer, {"x": x}) for x in events], writers={1: writer})
    assert faults(batch) == [(3, "IncompatibleSchema"), (30, "IncompatibleSchema")]
    assert plain(batch.columns.column("x")) == [x for x in events if x is not None]


def test_a_field_that_nobody_reads_may_change_as_it_likes() -> None:
    writer = record(field("x", "int"), field("free", "string"))
    reader = record(field("x", "int"), field("free", "double"), field("must", "int"))
    values = [encode(writer, {"x": 4, "free": "text"})]
    assert plain(both(reader, ["x"], list(values), writers={1: writer}).columns.column("x")) == [4]
    assert faults(both(reader, ["free"], list(values), writers={1: writer})) == [(0, "IncompatibleSchema")]


def test_an_alias_never_takes_what_was_written_for_a_field_of_that_name() -> None:
    reader = record(field("a", "int", aliases=["b"], default=-1), field("b", "int", default=-2))
    batch = both(reader, ["a"], [encode(record(field("b", "int")), {"b": 5})], writers={1: record(field("b", "int"))})
    assert plain(batch.columns.column("a")) == [-1]


def test_several_writers_in_one_batch_keep_their_places() -> None:
    texts = {1: OLD, 2: record(field("k", "int"), field("name", "double"), field("inner", "null")), 3: "{"}
    values: list[bytes | None] = []
    for i in range(90):
        old = encode(OLD, {"gone": "g", "renamed": i, "inner": None, "k": i}, 1)
        new = encode(texts[2], {"k": i, "name": float(i), "inner": None}, 2)
        values.append([old, new, b"\0\0\0\0\3"][i % 3])
    batch = both(NEW, ["k", "name", "fresh_text"], values, writers=texts)
    assert batch.rows.tolist() == [i for i in range(90) if i % 3 < 2]
    assert plain(batch.columns.column("k")) == batch.rows.tolist()
    assert plain(batch.columns.column("name")) == [float(i) for i in batch.rows.tolist()]


def test_a_decoder_without_the_fast_path_is_what_it_says() -> None:
    decoder = avro(NEW, ["k"], writers={1: NEW}, slow=True)
    assert isinstance(decoder, EventDecoder)
    assert not is_fast(decoder)
    assert decoder.decode(raw_batch([])).columns.num_columns == 1
    assert parse(NEW).name == "Event"
