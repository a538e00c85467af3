"""Promise: no event, however small or deep, takes the worker's memory, its time or its life."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import contextmanager
from time import process_time
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode_support import avro, both, faults, field, framed, long, raw_batch, record

from streamserve.pipeline import avro as avro_room
from streamserve.pipeline.avro import UndecodableError, walker
from streamserve.pipeline.schemas import parse_node

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE = record(field("v", "int"), field("next", ["null", "Node"]), name="Node")
NULLS = record(field("a", "null"), field("b", "null"), name="Nulls")
EMPTY = record(name="Empty")


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What Arrow imports at the first batch is nobody's bomb."""
    avro(record(field("end", "int")), ["end"]).decode(raw_batch([framed(long(1)), framed(b"")]))


@contextmanager
def cheaply(seconds: float = 1.0, megabytes: float = 20.0) -> Iterator[None]:
    tracemalloc.start()
    began = process_time()
    try:
        yield
        assert process_time() - began < seconds
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()


def array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


BOMBS = {
    "a text of 2**40 bytes": ("string", long(1 << 40) + b"ab"),
    "bytes of 2**62": ("bytes", long(1 << 62)),
    "2**40 numbers": (array("int"), long(1 << 40) + long(1)),
    "2**62 entries": ({"type": "map", "values": "null"}, long(1 << 62)),
    "2**62 nulls": (array("null"), long(1 << 62) + long(0)),
    "-2**62 nulls": (array("null"), long(-(1 << 62)) + long(0) + long(0)),
    "2**62 records of nulls": (array(NULLS), long(1 << 62) + long(0)),
    "2**62 empty records": (array(EMPTY), long(1 << 62) + long(0)),
    "2**62 empty fixed": (array({"type": "fixed", "name": "F", "size": 0}), long(1 << 62) + long(0)),
    "many blocks of nulls": (array("null"), long(900) * 100_000 + long(0)),
    "many lists of nulls": (array(array("null")), long(100_000) + (long(900) + long(0)) * 100_000),
    "a list nested 100,000 deep": (NODE, (long(1) + long(1)) * 100_000 + long(1) + long(0)),
    "a record that only holds itself": (record(field("n", "Self"), name="Self"), b"\x00" * 100),
}


NO_COLUMN = {name for name in BOMBS if "null" in name or "itself" in name or "deep" in name or "entries" in name}


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_a_cheap_reject(name: str, *, asked: bool) -> None:
    type, body = BOMBS[name]
    path = "x" if asked and name not in NO_COLUMN else "end"
    schema = record(field("x", type), field("end", "int", default=0))
    with cheaply():
        batch = avro(schema, [path]).decode(raw_batch([framed(body)]))
    assert faults(batch) == [(0, "Undecodable")]


def test_a_few_items_without_bytes_are_no_bomb() -> None:
    schema = record(field("x", array("null")), field("end", "int"))
    assert len(both(schema, ["end"], [framed(long(1_000) + long(0) + long(7))])) == 1
    assert len(both(schema, ["end"], [framed(long(1_001) + long(0) + long(7))])) == 0


def test_a_list_within_the_limit_is_read() -> None:
    schema = record(field("x", NODE), field("end", "int"))
    body = (long(3) + long(1)) * 40 + long(4) + long(0) + long(7)
    assert both(schema, ["x.next.next.v", "end"], [framed(body)]).columns.to_pylist() == [
        {"end": 7, "x.next.next.v": 3}
    ]


def test_a_schema_that_doubles_at_every_level_is_refused() -> None:
    inner: Any = record(field("a", "null"), field("b", "null"), name="L0")
    for level in range(1, 40):
        inner = record(field("a", inner), field("b", f"L{level - 1}"), name=f"L{level}")
    writer = record(field("x", inner), field("end", "int"))
    with cheaply():
        batch = avro(record(field("end", "int")), ["end"], writers={1: writer}).decode(raw_batch([framed(b"\x02")]))
    assert faults(batch) == [(0, "IncompatibleSchema")]


def test_a_writer_schema_nested_too_deep_is_refused() -> None:
    text = (
        '{"type":"record","name":"Event","fields":[{"name":"x","type":'
        + '{"type":"array","items":' * 9_000
        + '"int"'
        + "}" * 9_000
        + "}]}"
    )
    batch = avro(record(field("end", "int", default=1)), ["end"], writers={1: text}).decode(raw_batch([framed(b"")]))
    assert faults(batch) == [(0, "IncompatibleSchema")]


def test_a_broken_batch_costs_little_more_than_its_slow_rows() -> None:
    schema = record(field("x", "string"), field("end", "int"))
    values: list[bytes | None] = [framed(long(3) + b"abc" + long(i)) for i in range(2_000)]
    for row in range(0, 2_000, 100):
        values[row] = framed(long(9) + b"abc")
    with cheaply(seconds=2.0):
        batch = avro(schema, ["x", "end"]).decode(raw_batch(values))
    assert [row for row, _ in faults(batch)] == list(range(0, 2_000, 100))


def test_all_broken_is_all_rejected() -> None:
    schema = record(field("x", "string"))
    assert len(both(schema, ["x"], [framed(long(9))] * 500).rejects) == 500


ITEMS = [
    "int",
    "long",
    "float",
    "double",
    "boolean",
    {"type": "fixed", "name": "F", "size": 3},
    array("long"),
    "string",
]
lengths = st.integers(8, 11).map(lambda more: b"\xff" * more + b"\x01")
numbers = st.lists(st.integers(-(2**63), 2**63 - 1).map(long) | lengths | st.binary(min_size=1), max_size=40)


@settings(deadline=None, derandomize=True, max_examples=500)
@given(st.sampled_from(ITEMS), st.integers(-3, 3000), numbers, st.binary(max_size=200), st.data())
def test_what_is_passed_at_one_go_is_what_is_walked_one_by_one(items, count, found, more, data) -> None:
    """Good or not, and with the same words of what is not."""
    count = data.draw(st.sampled_from([count, len(found), -len(found)]))
    size = long(0) if count < 0 else b""
    body = long(count) + size + b"".join(found) + more + long(0)
    node = parse_node(json.dumps(array(items)))

    def walked() -> str:
        try:
            walker(node)(body)
        except UndecodableError as error:
            return str(error)
        return "good"

    at_once = walked()
    with mock.patch.object(avro_room, "_passer", return_value=lambda _body, at, count: (at, count)):
        assert walked() == at_once


def test_many_numbers_are_passed_at_one_go() -> None:
    count = 100_000
    body = long(count) + b"".join(map(long, range(count))) + long(0)
    with cheaply(0.1):
        walker(parse_node(json.dumps(array("long"))))(body)
