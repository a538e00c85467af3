"""Memory that nobody uses goes back to the system: what a worker holds stays near what it needs.

Buffers of micro-batches come and go in all sizes and in several threads, and glibc keeps what is free between others.
Left alone, resident memory creeps up over millions of events (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

import pyarrow as pa

TRIM_S = 5.0  # some milliseconds each
# Of <malloc.h>: buffers from MAPPED bytes on are mapped, each alone, and leave no hole behind. Left to itself, glibc
# raises that size to the largest that was ever freed. Who sets one has to set the other: from CUT_OFF free bytes on a
# heap's end is cut off, and at the 128 kB of a fresh process a batch's memory would come and go with each batch.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED, CUT_OFF = 256 << 10, 64 << 20


def _function(name: str, *arguments: type) -> Callable[..., int] | None:
    """Of the C library; None: this one has no such thing."""
    try:
        found = ctypes.CDLL(None)[name]
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = arguments, ctypes.c_int
    return found


def trimmer() -> Callable[[], object] | None:
    """What gives free memory back; None: this C library has no such thing."""
    trim = _function("malloc_trim", ctypes.c_size_t)
    return None if trim is None else lambda: trim(0)


def keep_trimmed(closing: threading.Event, seconds: float = TRIM_S) -> None:
    """Until the worker closes, in a thread of its own. seconds: between two times."""
    trim = trimmer()
    if trim is None:
        return
    while not closing.wait(seconds):
        trim()


def use_one_pool() -> None:
    """Before anything is read: Arrow takes its buffers from the C library, which maps the large ones."""
    if trimmer() is not None:
        pa.set_memory_pool(pa.system_memory_pool())
    option = _function("mallopt", ctypes.c_int, ctypes.c_int)
    if option is not None:
        option(M_MMAP_THRESHOLD, MAPPED)
        option(M_TRIM_THRESHOLD, CUT_OFF)
