"""Encoded events in a file, so that processes of the benchmark can hand them to each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import feather

Keys = Sequence[bytes | None]


def write_events(path: Path, keys: Keys, values: Sequence[bytes]) -> Path:
    """Record keys and values, in their order."""
    table = pa.table({"key": pa.array(keys, pa.large_binary()), "value": pa.array(values, pa.large_binary())})
    feather.write_feather(table, path, "uncompressed")
    return path


def read_events(path: Path, limit: int | None = None) -> tuple[list[bytes | None], list[bytes]]:
    """The first `limit` of them, or all."""
    table = feather.read_table(path).slice(0, limit)
    return table.column("key").to_pylist(), table.column("value").to_pylist()
