"""What a broker says of a partition's offsets, asked again while the partition has no leader."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streamserve.adapters.kafka import broker_error

_Answer = TypeVar("_Answer")
PAUSE_S = 0.2
# A topic that was made a moment ago, or a leader that moves: a second later it is well
LEADERLESS = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)


def first_and_end(consumer: Consumer, place: TopicPartition, seconds: float, where: str) -> tuple[int, int]:
    """The first offset that a partition still holds, and the one after its last.

    Raises:
        BrokerError: no broker answers within so many seconds, or it refuses us.
    """
    low, end = _settled(lambda: consumer.get_watermark_offsets(place, timeout=seconds), seconds, where)
    return low, end


def at_times(
    consumer: Consumer, asked: Sequence[TopicPartition], seconds: float, where: str
) -> dict[tuple[str, int], int | None]:
    """By partition, the first offset from a time on; None: everything there is older.

    Args:
        asked: with milliseconds since 1970 in the place of the offset.

    Raises:
        BrokerError: no broker answers within so many seconds, or it refuses us.
    """

    def ask() -> list[TopicPartition]:
        answered: list[TopicPartition] = consumer.offsets_for_times(list(asked), timeout=seconds)
        for tp in answered:
            if tp.error is not None:  # what stands in its place is no offset
                raise KafkaException(tp.error)
        return answered

    found = _settled(ask, seconds, where)
    return {(tp.topic, tp.partition): tp.offset if tp.offset >= 0 else None for tp in found}


def _settled(ask: Callable[[], _Answer], seconds: float, where: str) -> _Answer:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in LEADERLESS or time.monotonic() > deadline:
                raise broker_error(error.args[0], where) from None
        time.sleep(PAUSE_S)
