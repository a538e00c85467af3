"""Avro events of plain fields to Arrow columns by the compiled reader, `native/avro.c`: no event is a Python object.

It takes a batch as a whole or not at all: what it can't take goes the ways that `decode` knows besides.
"""

from __future__ import annotations

from collections.abc import Collection
from ctypes import c_char_p, c_int64, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from itertools import accumulate, chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from streamserve.native import address, load, to_column
from streamserve.pipeline.avro import MAX_WIRE_TYPES, NotFastError
from streamserve.pipeline.framing import HEADER
from streamserve.pipeline.schemas import Node

if TYPE_CHECKING:
    import ctypes


class Kind(IntEnum):
    """As in the C file."""

    VOID = 0
    BOOLEAN = 1
    INT = 2
    LONG = 3
    FLOAT = 4
    DOUBLE = 5
    TEXT = 6
    ENUM = 7
    RECORD = 8


KINDS = {
    "null": Kind.VOID, "boolean": Kind.BOOLEAN, "int": Kind.INT, "long": Kind.LONG, "float": Kind.FLOAT,
    "double": Kind.DOUBLE, "string": Kind.TEXT, "enum": Kind.ENUM, "record": Kind.RECORD,
}  # fmt: skip
TYPES = {
    Kind.BOOLEAN: pa.bool_(), Kind.INT: pa.int32(), Kind.LONG: pa.int64(), Kind.FLOAT: pa.float32(),
    Kind.DOUBLE: pa.float64(), Kind.TEXT: pa.utf8(), Kind.ENUM: pa.utf8(),
}  # fmt: skip
WIDTHS = {  # bytes of a value, of a text those of its beginning; a boolean is a bit
    Kind.BOOLEAN: 0,
    Kind.INT: 4,
    Kind.LONG: 8,
    Kind.FLOAT: 4,
    Kind.DOUBLE: 8,
    Kind.TEXT: 4,
    Kind.ENUM: 4,
}
FIELD = np.dtype(
    [
        ("kind", "i4"), ("null", "i4"), ("count", "i4"), ("is_asked", "i4"), ("names", "u8"), ("starts", "u8"),
        ("valid", "u8"), ("values", "u8"), ("offsets", "u8"), ("nulls", "i8"), ("size", "i8"),
    ]
)  # fmt: skip
Steps = tuple[int, ...]
LINE = 64  # bytes that Arrow likes its buffers to begin at


@cache
def library() -> ctypes.CDLL | None:
    pointers = [c_void_p, c_void_p, c_int64, c_char_p, c_int64, c_void_p, c_int64]
    gather = [c_void_p, c_int64, c_void_p, c_int64, c_void_p]
    return load("avro", {"read_events": (c_int64, pointers), "gather_texts": (None, gather)})


class FlatReader:
    """Events of one writer's schema.

    Args:
        asked: which of its fields are wanted, by their places from the event down.

    Raises:
        NotFastError: a field is not plain: a list, a map, bytes, or one of several types.

    Attributes:
        types: of the fields that are asked for.
    """

    def __init__(self, writer: Node, asked: Collection[Steps]) -> None:
        fields = _written(writer)
        self._table, self._alive = np.zeros(len(fields), FIELD), list[pa.Array]()
        self._asked = [(one.steps, one.kind) for one in fields if one.steps in asked]
        self.types = {steps: TYPES[kind] for steps, kind in self._asked if kind in TYPES}
        if len(self.types) < len(asked):
            raise NotFastError("a field that is asked for is not plain")
        self._rows = [row for row, one in enumerate(fields) if one.steps in asked]  # of the table
        # Where each column begins in the room for all of them, in eighths of its rows: what is there, values, offsets
        widths = [(8 * WIDTHS[kind] or 1, 32 if kind >= Kind.TEXT else 0) for _, kind in self._asked]
        ends = list(accumulate(chain(*widths), initial=len(widths)))
        self._valid, self._values, self._offsets = range(len(widths)), ends[:-1:2], ends[1::2]
        self._room = ends[-1]
        for row, one in zip(self._table, fields, strict=True):
            row["kind"], row["null"], row["is_asked"] = one.kind, one.null, one.steps in asked
            row["count"] = one.count
            symbols = pa.array(one.symbols, pa.utf8())
            column = to_column(symbols)
            row["names"], row["starts"] = column.data or 0, column.offsets or 0
            self._alive.append(symbols)

    def read(self, values: pa.BinaryArray) -> dict[Steps, pa.Array] | None:
        """The fields that are asked for; None: not all are events, and of the first one's schema id.

        Text may not be UTF-8.
        """
        lib, rows = library(), len(values)
        if lib is None or not rows or values.null_count:
            return None
        head, events, table = values[0].as_py()[:HEADER], to_column(values), self._table.copy()
        unit = -(-(rows + 1) // LINE) * LINE // 8
        block = np.empty(self._room * unit, np.uint8)
        block[: len(self._asked) * unit] = 255
        room = pa.py_buffer(block)
        for name, places in (("valid", self._valid), ("values", self._values), ("offsets", self._offsets)):
            table[name][self._rows] = [room.address + place * unit for place in places]
        where = address(table), len(table)
        if lib.read_events(events.data, events.offsets, rows, head, HEADER, *where) < rows:
            return None
        nulls, sizes = table["nulls"][self._rows].tolist(), table["size"][self._rows].tolist()
        texts = pa.py_buffer(np.empty(sum(sizes), np.uint8))
        lib.gather_texts(events.data, rows, *where, texts.address)
        found, begin = dict[Steps, pa.Array](), 0
        for number, (steps, kind) in enumerate(self._asked):
            buffers = [room.slice(self._valid[number] * unit, unit) if nulls[number] else None]
            if kind < Kind.TEXT:
                buffers.append(room.slice(self._values[number] * unit))
            else:
                buffers += [room.slice(self._offsets[number] * unit), texts.slice(begin, sizes[number])]
                begin += sizes[number]
            found[steps] = pa.Array.from_buffers(TYPES[kind], rows, buffers, nulls[number])
        return found


@dataclass(slots=True)
class _Written:
    """A field as a writer wrote it. null: which branch of a union is null; -1: it is none. count: see the C file."""

    steps: Steps
    kind: Kind
    null: int
    count: int
    symbols: tuple[str, ...]


def _written(root: Node) -> list[_Written]:
    """The fields of a record in the order in which they are written, each record before its own."""
    found = list[_Written]()

    def add(record: Node, steps: Steps, above: tuple[Node, ...]) -> None:
        if record in above or len(found) > MAX_WIRE_TYPES:
            raise NotFastError("a record that holds itself, or is too large written out")
        for place, field in enumerate(record.fields):
            node, is_union = field.node.without_null()
            if node.kind not in KINDS:
                raise NotFastError(f"{field.name} is not plain")
            null = [branch.kind for branch in field.node.branches].index("null") if is_union else -1
            one = _Written((*steps, place), KINDS[node.kind], null, len(node.symbols), node.symbols)
            found.append(one)
            if node.kind == "record":
                before = len(found)
                add(node, one.steps, (*above, record))
                one.count = len(found) - before

    add(root, (), ())
    return found
