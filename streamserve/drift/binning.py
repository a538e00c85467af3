"""Many measures of a batch counted at once: compiled where `native/bins.c` was built, else as `measures.bins_of` says.

Which bin a value falls in is defined there. Pure.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from streamserve.drift.measures import UNSEEN_BIN, Measure, bins_of
from streamserve.native import address, load
from streamserve.records import Int32s, Int64s, Uint8s

LANES = 8  # edges are compared so many at a time


class _Type(enum.IntEnum):
    """As in the C file."""

    FLOATS = 0
    DOUBLES = 1
    FLOAT_CODES = 2
    INT_CODES = 3
    BYTE_CODES = 4


class _Measure(Structure):
    _fields_ = [
        ("table", c_void_p),
        ("offset", c_int64),
        *((name, c_int32) for name in ("type", "size", "first", "outside", "special")),
    ]


_FUNCTIONS = {
    "count_bins": (
        None,
        [c_void_p, c_int64, c_int64, POINTER(_Measure), c_int64, c_void_p, c_void_p, c_int64, c_void_p],
    )
}
_TYPES = {
    (np.dtype(np.float32), True): _Type.FLOATS,
    (np.dtype(np.float64), True): _Type.DOUBLES,
    (np.dtype(np.float32), False): _Type.FLOAT_CODES,
    (np.dtype(np.int32), False): _Type.INT_CODES,
    (np.dtype(np.uint8), False): _Type.BYTE_CODES,
}


@cache
def library() -> ctypes.CDLL | None:
    # With the interpreter's lock: 0.2 us an event, in batches of some milliseconds
    return load("bins", _FUNCTIONS, ctypes.PyDLL)


@dataclass(frozen=True, slots=True)
class Watched:
    """A measure that is a column of a block of values.

    first: of its bins, among those of all measures. codes: of a measure that is no number, the bin of each code, as
    `bins_of` takes them. special: its row among what is special; -1: nothing ever is.
    """

    column: int
    measure: Measure
    first: int
    codes: Int64s | None = None
    special: int = -1

    @property
    def table(self) -> NDArray[np.generic]:
        """As C takes it: edges in the type of the values, no value being above infinity, or the bin of each code."""
        if self.codes is not None:
            return self.codes.astype(np.int32)
        edges = np.array(self.measure.edges, self.measure.dtype)
        found = np.full(-(-len(edges) // LANES) * LANES, np.inf, edges.dtype)
        found[: len(edges)] = edges
        return found


class Block:
    """Measures whose values come side by side, [events, columns] of one type: an input of a model, scores, statuses."""

    def __init__(self, watched: Sequence[Watched], dtype: np.dtype[np.generic]) -> None:
        self._watched, self._dtype = tuple(watched), dtype
        self._tables: list[NDArray[np.generic]] = []  # what C is given the addresses of
        self._measures = (_Measure * len(watched))()
        lib = library()
        fit = [_TYPES.get((dtype, one.codes is None)) for one in watched]
        self._lib = None if lib is None or None in fit else lib
        for place, (one, kind) in enumerate(zip(watched, fit, strict=True)):
            if self._lib is not None and kind is not None:
                self._measures[place] = self._measure(one, kind)

    def _measure(self, one: Watched, kind: _Type) -> _Measure:
        table, outside = one.table, UNSEEN_BIN if one.measure.kind == "category" else 0
        self._tables.append(table)
        offset = one.column * self._dtype.itemsize
        return _Measure(address(table), offset, kind, len(table), one.first, outside, one.special)

    def count(
        self,
        values: NDArray[np.generic],
        groups: Int32s,
        counts: NDArray[np.int32],
        specials: Uint8s | None = None,
    ) -> None:
        """Add the events to counts [groups, bins]. groups: of each event. specials: [measures that may be, events]."""
        if self._lib is not None and (values.shape[1] == 1 or values.strides[1] == values.itemsize):
            told = None if specials is None else address(specials)
            where, stride = values.__array_interface__["data"][0], values.strides[0]
            many, width = len(self._watched), counts.shape[1]
            self._lib.count_bins(
                where, stride, len(values), self._measures, many, address(groups), told, width, address(counts)
            )
            return
        for one in self._watched:
            special = None if specials is None or one.special < 0 else specials[one.special]
            at = groups.astype(np.intp) * counts.shape[1] + one.first
            at += bins_of(one.measure, values[:, one.column], special, codes=one.codes)
            counts += np.bincount(at, minlength=counts.size).reshape(counts.shape).astype(np.int32)
