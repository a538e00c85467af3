"""What a test gives: events, view rows and schemas, as bytes that a broker, a store and a registry would have."""

from __future__ import annotations

import datetime as dt
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import numpy as np

from streamserve.adapters.schema_ids import PinnedIndex
from streamserve.errors import ConfigError, SchemaError
from streamserve.features.rows import pack, row_key
from streamserve.headers import Header
from streamserve.pipeline.schemas import EventSchema
from streamserve.topology import Source, Topology, View

OWN_ID = 1  # the schema id of events that are given as dicts, where the folder of schemas pins none
Moment = int | dt.datetime  # milliseconds since 1970, or a datetime with a time zone
Key = str | tuple[str, ...]
ViewRows = Mapping[str, Mapping[Key, tuple[Moment, Mapping[str, float]]]]
Schemas = str | Path | Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Record:
    """An event with a key, headers or a record timestamp of its own.

    value: a dict, encoded as the topology's format says; or bytes as they are; None: a tombstone.
    key: None: the text of the topology's entity key. timestamp: None: the driver's present.
    """

    value: Mapping[str, Any] | bytes | None
    key: bytes | None = None
    headers: Sequence[Header] | None = None
    timestamp: Moment | None = None


class Encoder:
    """Events as a producer of the topology's source would send them."""

    def __init__(self, source: Source, schema: EventSchema, schema_id: int) -> None:
        self._source = source
        self._schema = fastavro.parse_schema(json.loads(schema.text))
        self._frame = b"\x00" + schema_id.to_bytes(4, "big")

    def key(self, record: Record) -> bytes | None:
        """The record's own key, or the text of the entity key in its value."""
        path = self._source.key
        if record.key is not None or path is None or not isinstance(record.value, Mapping):
            return record.key
        found: Any = record.value
        for step in path.split("."):
            found = found.get(step) if isinstance(found, Mapping) else None
        return None if found is None else str(found).encode()

    def value(self, place: int, value: Mapping[str, Any] | bytes | None) -> bytes | None:
        """place: among the events, for the message of the ConfigError."""
        if value is None or isinstance(value, bytes):
            return value
        try:
            if self._source.format == "json":
                return json.dumps(value, default=_iso).encode()
            out = io.BytesIO()
            fastavro.schemaless_writer(out, self._schema, dict(value), strict_allow_default=True)
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            raise ConfigError(
                f"event {place} can't be encoded: {type(error).__name__}: {error}",
                where=self._source.schema_file,
                mend="write it as the schema says, or give bytes to see what becomes of a broken event",
            ) from None
        return self._frame + out.getvalue()


class Writers:
    """The schema ids of a folder's index, and one for the topology's own schema."""

    def __init__(self, topology: Topology, schema: EventSchema, schemas: Schemas) -> None:
        self._text = schema.text
        self._index = None if isinstance(schemas, Mapping) else PinnedIndex(Path(schemas))
        self.own_id = OWN_ID
        if self._index is not None:
            try:
                self.own_id = self._index.id_of(f"{topology.source.topic}-value", schema.text)
            except SchemaError:
                while self._index.writer_schema(self.own_id) is not None:
                    self.own_id += 1

    def writer_schema(self, schema_id: int) -> str | None:
        if schema_id == self.own_id:
            return self._text
        return None if self._index is None else self._index.writer_schema(schema_id)


def event_schema(topology: Topology, schemas: Schemas) -> EventSchema:
    """The event schema that a topology names, out of a folder or a mapping."""
    name = topology.source.schema_file
    if isinstance(schemas, Mapping):
        if name not in schemas:
            raise SchemaError(f"schemas= has no {name!r}; it has {sorted(schemas)}", mend="add it under that name")
        text = schemas[name]
        return EventSchema.parse(text if isinstance(text, str) else json.dumps(text), where=name)
    path = Path(schemas) / name
    if not path.is_file():
        raise SchemaError("there is no such event schema", where=str(path), mend="name its folder in schemas=")
    return EventSchema.parse(path.read_text("utf-8"), where=str(path))


def packed(views: Mapping[str, View], rows: ViewRows) -> list[tuple[bytes, bytes]]:
    """The rows of views as a store keeps them."""
    found = []
    for name, by_key in rows.items():
        view = views.get(name)
        if view is None:
            raise ConfigError(f"views= names {name!r}; the topology's are {', '.join(views) or 'none'}")
        for key, (time, fields) in by_key.items():
            parts = (key,) if isinstance(key, str) else key
            unknown = [field for field in fields if field not in view.fields]
            if len(parts) != len(view.key) or unknown:
                what = f"fields {unknown}" if unknown else f"{len(parts)} parts"
                raise ConfigError(
                    f"views={{{name!r}: {{{key!r}: ...}}}} has {what}",
                    mend=f"its key is {view.key}, its fields are {view.fields}",
                )
            values = np.array([fields.get(field, np.nan) for field in view.fields], np.float32)
            found.append((row_key(view, parts), pack(milliseconds(time), values)))
    return found


def milliseconds(moment: Moment) -> int:
    given: object = moment  # users' tests are not always typed
    if isinstance(given, int):
        return given
    if not isinstance(given, dt.datetime) or given.tzinfo is None:
        raise ConfigError(
            f"{moment!r} is no datetime with a time zone", mend="write tzinfo=datetime.UTC, or milliseconds since 1970"
        )
    return (given - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(milliseconds=1)


def _iso(value: object) -> str:
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")
