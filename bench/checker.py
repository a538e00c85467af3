"""The checker, a process of its own: notes when each event's prediction arrives.

    python -m bench.checker BOOTSTRAP TOPIC WARM COUNT OUTPUT DEADLINE_S

Says "ready" when it stands at the topic's end. A fetch's records are stamped together, as they are handed over. Writes
the arrivals, nanoseconds of the monotonic clock, by event number; prints what it cost as JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import time

import numpy as np
from confluent_kafka import Consumer, TopicPartition

CONFIG = {
    "group.id": "bench-checker",
    "enable.auto.commit": False,
    "auto.offset.reset": "error",
    "fetch.wait.max.ms": 100,  # what an empty topic waits for; new records end it at once
    "fetch.min.bytes": 1,
    "fetch.queue.backoff.ms": 1,
}
MOST = 10_000  # records taken at once


def at_the_end(bootstrap: str, topic: str) -> Consumer:
    """A consumer that reads what comes from now on."""
    consumer = Consumer({"bootstrap.servers": bootstrap, **CONFIG})
    partitions = consumer.list_topics(topic, 10).topics[topic].partitions
    ends = [(p, consumer.get_watermark_offsets(TopicPartition(topic, p), 10)[1]) for p in partitions]
    consumer.assign([TopicPartition(topic, p, end) for p, end in ends])
    consumer.poll(0.2)  # the first fetch is under way
    return consumer


def collect(consumer: Consumer, warm: int, count: int, deadline_s: float) -> tuple[np.ndarray, dict[str, float]]:
    """The first arrival of each event, 0 for those that did not come; what that cost, and how many came twice."""
    arrivals, seen, taken, repeated = np.zeros(count, np.int64), 0, 0, 0
    limit, cpu = time.monotonic() + deadline_s, time.process_time()
    while seen < count and time.monotonic() < limit:
        first = consumer.poll(0.1)
        if first is None:
            continue
        messages = [first, *consumer.consume(MOST, 0)]
        now = time.monotonic_ns()
        numbers = np.frombuffer(b"".join([m.key() for m in messages if m.error() is None]), "<i8")
        fresh = numbers[arrivals[numbers] == 0]
        arrivals[fresh] = now
        if seen < warm <= seen + len(fresh):
            cpu, taken = time.process_time(), 0
        seen, taken, repeated = seen + len(fresh), taken + len(fresh), repeated + len(numbers) - len(fresh)
    spent = (time.process_time() - cpu) / max(taken, 1) * 1e6
    return arrivals, {"cpu_us": spent, "missing": float(count - seen), "repeated": float(repeated)}


def main(bootstrap: str, topic: str, warm: int, count: int, output: str, deadline_s: float) -> dict[str, float]:
    consumer = at_the_end(bootstrap, topic)
    gc.freeze()
    gc.disable()
    print("ready", flush=True)
    arrivals, about = collect(consumer, warm, count, deadline_s)
    consumer.close()
    np.save(output, arrivals)
    return about


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(main(given[0], given[1], int(given[2]), int(given[3]), given[4], float(given[5]))))
