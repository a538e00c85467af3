"""What a million predictions cost in CPU: measured seconds, a price an hour of a core, over a sliding window.

It is the whole process's CPU, waiting threads and web pages included, so an idle hour makes its few predictions dear:
that is what they cost. Start-up is not in it. Not in it either: memory, disks, Kafka, Redis, GPUs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

WINDOW_S = 300.0  # long enough for a stable figure at ten events a second, short enough to show a release
SAMPLE_S = 1.0  # at most 300 samples are held
HOUR_S = 3600
MILLION = 1_000_000


class Cost:
    """Counts predictions and looks at the CPU clock at most once a second.

    Args:
        price: of one core for one hour.
        cpu: seconds of CPU that the process has used; seconds: a monotonic clock.
    """

    def __init__(self, price: float, *, cpu: Callable[[], float], seconds: Callable[[], float]) -> None:
        self._price, self._cpu, self._seconds = price, cpu, seconds
        self._predictions = 0
        self._samples = deque([(seconds(), cpu(), 0)])  # second, CPU, predictions, as they were then

    def add(self, predictions: int) -> None:
        self._predictions += predictions
        now = self._seconds()
        if now - self._samples[-1][0] >= SAMPLE_S:
            self._sample(now)

    def per_million(self) -> float:
        """NaN where the window holds no prediction: no figure is not a good figure."""
        now = self._seconds()
        self._forget(now)
        _, cpu, predictions = self._samples[0]
        made = self._predictions - predictions
        if not made:
            return math.nan
        return (self._cpu() - cpu) / HOUR_S * self._price / made * MILLION

    def _sample(self, now: float) -> None:
        self._samples.append((now, self._cpu(), self._predictions))
        self._forget(now)

    def _forget(self, now: float) -> None:
        """The window starts at its oldest sample, or at the last one before it where the window has none."""
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()
