"""Record headers as one byte string a record, so that they travel in a column like keys and values.

For each header an int32 size and the bytes of its name, then an int32 size and the bytes of its value (size -1: null),
little-endian. The compiled client reads and writes this form itself; here it is made and read where there is a reason
to look into it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pyarrow as pa

Header = tuple[str, bytes | None]
_SIZE = struct.Struct("<i")


def pack(headers: Sequence[Header]) -> bytes:
    """Headers, in their order, as bytes. A name may hold surrogates that stand for bytes that are not UTF-8."""
    parts = []
    for name, value in headers:
        raw = name.encode(errors="surrogateescape")
        parts += [_SIZE.pack(len(raw)), raw, _SIZE.pack(-1 if value is None else len(value)), value or b""]
    return b"".join(parts)


def unpack(packed: bytes | None) -> list[Header]:
    """The headers of one record; none for null. Names that are not UTF-8 come with surrogates in them."""
    found = list[Header]()
    at, data = 0, packed or b""
    while at < len(data):
        name, at = _sized(data, at)
        value, at = _sized(data, at)
        found.append(((name or b"").decode(errors="surrogateescape"), value))
    return found


def _sized(data: bytes, at: int) -> tuple[bytes | None, int]:
    (size,) = _SIZE.unpack_from(data, at)
    start = at + _SIZE.size
    return (None, start) if size < 0 else (data[start : start + size], start + size)


def header_column(rows: Sequence[Sequence[Header] | None]) -> pa.BinaryArray | None:
    """The headers of a batch's records as a column; None where no record has any."""
    if not any(rows):
        return None
    return pa.array([pack(headers) if headers else None for headers in rows], pa.binary())
