"""XXH64, seed 0, of many texts at once, in numpy: the way without a compiler.

As Yann Collet's "xxHash fast digest algorithm" 0.2.0 describes it (the xxHash project's doc/xxhash_spec.md). Each step
is taken for all texts that are long enough for it, so a batch costs some 30 steps and its longest key's share of 32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamserve.records import Int64s, Uint8s

Uint64s = NDArray[np.uint64]
PRIME1, PRIME2, PRIME3, PRIME4, PRIME5 = np.array(
    [0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5], np.uint64
)
STRIPE, WORD, HALF = 32, 8, 4  # bytes
LANES = np.array([(0x9E3779B185EBCA87 + 0xC2B2AE3D27D4EB4F) % 2**64, PRIME2, 0, 2**64 - 0x9E3779B185EBCA87], np.uint64)
TURNS = (1, 7, 12, 18)  # of the lanes, where they meet


def xxh64(data: Uint8s, starts: Int64s, sizes: Int64s) -> Uint64s:
    """The digests of the texts that begin at `starts` in `data`."""
    at = starts.astype(np.int64)
    digests = _stripes(data, at, sizes)
    digests += sizes.astype(np.uint64)
    rest = sizes % STRIPE
    for done in range(0, STRIPE - WORD, WORD):
        rows = np.flatnonzero(rest - done >= WORD)
        mixed = digests[rows] ^ _mix(np.zeros(len(rows), np.uint64), _read(data, at, rows, WORD)[:, 0])
        digests[rows] = _turn(mixed, 27) * PRIME1 + PRIME4
    rows = np.flatnonzero(rest % WORD >= HALF)
    digests[rows] = _turn(digests[rows] ^ _read(data, at, rows, HALF)[:, 0] * PRIME1, 23) * PRIME2 + PRIME3
    for done in range(HALF - 1):
        rows = np.flatnonzero(rest % HALF > done)
        digests[rows] = _turn(digests[rows] ^ _read(data, at, rows, 1)[:, 0] * PRIME5, 11) * PRIME1
    for by, prime in ((33, PRIME2), (29, PRIME3)):
        digests = (digests ^ digests >> np.uint64(by)) * prime
    digests ^= digests >> np.uint64(32)
    return digests


def _stripes(data: Uint8s, at: Int64s, sizes: Int64s) -> Uint64s:
    """What the whole stripes of each text come to; `at` goes on behind them."""
    begun = np.full(len(sizes), PRIME5)
    rows = np.flatnonzero(sizes >= STRIPE)
    if not len(rows):
        return begun
    lanes = np.tile(LANES, (len(sizes), 1))
    for done in range(STRIPE, int(sizes.max()) + 1, STRIPE):
        going = np.flatnonzero(sizes >= done)
        lanes[going] = _mix(lanes[going], _read(data, at, going, STRIPE))
    lanes = lanes[rows]
    value = np.zeros(len(rows), np.uint64)
    for lane, by in enumerate(TURNS):
        value += _turn(lanes[:, lane], by)
    for lane in range(len(TURNS)):
        value = (value ^ _mix(np.zeros(len(rows), np.uint64), lanes[:, lane])) * PRIME1 + PRIME4
    begun[rows] = value
    return begun


def _read(data: Uint8s, at: Int64s, rows: NDArray[np.intp], size: int) -> Uint64s:
    """The next bytes of some texts as whole numbers, [rows, words]; `at` goes on behind them."""
    read: Uint8s = data[at[rows, None] + np.arange(size)]
    at[rows] += size
    return read.view(f"<u{min(size, WORD)}").astype(np.uint64)


def _mix(lanes: Uint64s, words: Uint64s) -> Uint64s:
    mixed: Uint64s = _turn(lanes + words * PRIME2, 31) * PRIME1
    return mixed


def _turn(values: Uint64s, by: int) -> Uint64s:
    turned: Uint64s = values << np.uint64(by) | values >> np.uint64(64 - by)
    return turned
