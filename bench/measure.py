"""What a process costs and how far it has come: /proc for CPU and memory, end offsets for progress."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

TICKS = os.sysconf("SC_CLK_TCK")
PAUSE = threading.Event()


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


class Progress:
    """How many records a topic has got since this was made."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench-progress"})
        partitions = self._consumer.list_topics(topic, 10).topics[topic].partitions
        self._partitions = [TopicPartition(topic, p) for p in partitions]
        self._start = self._total()

    def _total(self) -> int:
        return sum(self._consumer.get_watermark_offsets(tp, 10)[1] for tp in self._partitions)

    def count(self) -> int:
        return self._total() - self._start

    def close(self) -> None:
        self._consumer.close()


@dataclass(frozen=True)
class Cost:
    """Of one run, between its first tenth and its end: what starting up costs is left out."""

    events: int
    seconds: float
    cpu: float
    rss: float

    @property
    def rate(self) -> float:
        return self.events / self.seconds

    @property
    def us(self) -> float:
        """CPU microseconds an event."""
        return self.cpu / self.events * 1e6


def watch(pid: int, progress: Progress, events: int, deadline: float) -> Cost:
    """Follow a process until its output has grown by `events`.

    Raises:
        RuntimeError: it ended, or the deadline (seconds) passed.
    """
    limit = time.monotonic() + deadline
    first: tuple[float, float, int] | None = None
    while True:
        done = progress.count()
        now = (time.monotonic(), cpu_seconds(pid), done)
        if first is None and done >= events // 10:
            first = now
        if done >= events and first is not None:
            return Cost(done - first[2], now[0] - first[0], now[1] - first[1], rss_mib(pid))
        if not Path(f"/proc/{pid}").exists() or time.monotonic() > limit:
            raise RuntimeError(f"{done} of {events} events after {deadline:.0f} s or at its end")
        PAUSE.wait(0.05)
