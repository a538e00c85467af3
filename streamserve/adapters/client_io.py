"""The doors between a Kafka client and a worker's batches; the compiled path and the one through messages stand behind.

A reader yields whole micro-batches; a writer takes whole columns and knows what failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from confluent_kafka import KafkaError, TopicPartition

from streamserve.adapters.kafka import broker_error
from streamserve.errors import BrokerError
from streamserve.records import Outgoing, RawBatch


@dataclass(frozen=True, slots=True)
class Fill:
    """How much one read takes.

    It waits up to `wait` seconds for its first record, then until there are `rows`, but for `seconds` at most. What is
    there beyond is taken too, up to `max_rows`; soon after `max_bytes` of keys and values it stops.
    """

    wait: float
    rows: int
    seconds: float
    max_rows: int
    max_bytes: int


class BatchReader(Protocol):
    @property
    def ended(self) -> Mapping[int, int]:
        """Partitions whose end was reached, and of which nothing has come since: where that is.

        Empty where the client is not asked to tell of it.
        """
        ...

    def forget_end(self, partition: int) -> None:
        """It is led back: whatever end was reached, there is more to read."""
        ...

    def take(self, partitions: Sequence[TopicPartition]) -> None:
        """These are about to be assigned to the consumer."""
        ...

    def release(self, partitions: Sequence[TopicPartition]) -> None:
        """These are about to be given up."""
        ...

    def read(self, fill: Fill) -> Iterator[RawBatch]:
        """What came, in the order of each partition. The group's callbacks may run inside.

        Raises:
            BrokerError: the consumer or a partition told of something that a person has to mend.
        """
        ...

    def idle(self) -> Iterator[RawBatch]:
        """Answer the group's calls, and read nothing; what slips through all the same is yielded."""
        ...

    def close(self) -> None:
        """Before the consumer is closed."""
        ...


class RecordWriter(Protocol):
    def write(self, out: Outgoing, start: int) -> tuple[int, KafkaError | None]:
        """Produce from the record at `start` on.

        Returns:
            the place before which it stopped, and why, if that is not the end: a full queue, or a refusal.
        """
        ...

    def unconfirmed(self) -> int:
        """Records that the broker has neither confirmed nor refused, as far as the writer counts them itself."""
        ...

    def failure(self) -> tuple[KafkaError, str] | None:
        """The first record that failed for good: why, and its topic."""
        ...

    def failures(self) -> int:
        """How many have failed for good."""
        ...

    def close(self) -> None: ...


def is_fault(error: KafkaError, where: str) -> BrokerError | None:
    """What a consumer's or a partition's error comes to; None: the client mends it itself.

    where: broker, topic and partition, for the reader.
    """
    if error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
        return BrokerError(
            f"the committed offset is out of range: {error.str()}",
            where=where,
            mend="records were deleted before they were scored, or the topic was made anew; decide where to "
            "go on with `kafka-consumer-groups --reset-offsets`",
        )
    if error.fatal() or not (error.retriable() or error.code() < 0):
        return broker_error(error, where)
    return None
