"""The generator, a process of its own: a steady open-loop stream, and bursts when it is told.

    python -m chaos.generator BOOTSTRAP TOPIC SEED SCHEMA_ID RATE PARENT_PID

Takes `burst N` and `end` on its standard input; prints how many it has sent at its end, when the broker has all of
them. An idempotent producer without a time limit: what it has numbered arrives, once and in order, whatever the broker
does.
"""

from __future__ import annotations

import select
import sys
import time

from confluent_kafka import KafkaError, Producer

from chaos.events import Events
from streamserve.dev.process import die_with_parent

TICK_S = 0.01
FLUSH_S = 120.0


class Generator:
    """Events of `seed`, numbered from 0."""

    def __init__(self, bootstrap: str, topic: str, events: Events, rate: float) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                "message.timeout.ms": 0,
                "queue.buffering.max.messages": 2_000_000,
                "topic.metadata.refresh.interval.ms": 5_000,
                "reconnect.backoff.max.ms": 1_000,
                "delivery.report.only.error": True,
                "log_level": 2,
                "on_delivery": self._on_delivery,
                "error_cb": self._on_error,
            }
        )
        self._topic, self._events, self._rate = topic, events, rate
        self._sent = 0
        self._failed: KafkaError | None = None

    def _on_delivery(self, error: KafkaError | None, _: object) -> None:
        self._failed = self._failed or error

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._failed = self._failed or error

    def run(self) -> int:
        """Until `end`, or until nobody is there to say it; returns how many events there are."""
        started, asked = time.monotonic(), 0
        while (told := self._told()) is not None:
            asked += told
            due = int((time.monotonic() - started) * self._rate) + asked
            while self._sent < due:
                key, value, headers = self._events.record(self._sent)
                self._producer.produce(self._topic, value, key, headers=headers)
                self._sent += 1
            self._producer.poll(0)
            if self._failed is not None:
                raise RuntimeError(f"an event could not be sent: {self._failed.str()}")
        if self._producer.flush(FLUSH_S) or self._failed is not None:
            raise RuntimeError("the broker did not take all events")
        return self._sent

    @staticmethod
    def _told() -> int | None:
        """How many events more are asked for, after a tick; None: it is over."""
        more, limit = 0, time.monotonic() + TICK_S
        while select.select([sys.stdin], [], [], max(limit - time.monotonic(), 0))[0]:
            word, _, count = sys.stdin.readline().strip().partition(" ")
            if word != "burst":
                return None
            more += int(count)
        return more


if __name__ == "__main__":
    bootstrap, topic, seed, schema_id, rate, parent = sys.argv[1:]
    die_with_parent(int(parent))
    print(Generator(bootstrap, topic, Events(int(seed), int(schema_id)), float(rate)).run(), flush=True)
