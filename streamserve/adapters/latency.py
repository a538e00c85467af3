"""A histogram of every event's latency, filled a batch at a time.

The client library's own histogram takes one observation a call, 1.8 us each: a quarter of what an event costs in all.
Here numpy counts a batch into the buckets (55 us for 2,000 events) and the library only writes the counts out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector

from streamserve.records import Int64s

BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
_BOUNDS_MS = np.array(BOUNDS_S) * 1000


class EventLatency(Collector):
    """From the source record's timestamp to the moment at which its output was given to the Kafka client.

    Two machines' clocks are compared: what seems to come from the future counts as 0. Events without a timestamp are
    left out. A backlog or a replay shows as what it is, the age of its events.
    """

    def __init__(self, name: str, help_: str, labels: Sequence[str], values: Sequence[str]) -> None:
        self._name, self._help, self._labels, self._values = name, help_, labels, values
        self._counts = np.zeros(len(BOUNDS_S) + 1, np.int64)
        self._sum = 0.0

    def observe(self, timestamps: Int64s, now_ms: int) -> None:
        """timestamps: milliseconds since 1970, -1 for none."""
        ages = np.maximum(now_ms - timestamps[timestamps >= 0], 0)
        buckets = np.searchsorted(_BOUNDS_MS, ages, side="left")  # a bound belongs to the bucket below it
        self._counts += np.bincount(buckets, minlength=len(self._counts))
        self._sum += float(ages.sum()) / 1000

    def collect(self) -> Iterable[HistogramMetricFamily]:
        bounds = (*(str(bound) for bound in BOUNDS_S), "+Inf")
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        family.add_metric(self._values, list(zip(bounds, np.cumsum(self._counts).tolist(), strict=True)), self._sum)
        yield family
