"""Keys, rows and words of a batch by the compiled part, `native/enrich.c`: some 5 us a call, whatever the batch.

Each call here is made where `library()` is there; the rooms that make it hold the way in numpy for where it is not. The
interpreter's lock is kept during a call: to give it up for a few microseconds can cost milliseconds to get back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int, c_int64, c_uint8, c_uint64, c_void_p
from functools import cache, lru_cache
from itertools import islice, pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamserve.native import Column, address, array_of, load, to_column
from streamserve.records import Int32s, Int64s, Uint8s

# Where the polynomial of the hash is taken: another in each process, and no result depends on it
SECRET = hash("streamserve") % (2**30 - 1) + 1
DONE, UNFIT, UNKNOWN = 2**63 - 1, -(2**63), -(2**31)  # as in the C file
LARGEST = 2**31 - 1  # bytes that a column's offsets can count


class Rule(Structure):
    """`view` of the C file: what a view's rows hold, and which of them may be used."""

    _fields_ = [
        ("fields", c_int64),
        ("defaults", c_void_p),
        ("max_age", c_int64),
        ("use_stale", c_uint8),
        ("use_future", c_uint8),
    ]


class Key(Structure):
    """`key` of the C file: how the keys of a view's rows are made."""

    _fields_ = [
        ("prefix", c_char_p),
        ("prefix_size", c_int64),
        ("paths", POINTER(c_char_p)),
        ("part_count", c_int64),
    ]

    @classmethod
    def of(cls, prefix: bytes, paths: Sequence[str]) -> Key:
        given = (c_char_p * len(paths))(*(path.encode() for path in paths))
        return cls(prefix, len(prefix), given, len(paths))


class _Batch(Structure):
    _fields_ = [("schema", c_void_p), ("array", c_void_p)]


_BATCH, _PATHS, _COLUMN, _TABLE = POINTER(_Batch), POINTER(c_char_p), POINTER(Column), [c_void_p, c_int64]
_FUNCTIONS = {
    "key_bytes": (c_int64, [_BATCH, POINTER(Key), c_int64]),
    "distinct_keys": (
        None,
        [_BATCH, POINTER(Key), c_int64, _COLUMN, c_uint64, *_TABLE, c_void_p, c_void_p, c_void_p, c_void_p],
    ),
    "place_words": (None, [_COLUMN, c_int64, c_uint64, *_TABLE]),
    "code_texts": (c_int, [_BATCH, c_char_p, _COLUMN, c_uint64, *_TABLE, c_void_p]),
    "spread_rows": (None, [POINTER(Rule), _COLUMN, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_void_p]),
    "put_parts": (c_int64, [_BATCH, c_char_p, c_void_p, c_int64, c_char_p, c_int64, c_void_p]),
    "put_numbers": (c_int, [_BATCH, _PATHS, POINTER(c_double), c_int64, c_void_p]),
}


@cache
def library() -> ctypes.CDLL | None:
    return load("enrich", _FUNCTIONS, ctypes.PyDLL)


class Fields:
    """Columns of numbers by their names, and what stands in for a null of each, as C is told of them."""

    def __init__(self, fields: Sequence[tuple[str, float]]) -> None:
        self.count = len(fields)
        self.paths = (c_char_p * len(fields))(*(path.encode() for path, _ in fields))
        self.missing = (c_double * len(fields))(*(default for _, default in fields))


class Words:
    """A vocabulary, ready to be looked up."""

    def __init__(self, lib: ctypes.CDLL, vocabulary: Sequence[str]) -> None:
        # surrogatepass: a word that no event can have must do no harm
        self._array = pa.array([word.encode(errors="surrogatepass") for word in vocabulary], pa.binary())
        self.column = to_column(self._array)
        self._slots = np.empty(_slots(len(vocabulary)), np.int32)
        self.slots = address(self._slots), len(self._slots)
        lib.place_words(byref(self.column), len(vocabulary), SECRET, *self.slots)


class Batch:
    """The columns of a batch, handed over to C once."""

    def __init__(self, lib: ctypes.CDLL, columns: pa.RecordBatch) -> None:
        self._lib, self._count = lib, len(columns)
        self._capsules = columns.__arrow_c_array__()  # they own what they point to
        schema, array = self._capsules
        self._given = _Batch(_pointer(schema, b"arrow_schema"), _pointer(array, b"arrow_array"))

    def numbers(self, fields: Fields) -> NDArray[np.float32] | None:
        """Columns of numbers side by side, float32 [rows, columns]; None: one of them is of another type."""
        out = np.empty((self._count, fields.count), np.float32)
        done = self._lib.put_numbers(byref(self._given), fields.paths, fields.missing, fields.count, address(out))
        return out if done else None

    def parts(self, path: str, days: Int32s | None, parts: bytes) -> NDArray[np.float64] | int | None:
        """Parts of a timestamp side by side, float64 [rows, parts]. parts: the first letters of minute, hour, weekday.

        days: milliseconds to be added to UTC on each day from 1970 on, or UNKNOWN. Returns the day whose offset would
        have to be known, if there is one; None: the column is of another type.
        """
        out = np.empty((self._count, len(parts)), np.float64)
        table = (None, 0) if days is None else (address(days), len(days))
        done = self._lib.put_parts(byref(self._given), path.encode(), *table, parts, len(parts), address(out))
        return out if done == DONE else None if done == UNFIT else int(done)

    def codes(self, path: str, words: Words) -> Int32s | None:
        """0 for null, 1 for what is no word, 2 and on by the place of the word; None: the column is of another type."""
        codes = np.empty(self._count, np.int32)
        done = self._lib.code_texts(
            byref(self._given), path.encode(), byref(words.column), SECRET, *words.slots, address(codes)
        )
        return codes if done else None

    def distinct_keys(self, keys: Sequence[Key]) -> list[tuple[list[bytes], Int32s]] | None:
        """The distinct row keys of each view, and which of them each event means (-1: none).

        None: a part of a key is no column of strings, or the keys are too large together.
        """
        views, events, lib = len(keys), self._count, self._lib
        given = array_of(Key, views)(*keys)
        room = lib.key_bytes(byref(self._given), given, views)
        if not 0 <= room <= LARGEST:
            return None
        data, slots, most = np.empty(room, np.uint8), _slots(events), views * events
        numbers = np.empty(2 * most + 1 + views + slots, np.int32)  # offsets, index, counts, slots
        at = address(numbers)
        index, counts, slots_at = (at + 4 * place for place in (most + 1, 2 * most + 1, 2 * most + 1 + views))
        parts = array_of(Column, max(key.part_count for key in keys))()
        lib.distinct_keys(
            byref(self._given), given, views, parts, SECRET, slots_at, slots, address(data), at, index, counts
        )
        found = numbers[2 * most + 1 : 2 * most + 1 + views].tolist()
        ends = numbers[: sum(found) + 1].tolist()
        together = data[: ends[-1]].tobytes()
        distinct = iter([together[start:end] for start, end in pairwise(ends)])
        each = numbers[most + 1 : 2 * most + 1].reshape(views, events)
        return [(list(islice(distinct, count)), one) for count, one in zip(found, each, strict=True)]


def spread(
    lib: ctypes.CDLL, rule: Rule, rows: pa.BinaryArray, index: NDArray[np.integer], event_times: Int64s
) -> tuple[NDArray[np.float32], Uint8s]:
    """Values, float32 [events, fields], and status of each event. rows: the distinct ones that `index` means."""
    count, fields = len(index), rule.fields
    values, status = np.empty((count, fields), np.float32), np.empty(count, np.uint8)
    which, event_times = np.ascontiguousarray(index, np.int32), np.ascontiguousarray(event_times, np.int64)
    lib.spread_rows(
        byref(rule), byref(to_column(rows)), len(rows), address(which), address(event_times), count,
        address(values), address(status),
    )  # fmt: skip
    return values, status


words = lru_cache(maxsize=1024)(Words)  # a vocabulary is that of a version: it is looked up in every batch


def _slots(count: int) -> int:
    """Of a hash table, so that at least half of them stay free: a power of two."""
    return 1 << (2 * count).bit_length()


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = c_void_p, [ctypes.py_object, c_char_p]
