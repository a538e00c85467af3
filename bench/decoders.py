"""Decoders of the vector events, each alone: bytes to a float32 matrix, as fast as its library allows.

All are dependencies of streamserve already. The fastest of a format is its floor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pa_json
import pyruhvro
from numpy.typing import NDArray
from pydantic_core import from_json

FIELD, FLOATS = "pixels", 784
FRAME = 5  # bytes of the Confluent wire format before an Avro body
BLOCK = 64 << 20  # bytes that Arrow's JSON reader takes at once: more than a batch has
Decoder = Callable[[Sequence[bytes]], NDArray[np.float32]]


def pyruhvro_avro(schema: str) -> Decoder:
    """Avro bodies straight to Arrow."""

    def read(values: Sequence[bytes]) -> NDArray[np.float32]:
        batch = pyruhvro.deserialize_array([value[FRAME:] for value in values], schema)
        return _matrix(batch.column(FIELD), len(values))

    return read


def arrow_json(_schema: str) -> Decoder:
    """Arrow's own reader over joined lines, told the types."""
    kinds = pa.schema([("picture_id", pa.string()), ("taken", pa.int64()), (FIELD, pa.list_(pa.float32()))])
    reading = pa_json.ReadOptions(use_threads=False, block_size=BLOCK)
    parsing = pa_json.ParseOptions(explicit_schema=kinds)

    def read(values: Sequence[bytes]) -> NDArray[np.float32]:
        table = pa_json.read_json(pa.BufferReader(b"\n".join(values)), reading, parsing)
        return _matrix(table.column(FIELD).combine_chunks(), len(values))

    return read


def pydantic_json(_schema: str) -> Decoder:
    """The parser inside pydantic, a row of the matrix at a time: together the lists would leave the caches."""
    return _row_by_row(lambda value: from_json(value, cache_strings="keys"))


def standard_json(_schema: str) -> Decoder:
    """Python's own parser, the same way."""
    return _row_by_row(json.loads)


def _row_by_row(parse: Callable[[bytes], Any]) -> Decoder:
    def read(values: Sequence[bytes]) -> NDArray[np.float32]:
        matrix = np.empty((len(values), FLOATS), np.float32)
        for at, value in enumerate(values):
            matrix[at] = parse(value)[FIELD]
        return matrix

    return read


def _matrix(column: pa.Array, rows: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = column.flatten().to_numpy().reshape(rows, -1)
    return found


DECODERS: dict[str, Callable[[str], Decoder]] = {
    "pyruhvro": pyruhvro_avro,
    "pyarrow": arrow_json,
    "pydantic": pydantic_json,
    "json": standard_json,
}
AVRO, JSON = ("pyruhvro",), ("pyarrow", "pydantic", "json")
