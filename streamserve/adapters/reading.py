"""Reading a topic for a person: from a position to its end, or on and on; outside any consumer group.

Nothing is committed and no group is joined. Only committed records are seen. What is at an offset is looked up
here as well; what a record means is not known here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from streamserve.adapters.kafka import Clients, broker_error, needless
from streamserve.adapters.messages import headers_of, to_batch
from streamserve.adapters.offsets import at_times, first_and_end
from streamserve.errors import BrokerError, ConfigError, TopicError
from streamserve.records import RawBatch
from streamserve.settings import instant_ms

POLL_S = 0.2  # also how long Ctrl-C may wait
CHUNK = 1000
HOLD = "streamserve-reading"  # the client wants a group's name; it is never joined

Span = tuple[int, int]  # the first offset, and the one after the last


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it lies in its topic. timestamp: milliseconds since 1970; -1: none."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    @property
    def place(self) -> str:
        return f"{self.topic}-{self.partition}-{self.offset}"


@dataclass(frozen=True, slots=True)
class Values:
    """Some records' values, and their timestamps as of a Record."""

    values: list[bytes | None]
    timestamps: list[int]


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin. value: how many records before the end of each partition, or milliseconds since 1970."""

    kind: Literal["beginning", "end", "last", "time"]
    value: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """`beginning`, `end`, `-N` or an ISO 8601 time (UTC where it names no zone).

        Raises:
            ConfigError: it is none of these.
        """
        if text == "beginning":
            return cls("beginning")
        if text == "end":
            return cls("end")
        if text.startswith("-") and text[1:].isdecimal():
            return cls("last", int(text[1:]))
        try:
            return cls("time", instant_ms(text))
        except ValueError:
            raise ConfigError(
                f"{text!r} is no position, expected beginning, end, -N or an ISO time",
                mend="e.g. --from -100, or --from 2026-01-31T06:00:00Z",
            ) from None


class TopicReader:
    """Reads one topic. Not for several threads; close it, or use it as a context manager.

    Raises:
        TopicError: there is no such topic.
        BrokerError: (from every method) no broker answers, it refuses us, or records stop coming.
    """

    def __init__(self, clients: Clients, topic: str) -> None:
        self.topic = topic
        self._where = f"{clients.bootstrap} topic {topic}"
        self._patience = clients.settings.start_timeout
        self._consumer: Consumer = clients.consumer(HOLD, enable_partition_eof=True, isolation_level="read_committed")
        try:
            self.partitions = clients.partitions(self._consumer, topic)
        except BaseException:
            self._consumer.close()
            raise
        if not self.partitions:
            self._consumer.close()
            raise TopicError(
                f"there is no topic {topic!r}",
                where=clients.bootstrap,
                mend="create it: `streamserve topics apply <topology file>`",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._consumer.close()

    def spans(self, start: Start) -> dict[int, Span]:
        """By partition: where it begins, and where it ends now."""
        held = {p: self._watermarks(p) for p in range(self.partitions)}
        first = self._first_offsets(start, held)
        return {p: (first[p], end) for p, (_, end) in held.items()}

    def backlog(self, start: Start) -> Iterator[Record]:
        """From the start to the ends that the partitions have now; ordered within each partition only."""
        spans = self.spans(start)
        self._ends = {p: end for p, (_, end) in spans.items()}
        yield from self.between(spans)

    def between(self, spans: Mapping[int, Span]) -> Iterator[Record]:
        """The records of these spans; ordered within each partition only."""
        for messages in self._messages(spans):
            yield from map(_record, messages)

    def values(self, spans: Mapping[int, Span]) -> Iterator[Values]:
        """What stands in the records of these spans, many at a time: 2 us a record, where a Record each takes 8."""
        for messages in self._messages(spans):
            stamps = [message.timestamp() for message in messages]
            yield Values([m.value() for m in messages], [stamp if kind else -1 for kind, stamp in stamps])

    def batches(self, spans: Mapping[int, Span], rows: int = CHUNK) -> Iterator[RawBatch]:
        """The same as columns, so many records each but the last: 2 us a record where `between` takes 5."""
        messages = chain.from_iterable(self._messages(spans))
        while found := list(islice(messages, rows)):
            yield to_batch(self.topic, found, 0, time.monotonic_ns())

    def _messages(self, spans: Mapping[int, Span]) -> Iterator[list[Message]]:
        open_ = {p: end for p, (first, end) in spans.items() if first < end}
        self._assign({p: spans[p][0] for p in open_})
        deadline = time.monotonic() + self._patience
        while open_:
            messages = self._gather()
            if messages:
                deadline = time.monotonic() + self._patience
            elif time.monotonic() > deadline:
                raise self._stuck(open_)
            yield self._within(messages, open_)

    def follow(self) -> Iterator[Record]:
        """What comes after the end of the last backlog, for ever."""
        # Afresh from there: while one partition's backlog was read, others may have gone past their ends
        self._assign(self._ends)
        while True:
            yield from (_record(message) for message in self._gather() if not self._is_end(message))

    def at(self, partition: int, offset: int) -> Record:
        """The record at one offset.

        Raises:
            ConfigError: there is no such partition, or nothing was written there yet.
            BrokerError: it is gone.
        """
        if partition >= self.partitions:
            raise ConfigError(
                f"partition {partition} does not exist: {self.topic} has {self.partitions}", where=self._where
            )
        low, end = self._watermarks(partition)
        if offset >= end:
            raise ConfigError(
                f"nothing is at offset {offset} of partition {partition}: it ends before {end}",
                where=self._where,
                mend="check the offset, and that it is of this broker",
            )
        if offset >= low:
            self._consumer.assign([TopicPartition(self.topic, partition, offset)])
            found = next(self._within_one(partition, end), None)
            if found is not None and found.offset() == offset:
                return _record(found)
        why = f"the partition begins at {low}" if offset < low else "it was compacted away, or is not committed"
        raise BrokerError(
            f"the record at offset {offset} of partition {partition} can't be read: {why}",
            where=self._where,
            mend="what retention deleted can't be brought back; a longer retention.ms keeps more",
        )

    def _within_one(self, partition: int, end: int) -> Iterator[Message]:
        open_ = {partition: end}
        deadline = time.monotonic() + self._patience
        while open_:
            if time.monotonic() > deadline:
                raise self._stuck(open_)
            yield from self._within(self._gather(), open_)

    def _within(self, messages: Sequence[Message], open_: dict[int, int]) -> list[Message]:
        """The messages of the open partitions before their ends; closes those that are read to the end.

        The last offset before an end may be a transaction's marker and never come: then the client's own word
        that the partition is at its end closes it.
        """
        found = []
        for message in messages:
            ended, partition = self._is_end(message), message.partition()
            end = open_.get(partition)
            if end is None:
                continue
            if ended or message.offset() >= end - 1:
                del open_[partition]
            if not ended and message.offset() < end:
                found.append(message)
        return found

    def _is_end(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return False
        if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
            return True
        if error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
            raise BrokerError(
                f"the position in partition {message.partition()} is out of range: {error.str()}",
                where=self._where,
                mend="records were deleted while they were read; start again from a later position",
            )
        raise broker_error(error, self._where)

    def _gather(self) -> list[Message]:
        """What has arrived, waiting for the first; passing troubles of the connection are waited out."""
        first = self._consumer.poll(POLL_S)
        if first is None:
            return []
        return [m for m in (first, *self._consumer.consume(CHUNK - 1, 0)) if not _passing(m.error())]

    def _watermarks(self, partition: int) -> Span:
        return first_and_end(self._consumer, TopicPartition(self.topic, partition), self._patience, self._where)

    def _first_offsets(self, start: Start, spans: Mapping[int, Span]) -> dict[int, int]:
        match start.kind:
            case "beginning":
                return {p: low for p, (low, _) in spans.items()}
            case "end":
                return {p: end for p, (_, end) in spans.items()}
            case "last":
                return {p: max(low, end - start.value) for p, (low, end) in spans.items()}
        asked = [TopicPartition(self.topic, p, start.value) for p in spans]
        found = at_times(self._consumer, asked, self._patience, self._where)
        return {p: spans[p][1] if offset is None else offset for (_, p), offset in found.items()}

    def _assign(self, first: Mapping[int, int]) -> None:
        # By name where it is 0: retention may move the beginning between the question and the answer
        self._consumer.assign(
            [TopicPartition(self.topic, p, offset or OFFSET_BEGINNING) for p, offset in first.items()]
        )

    def _stuck(self, open_: Mapping[int, int]) -> BrokerError:
        return BrokerError(
            f"nothing came for {self._patience:g} s, with partitions {sorted(open_)} not read to their ends",
            where=self._where,
            mend="check the broker's health, and the right to READ this topic",
        )


@dataclass(frozen=True, slots=True)
class Search:
    """found: in the order in which they were read. looked_at: how many records, in the pass that was the last."""

    found: tuple[Record, ...]
    looked_at: int
    complete: bool  # everything that the topic held was looked at, or something was found


def search(reader: TopicReader, since: int, matches: Callable[[Record], bool], *, most: int, beyond: int) -> Search:
    """Records that match: first from a time on (milliseconds since 1970), then, if none does, from the beginning.

    Args:
        most: give up after so many records a pass.
        beyond: how many more are looked at once one matches: after a crash a record can come twice, a commit apart.
    """
    for start in (Start("time", max(0, since)), Start("beginning")):
        found: list[Record] = []
        left, looked_at, whole = most, 0, True
        for record in reader.backlog(start):
            looked_at, left = looked_at + 1, left - 1
            if matches(record):
                left = beyond if not found else left
                found.append(record)
            if left <= 0:
                whole = False
                break
        if found:
            return Search(tuple(found), looked_at, complete=True)
    return Search((), looked_at, complete=whole)


def _passing(error: KafkaError | None) -> bool:
    """A trouble that the client gets over by itself, or that is no concern of a reader outside any group."""
    if error is None or error.code() in (KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET):  # noqa: SLF001
        return False
    return not error.fatal() and (error.retriable() or error.code() < 0 or needless(error))


def _record(message: Message) -> Record:
    kind, stamp = message.timestamp()
    return Record(
        topic=message.topic(),
        partition=message.partition(),
        offset=message.offset(),
        timestamp=stamp if kind else -1,
        key=message.key(),
        value=message.value(),
        headers=tuple(headers_of([message])[0] or ()),
    )
