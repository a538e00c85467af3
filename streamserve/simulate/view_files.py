"""View rows from Parquet files or Arrow tables, as the store keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streamserve.errors import ConfigError
from streamserve.features.rows import pack, row_key
from streamserve.features.timeparts import milliseconds
from streamserve.topology import View

TIME = "feature_time"


def view_rows(view: View, source: Path | pa.Table) -> Iterator[tuple[bytes, bytes]]:
    """(store key, row) of every row with a whole key.

    Raises:
        ConfigError: no such file, or columns that the view needs are missing or of another kind.
    """
    where = str(source) if isinstance(source, Path) else f"table of {view.name}"
    table = _read(source) if isinstance(source, Path) else source
    wanted = (*view.key, TIME, *view.fields)
    if missing := [name for name in wanted if name not in table.column_names]:
        raise ConfigError(
            f"view {view.name!r} needs columns {', '.join(missing)}; found {', '.join(table.column_names)}",
            where=where,
            mend="write them, or change the view's key= and fields=",
        )
    try:
        keys = [table.column(name).cast(pa.string()).to_pylist() for name in view.key]
        times = milliseconds(table.column(TIME).combine_chunks())
        fields = [table.column(name).cast(pa.float32(), safe=False) for name in view.fields]
        values = np.column_stack([pc.fill_null(f, np.nan).to_numpy() for f in fields])
    except pa.ArrowException as error:
        raise ConfigError(
            f"view {view.name!r}: {error}",
            where=where,
            mend="keys as text, feature_time as a timestamp, fields as numbers",
        ) from None
    for key, time, row in zip(zip(*keys, strict=True), times.tolist(), values, strict=True):
        if None not in key:
            yield row_key(view, key), pack(time, row)


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(
            f"the view's rows can't be read: {error}", where=str(path), mend="name a Parquet file"
        ) from None
