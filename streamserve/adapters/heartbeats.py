"""A worker's heartbeats on their way to `streamserve.status`: once a second, and never in anybody's way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from confluent_kafka import KafkaError, Message, Producer

from streamserve.adapters.kafka import Clients
from streamserve.rollouts.heartbeat import INTERVAL_MS, Heartbeat

LOG = logging.getLogger("streamserve.status")
STATUS = "streamserve.status"
LAST_WORD_S = 1.0
LATE_MS = 5000  # one that could not be sent for so long tells of the past


class Heartbeats:
    """`run` is a thread's of its own.

    say: what to tell, given whether it is the last word.
    """

    def __init__(self, clients: Clients, say: Callable[[bool], Heartbeat]) -> None:
        self._say = say
        self._lost = 0
        self._producer: Producer = clients.producer(
            message_timeout_ms=LATE_MS, linger_ms=0, queue_buffering_max_messages=100
        )

    def run(self, closing: threading.Event) -> None:
        """Beat until the worker closes, and once more."""
        while True:
            last = closing.is_set()
            self._beat(self._say(last))
            if last:
                self._producer.flush(LAST_WORD_S)
                return
            closing.wait(INTERVAL_MS / 1000)

    def _beat(self, beat: Heartbeat) -> None:
        try:
            self._producer.produce(STATUS, beat.encode(), beat.topology, partition=0, on_delivery=self._delivered)
        except BufferError:
            self._lost += 1  # the broker is away; /ready tells
        self._producer.poll(0)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            LOG.log(logging.DEBUG if self._lost else logging.WARNING, "a heartbeat was lost: %s", error.str())
            self._lost += 1
        else:
            self._lost = 0
