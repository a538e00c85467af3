"""Following topics batch by batch, outside any group: output topics from their present end, or one from an offset."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby

from confluent_kafka import KafkaException, Message, TopicPartition

from streamserve.adapters.kafka import Clients, broker_error, needless
from streamserve.adapters.messages import to_batch
from streamserve.adapters.offsets import first_and_end
from streamserve.records import RawBatch

TIMEOUT_S = 10.0
BATCH = 5000


class Follower:
    """Everything that reaches some topics from now on. Not for several threads.

    begin: an offset to begin at instead; where it is gone, what is left of the topic begins.

    Raises:
        BrokerError: a topic is missing or can't be read.
    """

    def __init__(self, clients: Clients, topics: Sequence[str], begin: int | None = None) -> None:
        self._consumer = clients.consumer("streamserve-follow", isolation_level="read_committed")
        try:
            self._consumer.assign(self._places(clients, topics, begin))
        except KafkaException as error:
            self.close()
            raise broker_error(error.args[0], f"topics {', '.join(topics)}") from None
        except BaseException:
            self.close()
            raise

    def _places(self, clients: Clients, topics: Sequence[str], begin: int | None) -> list[TopicPartition]:
        places = []
        for topic in topics:
            for partition in range(clients.partitions(self._consumer, topic)):
                asked = TopicPartition(topic, partition)
                low, end = first_and_end(self._consumer, asked, TIMEOUT_S, f"topic {topic}")
                places.append(TopicPartition(topic, partition, end if begin is None else min(max(begin, low), end)))
        return places

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
