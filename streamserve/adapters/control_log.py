"""Reading and writing the logs: one partition, kept for ever, read from its start outside any consumer group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from streamserve.adapters.kafka import Clients, broker_error, needless
from streamserve.adapters.messages import headers_of
from streamserve.adapters.offsets import first_and_end
from streamserve.errors import BrokerError, TopicError
from streamserve.headers import Header

CONTROL = "streamserve.control"
PROGRESS = "streamserve.progress"
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class LogRecord:
    offset: int
    timestamp: int
    value: bytes | None
    headers: tuple[Header, ...] = ()


class LogReader:
    """One log from its start. Not for several threads.

    Raises:
        TopicError: there is no such log, it has several partitions, or its beginning is gone.
        BrokerError: no broker answers.
    """

    def __init__(self, clients: Clients, topic: str = CONTROL) -> None:
        self.topic = topic
        self._where = f"{clients.bootstrap} topic {topic}"
        self._timeout = clients.settings.start_timeout
        self._consumer: Consumer = clients.consumer("streamserve-logs", enable_partition_eof=True)
        self.position = 0
        try:
            self._check(clients.partitions(self._consumer, topic))
        except BaseException:
            self._consumer.close()
            raise
        self._consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])

    def _check(self, partitions: int) -> None:
        if partitions != 1:
            raise TopicError(
                f"the log has {partitions} partitions, expected 1",
                where=self._where,
                mend="create it: `streamserve topics apply <topology file>`",
            )
        low, _ = self._watermarks()
        if low != 0:
            raise TopicError(
                f"the log starts at offset {low}: commands are gone, and workers can't agree any more",
                where=self._where,
                mend="restore it from a backup; set retention.ms=-1, retention.bytes=-1, cleanup.policy=delete",
            )

    def _watermarks(self) -> tuple[int, int]:
        return first_and_end(self._consumer, TopicPartition(self.topic, 0), self._timeout, self._where)

    def to_end(self) -> Iterator[LogRecord]:
        """Every record from here to the end that the log had when this was called."""
        _, end = self._watermarks()
        waited = 0.0
        while self.position < end:
            found = list(self.poll(POLL_S))
            yield from found
            waited = 0.0 if found else waited + POLL_S
            if waited > self._timeout:
                raise BrokerError(
                    f"the log was read to offset {self.position} of {end}, then nothing came",
                    where=self._where,
                    mend="check the broker's health, and the right to READ this topic",
                )

    def poll(self, timeout: float) -> Iterator[LogRecord]:
        """What has arrived, waiting at most this many seconds for the first."""
        message = self._consumer.poll(timeout)
        while message is not None:
            error = message.error()
            if error is None:
                self.position = message.offset() + 1
                headers = tuple(headers_of([message])[0] or ())
                yield LogRecord(message.offset(), message.timestamp()[1], message.value(), headers)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                self.position = max(self.position, message.offset())
            elif not (error.retriable() or error.code() == KafkaError._TRANSPORT or needless(error)):  # noqa: SLF001
                raise broker_error(error, self._where)
            message = self._consumer.poll(0)

    def answers(self, timeout: float) -> bool:
        """Does the broker answer, within so many seconds?"""
        try:
            self._consumer.get_watermark_offsets(TopicPartition(self.topic, 0), timeout=timeout)
        except KafkaException:
            return False
        return True

    def close(self) -> None:
        self._consumer.close()


class LogWriter:
    """Appends to a log, one record at a time. seconds: what the broker may take for one."""

    def __init__(self, clients: Clients, topic: str, seconds: float) -> None:
        self._topic, self._seconds = topic, seconds
        self._where = f"{clients.bootstrap} topic {topic}"
        self._producer: Producer = clients.producer(message_timeout_ms=int(seconds * 1000), linger_ms=0)

    def append(self, value: bytes, key: str, headers: Sequence[Header] = ()) -> int:
        """Write a record, and wait until the broker has it; returns its offset.

        Raises:
            BrokerError: it did not take it in time.
        """
        outcome: list[tuple[KafkaError | None, int]] = []
        self._producer.produce(
            self._topic,
            value,
            key,
            partition=0,
            headers=list(headers),
            on_delivery=lambda error, message: outcome.append((error, message.offset())),
        )
        self._producer.flush(self._seconds + 1)
        if not outcome:
            raise BrokerError(
                "the broker did not acknowledge the record in time",
                where=self._where,
                mend="send it again: a command of the same id is carried out once",
            )
        error, offset = outcome[0]
        if error is not None:
            raise broker_error(error, self._where)
        return offset


def append(clients: Clients, value: bytes, *, key: str, topic: str = CONTROL, headers: Sequence[Header] = ()) -> int:
    """Write one record to a log and wait for the broker; returns its offset.

    Raises:
        BrokerError: the broker did not acknowledge it.
    """
    return LogWriter(clients, topic, clients.settings.start_timeout).append(value, key, headers)
