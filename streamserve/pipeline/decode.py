"""The bytes of a micro-batch to Arrow columns of the paths that a topology reads; the rest to rejects.

Avro has a fast path, pyruhvro (Rust, straight to Arrow), and a slow one, `avro.SlowReader`; and for batches of
plain fields in which nothing is broken a faster one (`avro_packed`). The slow path is the judge: what a fast one
refuses goes there row by row, so all that must hold is that the fast paths take nothing that the slow one would
refuse or read otherwise. Where pyruhvro is looser it is fed a schema of the
same bytes that makes it strict (an `int` as `long`: it cuts 2**40 down to 0), or its output is checked
(invalid UTF-8 comes through); what it can't do at all does not reach it.

Only what is asked for is resolved, converted and checked: a field that the topology does not read can't
reject an event, short of bytes that break the record's own structure. What must not enter: I/O, a clock,
Kafka.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyruhvro

from streamserve.errors import SchemaError
from streamserve.pipeline.avro import (
    IncompatibleError,
    NotFastError,
    SlowReader,
    UndecodableError,
    check,
    find_written,
    identical,
    named_alike,
    refuse_bomb,
    wire_schema,
)
from streamserve.pipeline.avro_packed import FlatReader
from streamserve.pipeline.columns import (
    MISFITS,
    Asked,
    Column,
    FastColumn,
    Part,
    arrow_type,
    build_rows,
    event_times,
    is_time,
    join_parts,
    reject,
)
from streamserve.pipeline.framing import HEADER, HEADER_FIELDS
from streamserve.pipeline.json_events import JsonReader
from streamserve.pipeline.schemas import EventSchema, Node, WriterSchemas, parse_node, shown
from streamserve.records import EventBatch, Int64s, RawBatch, Reject

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Steps = tuple[int, ...]
Inside = dict[Steps, "list[pa.Array]"]
SMALL = 16  # rows of a broken chunk: 50 us each on the slow path against 9 more scans of 100 us each


# ---- the fast path


class BrokenError(Exception):
    """Some row of a chunk is broken, and pyruhvro does not say which."""


def fast_column(column: Column, writer: Node, reader: Node) -> FastColumn:
    """NotFastError where the writer's and the reader's type differ in more than Arrow can cast."""
    steps: list[int] = []
    for at, f in enumerate(column.trail):
        if writer.kind != "record" or not named_alike(writer, reader):
            raise NotFastError("records of other names")
        found = find_written(writer, reader, f)
        if found is None:
            return FastColumn(tuple(steps), fill=column.build([column.pick(f.default, at + 1)]))
        steps.append(found[0])
        (writer, written_null), (reader, read_null) = found[1].node.without_null(), f.node.without_null()
        if written_null and not read_null:
            raise NotFastError("a null may be written that may not be read")
    return FastColumn(tuple(steps), casts(writer, reader, column.type), holds(reader, "string"))


def casts(writer: Node, reader: Node, type: pa.DataType) -> tuple[tuple[pa.DataType, bool], ...]:
    match writer.kind, reader.kind:
        case (("int" | "long"), ("float" | "double")):
            # By way of double, as Python's float() goes: one rounding more for a float, and the same bits.
            return (pa.float64(), False), (type, False)
        case ("int", "int") | ("int", "long") | ("long", "long"):
            return (arrow_type(reader, logical=False), True), (type, True)
        case ("float", "double") | ("string", "string"):
            return ((type, True),)
        case "enum", "enum" if named_alike(writer, reader) and set(writer.symbols) <= set(reader.symbols):
            return ((type, True),)
    if not identical(writer, reader) or holds(reader, "map"):
        raise NotFastError("other types, or a map: a key twice is one entry in Python, and two in Arrow")
    return (arrow_type(reader, logical=False), True), (type, True)


def holds(node: Node, kind: str) -> bool:
    return node.kind == kind or any(holds(one, kind) for one in node.below())


class FastReader:
    """pyruhvro for one writer schema. NotFastError at construction where that is not to be had."""

    def __init__(self, writer: Node, asked: Asked) -> None:
        self._schema = wire_schema(writer)
        self._columns = [fast_column(column, writer, asked.schema.root) for column in asked.columns]
        types = [column.type for column in asked.columns]
        try:
            self._columns = [c.bare(a) for c, a in zip(self._columns, self._sources(self.scan([])), strict=True)]
            found = [array.type for array in self.columns(self.scan([]))]
        except BrokenError as error:
            raise NotFastError("pyruhvro refuses the schema, or Arrow a cast") from error
        if types != found:
            raise NotFastError(f"pyruhvro gives {found} for {types}")

    def scan(self, framed: list[bytes]) -> pa.RecordBatch:
        """Headers and events as pyruhvro has them; BrokenError where any is none of the schema's."""
        try:
            return pyruhvro.deserialize_array(framed, self._schema)
        except (ValueError, TypeError) as error:  # TypeError: a tombstone among them
            raise BrokenError from error
        except BaseException as error:
            # A Rust panic is a BaseException of a class that can't be imported; nothing else of that kind
            # (KeyboardInterrupt, SystemExit) may end here.
            if type(error).__name__ != "PanicException":
                raise
            raise BrokenError from error

    def takes(self, framed: list[bytes]) -> bool:
        try:
            self.scan(framed)
        except BrokenError:
            return False
        return True

    def columns(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """What is asked for out of a scan, all or nothing: BrokenError where a value does not fit."""
        try:
            found = zip(self._columns, self._sources(batch), strict=True)
            return [column.take(source, batch.num_rows) for column, source in found]
        except MISFITS as error:
            raise BrokenError from error

    def _sources(self, batch: pa.RecordBatch) -> list[pa.Array | None]:
        """For each column what its steps lead to, nulls on the way included. A struct is taken apart once."""
        inside: Inside = {(): batch.columns[len(HEADER_FIELDS) :]}
        return [_at(column.steps, inside) if column.steps else None for column in self._columns]


class FlatColumns:
    """The compiled reader for one writer schema. NotFastError at construction where that is not to be had."""

    def __init__(self, writer: Node, asked: Asked) -> None:
        columns = [fast_column(column, writer, asked.schema.root) for column in asked.columns]
        self._reader = FlatReader(writer, {column.steps for column in columns if column.steps})
        empty = {steps: pa.array([], type) for steps, type in self._reader.types.items()}
        self._columns = [column.bare(empty.get(column.steps)) for column in columns]
        if [column.type for column in asked.columns] != [array.type for array in self._made(empty, 0)]:
            raise NotFastError("other types than are asked for")

    def columns(self, values: pa.BinaryArray) -> list[pa.Array] | None:
        """What is asked for; None: some event is broken, of another schema, or holds a value that does not fit."""
        found = self._reader.read(values)
        try:
            return None if found is None else self._made(found, len(values))
        except MISFITS:
            return None

    def _made(self, found: Mapping[Steps, pa.Array], rows: int) -> list[pa.Array]:
        return [column.take(found.get(column.steps), rows) for column in self._columns]


def _at(steps: Steps, inside: Inside) -> pa.Array:
    """Beside its caller: in it, a function that calls itself is a cycle, and keeps a megabyte a batch for a while."""
    if steps[:-1] not in inside:
        inside[steps[:-1]] = _at(steps[:-1], inside).flatten()
    return inside[steps[:-1]][steps[-1]]


def one_header(batch: pa.RecordBatch) -> bool:
    """Whether all events of a scan began with the same magic byte and the same schema id."""
    ids = batch.column(1).view(pa.int32()).to_numpy()
    return batch.column(0).true_count == 0 and bool((ids == ids[:1]).all())


# ---- one writer schema, then a batch of them


class AvroGroup:
    """The events of one writer schema. IncompatibleError at construction where none of them could be read."""

    def __init__(self, text: str, asked: Asked) -> None:
        try:
            writer = parse_node(text)
        except ValueError as error:
            raise IncompatibleError(f"the writer's schema is not valid Avro: {shown(str(error))}") from None
        refuse_bomb(writer)
        check(writer, asked.schema.root, asked.keep)
        self._columns = asked.columns
        self._slow = SlowReader(writer, asked.schema.root, asked.keep)
        self.fast: FastReader | None
        try:
            self.fast = FastReader(writer, asked)
        except NotFastError:
            self.fast = None
        self.flat: FlatColumns | None
        try:
            self.flat = FlatColumns(writer, asked)
        except NotFastError:
            self.flat = None

    def read(self, rows: Int64s, framed: list[bytes]) -> tuple[list[Part], list[Reject]]:
        """Good rows as parts, and the bad ones as rejects."""
        if self.fast is None:
            return self._read_slowly(rows, framed)
        good, bad = self._split(self.fast, 0, framed)
        try:
            arrays = self.fast.columns(self.fast.scan([framed[i] for i in good]))
        except BrokenError:
            if len(framed) <= SMALL:
                return self._read_slowly(rows, framed)
            half = len(framed) // 2
            low, high = self.read(rows[:half], framed[:half]), self.read(rows[half:], framed[half:])
            return low[0] + high[0], low[1] + high[1]
        parts, rejects = self._read_slowly(rows[bad], [framed[i] for i in bad])
        return [Part(rows[good], arrays), *parts], rejects

    def _split(
        self, fast: FastReader, start: int, framed: list[bytes], *, broken: bool = False
    ) -> tuple[list[int], list[int]]:
        """Which events pyruhvro takes and which it may not, by halving; `broken`: known not to take all."""
        here = list(range(start, start + len(framed)))
        if not broken and fast.takes(framed):
            return here, []
        if len(framed) <= SMALL:
            return [], here
        half = len(framed) // 2
        low = self._split(fast, start, framed[:half])
        high = self._split(fast, start + half, framed[half:], broken=not low[1])
        return low[0] + high[0], low[1] + high[1]

    def _read_slowly(self, rows: Int64s, framed: list[bytes]) -> tuple[list[Part], list[Reject]]:
        good, events, rejects = list[int](), list[Any](), list[Reject]()
        for row, value in zip(rows.tolist(), framed, strict=True):
            try:
                events.append(self._slow.read(value[HEADER:]))
                good.append(row)
            except UndecodableError as error:
                rejects.append(reject(row, "Undecodable", str(error)))
            except IncompatibleError as error:
                rejects.append(reject(row, "IncompatibleSchema", str(error)))
        picked = [[column.pick(event) for event in events] for column in self._columns]
        part, misfits = build_rows(self._columns, good, picked)
        rejects += [reject(row, "Undecodable", f"{path}: {shown(what)}") for row, (path, what) in misfits.items()]
        return [part], rejects


class AvroReader:
    """Confluent-framed values: told apart by schema id, each id's read by its group."""

    def __init__(self, asked: Asked, writers: WriterSchemas) -> None:
        self._asked, self._writers = asked, writers
        self._groups: dict[int, AvroGroup | str] = {}  # by schema id; a text says why none of it can be read

    def read_column(self, values: pa.BinaryArray) -> tuple[list[Part], list[Reject]]:
        """All at once where they are alike, as they nearly always are; no value is a Python object then."""
        first = values[0].as_py() if len(values) else None
        if first is not None and unframed(0, first) is None:
            group = self._group(first[:HEADER])
            arrays = group.flat.columns(values) if isinstance(group, AvroGroup) and group.flat else None
            if arrays is not None:
                return [Part(np.arange(len(values), dtype=np.int64), arrays)], []
        return self.read(values.to_pylist())

    def read(self, values: Sequence[bytes | None]) -> tuple[list[Part], list[Reject]]:
        values = values if isinstance(values, list) else list(values)
        arrays = self._read_alike(values)
        if arrays is None:
            return self._read_mixed(values)
        return [Part(np.arange(len(values), dtype=np.int64), arrays)], []

    def _read_alike(self, values: list[Any]) -> list[pa.Array] | None:
        """The columns, if no event is broken and all are of the first one's schema: what nearly always is so.

        Events of another schema may come out of the scan as garbage, or break it; their ids come out whole.
        """
        if not values or unframed(0, values[0]) is not None:
            return None
        group = self._group(values[0][:HEADER])
        if not isinstance(group, AvroGroup) or group.fast is None:
            return None
        try:
            batch = group.fast.scan(values)
            return group.fast.columns(batch) if one_header(batch) else None
        except BrokenError:
            return None

    def _read_mixed(self, values: list[Any]) -> tuple[list[Part], list[Reject]]:
        parts, rejects, framed = list[Part](), list[Reject](), defaultdict[bytes, list[int]](list)
        for row, value in enumerate(values):
            if (fault := unframed(row, value)) is not None:
                rejects.append(fault)
            elif value is not None:
                framed[value[:HEADER]].append(row)
        for head, rows in framed.items():
            more, worse = self._read_group(head, np.array(rows, np.int64), [values[row] for row in rows])
            parts += more
            rejects += worse
        return parts, rejects

    def _read_group(self, head: bytes, rows: Int64s, framed: list[bytes]) -> tuple[list[Part], list[Reject]]:
        schema_id, group = int.from_bytes(head[1:]), self._group(head)
        if group is None:
            error, why = "UnknownSchemaId", f"nobody knows schema id {schema_id}"
        elif isinstance(group, str):
            error, why = "IncompatibleSchema", f"schema id {schema_id}: {group}"
        else:
            return group.read(rows, framed)
        return [], [reject(row, error, why) for row in rows.tolist()]

    def _group(self, head: bytes) -> AvroGroup | str | None:
        schema_id = int.from_bytes(head[1:])
        if schema_id not in self._groups:
            text = self._writers.writer_schema(schema_id)
            if text is None:
                return None  # not remembered: a registry may learn it
            try:
                self._groups[schema_id] = AvroGroup(text, self._asked)
            except IncompatibleError as error:
                self._groups[schema_id] = str(error)
        return self._groups[schema_id]


def unframed(row: int, value: bytes | None) -> Reject | None:
    if not value:
        return reject(row, "Tombstone", "the record has no value")
    if len(value) < HEADER:
        return reject(row, "TooShort", f"{len(value)} bytes, and the Confluent header alone is {HEADER}")
    if value[0] == 0:
        return None
    return reject(row, "WrongMagic", f"the first byte is {value[0]}, and a Confluent header begins with 0")


class EventDecoder:
    """Decodes micro-batches of one topology's source.

    Args:
        schema: the topology's own.
        format: of the values.
        paths: what to decode; one column each.
        event_time: the path that says when an event happened; None: the record timestamp does.
        writers: who knows the schemas that Avro events were written with; not needed for JSON.

    SchemaError where a path is unknown, or of a type that no column holds (JSON: or that JSON can't carry).
    """

    def __init__(
        self,
        schema: EventSchema,
        *,
        format: Literal["avro", "json"],
        paths: Iterable[str],
        event_time: str | None,
        writers: WriterSchemas | None,
    ) -> None:
        self._paths, self._event_time = sorted(set(paths)), event_time
        asked = Asked(schema, {*self._paths, *([] if event_time is None else [event_time])})
        self._columns = asked.columns
        self._at = {column.path: i for i, column in enumerate(asked.columns)}
        self._schema = pa.schema([(path, asked.columns[self._at[path]].type) for path in self._paths])
        if event_time is not None and not is_time(asked.columns[self._at[event_time]].type):
            kind = schema.column_type(event_time).avro
            mend = "Name a timestamp, a date, or a long of milliseconds since 1970."
            raise SchemaError(f"Event time {event_time!r} is {kind}.", where=schema.where, mend=mend)
        self._reader: JsonReader | AvroReader
        if format == "json":
            self._reader = JsonReader(asked.columns, schema.where)
        elif writers is not None:
            self._reader = AvroReader(asked, writers)
        else:
            mend = "Give the decoder an index of schema ids, or a registry."
            raise SchemaError("Avro events can't be read without their writers' schemas.", mend=mend)

    def decode(self, raw: RawBatch) -> EventBatch:
        """Every row of the batch, either among `rows` or among `rejects`. No event makes it raise."""
        parts, rejects = self._reader.read_column(raw.values)
        whole = join_parts(self._columns, parts)
        columns = pa.RecordBatch.from_arrays([whole.arrays[self._at[p]] for p in self._paths], schema=self._schema)
        rejects.sort(key=lambda one: one.row)
        return EventBatch(raw, whole.rows, columns, self._times(whole, raw), tuple(rejects))

    def _times(self, whole: Part, raw: RawBatch) -> Int64s:
        stamps = raw.timestamps[whole.rows]
        if self._event_time is None:
            return stamps
        return event_times(whole.arrays[self._at[self._event_time]], stamps)
