"""Reading and writing through confluent-kafka's messages: where the compiled path is not to be had.

Per-event Python: seven accessor calls to read (0.12 us each), a call to write (0.9 us).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from streamserve.adapters.client_io import Fill, is_fault
from streamserve.headers import header_column, unpack
from streamserve.records import Outgoing, RawBatch, binary

LOG = logging.getLogger("streamserve.messages")
UNREADABLE_HEADERS: list[tuple[str, bytes | None]] = [
    ("streamserve.headers", b"left out: a name among them is not UTF-8")
]


class MessageReader:
    """A BatchReader.

    Args:
        epoch: the intake epoch of now; it may change inside each call to the consumer.
        where: the broker, for errors.
    """

    def __init__(self, consumer: Consumer, epoch: Callable[[], int], where: str) -> None:
        self._consumer, self._epoch, self._where = consumer, epoch, where
        self._paused = -1  # the intake epoch in which everything was paused
        self.ended: dict[int, int] = {}

    def take(self, partitions: Sequence[TopicPartition]) -> None:
        """The consumer's poll has them all."""
        self.release(partitions)

    def release(self, partitions: Sequence[TopicPartition]) -> None:
        for tp in partitions:
            self.forget_end(tp.partition)

    def forget_end(self, partition: int) -> None:
        self.ended.pop(partition, None)

    def idle(self) -> Iterator[RawBatch]:
        if self._paused != self._epoch():  # partitions that came meanwhile are not paused yet
            self._paused = self._epoch()
            self._consumer.pause(self._consumer.assignment())
            self.ended.clear()  # nobody looks any more; after the resumption ends are told again
        started = time.monotonic_ns()
        first = self._consumer.poll(0)
        if first is not None:
            for message in self._readable([first]):
                yield to_batch(message.topic(), [message], self._epoch(), started)

    def read(self, fill: Fill) -> Iterator[RawBatch]:
        if self._paused >= 0:
            self._paused = -1
            self._consumer.resume(self._consumer.assignment())
        first = self._consumer.poll(fill.wait)
        if first is None:
            return
        started = time.monotonic_ns()
        reads = [(self._epoch(), [first])]
        count = 1 + self._more(fill.max_rows - 1, 0, reads)
        if count < fill.rows:
            self._more(fill.rows - count, fill.seconds, reads)
        for epoch, messages in reads:
            for topic, group in groupby(self._readable(messages), key=Message.topic):
                yield to_batch(topic, list(group), epoch, started)

    def _more(self, limit: int, wait: float, reads: list[tuple[int, list[Message]]]) -> int:
        found: list[Message] = self._consumer.consume(limit, wait) if limit > 0 else []
        if reads[-1][0] == self._epoch():
            reads[-1][1].extend(found)
        else:
            reads.append((self._epoch(), found))
        return len(found)

    def _readable(self, messages: Sequence[Message]) -> list[Message]:
        good = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
                self.ended.pop(message.partition(), None)
                continue
            if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                self.ended[message.partition()] = message.offset()
                continue
            fault = is_fault(error, f"{self._where} topic {message.topic()}-{message.partition()}")
            if fault is not None:
                raise fault
            LOG.warning("%s", error.str())
        return good

    def close(self) -> None:
        """Nothing is held here."""


class MessageWriter:
    """A RecordWriter over a producer that was made with this object's `on_delivery`."""

    def __init__(self) -> None:
        self._failed: tuple[KafkaError, str] | None = None
        self._failures = 0
        self.producer: Producer | None = None

    def on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failures += 1
            self._failed = self._failed or (error, message.topic())

    def write(self, out: Outgoing, start: int) -> tuple[int, KafkaError | None]:
        assert self.producer is not None  # noqa: S101
        produce = self.producer.produce
        columns = [column.slice(start).to_pylist() for column in (out.keys, out.values)]
        packed = [None] * (len(out) - start) if out.headers is None else out.headers.slice(start).to_pylist()
        rows = zip(*columns, packed, out.timestamps[start:].tolist(), strict=True)
        for place, (key, value, headers, timestamp) in enumerate(rows, start):
            try:
                produce(out.topic, value, key, headers=unpack(headers) or None, timestamp=timestamp)
            except BufferError:
                return place, KafkaError(KafkaError._QUEUE_FULL)  # noqa: SLF001
            except KafkaException as error:
                return place, error.args[0]
        return len(out), None

    def unconfirmed(self) -> int:
        """Not counted: a callback a message would cost 0.85 us; the client's flush tells."""
        return 0

    def failure(self) -> tuple[KafkaError, str] | None:
        return self._failed

    def failures(self) -> int:
        return self._failures

    def close(self) -> None:
        """Nothing is held here."""


def to_batch(topic: str, messages: Sequence[Message], epoch: int, started_ns: int) -> RawBatch:
    """Client messages as columns."""
    stamps = [m.timestamp() for m in messages]
    count = len(messages)
    return RawBatch(
        topic=topic,
        partitions=_ints((m.partition() for m in messages), np.int32, count),
        offsets=_ints((m.offset() for m in messages), np.int64, count),
        timestamps=_ints((stamp if kind else -1 for kind, stamp in stamps), np.int64, count),
        timestamp_types=_ints((kind for kind, _ in stamps), np.uint8, count),
        keys=binary([m.key() for m in messages]),
        values=binary([m.value() for m in messages]),
        headers=header_column(headers_of(messages)),
        intake_epoch=epoch,
        first_ns=started_ns,
        ready_ns=time.monotonic_ns(),
    )


def headers_of(messages: Sequence[Message]) -> list[list[tuple[str, bytes | None]] | None]:
    """The client can't read a header whose name is not UTF-8: such an event goes on without its headers.

    Its accessor returns a broken list with the error set. Called from Python's bytecode, that goes unnoticed and ends
    the process some calls later; `map` looks at every result.
    """
    found: list[list[tuple[str, bytes | None]] | None] = []
    reads = map(Message.headers, messages)
    while len(found) < len(messages):
        try:
            for headers in reads:
                found.append(headers)  # noqa: PERF402  (what came before an error is kept)
        except (SystemError, UnicodeDecodeError):
            bad = messages[len(found)]
            LOG.warning("%s-%d-%d: its headers can't be read", bad.topic(), bad.partition(), bad.offset())
            found.append(UNREADABLE_HEADERS)
    return found


def _ints(values: Iterable[int], kind: type[np.generic], count: int) -> np.ndarray[tuple[int], np.dtype]:
    return np.fromiter(values, kind, count)
