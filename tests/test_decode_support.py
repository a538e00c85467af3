"""What the tests of the decode room share, and that its comparison sees a planted difference."""

from __future__ import annotations

import io
import json
import struct
from typing import TYPE_CHECKING, Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from streamserve.pipeline.decode import AvroGroup, EventDecoder
from streamserve.pipeline.schemas import EventSchema
from streamserve.records import EventBatch, RawBatch, binary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Json = Any


def record(*fields: Json, name: str = "Event", **more: Json) -> dict[str, Json]:
    return {"type": "record", "name": name, "fields": list(fields), **more}


def field(name: str, type: Json, **more: Json) -> dict[str, Json]:
    return {"name": name, "type": type, **more}


def logical(kind: str, name: str, **more: Json) -> dict[str, Json]:
    return {"type": kind, "logicalType": name, **more}


def long(number: int) -> bytes:
    """A zigzag varint."""
    raw, out = ((number << 1) ^ (number >> 63)) & ((1 << 64) - 1), bytearray()
    while raw > 0x7F:
        out.append(raw & 0x7F | 0x80)
        raw >>= 7
    return bytes([*out, raw])


def bare(schema: Json) -> Json:
    """Without logical types, so that fastavro takes and gives the integers themselves."""
    if isinstance(schema, list):
        return [bare(one) for one in schema]
    if isinstance(schema, dict):
        return {k: bare(v) if k != "default" else v for k, v in schema.items() if k != "logicalType"}
    return schema


def framed(body: bytes, schema_id: int = 1) -> bytes:
    return struct.pack(">bI", 0, schema_id) + body


def encode(schema: Json, event: Json, schema_id: int = 1) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(bare(schema)), event)
    return framed(out.getvalue(), schema_id)


def raw_batch(values: Sequence[bytes | None], stamp: int = 5_000) -> RawBatch:
    n = len(values)
    zeros, stamps = np.zeros(n, np.int32), np.arange(stamp, stamp + n)
    kinds = np.zeros(n, np.uint8)
    return RawBatch("flights", zeros, np.arange(n), stamps, kinds, binary([None] * n), binary(values))


class Writers:
    def __init__(self, texts: Mapping[int, Json]) -> None:
        self.texts = {i: t if isinstance(t, str) else json.dumps(t) for i, t in texts.items()}
        self.asked: list[int] = []

    def writer_schema(self, schema_id: int) -> str | None:
        self.asked.append(schema_id)
        return self.texts.get(schema_id)


def parse(schema: Json) -> EventSchema:
    return EventSchema.parse(json.dumps(schema), where="event.avsc")


def avro(
    reader: Json,
    paths: Iterable[str],
    *,
    writers: Mapping[int, Json] | None = None,
    event_time: str | None = None,
    slow: bool = False,
    flat: bool = True,
) -> EventDecoder:
    """slow: one by one alone. flat: by the compiled reader too, where it can."""
    known = Writers({1: reader} if writers is None else writers)
    decoder = EventDecoder(parse(reader), format="avro", paths=paths, event_time=event_time, writers=known)
    if slow or not flat:
        group = decoder._reader._group

        def without(head: bytes) -> Any:
            found = group(head)
            if isinstance(found, AvroGroup):
                found.flat, found.fast = None, None if slow else found.fast
            return found

        decoder._reader._group = without
    return decoder


def is_fast(decoder: EventDecoder, schema_id: int = 1) -> bool:
    group = decoder._reader._group(framed(b"", schema_id))
    return isinstance(group, AvroGroup) and group.fast is not None


def is_flat(decoder: EventDecoder, schema_id: int = 1) -> bool:
    group = decoder._reader._group(framed(b"", schema_id))
    return isinstance(group, AvroGroup) and group.flat is not None


def plain_type(type: pa.DataType) -> pa.DataType:
    if pa.types.is_list(type):
        return pa.list_(plain_type(type.value_type))
    if pa.types.is_struct(type):
        return pa.struct([(one.name, plain_type(one.type)) for one in type])
    if pa.types.is_map(type):
        return pa.map_(type.key_type, plain_type(type.item_type))
    if pa.types.is_temporal(type):
        return pa.int32() if type.bit_width == 32 else pa.int64()
    return type


def plain(array: pa.Array) -> list[Any]:
    """Python values with times as their integers: a datetime can't hold them all."""
    return array.cast(plain_type(array.type)).to_pylist()


def told(batch: EventBatch) -> dict[str, Any]:
    """All that a batch says, comparable: NaN equals NaN."""
    columns = {name: repr(plain(batch.columns.column(name))) for name in batch.columns.schema.names}
    return {
        "schema": batch.columns.schema,
        "columns": columns,
        "rows": batch.rows.tolist(),
        "times": batch.event_times.tolist(),
        "rejects": batch.rejects,
    }


def faults(batch: EventBatch) -> list[tuple[int, str]]:
    return [(one.row, one.error) for one in batch.rejects]


def both(reader: Json, paths: Iterable[str], values: Sequence[bytes | None], **more: Any) -> EventBatch:
    """Decoded by both paths, which must agree."""
    paths = list(paths)
    fast = avro(reader, paths, **more).decode(raw_batch(values))
    slow = avro(reader, paths, slow=True, **more).decode(raw_batch(values))
    assert told(fast) == told(slow)
    return fast


def test_the_comparison_sees_one_other_bit() -> None:
    schema = record(field("x", "double"))
    one, two = (avro(schema, ["x"]).decode(raw_batch([encode(schema, {"x": x})])) for x in (1.0, 1.0 + 2**-52))
    assert told(one) != told(two)


def test_a_looser_fast_path_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = record(field("x", "string"))
    values = [framed(long(2) + b"\xff\xfe")]
    assert faults(both(schema, ["x"], values)) == [(0, "Undecodable")]
    monkeypatch.setattr("streamserve.pipeline.columns.FastColumn.take", lambda _self, source, _rows: source)
    with pytest.raises((AssertionError, UnicodeDecodeError)):
        both(schema, ["x"], values)
