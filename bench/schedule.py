"""The open loop's arithmetic: when events are due, how late answers are, and percentiles. Pure.

An event's time counts from when it should have left, not from when it did: a generator that is held up by what it
measures, and counts from its own late sending, hides exactly the waits that matter (coordinated omission).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SECOND = 1_000_000_000
WANTED = (50.0, 90.0, 99.0, 99.9, 100.0)
NAMES = ("p50", "p90", "p99", "p99.9", "max")
Int64s = NDArray[np.int64]
Floats = NDArray[np.float64]


def due(elapsed_ns: int, rate: float) -> int:
    """How many events should have left so many nanoseconds after the start; the first leaves at once."""
    return int(elapsed_ns * rate / SECOND) + 1 if elapsed_ns >= 0 else 0


def intended(count: int, start_ns: int, rate: float) -> Int64s:
    """When each event should leave, nanoseconds of the monotonic clock: fixed ahead, evenly."""
    return start_ns + np.ceil(np.arange(count) * (SECOND / rate)).astype(np.int64)


def latencies_ms(arrivals: Int64s, start_ns: int, rate: float, skip: int = 0) -> Floats:
    """From intended sending to arrival, without the first `skip` events. An arrival of 0 never came: infinite."""
    late = (arrivals - intended(len(arrivals), start_ns, rate)) / 1e6
    return np.where(arrivals == 0, np.inf, late)[skip:]


def percentiles(values: Floats) -> dict[str, float]:
    """p50 to p99.9 by nearest rank, a value that was really seen, and the maximum; in the unit of the values."""
    ordered = np.sort(values)
    ranks = np.maximum(np.ceil(np.round(np.array(WANTED) / 100 * len(ordered), 6)).astype(int), 1) - 1
    return dict(zip(NAMES, ordered[ranks].tolist(), strict=True))


def answered_in_time(arrivals: Int64s, start_ns: int, rate: float, skip: int) -> float:
    """Answers a second from the first counted event's time to the last one's: below the rate, a queue grew."""
    from_ns, to_ns = intended(len(arrivals), start_ns, rate)[[skip, -1]]
    seen = np.count_nonzero((arrivals >= from_ns) & (arrivals <= to_ns))
    return float(seen / max(to_ns - from_ns, 1) * SECOND)
