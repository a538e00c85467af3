"""Pacing: how long a read waits for a fuller micro-batch, so that events cost little and the latency target holds.

A batch of n rows takes a*n + b. At 10,000 events a second, taking whatever is there means many batches of few rows, and
b is paid each time; waiting longer than the target allows helps nobody. So the pace learns, from what it is told:

- a and b of each model version, by least squares over batches of late;
- the rate at which events arrive;
- what a batch's first event waits besides, in queues and for sending: a high quantile of late.

From these follows the longest wait that keeps that event within the target; and, where the target leaves no room, the
shortest one at which what batches cost before their first row is still a share of a core, because beyond that all wait
anyway. Nobody waits where next to nothing is expected to come meanwhile, and nothing waits under a backlog: the rows
are there already. Pure: times are given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MEMORY = 0.97  # weight of what was known, at each batch: the last 30 or so count
SAFE = 0.7  # of the target: what is planned with; the rest is for what was not foreseen
LONGEST_S = 0.25
SHARE = 0.6  # of one core, what b may take: it is mostly Python, and Python's lock lets one thread run
QUANTILE, STEP = 0.9, 0.1  # of the waits besides, and how fast it is followed
LEAST_S = 0.2e-3  # below this a quantile is followed no finer
WORTHWHILE = 2.0  # rows that must be expected to come during a wait
FIRST_A, FIRST_B = 10e-6, 3e-3  # seconds: what is believed of a version that has not run yet


@dataclass(slots=True)
class BatchCost:
    """Seconds of a batch as a*rows + b, learned with forgetting.

    Weighted least squares over (rows, seconds); where all batches are of one size, the slope stays as it was.
    """

    a: float = FIRST_A
    b: float = FIRST_B
    _weight: float = 0.0
    _rows: float = 0.0
    _seconds: float = 0.0
    _rows_rows: float = 0.0
    _rows_seconds: float = 0.0

    def learn(self, rows: int, seconds: float) -> None:
        """A batch of so many rows took so long."""
        self._weight = MEMORY * self._weight + 1
        self._rows = MEMORY * self._rows + rows
        self._seconds = MEMORY * self._seconds + seconds
        self._rows_rows = MEMORY * self._rows_rows + rows * rows
        self._rows_seconds = MEMORY * self._rows_seconds + rows * seconds
        mean_rows, mean_seconds = self._rows / self._weight, self._seconds / self._weight
        variance = self._rows_rows / self._weight - mean_rows**2
        if variance > 0.01 * mean_rows**2:
            slope = (self._rows_seconds / self._weight - mean_rows * mean_seconds) / variance
            self.a = min(max(slope, 0.0), mean_seconds / mean_rows)
        else:
            self.a = min(self.a, mean_seconds / mean_rows)
        self.b = mean_seconds - self.a * mean_rows


@dataclass(slots=True)
class Pace:
    """The waits of one intake. Its caller serialises the calls.

    target: seconds from an event's arrival at the worker to its prediction's sending, as a high percentile.
    """

    target: float
    max_rows: int
    costs: dict[str, BatchCost] = field(default_factory=dict)
    rate: float = 0.0  # events a second, of late
    besides: float = 0.0  # seconds that events wait for something else than filling and work
    _version: str = ""
    _read_at: float = math.nan

    def arrived(self, rows: int, now: float) -> None:
        """A read gave so many rows. now: seconds on a monotonic clock."""
        passed = now - self._read_at
        if passed > 0:
            weight = 1 - math.exp(-passed / 0.5)
            self.rate += weight * (rows / passed - self.rate)
        self._read_at = now

    def sent(self, version: str, rows: int, work: float, since_arrival: float, waited: float) -> None:
        """A batch is out.

        Args:
            version: that answered for most of it.
            work: seconds of its processing.
            since_arrival: seconds from its first event's arrival; waited: of these, the wait for a fuller batch.
        """
        self._version = version
        self.costs.setdefault(version, BatchCost()).learn(rows, work)
        rest = max(since_arrival - waited - work, 0.0)
        step = STEP * max(self.besides, LEAST_S)
        self.besides += step * QUANTILE if rest > self.besides else -step * (1 - QUANTILE)

    def wait(self) -> tuple[int, float]:
        """Until how many rows, and for how many seconds, the next read may wait after its first record."""
        cost = self.costs.get(self._version) or BatchCost()
        # wait + a*rate*wait + b + besides = planned; b / wait = SHARE
        in_time = (SAFE * self.target - self.besides - cost.b) / (1 + cost.a * self.rate)
        bearable = min(cost.b / SHARE, self.target)
        seconds = min(max(in_time, bearable), LONGEST_S)
        if self.rate * seconds < WORTHWHILE:
            return 1, 0.0
        return min(max(int(self.rate * seconds), 2), self.max_rows), seconds
