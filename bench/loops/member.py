"""As little as a member of a group can do: answers every record at once, commits each second, and leaves on SIGTERM.

python -m bench.loops.member BOOTSTRAP SOURCE TARGET GROUP
"""

from __future__ import annotations

import signal
import sys
import threading
import time

from confluent_kafka import Consumer, Producer

from bench.loops.echo import VALUE
from streamserve.adapters.kafka import HEARTBEAT_MS, SESSION_TIMEOUT_MS


def main(bootstrap: str, source: str, target: str, group: str) -> None:
    """The group's settings are a worker's, so that the protocol takes both as long."""
    leave = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: leave.set())
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": SESSION_TIMEOUT_MS,
            "heartbeat.interval.ms": HEARTBEAT_MS,
            "enable.auto.commit": False,
            "auto.offset.reset": "latest",
            "fetch.queue.backoff.ms": 1,
        }
    )
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 2, "delivery.report.only.error": True})
    consumer.subscribe([source])
    committed = time.monotonic()
    while not leave.is_set():
        for message in consumer.consume(5000, 0.01):
            producer.produce(target, VALUE, message.key())
        producer.poll(0)
        if time.monotonic() - committed >= 1:
            _commit(consumer, producer)
            committed = time.monotonic()
    _commit(consumer, producer)
    consumer.close()


def _commit(consumer: Consumer, producer: Producer) -> None:
    producer.flush()
    if any(place.offset >= 0 for place in consumer.position(consumer.assignment())):
        consumer.commit(asynchronous=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
