"""Promise: a topology's schema says what column each path is, and of a wrong one what to write instead."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from test_decode_support import field, logical, parse, record

from streamserve.errors import SchemaError
from streamserve.pipeline.schemas import EventSchema

INNER = record(field("temp", ["null", "double"], default=None), field("wind", "float"), name="Weather")
ORIGIN = {"type": "enum", "name": "Origin", "symbols": ["EWR", "JFK"]}
FIXED = {"type": "fixed", "name": "Sum", "size": 4}

TYPES = {
    "int": ("int", pa.int32()),
    "long": ("long", pa.int64()),
    "float": ("float", pa.float32()),
    "double": ("double", pa.float64()),
    "boolean": ("boolean", pa.bool_()),
    "string": ("string", pa.utf8()),
    "enum": (ORIGIN, pa.utf8()),
    "uuid": (logical("string", "uuid"), pa.utf8()),
    "bytes": ("bytes", pa.binary()),
    "fixed": (FIXED, pa.binary()),
    "decimal": (logical("bytes", "decimal", precision=9, scale=2), pa.decimal128(9, 2)),
    "fixed decimal": ({**FIXED, "logicalType": "decimal", "precision": 4}, pa.decimal128(4, 0)),
    "date": (logical("int", "date"), pa.date32()),
    "time-millis": (logical("int", "time-millis"), pa.time32("ms")),
    "time-micros": (logical("long", "time-micros"), pa.time64("us")),
    "timestamp-millis": (logical("long", "timestamp-millis"), pa.timestamp("ms", "UTC")),
    "timestamp-micros": (logical("long", "timestamp-micros"), pa.timestamp("us", "UTC")),
    "timestamp-nanos": (logical("long", "timestamp-nanos"), pa.timestamp("ns", "UTC")),
    "local-timestamp-millis": (logical("long", "local-timestamp-millis"), pa.timestamp("ms")),
    "local-timestamp-micros": (logical("long", "local-timestamp-micros"), pa.timestamp("us")),
    "array": ({"type": "array", "items": ["null", "long"]}, pa.list_(pa.int64())),
    "map": ({"type": "map", "values": "int"}, pa.map_(pa.utf8(), pa.int32())),
    "record": (INNER, pa.struct([("temp", pa.float64()), ("wind", pa.float32())])),
    "unknown logical": (logical("long", "fortnights"), pa.int64()),
    "misplaced logical": (logical("int", "timestamp-millis"), pa.int32()),
    "invalid decimal": (logical("bytes", "decimal", precision=2, scale=3), pa.binary()),
}


@pytest.mark.parametrize("name", TYPES)
def test_each_type_has_its_column_type(name: str) -> None:
    type, arrow = TYPES[name]
    found = parse(record(field("x", type))).column_type("x")
    assert (found.arrow, found.nullable) == (arrow, False)
    found = parse(record(field("x", ["null", type]))).column_type("x")
    assert (found.arrow, found.nullable) == (arrow, True)


def test_a_path_through_a_nullable_record_is_nullable() -> None:
    schema = parse(record(field("weather", ["null", INNER]), field("origin", ORIGIN)))
    found = schema.column_type("weather.wind")
    assert (found.arrow, found.nullable, found.avro) == (pa.float32(), True, "float")
    assert schema.column_type("weather.temp").avro == "null | double"
    assert schema.column_type("origin").avro == "enum[EWR,JFK]"
    assert schema.paths() == ["weather.temp", "weather.wind", "origin"]


def test_an_unknown_path_names_its_neighbours() -> None:
    schema = parse(record(field("weather", ["null", INNER]), field("distance", "int")))
    with pytest.raises(SchemaError) as caught:
        schema.column_type("weather.tmep")
    assert "weather.tmep" in caught.value.what
    assert "'weather.temp'" in caught.value.mend
    assert "temp, wind" in caught.value.mend
    assert caught.value.where == "event.avsc"
    with pytest.raises(SchemaError, match=r"Did you mean 'weather\.temp'") as caught:
        schema.column_type("temp")
    with pytest.raises(SchemaError, match="goes through 'distance', which is int"):
        schema.column_type("distance.miles")


def test_a_general_union_may_stay_unread() -> None:
    schema = parse(
        record(
            field("u", ["null", "int", "string"]),
            field("l", {"type": "array", "items": ["int", "long"]}),
            field("x", "int"),
        )
    )
    assert schema.column_type("x").arrow == pa.int32()
    for path in ("u", "l"):
        with pytest.raises(SchemaError, match="can't be read"):
            schema.column_type(path)
    with pytest.raises(SchemaError, match="goes through"):
        schema.column_type("u.x")
    with pytest.raises(SchemaError, match="can't be read"):
        parse(record(field("d", logical("bytes", "decimal", precision=39)))).column_type("d")


def test_a_schema_that_holds_itself_has_paths_that_end() -> None:
    schema = parse(record(field("v", "int"), field("next", ["null", "Event"])))
    assert schema.paths() == ["v"]
    assert schema.column_type("next.next.v").arrow == pa.int32()
    with pytest.raises(SchemaError, match="holds itself"):
        schema.column_type("next")


DEEP = '{"type":"array","items":' * 5_000 + '"int"' + "}" * 5_000
BROKEN = {
    "not json": ("{", "not JSON"),
    "deep json": ("[" * 100_000, "nested too deep"),
    "deep types": (DEEP, "nested"),
    "no record": ('"int"', "not a record"),
    "unknown type": (json.dumps(record(field("x", "integer"))), "'integer'"),
    "twice": (json.dumps(record(field("x", "int"), field("x", "int"))), "two fields"),
    "redefined": (json.dumps(record(field("x", ORIGIN), field("y", ORIGIN))), "defined twice"),
    "nested union": (json.dumps(record(field("x", ["null", ["int"]]))), "union"),
    "no fields": ('{"type":"record","name":"E"}', "no fields"),
    "no name": ('{"type":"record","fields":[]}', "no name"),
    "odd": ('{"type":"record","name":"E","fields":[{"name":"x","type":7}]}', "not a type"),
    "odd symbols": ('{"type":"enum","name":"E","symbols":7}', "not valid Avro"),
    "number": ("7", "not a type"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_event_schema_is_refused(name: str) -> None:
    text, words = BROKEN[name]
    with pytest.raises(SchemaError, match=words) as caught:
        EventSchema.parse(text, where="event.avsc")
    assert caught.value.where == "event.avsc"
    assert caught.value.mend


def test_the_text_is_compact_and_without_docs() -> None:
    schema = parse(record(field("x", "int", doc="an x", default=3), doc="an event", namespace="a.b"))
    assert schema.name == "a.b.Event"
    assert '"doc"' not in schema.text
    assert EventSchema.parse(schema.text).text == schema.text
