"""The compiled parts: C files of one job each, built at installation where there is a C compiler, loaded with ctypes.

Each has a way in Python that does the same, which serves where the compiled one is missing; the rooms that use them
decide between the two. Here they are found, and Arrow columns are handed over and taken back. No job is known here.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping, Sequence
from ctypes import Structure, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

LOG = logging.getLogger("streamserve.native")
Signature = tuple[Any, Sequence[Any]]  # result and arguments


class Column(Structure):
    """A string or binary column in Arrow's layout."""

    _fields_ = [("data", c_void_p), ("offsets", c_void_p), ("valid", c_void_p), ("first_bit", c_int64)]


@cache
def path_of(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.so")


def load(name: str, functions: Mapping[str, Signature], how: type[ctypes.CDLL] = ctypes.CDLL) -> ctypes.CDLL | None:
    """A compiled part with its functions declared; None where it was not built, or does not fit this machine.

    how: PyDLL for calls that are over before another thread could make use of the interpreter's lock.
    """
    try:
        found = how(str(path_of(name)))
    except OSError as error:
        LOG.info("the compiled %s is not in use, Python does its work: %s", name, error)
        return None
    for function, (result, arguments) in functions.items():
        declared = getattr(found, function)
        declared.restype, declared.argtypes = result, arguments
    return found


@cache
def array_of(kind: type[Any], count: int) -> type[ctypes.Array[Any]]:
    """Ctypes makes a class of it, in 20 us and with cycles: once for each, not at every call."""
    made: type[ctypes.Array[Any]] = kind * count
    return made


def to_column(array: pa.Array) -> Column:
    """The buffers of a string or binary array, which must outlive the call that gets them."""
    valid, offsets, data = (None if buffer is None else buffer.address for buffer in array.buffers())
    return Column(data, None if offsets is None else offsets + 4 * array.offset, valid, array.offset)


def address(array: np.ndarray) -> int:
    """Where the bytes of a contiguous array begin; `ctypes.data` would take 3 us to say so."""
    return int(pa.py_buffer(array).address)


def from_arrays(data: np.ndarray, offsets: np.ndarray, valid: np.ndarray | None = None) -> pa.BinaryArray:
    """Arrays that C has filled as an Arrow column, without a copy. valid: a byte a row; None: all are."""
    nulls = 0 if valid is None else len(valid) - int(np.count_nonzero(valid))
    bitmap = pa.py_buffer(np.packbits(valid, bitorder="little")) if valid is not None and nulls else None
    buffers = [bitmap, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(offsets) - 1, buffers, nulls)
