"""What processes cost and how far they have come: /proc for CPU and memory, end offsets for progress."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

TICKS = os.sysconf("SC_CLK_TCK")
LEADERS_S = 10.0
PAUSE = threading.Event()
LOOK_S = 0.05  # how often a run is looked at: 1% of the shortest ones


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def busy_seconds() -> float:
    """CPU time that the whole machine has spent on anything but waiting."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def admin_client(bootstrap: str) -> AdminClient:
    """One that keeps its farewells to itself."""
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 4})


class Progress:
    """How many records a topic has got since this was made."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._admin = admin_client(bootstrap)
        partitions = self._admin.list_topics(topic, 10).topics[topic].partitions
        self._wanted = {TopicPartition(topic, p): OffsetSpec.latest() for p in partitions}
        self._start = self._total()

    def _total(self) -> int:
        """The sum of the end offsets; a new topic has leaders after some milliseconds only."""
        limit = time.monotonic() + LEADERS_S
        while True:
            try:
                return sum(found.result(10).offset for found in self._admin.list_offsets(self._wanted).values())
            except KafkaException:
                if time.monotonic() > limit:
                    raise
            PAUSE.wait(LOOK_S)

    def count(self) -> int:
        """Records since the start."""
        return self._total() - self._start


@dataclass(frozen=True)
class Cost:
    """Of one run. cpu: seconds of all its processes. rss: MiB at the start of what is counted, median and maximum."""

    events: int
    seconds: float
    cpu: float
    rss: tuple[float, float, float]
    rows: float | None = None  # of a micro-batch, on average

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds

    @property
    def us(self) -> float:
        """CPU microseconds an event."""
        return self.cpu / self.events * 1e6

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Cost:
        """What `as_dict` gave."""
        rss = found["rss"]
        return cls(found["events"], found["seconds"], found["cpu"], (rss[0], rss[1], rss[2]), found["rows"])

    def as_dict(self) -> dict[str, object]:
        """For the JSON file."""
        return {**vars(self), "rate": self.rate, "us": self.us}


def spread(samples: Sequence[float]) -> tuple[float, float, float]:
    """First, median and maximum: flat memory has three equal ones."""
    return samples[0], statistics.median(samples), max(samples)


def follow(
    pids: Sequence[int],
    progress: Progress,
    events: int,
    deadline: float,
    started: Callable[[], bool] = lambda: True,
) -> Cost:
    """Follow processes until nine tenths of `events` have come out of them together.

    Counted is what comes after the first tenth, and after `started` (asked until it says yes): what starting up costs
    is left out. The last tenth is left out because events that are read ahead and in flight have cost something before
    they come out: so there are as many of them at either end.

    Raises:
        RuntimeError: one of them ended, or the deadline (seconds) passed.
    """
    limit, last = time.monotonic() + deadline, events - events // 10
    begun = (time.monotonic(), sum(map(cpu_seconds, pids)), 0)
    first: tuple[float, float, int] | None = None
    memory: list[float] = []
    while True:
        done = progress.count()
        if not all(Path(f"/proc/{pid}/fd/0").exists() for pid in pids) or time.monotonic() > limit:
            raise RuntimeError(f"{done} of {last} events after {deadline:.0f} s or at its end")
        now = (time.monotonic(), sum(map(cpu_seconds, pids)), done)
        if first is None and done >= events // 10 and started():
            first = now
        if first is not None:
            memory.append(sum(map(rss_mib, pids)))
            if done >= last:
                start = first if done > first[2] else begun  # so short that one look saw all of it
                return Cost(done - start[2], now[0] - start[0], now[1] - start[1], spread(memory))
        PAUSE.wait(LOOK_S)
