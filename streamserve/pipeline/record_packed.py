"""Framed Avro records from columns by the compiled writer, `native/record.c`: 0.1 us a record, next to nothing a batch.

What is the same for many batches, a `Layout`, is made once; a batch brings its arrays.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from streamserve.errors import SettingsError
from streamserve.native import Column, address, array_of, from_arrays, load, to_column

LONGEST = 10  # bytes of an Avro long at most
PLACE = 42  # bytes of "-partition-offset" at most
MORE = 0x80  # the bit of a byte of it that another follows
LARGEST = 2**31 - 1  # bytes that a column's offsets can count
NOTHING = b"\x00"  # of a union with null before all else


class Kind(IntEnum):
    """As in the C file."""

    CONSTANT = 0
    NAMED = 1
    CODED = 2
    PLACE = 3
    TEXT = 4
    LONG = 5
    STAMP = 6
    NUMBER = 7
    SCORES = 8
    CODES = 9
    TEXTS = 10


DTYPES: dict[Kind, tuple[type[np.generic], ...]] = {
    Kind.NAMED: (np.int32,),
    Kind.CODED: (np.uint8,),
    Kind.PLACE: (np.int32, np.int64),
    Kind.LONG: (np.int64,),
    Kind.STAMP: (np.int64, np.bool_),
    Kind.NUMBER: (np.float64,),
    Kind.SCORES: (np.float64, np.bool_),
    Kind.CODES: (np.uint8,),
}
FIELD = np.dtype(
    [("kind", "i4"), ("count", "i4"), ("pieces", "u8"), ("starts", "u8"), ("values", "u8"), ("more", "u8")]
)
Given = Sequence[Any]  # of a field: its arrays, in the order of DTYPES, and None for what there is none of; its texts


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record. pieces: bytes that stand in it as they are. each: its bytes at most, but for its texts."""

    kind: Kind
    pieces: tuple[bytes, ...] = ()
    count: int = 0
    each: int = LONGEST


def text(value: str) -> bytes:
    """A string as it stands in a record."""
    found = value.encode()
    return long(len(found)) + found


def optional(value: str | None) -> bytes:
    """A string or null as it stands in a record."""
    return NOTHING if value is None else long(1) + text(value)


def long(value: int) -> bytes:
    """A whole number that is not negative as it stands in a record."""
    found, left = bytearray(), 2 * value
    while left >= MORE:
        found.append(left % MORE | MORE)
        left //= MORE
    return bytes([*found, left])


def constant(*pieces: bytes) -> Field:
    whole = b"".join(pieces)
    return Field(Kind.CONSTANT, (whole,), each=len(whole))


def named(pieces: Sequence[bytes], *, null: bool = False) -> Field:
    """One of some pieces, by int32. null: -1 is one of them, and stands for null."""
    return Field(Kind.NAMED, (NOTHING if null else b"", *pieces), each=max(map(len, pieces), default=1))


def coded(pieces: Sequence[bytes]) -> Field:
    """One of some pieces, by uint8."""
    return Field(Kind.CODED, tuple(pieces), each=max(map(len, pieces)))


def place(topic: str) -> Field:
    """topic-partition-offset."""
    return Field(Kind.PLACE, (topic.encode(),), each=LONGEST + len(topic.encode()) + PLACE)


def mapped(kind: Kind, names: Sequence[str], each: int) -> Field:
    """A map of so many names. each: bytes of a value at most, but for texts."""
    pieces = tuple(map(text, names))
    return Field(kind, pieces, len(pieces), LONGEST + 1 + sum(map(len, pieces)) + each * len(pieces))


ONE_FOR_ALL, LONGS = Field(Kind.LONG), Field(Kind.LONG, count=1)
STAMPS, NUMBERS, TEXT = Field(Kind.STAMP, each=1 + LONGEST), Field(Kind.NUMBER), Field(Kind.TEXT, each=1 + LONGEST)


@cache
def library() -> ctypes.CDLL | None:
    return load("record", {"write_records": (None, [c_void_p, c_int64, c_int64, c_void_p, c_void_p])})


class Layout:
    """Fields in the order of the schema, by names of the caller's own. where: for errors."""

    def __init__(self, fields: Mapping[str, Field], where: str) -> None:
        self._where = where
        self._fields = {name: (index, field.kind) for index, (name, field) in enumerate(fields.items())}
        self._each = sum(field.each for field in fields.values())
        self._table, self._alive = np.zeros(len(fields), FIELD), list[pa.Array]()
        for row, field in zip(self._table, fields.values(), strict=True):
            pieces = pa.array(field.pieces, pa.binary())
            column = to_column(pieces)
            self._alive.append(pieces)
            row["kind"], row["count"] = field.kind, field.count
            row["pieces"], row["starts"] = column.data or 0, column.offsets or 0

    def write(self, rows: int, given: Mapping[str, Given]) -> pa.BinaryArray | None:
        """The framed record of each row; None where the writer was not built.

        given: of each field that is no constant; shape [rows], or [rows, names] of a map.

        Raises:
            SettingsError: the records may come to more than a column can hold.
        """
        lib = library()
        if lib is None:
            return None
        table, alive, most = self._table.copy(), list[Any](), self._each * rows
        values, more = table["values"], table["more"]
        for name, arrays in given.items():
            index, kind = self._fields[name]
            if kind in DTYPES:
                for target, array, dtype in zip((values, more), arrays, DTYPES[kind], strict=False):
                    if array is not None:
                        flat = np.ascontiguousarray(array, dtype)
                        alive.append(flat)
                        target[index] = address(flat)
            elif arrays:
                columns = array_of(Column, len(arrays))(*map(to_column, arrays))
                alive.append(columns)
                values[index] = ctypes.addressof(columns)
                most += sum(array.nbytes for array in arrays)
        if most > LARGEST:
            raise SettingsError(
                f"the records of a batch of {rows} events may come to more than 2 GiB",
                where=self._where,
                mend="lower STREAMSERVE_BATCH_ROWS",
            )
        data, starts = np.empty(most, np.uint8), np.empty(rows + 1, np.int32)
        lib.write_records(address(table), len(table), rows, address(data), address(starts))
        return from_arrays(data, starts)
