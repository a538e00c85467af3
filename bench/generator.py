"""The open-loop generator, a process of its own: sends events on a schedule that nothing can delay.

    python -m bench.generator BOOTSTRAP TOPIC EVENTS_FILE RATE WARM COUNT START_NS

An event's record key is its number, 8 bytes: predictions carry it, so that nobody needs to decode them. The first
WARM events are not counted. Prints how late it was and what it cost, as JSON.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
from pyarrow import feather

from bench.librdkafka import RunProducer
from bench.measure import admin_client
from bench.schedule import due, intended

# What falls due in this time goes out together, to one partition. The client sends a request for each partition, and a
# broker on the same cores was drowned by 2,000 of them a second: p50 was 800 ms then, whoever answered. Half of it is
# in the latencies, since they count from the intended time.
TICK_S = 0.002
DISTINCT = 20_000
CONFIG = {"acks": 1, "linger.ms": 0.5, "queue.buffering.max.messages": 2_000_000, "log_level": 4}


class Generator:
    """Sends `count` of a file's events, in turn."""

    def __init__(self, bootstrap: str, topic: str, file: Path, count: int, rate: float) -> None:
        values = feather.read_table(file).slice(0, DISTINCT).column("value").combine_chunks()
        ends = np.frombuffer(values.buffers()[1], np.int64)[values.offset :][: len(values) + 1]
        turn, run = np.arange(count) % len(values), max(math.ceil(rate * TICK_S), 1)
        partitions = len(admin_client(bootstrap).list_topics(topic, 10).topics[topic].partitions)
        self._values, self._count, self._rate = values, count, rate  # the values lie in it
        self._producer = RunProducer(
            {"bootstrap.servers": bootstrap, **CONFIG},
            topic,
            (values.buffers()[2].address + ends[turn], np.diff(ends)[turn]),
            np.arange(count, dtype="<u8"),
            np.arange(count) // run % partitions,
        )

    def run(self, start_ns: int, warm: int) -> tuple[np.ndarray, float]:
        """When each event was sent, nanoseconds of the monotonic clock; and the CPU seconds of the counted ones."""
        rate = self._rate
        sent_at, sent, cpu = np.zeros(self._count, np.int64), 0, time.process_time()
        while sent < self._count:
            upto = min(due(time.monotonic_ns() - start_ns, rate), self._count)
            if upto == sent:
                self._wait(start_ns, rate, sent)
                continue
            self._producer.send(sent, upto)
            sent_at[sent:upto] = time.monotonic_ns()
            if sent < warm <= upto:
                cpu = time.process_time()
            sent = upto
        if not self._producer.flush(30):
            raise RuntimeError("the broker did not take all events")
        return sent_at, time.process_time() - cpu

    @staticmethod
    def _wait(start_ns: int, rate: float, sent: int) -> None:
        """Until the next event is due, and a tick at least."""
        next_s = sent / rate - (time.monotonic_ns() - start_ns) / 1e9
        time.sleep(max(next_s, TICK_S))


def main(bootstrap: str, topic: str, file: str, rate: float, warm: int, count: int, start_ns: int) -> dict[str, float]:
    generator = Generator(bootstrap, topic, Path(file), count, rate)
    gc.freeze()
    gc.disable()
    sent_at, cpu = generator.run(start_ns, warm)
    late = np.sort((sent_at - intended(count, start_ns, rate))[warm:]) / 1e6
    return {
        "late_p50_ms": float(late[len(late) // 2]),
        "late_p99_ms": float(late[int(len(late) * 0.99)]),
        "late_max_ms": float(late[-1]),
        "cpu_us": cpu / (count - warm) * 1e6,
    }


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(main(*given[:3], float(given[3]), *(int(one) for one in given[4:]))))
