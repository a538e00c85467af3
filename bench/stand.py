"""A reader at the end of a topic, outside any group's business: whole batches as columns, by the product's own reader.

What reads event by event in Python takes from the machine what it is to measure.
"""

from __future__ import annotations

from dataclasses import dataclass

from confluent_kafka import Consumer, TopicPartition

from streamserve.adapters.client_io import BatchReader
from streamserve.adapters.kafka import Clients
from streamserve.adapters.messages import MessageReader
from streamserve.adapters.packed import PackedReader
from streamserve.settings import Settings

MOST = 10_000  # records at once


@dataclass(frozen=True)
class Stand:
    """A consumer that has its partitions by assignment, and what reads from it."""

    clients: Clients
    consumer: Consumer
    reader: BatchReader

    def close(self) -> None:
        self.reader.close()
        self.consumer.close()


def at_the_end(bootstrap: str, topic: str, group: str) -> Stand:
    """Reads what comes from now on. group: a name that the client wants, and nobody joins."""
    clients = Clients(Settings(bootstrap=bootstrap))
    consumer, handle = clients.member(group)
    reader: BatchReader = (
        MessageReader(consumer, int, bootstrap)
        if handle is None
        else PackedReader(consumer, handle, topic, int, MOST, bootstrap)
    )
    partitions = consumer.list_topics(topic, 10).topics[topic].partitions
    ends = [
        TopicPartition(topic, p, consumer.get_watermark_offsets(TopicPartition(topic, p), 10)[1]) for p in partitions
    ]
    reader.take(ends)
    consumer.assign(ends)
    consumer.poll(0.2)  # the first fetch is under way
    return Stand(clients, consumer, reader)
