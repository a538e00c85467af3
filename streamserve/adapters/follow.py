"""Following output topics from their present end, batch by batch, outside any group."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby

from confluent_kafka import Message, TopicPartition

from streamserve.adapters.kafka import Clients, broker_error, needless
from streamserve.adapters.messages import to_batch
from streamserve.records import RawBatch

TIMEOUT_S = 10.0
BATCH = 5000


class Follower:
    """Everything that reaches some topics from now on. Not for several threads.

    Raises:
        BrokerError: a topic is missing or can't be read.
    """

    def __init__(self, clients: Clients, topics: Sequence[str]) -> None:
        self._consumer = clients.consumer("streamserve-follow", isolation_level="read_committed")
        ends = []
        for topic in topics:
            for partition in range(clients.partitions(self._consumer, topic)):
                asked = TopicPartition(topic, partition)
                _, end = self._consumer.get_watermark_offsets(asked, timeout=TIMEOUT_S)
                ends.append(TopicPartition(topic, partition, end))
        self._consumer.assign(ends)

    def poll(self, timeout: float) -> list[RawBatch]:
        """What has arrived, by topic, waiting at most this many seconds for the first."""
        first = self._consumer.poll(timeout)
        if first is None:
            return []
        started = time.monotonic_ns()
        messages = [first, *self._consumer.consume(BATCH, 0)]
        good = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            elif not error.retriable() and error.code() >= 0 and not needless(error):
                raise broker_error(error, f"topic {message.topic()}")
        ordered = sorted(good, key=Message.topic)
        return [to_batch(topic, list(group), 0, started) for topic, group in groupby(ordered, key=Message.topic)]

    def close(self) -> None:
        self._consumer.close()
