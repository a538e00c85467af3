"""The bucket of an event: xxh64(salt + record key) modulo 10,000, the same wherever and whenever it is computed.

A rollout at w basis points gives its candidate the keys of the first w buckets: a key that is in at 5% is in at 20%.
Salt and key are hashed as one text with seed 0, so that any XXH64 finds the same bucket, and a key's bucket tells
nothing of its Kafka partition, which another hash gives.

The compiled part, `native/buckets.c`, serves where it was built, numpy elsewhere.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int64, c_void_p
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamserve.native import Column, address, load, to_column
from streamserve.records import Int32s, Int64s
from streamserve.rollouts.xxh64 import xxh64

BUCKETS = 10_000  # of a basis point each
NO_BUCKET = 2**31 - 1  # of an event without a key: at no weight is it in
_FUNCTIONS = {"bucket_keys": (None, [POINTER(Column), c_void_p, c_int64, c_char_p, c_int64, c_void_p])}


@cache
def library() -> ctypes.CDLL | None:
    # With the interpreter's lock, which costs more to get back than the call takes: 30 ns a key
    return load("buckets", _FUNCTIONS, ctypes.PyDLL)


def buckets(keys: pa.Array | pa.ChunkedArray, salt: str, rows: NDArray[np.integer] | None = None) -> Int32s:
    """The bucket of each key, or of those at `rows`: 0 to 9,999, NO_BUCKET where the key is null. An empty key is one.

    keys: of bytes or text.
    """
    if isinstance(keys, pa.ChunkedArray):
        found = np.concatenate([np.empty(0, np.int32), *(buckets(chunk, salt) for chunk in keys.chunks)])
        return found if rows is None else found[rows]
    salted, lib = salt.encode(errors="surrogatepass"), library()  # any salt must do: it may stand in the log
    if lib is None or not pa.types.is_binary(keys.type):
        return _in_numpy(keys if rows is None else keys.take(pa.array(rows)), salted)
    which = None if rows is None else np.ascontiguousarray(rows, np.int64)
    found = np.empty(len(keys) if which is None else len(which), np.int32)
    at = None if which is None else address(which)
    lib.bucket_keys(byref(to_column(keys)), at, len(found), salted, len(salted), address(found))
    return found


def _in_numpy(keys: pa.Array, salt: bytes) -> Int32s:
    wide = pa.large_binary()  # whose offsets can count all salts and keys together
    salted = pc.binary_join_element_wise(pa.scalar(salt, wide), keys.cast(wide), pa.scalar(b"", wide))
    _, offsets, data = salted.buffers()
    ends: Int64s = np.frombuffer(offsets, np.int64, len(salted) + 1, 8 * salted.offset)
    flat = np.frombuffer(b"" if data is None else data, np.uint8)
    found = (xxh64(flat, ends[:-1], np.diff(ends)) % np.uint64(BUCKETS)).astype(np.int32)
    if salted.null_count:
        found[salted.is_null().to_numpy(zero_copy_only=False)] = NO_BUCKET
    return found
