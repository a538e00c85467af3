"""Promise: Avro events become columns, and one that can't be read takes none of its neighbours along."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyruhvro
import pytest
from test_decode_support import (
    avro,
    both,
    encode,
    faults,
    field,
    framed,
    is_fast,
    logical,
    long,
    parse,
    plain,
    raw_batch,
    record,
)

from streamserve.errors import SchemaError, SchemaRegistryError
from streamserve.pipeline.decode import EventDecoder
from streamserve.records import Stage

WEATHER = record(
    field("observed", logical("long", "timestamp-millis")),
    field("temp", ["null", "double"], default=None),
    field("gusts", {"type": "array", "items": "int"}, default=[]),
    name="Weather",
)
FLIGHT = record(
    field("id", "string"),
    field("flight", "int"),
    field("tailnum", ["null", "string"], default=None),
    field("origin", {"type": "enum", "name": "Origin", "symbols": ["EWR", "JFK"]}),
    field("departure", logical("long", "timestamp-millis")),
    field("weather", ["null", WEATHER], default=None),
)
PATHS = [
    "id",
    "flight",
    "tailnum",
    "origin",
    "departure",
    "weather.temp",
    "weather.observed",
    "weather.gusts",
]


def flight(i: int) -> dict[str, Any]:
    seen = {"observed": 7, "temp": None if i % 3 == 0 else i / 7, "gusts": list(range(i % 4))}
    return {
        "id": f"UA{i}",
        "flight": i,
        "tailnum": None if i % 2 else f"N{i}",
        "origin": "JFK",
        "departure": 1_000 + i,
        "weather": None if i % 5 == 0 else seen,
    }


def flights(n: int, schema_id: int = 1) -> list[bytes | None]:
    return [encode(FLIGHT, flight(i), schema_id) for i in range(n)]


def test_events_become_sorted_columns_of_the_canonical_types() -> None:
    assert is_fast(avro(FLIGHT, PATHS))
    batch = both(FLIGHT, PATHS, flights(50), event_time="departure")
    assert batch.columns.schema.names == sorted(PATHS)
    for path in PATHS:
        assert batch.columns.schema.field(path).type == parse(FLIGHT).column_type(path).arrow
    assert batch.rows.tolist() == list(range(50))
    assert batch.event_times.tolist() == list(range(1_000, 1_050))
    assert plain(batch.columns.column("weather.temp")) == [(flight(i)["weather"] or {}).get("temp") for i in range(50)]
    assert plain(batch.columns.column("weather.gusts")) == [
        (flight(i)["weather"] or {}).get("gusts") for i in range(50)
    ]
    assert plain(batch.columns.column("tailnum")) == [flight(i)["tailnum"] for i in range(50)]


def test_whole_records_and_lists_can_be_asked_for() -> None:
    batch = both(FLIGHT, ["weather"], flights(20))
    assert plain(batch.columns.column("weather")) == [flight(i)["weather"] for i in range(20)]


def test_rows_that_are_no_events_are_rejected_by_name() -> None:
    values = flights(40)
    good = values[0] or b""
    values[3] = None
    values[4] = b""
    values[5] = good[:4]
    values[6] = b"\x01" + good[1:]
    values[7] = good[:-1]
    values[8] = framed(good[5:], 99)
    values[39] = framed(b"")
    batch = both(FLIGHT, PATHS, values)
    assert faults(batch) == [
        (3, "Tombstone"),
        (4, "Tombstone"),
        (5, "TooShort"),
        (6, "WrongMagic"),
        (7, "Undecodable"),
        (8, "UnknownSchemaId"),
        (39, "Undecodable"),
    ]
    assert {one.stage for one in batch.rejects} == {Stage.DECODE}
    assert batch.rows.tolist() == [0, 1, 2, *range(9, 39)]
    assert plain(batch.columns.column("flight")) == batch.rows.tolist()


@pytest.mark.parametrize("first", [0, 1])
def test_a_batch_of_rejects_is_an_empty_batch_of_the_right_schema(first: int) -> None:
    values = [None, framed(b"\x00")][first:]
    batch = both(FLIGHT, PATHS, values)
    assert len(batch) == 0
    assert batch.columns.num_rows == 0
    assert batch.columns.schema == both(FLIGHT, PATHS, flights(1)).columns.schema
    assert batch.event_times.dtype == np.int64
    assert both(FLIGHT, PATHS, []).columns.schema == batch.columns.schema


def test_the_message_says_where_it_broke_and_no_more() -> None:
    value = encode(FLIGHT, flight(1) | {"id": "x" * 5_000})
    batch = both(FLIGHT, PATHS, [value[:-1], value[:-30]])
    assert "weather.temp" in batch.rejects[0].message or "weather.gusts" in batch.rejects[0].message
    assert all(len(one.message) <= 300 and "xxxx" not in one.message for one in batch.rejects)


def test_bytes_after_the_event_are_allowed() -> None:
    batch = both(FLIGHT, PATHS, [(value or b"") + b"more" for value in flights(5)])
    assert len(batch) == 5


# ---- what pyruhvro or fastavro alone would let through

LONG = record(field("x", "long"), field("end", "int"))


def one(type: Any, body: bytes, *, ask: bool = True) -> list[Any] | str:
    schema = record(field("x", type), field("end", "int"))
    batch = both(schema, ["x"] if ask else ["end"], [framed(body + long(7))])
    return batch.rejects[0].error if batch.rejects else plain(batch.columns.column("x" if ask else "end"))


ENUM = {"type": "enum", "name": "E", "symbols": ["A", "B"]}
INTS = {"type": "array", "items": "int"}
MIN = -(1 << 63)
LOOSE = {
    "an int beyond 32 bits": ("int", long(1 << 40), "Undecodable"),
    "an int beyond 32 bits in a list": (INTS, long(1) + long(1 << 40) + long(0), "Undecodable"),
    "the largest int": ("int", long((1 << 31) - 1), [(1 << 31) - 1]),
    "an overlong number": ("long", b"\x82\x80\x00", [1]),
    "ten bytes of number": ("long", b"\xff" * 9 + b"\x01", [MIN]),
    "ten bytes that overflow": ("long", b"\xff" * 9 + b"\x7f", [MIN]),
    "eleven bytes of number": ("long", b"\x80" * 10 + b"\x00", "Undecodable"),
    "invalid UTF-8": ("string", long(2) + b"\xff\xfe", "Undecodable"),
    "a surrogate": ("string", long(3) + b"\xed\xa0\x80", "Undecodable"),
    "a zero byte": ("string", long(1) + b"\x00", ["\x00"]),
    "a negative length": ("string", long(-5) + b"aaaaaaaa", "Undecodable"),
    "a huge length": ("string", long(1 << 40) + b"aaaa", "Undecodable"),
    "the last symbol from behind": (ENUM, long(-1), "Undecodable"),
    "a symbol too many": (ENUM, long(2), "Undecodable"),
    "a symbol modulo 2**32": (ENUM, long(1 << 32), "Undecodable"),
    "a boolean of two": ("boolean", b"\x02", "Undecodable"),
    "a branch from behind": (["null", "int"], long(-1) + long(3), "Undecodable"),
    "a branch too many": (["null", "int"], long(2) + long(3), "Undecodable"),
    "a block with its size": (INTS, long(-2) + long(2) + long(1) + long(2) + long(0), [[1, 2]]),
    "a block with a lying size": (INTS, long(-2) + long(99) + long(1) + long(2) + long(0), [[1, 2]]),
    "a block of -2**63": (INTS, long(MIN) + long(0) + long(0), [[]]),
    "a block of 2**62 items": (INTS, long(1 << 62) + long(1), "Undecodable"),
    "a key twice": (
        {"type": "map", "values": "int"},
        long(2) + (long(1) + b"a" + long(4)) * 2 + long(0),
        [[("a", 4)]],
    ),
}


@pytest.mark.parametrize("name", LOOSE)
def test_both_paths_take_and_refuse_the_same(name: str) -> None:
    type, body, expected = LOOSE[name]
    assert one(type, body) == expected


def test_the_guards_are_needed() -> None:
    """If this fails pyruhvro has become strict, and a guard may go."""
    schema = '{"type":"record","name":"R","fields":[{"name":"x","type":"%s"}]}'
    assert pyruhvro.deserialize_array([long(1 << 40)], schema % "int").column(0).to_pylist() == [0]
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        pyruhvro.deserialize_array([long(1) + b"\xff"], schema % "string").column(0).validate(full=True)


def test_what_is_not_asked_for_is_checked_no_further_than_its_shape() -> None:
    assert one("string", long(2) + b"\xff\xfe", ask=False) == [7]
    assert one("int", long(1 << 40), ask=False) == [7]
    assert one("string", long(200) + b"\xff\xfe", ask=False) == "Undecodable"


@pytest.mark.parametrize(
    "name", ["bytes", "fixed", "decimal", "uuid", "time-millis", "nanos", "map", "itself", "union"]
)
def test_types_that_pyruhvro_panics_at_are_read_all_the_same(name: str) -> None:
    type, value, expected = {
        "bytes": ("bytes", b"\xff\x00", b"\xff\x00"),
        "fixed": ({"type": "fixed", "name": "F", "size": 2}, b"ab", b"ab"),
        "decimal": (logical("bytes", "decimal", precision=5, scale=2), b"\xff\x85", None),
        "uuid": (logical("string", "uuid"), "not-a-uuid", "not-a-uuid"),
        "time-millis": (logical("int", "time-millis"), -5, -5),
        "nanos": (logical("long", "timestamp-nanos"), 1 << 62, 1 << 62),
        "map": ({"type": "map", "values": ["null", "int"]}, {"a": None}, [("a", None)]),
        "itself": (
            ["null", record(field("v", "int"), field("n", ["null", "Node"]), name="Node")],
            {"v": 3, "n": None},
            3,
        ),
        "union": (["null", "int", "string"], "x", "x"),
    }[name]
    schema = record(field("x", type), field("end", "int"))
    path = {"itself": "x.v", "union": "end"}.get(name, "x")
    batch = both(schema, [path], [encode(schema, {"x": value, "end": 7})] * 3)
    if name == "decimal":
        assert [str(v) for v in batch.columns.column("x").to_pylist()] == ["-1.23"] * 3
    elif name == "union":
        assert plain(batch.columns.column("end")) == [7, 7, 7]
    else:
        assert plain(batch.columns.column(path)) == [expected] * 3


def test_a_decimal_of_too_many_digits_is_rejected() -> None:
    schema = record(field("x", logical("bytes", "decimal", precision=3, scale=0)))
    numbers = [(999, 20), (-999, 2), (1_000, 2), (1 << 150, 20), (0, 0), (1 << 4_000_000, 500_001)]
    values = [encode(schema, {"x": v.to_bytes(size, "big", signed=True)}) for v, size in numbers]
    batch = both(schema, ["x"], list(values))
    assert faults(batch) == [(2, "Undecodable"), (3, "Undecodable"), (5, "Undecodable")]
    assert [int(v) for v in plain(batch.columns.column("x"))] == [999, -999, 0]


def test_only_panics_of_rust_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    panic = type("PanicException", (BaseException,), {})
    for error, passes in ((panic("boom"), False), (KeyboardInterrupt(), True), (SystemExit(), True)):
        decoder = avro(FLIGHT, PATHS)
        assert is_fast(decoder)
        with monkeypatch.context() as patch:

            def fail(*_: object, error: BaseException = error) -> None:
                raise error

            patch.setattr(pyruhvro, "deserialize_array", fail)
            if passes:
                with pytest.raises(type(error)):
                    decoder.decode(raw_batch(flights(3)))
            else:
                assert len(decoder.decode(raw_batch(flights(3)))) == 3


# ---- schema ids


@pytest.mark.parametrize("ids", [(1, 2), (0x7FC0_0000, 0xFFC0_0000), (0x0100_807F, 0x0200_807F), (0, 1 << 31)])
def test_schema_ids_are_told_apart_whatever_float_their_bits_are(ids: tuple[int, int]) -> None:
    other = record(field("flight", "int"), field("id", "string"), name="Event")
    values = [
        encode(FLIGHT, flight(i), ids[0]) if i % 3 else encode(other, {"flight": i, "id": "o"}, ids[1])
        for i in range(60)
    ]
    writers = {ids[0]: FLIGHT, ids[1]: other}
    batch = both(record(field("flight", "int"), field("id", "string")), ["flight", "id"], values, writers=writers)
    assert plain(batch.columns.column("flight")) == list(range(60))
    assert plain(batch.columns.column("id")) == [f"UA{i}" if i % 3 else "o" for i in range(60)]


def test_two_schemas_of_the_same_bytes_are_not_mixed_up() -> None:
    ab, ba = record(field("a", "int"), field("b", "int")), record(field("b", "int"), field("a", "int"))
    values = [encode([ab, ba][i % 2], {"a": i, "b": -i}, i % 2) for i in range(9)]
    batch = both(ab, ["a", "b"], values, writers={0: ab, 1: ba})
    assert plain(batch.columns.column("a")) == list(range(9))


def test_an_unknown_id_is_asked_for_again_and_a_silent_registry_is_no_reject() -> None:
    decoder = avro(FLIGHT, PATHS, writers={})
    assert faults(decoder.decode(raw_batch(flights(1)))) == [(0, "UnknownSchemaId")]
    decoder._reader._writers.texts[1] = parse(FLIGHT).text
    assert len(decoder.decode(raw_batch(flights(1)))) == 1

    class Silent:
        def writer_schema(self, _: int) -> str | None:
            raise SchemaRegistryError("no answer")

    silent = EventDecoder(parse(FLIGHT), format="avro", paths=PATHS, event_time=None, writers=Silent())
    with pytest.raises(SchemaRegistryError):
        silent.decode(raw_batch(flights(1)))


def test_what_can_not_work_is_refused_at_construction() -> None:
    for paths, time in (["nope"], None), (["id"], "nope"), (["id"], "id"), (["id"], "flight"):
        with pytest.raises(SchemaError):
            avro(FLIGHT, paths, event_time=time)
    with pytest.raises(SchemaError, match="writers"):
        EventDecoder(parse(FLIGHT), format="avro", paths=["id"], event_time=None, writers=None)
    with pytest.raises(SchemaError, match="default"):
        avro(record(field("x", "int", default="seven")), ["x"])


# ---- time

TIMES = {
    "timestamp-millis": (logical("long", "timestamp-millis"), [0, -1, 1 << 62], [0, -1, 1 << 62]),
    "timestamp-micros": (
        logical("long", "timestamp-micros"),
        [1_500, -1, 1 << 62],
        [1, -1, (1 << 62) // 1_000],
    ),
    "local-timestamp-millis": (logical("long", "local-timestamp-millis"), [5], [5]),
    "local-timestamp-micros": (logical("long", "local-timestamp-micros"), [5_000], [5]),
    "timestamp-nanos": (logical("long", "timestamp-nanos"), [5_999_999], [5]),
    "date": (logical("int", "date"), [2, -(1 << 31)], [172_800_000, -(1 << 31) * 86_400_000]),
    "long": ("long", [MIN, (1 << 63) - 1], [MIN, (1 << 63) - 1]),
}


@pytest.mark.parametrize("name", TIMES)
def test_an_event_happens_at_its_own_time_and_without_one_at_its_records(name: str) -> None:
    type, numbers, expected = TIMES[name]
    schema = record(field("at", ["null", type]), field("x", "int"))
    values = [encode(schema, {"at": n, "x": 1}) for n in [*numbers, None]]
    batch = both(schema, ["x"], values, event_time="at")
    assert batch.event_times.tolist() == [*expected, 5_000 + len(numbers)]
    assert batch.columns.schema.names == ["x"]
    assert both(schema, ["x"], values).event_times.tolist() == [5_000 + i for i in range(len(values))]
