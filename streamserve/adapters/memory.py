"""Memory that nobody uses goes back to the system: what a worker holds stays near what it needs.

Buffers of micro-batches come and go in all sizes and in several threads, and glibc keeps what is free between others.
Left alone, resident memory creeps up over millions of events (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import logging
import resource
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import pyarrow as pa

LOG = logging.getLogger("streamserve.memory")
TRIM_S = 5.0  # some milliseconds each
# Of <malloc.h>: buffers from MAPPED bytes on are mapped, each alone, and leave no hole behind. Left to itself, glibc
# raises that size to the largest that was ever freed. Who sets one has to set the other: from CUT_OFF free bytes on a
# heap's end is cut off, and at the 128 kB of a fresh process a batch's memory would come and go with each batch.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED, CUT_OFF = 256 << 10, 64 << 20
UNMAPPED = 32 << 20  # glibc's own limit
# What is mapped comes page by page. Of flights that is 2% of the CPU, of vectors of 3 kB it would be a third
FAULT_S, MOST_CPU = 2e-6, 0.05
TWICE = 2  # in a row: a version that is loaded takes many pages as well, once


def _function(name: str, *arguments: type) -> Callable[..., int] | None:
    """Of the C library; None: this one has no such thing."""
    try:
        found = ctypes.CDLL(None)[name]
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = arguments, ctypes.c_int
    return found


def _option() -> Callable[..., int] | None:
    return _function("mallopt", ctypes.c_int, ctypes.c_int)


def trimmer() -> Callable[[], object] | None:
    """What gives free memory back; None: this C library has no such thing."""
    trim = _function("malloc_trim", ctypes.c_size_t)
    return None if trim is None else lambda: trim(0)


@dataclass(frozen=True, slots=True)
class Usage:
    """Of this process so far. cpu: seconds."""

    faults: int
    cpu: float

    @classmethod
    def now(cls) -> Usage:
        found = resource.getrusage(resource.RUSAGE_SELF)
        return cls(found.ru_minflt, found.ru_utime + found.ru_stime)

    def is_dear(self, before: Usage) -> bool:
        """Whether pages that came since took too much of the CPU."""
        return (self.faults - before.faults) * FAULT_S > (self.cpu - before.cpu) * MOST_CPU


def keep_trimmed(closing: threading.Event, seconds: float = TRIM_S, usage: Callable[[], Usage] = Usage.now) -> None:
    """Until the worker closes, in a thread of its own; large buffers are mapped no more where that is dear.

    seconds: between two times.
    """
    trim, option = trimmer(), _option()
    if trim is None:
        return
    before, dear = usage(), 0
    while not closing.wait(seconds):
        now = usage()
        dear = dear + 1 if now.is_dear(before) else 0
        if option is not None and dear == TWICE:
            option(M_MMAP_THRESHOLD, UNMAPPED)
            LOG.info("large buffers are taken from the heap from now on: their pages took more than %g%% of the CPU",
                     MOST_CPU * 100)  # fmt: skip
            option = None
        before = now
        trim()


def set_up() -> None:
    """Before anything is read: Arrow takes its buffers from the C library, which maps the large ones."""
    if trimmer() is not None:
        pa.set_memory_pool(pa.system_memory_pool())
    option = _option()
    if option is not None:
        option(M_MMAP_THRESHOLD, MAPPED)
        option(M_TRIM_THRESHOLD, CUT_OFF)


class _Pandas(MetaPathFinder):
    """Says once that there is no pandas; when somebody imports it, finds it, and has Arrow know of it from then on."""

    def __init__(self) -> None:
        self.refuses = True

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if name != "pandas":
            return None
        if self.refuses:
            raise ImportError("left out")
        sys.meta_path.remove(self)
        found = find_spec(name)
        if found is not None and found.loader is not None:
            found.loader.exec_module = partial(_imported, found.loader.exec_module)  # type: ignore[method-assign]
        return found


def _imported(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    execute(module)
    pa.table({}).to_pandas()


def leave_pandas_out() -> None:
    """Call it before the first array is made: Arrow imports pandas then, where it is installed, to know a Series.

    That is 55 MB and 0.35 s of each process of ours, which sees none. Whoever needs pandas gets it as ever; where it is
    imported already, as by a topology's file, all stays as it is.
    """
    if "pandas" in sys.modules:
        return
    finder = _Pandas()
    sys.meta_path.insert(0, finder)
    pa.array([0])
    finder.refuses = False
