"""The Confluent wire format: a zero byte, a four-byte big-endian schema id, then the Avro record."""

from __future__ import annotations

HEADER = 5  # bytes before the record


def header(schema_id: int) -> bytes:
    """What stands before each record of this schema."""
    return b"\x00" + schema_id.to_bytes(4, "big")
