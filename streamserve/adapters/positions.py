"""Where a partition is read from: its committed offset, else a position that was said, never a default."""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from streamserve.adapters.kafka import broker_error
from streamserve.adapters.offsets import at_times, first_and_end
from streamserve.errors import SettingsError
from streamserve.settings import Settings, instant_ms

TIMEOUT_S = 10.0


def starting_positions(
    consumer: Consumer, partitions: list[TopicPartition], settings: Settings, count: Callable[[str], int]
) -> list[TopicPartition]:
    """Partitions with an explicit offset each.

    A partition without a committed offset whose topic has others with one is new: it is read from its beginning. In a
    new group the setting decides (earliest, latest, a time), and what it resolves to is committed at once, so that a
    crash before the first commit does not move the start: for every partition, because another member that is given
    the others a moment later would take them for new ones.

    Args:
        count: the partitions of a topic, asked of another client. `list_topics` of the one whose callback we are in
            ends the process: at its next word in the same poll, confluent-kafka misses its call state and aborts.

    Raises:
        BrokerError: the committed offsets, or the ends, can't be read.
        SettingsError: STREAMSERVE_START is none of these.
    """
    if not partitions:
        return []
    topic = partitions[0].topic
    committed = _committed(consumer, partitions)
    group_is_new, everything = False, partitions
    if max(committed.values()) < 0:
        # Not asked for otherwise: the answer waits for every transaction that is open on one of them
        everything = [TopicPartition(topic, p) for p in range(count(topic))]
        group_is_new = max(_committed(consumer, everything).values()) < 0
    placed = [
        TopicPartition(topic, partition, OFFSET_BEGINNING if offset < 0 else offset)
        for partition, offset in committed.items()
    ]
    start = settings.start.strip().lower()
    if not group_is_new or start == "earliest":
        return placed
    first = _latest(consumer, everything) if start == "latest" else _at_time(consumer, everything, settings.start)
    consumer.commit(offsets=first, asynchronous=False)
    mine = {tp.partition for tp in partitions}
    return [tp for tp in first if tp.partition in mine]


def _committed(consumer: Consumer, partitions: list[TopicPartition]) -> dict[int, int]:
    """By partition; below 0: none."""
    topic = partitions[0].topic
    try:
        answered = consumer.committed(partitions, TIMEOUT_S)
    except KafkaException as error:
        raise broker_error(error.args[0], f"committed offsets of {topic}") from None
    for tp in answered:
        if tp.error is not None:  # taken for "none", it would move the start
            raise broker_error(tp.error, f"committed offset of {topic}-{tp.partition}")
    return {tp.partition: tp.offset for tp in answered}


def _latest(consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
    return [TopicPartition(tp.topic, tp.partition, _end(consumer, tp)) for tp in partitions]


def _end(consumer: Consumer, tp: TopicPartition) -> int:
    return first_and_end(consumer, tp, TIMEOUT_S, f"{tp.topic}-{tp.partition}")[1]


def _at_time(consumer: Consumer, partitions: list[TopicPartition], text: str) -> list[TopicPartition]:
    ms = start_ms(text)
    asked = [TopicPartition(tp.topic, tp.partition, ms) for tp in partitions]
    found = at_times(consumer, asked, TIMEOUT_S, f"topic {partitions[0].topic}")
    late = [tp for tp in partitions if found[tp.topic, tp.partition] is None]
    known = [TopicPartition(topic, p, offset) for (topic, p), offset in found.items() if offset is not None]
    return known + _latest(consumer, late)


def start_ms(text: str) -> int:
    """The setting as milliseconds since 1970."""
    try:
        return instant_ms(text)
    except ValueError:
        raise SettingsError(
            f"STREAMSERVE_START is {text!r}, expected earliest, latest or an ISO time",
            mend="e.g. STREAMSERVE_START=2026-01-31T06:00:00Z",
        ) from None
