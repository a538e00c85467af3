"""Promise: JSON events become the same columns as Avro ones, and what does not fit says where and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from test_decode_support import avro, encode, faults, field, logical, parse, plain, raw_batch, record, told

from streamserve.errors import SchemaError
from streamserve.pipeline.decode import EventDecoder

if TYPE_CHECKING:
    from streamserve.records import EventBatch

ENUM = {"type": "enum", "name": "Origin", "symbols": ["EWR", "JFK"]}
WEATHER = record(field("temp", ["null", "double"]), field("gust", "float", default=1.5), name="Weather")
EVENT = record(
    field("id", "string"),
    field("miles", "int"),
    field("tailnum", ["null", "string"]),
    field("origin", ENUM),
    field("at", logical("long", "timestamp-millis")),
    field("weather", ["null", WEATHER], default=None),
    field("legs", {"type": "array", "items": "long"}, default=[]),
)
PATHS = ["id", "miles", "tailnum", "origin", "at", "weather.temp", "weather.gust", "weather", "legs"]


def decoder(schema: Any, paths: list[str], event_time: str | None = None) -> EventDecoder:
    return EventDecoder(parse(schema), format="json", paths=paths, event_time=event_time, writers=None)


def decode(schema: Any, paths: list[str], *events: Any) -> EventBatch:
    values = [one if isinstance(one, bytes) or one is None else json.dumps(one).encode() for one in events]
    return decoder(schema, paths).decode(raw_batch(values))


def flight(i: int) -> dict[str, Any]:
    weather = None if i % 3 == 0 else {"temp": None if i % 2 else 0.5 * i, "gust": 2.0}
    return {
        "id": f"é{i}",
        "miles": i,
        "tailnum": None if i % 4 else f"N{i}",
        "origin": "JFK",
        "at": 1_000 * i,
        "weather": weather,
        "legs": list(range(i % 3)),
    }


def test_the_columns_are_those_of_the_same_events_in_avro() -> None:
    events = [flight(i) for i in range(40)]
    values = [json.dumps(one).encode() for one in events]
    one = decoder(EVENT, PATHS, "at").decode(raw_batch(values))
    two = avro(EVENT, PATHS, event_time="at").decode(raw_batch([encode(EVENT, e) for e in events]))
    assert told(one) == told(two)


def test_a_row_that_does_not_fit_leaves_its_neighbours_in_place() -> None:
    events: list[Any] = [flight(i) for i in range(10)]
    events[2] = None
    events[3] = b"{"
    events[4] = flight(4) | {"miles": "many"}
    events[5] = b""
    events[9] = flight(9) | {"weather": {"temp": "hot"}}
    batch = decode(EVENT, PATHS, *events)
    assert faults(batch) == [
        (2, "Tombstone"),
        (3, "NotJson"),
        (4, "DoesNotFit"),
        (5, "Tombstone"),
        (9, "DoesNotFit"),
    ]
    assert batch.rejects[2].message == "miles: found string 'many', expected int"
    assert "weather.temp: found string 'hot', expected" in batch.rejects[4].message
    assert plain(batch.columns.column("miles")) == [0, 1, 6, 7, 8]


def test_absent_fields_are_the_default_or_null_or_a_reject() -> None:
    base = {"id": "a", "miles": 1, "origin": "EWR", "at": 0}
    batch = decode(EVENT, PATHS, base, base | {"weather": {}}, {"id": "a", "origin": "EWR", "at": 0})
    assert plain(batch.columns.column("tailnum")) == [None, None]
    assert plain(batch.columns.column("weather.gust")) == [None, 1.5]
    assert plain(batch.columns.column("weather")) == [None, {"temp": None, "gust": 1.5}]
    assert plain(batch.columns.column("legs")) == [[], []]
    assert batch.rejects[0].message == "miles: absent, and int has no default"


def test_what_is_not_asked_for_is_not_looked_at() -> None:
    batch = decode(EVENT, ["miles"], {"miles": 3, "id": 7, "weather": "fine", "unknown": [1]})
    assert plain(batch.columns.column("miles")) == [3]


UNSET = object()
MS, US = logical("long", "timestamp-millis"), logical("long", "timestamp-micros")
FITS = [
    ("int", 3.0, 3),
    ("int", -0.0, 0),
    ("int", 3.5, UNSET),
    ("int", True, UNSET),
    ("int", 1 << 31, UNSET),
    ("int", "3", UNSET),
    ("int", None, UNSET),
    ("long", (1 << 63) - 1, (1 << 63) - 1),
    ("long", 1 << 63, UNSET),
    ("long", 1e18, UNSET),
    ("long", 9007199254740992.0, 1 << 53),
    ("double", 3, 3.0),
    ("double", True, UNSET),
    ("double", 10**400, UNSET),
    ("double", (1 << 53) + 1, float((1 << 53) + 1)),
    ("float", 1e39, UNSET),
    ("float", 0.5, 0.5),
    ("boolean", True, True),
    ("boolean", 1, UNSET),
    ("boolean", "true", UNSET),
    ("string", "", ""),
    ("string", "\ud800", UNSET),
    ("string", "😀", "😀"),
    ("string", 7, UNSET),
    (["null", "string"], "\ud800", UNSET),
    (ENUM, "JFK", "JFK"),
    (ENUM, "LGA", UNSET),
    (ENUM, 0, UNSET),
    (ENUM, [], UNSET),
    (["null", ENUM], "LGA", UNSET),
    (["null", "int"], None, None),
    (["null", "int"], {"int": 3}, UNSET),
    ({"type": "array", "items": "int"}, [1, 2.0], [1, 2]),
    ({"type": "array", "items": "int"}, [1, None], UNSET),
    ({"type": "array", "items": "int"}, {"0": 1}, UNSET),
    ({"type": "map", "values": "int"}, {"a": 1}, [("a", 1)]),
    ({"type": "map", "values": "int"}, {"\ud800": 1}, UNSET),
    ({"type": "map", "values": "int"}, {"a": "1"}, UNSET),
    ({"type": "map", "values": "int"}, [], UNSET),
    (WEATHER, [], UNSET),
    (WEATHER, {"temp": 1}, {"temp": 1.0, "gust": 1.5}),
    (MS, 1.0, 1),
    (MS, 1 << 62, 1 << 62),
    (MS, "2013-01-01T10:15:00Z", 1357035300000),
    (MS, "2013-01-01T10:15:00.1239Z", 1357035300123),
    (MS, "2013-01-01 05:15:00-05:00", 1357035300000),
    (MS, "2013-01-01T05:15-0500", 1357035300000),
    (MS, "1969-12-31T23:59:59.999Z", -1),
    (MS, "2013-01-01T10:15:00", UNSET),
    (MS, "2013-02-30T10:15:00Z", UNSET),
    (MS, "0001-01-01T00:00:00+23:59", -62135683140000),
    (MS, "tomorrow", UNSET),
    (MS, "", UNSET),
    (MS, "٢٠١٣-01-01T10:15:00Z", UNSET),
    (US, "1970-01-01T00:00:00.000001Z", 1),
    (logical("long", "timestamp-nanos"), "1970-01-01T00:00:00.123456789Z", 123456789),
    (logical("long", "timestamp-nanos"), "9999-01-01T00:00:00Z", UNSET),
    (logical("long", "local-timestamp-millis"), "1970-01-01T00:00:01", 1000),
    (logical("long", "local-timestamp-millis"), "1970-01-01T00:00:01Z", UNSET),
    (logical("int", "date"), "1970-01-03", 2),
    (logical("int", "date"), 5, 5),
    (logical("int", "date"), "1970-13-03", UNSET),
    (logical("int", "time-millis"), "00:00:01.5", 1500),
    (logical("int", "time-millis"), "24:00:00", UNSET),
    (logical("long", "time-micros"), "23:59:59.000001", 86399000001),
    (logical("string", "uuid"), "not checked", "not checked"),
]


@pytest.mark.parametrize("neighbours", [0, 3])
@pytest.mark.parametrize(("type", "value", "expected"), FITS)
def test_each_type_takes_what_it_says(type: Any, value: Any, expected: Any, neighbours: int) -> None:
    schema = record(field("x", type))
    others = [{"x": value if expected is UNSET else expected if not isinstance(type, dict) else value}] * neighbours
    batch = decode(schema, ["x"], {"x": value}, *others)
    if expected is UNSET:
        assert [one.error for one in batch.rejects] == ["DoesNotFit"] * (1 + neighbours)
        assert batch.rejects[0].message.startswith("x")
    else:
        assert batch.rejects == ()
        assert plain(batch.columns.column("x"))[0] == expected


@pytest.mark.parametrize("good", [1, 2.5, None])
def test_a_misfit_among_good_values_is_found_alone(good: Any) -> None:
    schema = record(field("x", ["null", "double"]), field("y", "int"))
    events = [{"x": good, "y": i} for i in range(20)]
    events[7]["x"] = True
    events[9]["y"] = 0.5
    batch = decode(schema, ["x", "y"], *events)
    assert faults(batch) == [(7, "DoesNotFit"), (9, "DoesNotFit")]
    assert plain(batch.columns.column("y")) == [i for i in range(20) if i not in (7, 9)]


NOT_JSON = {
    "nothing": b" ",
    "a number": b"7",
    "a list": b"[]",
    "NaN": b'{"x": NaN}',
    "Infinity": b'{"x": -Infinity}',
    "latin-1": '{"x": "é"}'.encode("latin-1"),
    "utf-16": '{"x": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"x": 1}',
    "a deep list": b'{"x": ' + b"[" * 200_000,
    "a deep object": b'{"x":' * 200_000,
    "half an event": b'{"x": 1',
    "two events": b'{"x": 1}{"x": 2}',
    "a number of 5,000 digits": b'{"x": ' + b"1" * 5_000 + b"}",
    "avro": b"\x00\x00\x00\x00\x01\x02",
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_no_json_is_rejected(name: str) -> None:
    batch = decode(record(field("x", ["null", "double"])), ["x"], NOT_JSON[name], {"x": 1})
    assert faults(batch) == [(0, "NotJson")]
    assert len(batch.rejects[0].message) <= 300


def test_numbers_and_keys_at_the_edge() -> None:
    schema = record(field("x", "double"))
    batch = decode(schema, ["x"], b'{"x": 1e999}', b'{"x": 1, "x": 2}', b'{"x": -1e-999}')
    assert faults(batch) == [(0, "DoesNotFit")]
    assert plain(batch.columns.column("x")) == [2.0, 0.0]


def test_messages_show_sixty_characters_of_a_value_at_most() -> None:
    schema = record(
        field("x", "int"),
        field("y", ["null", {"type": "enum", "name": "E", "symbols": ["S" * 90, "T" * 400]}]),
    )
    batch = decode(
        schema,
        ["x", "y"],
        {"x": "v" * 10_000},
        {"x": 10**3_000},
        {"x": 1, "y": "w" * 999},
        {"x": ["v" * 999]},
    )
    assert len(batch.rejects) == 4
    for one in batch.rejects:
        assert len(one.message) <= 300
        assert "v" * 61 not in one.message
        assert "w" * 61 not in one.message
        assert "0" * 61 not in one.message


@pytest.mark.parametrize(
    "type", ["bytes", {"type": "fixed", "name": "F", "size": 2}, {"type": "array", "items": "bytes"}]
)
def test_bytes_have_no_plain_form(type: Any) -> None:
    schema = record(field("x", type), field("y", "int"))
    with pytest.raises(SchemaError, match="no plain form"):
        decoder(schema, ["x"])
    assert plain(decode(schema, ["y"], {"y": 1}).columns.column("y")) == [1]


def test_event_times_come_from_the_event() -> None:
    schema = record(field("at", ["null", US]), field("x", "int"))
    values = [b'{"at": 5999, "x": 1}', b'{"at": null, "x": 1}', b'{"at": "1970-01-01T00:00:01Z", "x": 1}']
    batch = decoder(schema, ["x"], "at").decode(raw_batch(values))
    assert batch.event_times.tolist() == [5, 5_001, 1_000]
    assert batch.columns.schema.names == ["x"]


def test_an_empty_batch_has_the_schema() -> None:
    assert decode(EVENT, PATHS).columns.schema == decode(EVENT, PATHS, flight(1)).columns.schema
