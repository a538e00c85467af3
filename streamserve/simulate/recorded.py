"""Recorded events: Parquet, Avro or JSON-lines files as Arrow batches, and as the bytes that a producer would send."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pyruhvro

from streamserve.errors import ConfigError
from streamserve.pipeline import framing
from streamserve.pipeline.json_events import DoesNotFitError, NotJsonError, converter, parse
from streamserve.pipeline.schemas import EventSchema

BATCH = 5000


class RecordedEvents:
    """A file of events, read in the Arrow types of an event schema.

    Raises:
        ConfigError: no such file, a kind that is not known, or columns that do not fit the schema.
    """

    def __init__(self, path: Path, schema: EventSchema) -> None:
        self.path, self._root = path, schema.root
        self._arrow: pa.Schema = pyruhvro.avro_to_arrow_schema(schema.text)
        if not path.is_file():
            raise ConfigError("there is no such file of events", where=str(path), mend="name a file that exists")
        if path.suffix not in (".parquet", ".avro", ".jsonl"):
            raise ConfigError(
                f"{path.suffix or 'a file without an ending'} is no kind of event file",
                where=str(path),
                mend="use .parquet, .avro (object container) or .jsonl (a JSON object a line)",
            )

    @property
    def count(self) -> int | None:
        """How many events, where the file tells without being read."""
        return pq.ParquetFile(self.path).metadata.num_rows if self.path.suffix == ".parquet" else None

    def batches(self, size: int = BATCH) -> Iterator[pa.RecordBatch]:
        try:
            if self.path.suffix == ".parquet":
                for batch in pq.ParquetFile(self.path).iter_batches(size):
                    yield self._fit(batch)
            else:
                for rows in _chunks(self._rows(), size):
                    yield pa.RecordBatch.from_pylist(rows, self._arrow)
        except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"the events do not fit the schema: {error}",
                where=str(self.path),
                mend="compare it with the schema",
            ) from error

    def _fit(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        arrays = []
        for field in self._arrow:
            place = batch.schema.get_field_index(field.name)
            if place >= 0:
                arrays.append(batch.column(place).cast(field.type))
            elif field.nullable:
                arrays.append(pa.nulls(len(batch), field.type))
            else:
                raise KeyError(f"there is no column {field.name!r}")
        return pa.RecordBatch.from_arrays(arrays, schema=self._arrow)

    def _rows(self) -> Iterator[dict[str, object]]:
        with self.path.open("rb") as stream:
            if self.path.suffix == ".avro":
                rows: Iterator[Any] = fastavro.reader(stream)
                yield from rows
            else:
                yield from self._json_rows(stream)

    def _json_rows(self, lines: Iterable[bytes]) -> Iterator[dict[str, object]]:
        """By the conventions of JSON events: a time may be written in ISO 8601."""
        convert = converter(self._root)
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield convert(parse(line))
                except (DoesNotFitError, NotJsonError) as error:
                    path = getattr(error, "path", "").lstrip(".")
                    raise ValueError(f"line {number}: {path}{path and ': '}{error}") from None


def _chunks(rows: Iterator[dict[str, object]], size: int) -> Iterator[list[dict[str, object]]]:
    chunk: list[dict[str, object]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def to_avro(batch: pa.RecordBatch, schema: EventSchema, schema_id: int) -> list[bytes]:
    """Each row in the Confluent wire format."""
    frame = framing.header(schema_id)
    parts = pyruhvro.serialize_record_batch(batch, schema.text, 1)
    return [frame + body for part in parts for body in part.to_pylist()]


def to_json(batch: pa.RecordBatch) -> list[bytes]:
    """Each row as a JSON object; timestamps as integers of their own unit."""
    plain = batch.cast(pa.schema([pa.field(f.name, _plain(f.type), nullable=True) for f in batch.schema]))
    return [json.dumps(row, separators=(",", ":")).encode() for row in plain.to_pylist()]


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind) or pa.types.is_time64(kind):
        return pa.int64()
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
        return pa.int32()
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _plain(f.type)) for f in kind])
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind


def keys_of(batch: pa.RecordBatch, path: str | None) -> Sequence[bytes | None]:
    """The record keys: the entity key's text, or None where the event has none."""
    if path is None:
        return [None] * len(batch)
    first, *rest = path.split(".")
    column = batch.column(first)
    for name in rest:
        column = pa.compute.struct_field(column, name)
    return [None if key is None else key.encode() for key in column.cast(pa.string()).to_pylist()]
