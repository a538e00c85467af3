"""Memory that nobody uses goes back to the system: what a worker holds stays near what it needs.

Buffers of micro-batches come and go in all sizes and in several threads, and glibc keeps what is free between others.
Left alone, resident memory creeps up by 5 to 8% over ten million events (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

import pyarrow as pa

TRIM_S = 5.0  # some milliseconds each


def trimmer() -> Callable[[], object] | None:
    """What gives free memory back; None: this C library has no such thing."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return lambda: trim(0)


def keep_trimmed(closing: threading.Event, seconds: float = TRIM_S) -> None:
    """Until the worker closes, in a thread of its own. seconds: between two times."""
    trim = trimmer()
    if trim is None:
        return
    while not closing.wait(seconds):
        trim()


def use_one_pool() -> None:
    """Before anything is read: Arrow takes its buffers from the C library, whose free memory is given back."""
    if trimmer() is not None:
        pa.set_memory_pool(pa.system_memory_pool())
