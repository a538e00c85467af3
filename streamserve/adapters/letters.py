"""Replaying dead letters into their source topic: first what would be written is told, then it is written.

A survey reads the letters once and keeps 64 bytes of each; the same letters are then read again and sent. What came
later is in neither. Every confirmation is counted by letter, so that a replay that was cut off says where to go on.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from numpy.typing import NDArray

from streamserve.adapters.kafka import Clients, broker_error
from streamserve.adapters.output import BATCH_BYTES, CLIENT_BYTES, RECORD_OVERHEAD
from streamserve.adapters.reading import Record, Span, Start, TopicReader
from streamserve.adapters.replay import LINGER_MS, MESSAGE_TIMEOUT_S, QUEUE_WAIT_S
from streamserve.adapters.topics import Topics
from streamserve.errors import BrokerError, TopicError
from streamserve.headers import pack
from streamserve.pipeline.emit import TimestampLimits
from streamserve.records import Int64s
from streamserve.simulate.letters import FOREVER, Letter, Origin, Position, Range, Selection, replay_headers
from streamserve.topology import Topology

TOLD_EVERY = 1000  # letters between two words of progress
FOREIGN = "without a worker's grounds: somebody else's records"
COPIES = "are copies of a letter that was delivered twice"
REPLAYED = "came of a replay already (--again takes them)"
CAME_BACK = "were replayed already and came back as later letters"
TOO_LARGE = "do not fit max.message.bytes of {topic} with one more header"
ELSEWHERE = "came from {other}, which is not this topology's source"
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """What the source topic takes. retention_ms: -1: for ever."""

    partitions: int
    max_bytes: int
    retention_ms: int
    stamps: TimestampLimits


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The letters that a replay writes, by partition and offset, each as a row of these arrays.

    stamps: of the letters; source_stamps: of their events; sizes: bytes of key and value; kinds: index into `names`,
    which are stage and error. skipped: how many of those that were meant are left out, by why. go_on: behind the last
    of what was looked at, by partition.
    """

    partitions: Int64s
    offsets: Int64s
    stamps: Int64s
    source_stamps: Int64s
    sizes: Int64s
    kinds: Int64s
    names: tuple[tuple[str, str], ...]
    skipped: Mapping[str, int]
    go_on: Mapping[int, int]
    limits: SourceLimits

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def oldest(self) -> int:
        return int(np.argmin(self.stamps))

    @property
    def newest(self) -> int:
        return int(len(self) - 1 - np.argmax(self.stamps[::-1]))

    def row_of(self, position: Position) -> int | None:
        first, end = np.searchsorted(self.partitions, (position[0], position[0] + 1))
        row = int(first + np.searchsorted(self.offsets[first:end], position[1]))
        return row if row < end and self.offsets[row] == position[1] else None

    def spans(self, rows: NDArray[np.bool_] | None = None) -> dict[int, Range]:
        """From the first to the last letter of each partition, of these rows or of all."""
        found: dict[int, Range] = {}
        for partition in np.unique(self.partitions).tolist():
            here = self.partitions == partition
            offsets = self.offsets[here if rows is None else here & rows]
            if len(offsets):
                found[partition] = int(offsets[0]), int(offsets[-1]) + 1
        return found

    def left(self, confirmed: NDArray[np.bool_]) -> dict[int, Range]:
        """What of each partition a further replay would begin with."""
        behind = {partition: (offset, FOREVER) for partition, offset in self.go_on.items()}
        return behind | {p: (first, FOREVER) for p, (first, _) in self.spans(~confirmed).items()}

    def by_kind(self) -> list[tuple[str, str, int, int]]:
        """Stage, error, letters and bytes, the most frequent first."""
        counts = np.bincount(self.kinds, minlength=len(self.names))
        sizes = np.bincount(self.kinds, self.sizes, minlength=len(self.names))
        rows = zip(self.names, counts.tolist(), sizes.astype(np.int64).tolist(), strict=True)
        return sorted(((*name, n, size) for name, n, size in rows if n), key=lambda row: (-row[2], row[:2]))

    def clamped(self, now_ms: int) -> int:
        """How many can't keep their timestamps."""
        known = self.source_stamps[self.source_stamps >= 0]
        return int(np.count_nonzero(self.limits.stamps.clamp(known, now_ms) != known))

    def expiring(self, now_ms: int) -> int:
        """How many are so old that the topic's retention may delete them as soon as they are there."""
        if self.limits.retention_ms < 0:
            return 0
        stamps = self.limits.stamps.clamp(self.source_stamps, now_ms)
        return int(np.count_nonzero(stamps < now_ms - self.limits.retention_ms))


@dataclass(frozen=True, slots=True)
class Outcome:
    """confirmed: letters that the broker has in the source topic. left: where a further replay goes on."""

    confirmed: int
    left: Mapping[int, Range]
    fault: BrokerError | None


class LetterReplay:
    """Replays dead letters of a topology.

    Raises:
        TopicError: there is no source topic, or none of dead letters.
        BrokerError: (from every method) no broker answers, it refuses us, or records stop coming.
    """

    def __init__(self, clients: Clients, topology: Topology) -> None:
        self._clients, self._topology = clients, topology
        self._source, self._letters = topology.source.topic, topology.topic("dead-letters")

    def survey(
        self,
        start: Start,
        selection: Selection,
        *,
        again: bool = False,
        limit: int | None = None,
        on_progress: Progress | None = None,
    ) -> Plan:
        """What a replay of these would write. Reads to the end, whatever is selected: what came back lies behind.

        Args:
            again: letters too whose events were replayed before.
            limit: so many at most, the oldest.
        """
        limits = self._limits()
        survey = _Survey(self._source, self._letters, selection, limits, again=again)
        with TopicReader(self._clients, self._letters) as reader:
            spans = reader.spans(start)
            asked = selection.narrow(spans)
            for count, record in enumerate(reader.between(_to_the_end(spans, asked)), 1):
                survey.look(record)
                if on_progress is not None and count % TOLD_EVERY == 0:
                    on_progress(count)
        return survey.plan({p: max(span) for p, span in asked.items()}, limit)

    def _limits(self) -> SourceLimits:
        topics, topic = Topics(self._clients), self._source
        partitions = self._clients.partitions(self._clients.admin(), topic)
        if not partitions:
            raise TopicError(
                f"there is no topic {topic!r} to replay into",
                where=self._clients.bootstrap,
                mend="create it: `streamserve topics apply <topology file>`",
            )
        config = topics.configs([topic])[topic]
        return SourceLimits(
            partitions, int(config["max.message.bytes"]), int(config["retention.ms"]), topics.limits(topic)
        )

    def send(self, plan: Plan, *, on_progress: Progress | None = None, stop: threading.Event | None = None) -> Outcome:
        """Write what was surveyed; returns when each letter is confirmed or has failed, or after a stop."""
        line = _Line(self._clients, self._source, plan)
        stop = stop or threading.Event()
        try:
            with TopicReader(self._clients, self._letters) as reader:
                for record in reader.between(plan.spans()):
                    row = plan.row_of((record.partition, record.offset))
                    if row is not None:
                        line.put(row, record, stop)
                    if stop.is_set() or line.fault is not None:
                        break
                    if on_progress is not None:
                        on_progress(line.sent)
        except BrokerError as error:
            line.fault = line.fault or error
        line.drain()
        fault = line.fault
        if fault is None and not stop.is_set() and line.sent < len(plan):
            fault = BrokerError(
                f"{len(plan) - line.sent:,} letters were gone when they were to be sent",
                where=f"{self._clients.bootstrap} topic {self._letters}",
                mend="retention deleted them meanwhile; the others are written",
            )
        return Outcome(int(line.confirmed.sum()), plan.left(line.confirmed), fault)


def _to_the_end(spans: Mapping[int, Span], asked: Mapping[int, Span]) -> dict[int, Span]:
    """What came back of a letter lies behind it, in its own partition or, without a key, in any."""
    return {p: (asked[p][0] if p in asked else first, end) for p, (first, end) in spans.items()}


class _Survey:
    """Looks at letters one by one, and keeps what a plan needs of them."""

    def __init__(self, source: str, letters: str, selection: Selection, limits: SourceLimits, *, again: bool) -> None:
        self._source, self._letters, self._selection = source, letters, selection
        self._limits, self._again = limits, again
        self._kinds: dict[tuple[str, str], int] = {}
        self._columns = tuple(array("q") for _ in range(8))  # as a plan has them, then the event's position
        self._came_back = set[Position]()
        self._skipped = Counter[str]()

    def look(self, record: Record) -> None:
        letter = Letter.of(record)
        replays = letter.replays(self._letters)
        self._came_back.update(replays)
        if not self._selection.holds(letter):
            return
        origin = letter.origin
        why = self._refusal(letter, origin, replayed=bool(replays))
        if why is not None or origin is None:
            self._skipped[why or FOREIGN] += 1
            return
        kind = self._kinds.setdefault((letter.stage, letter.error), len(self._kinds))
        size = len(record.key or b"") + len(record.value or b"")
        told = (record.partition, record.offset, record.timestamp, origin.timestamp, size, kind)
        row = (*told, origin.partition, origin.offset)
        for column, cell in zip(self._columns, row, strict=True):
            column.append(cell)

    def _refusal(self, letter: Letter, origin: Origin | None, *, replayed: bool) -> str | None:
        if origin is None:
            return FOREIGN
        if origin.topic != self._source:
            return ELSEWHERE.format(other=origin.topic)
        if replayed and not self._again:
            return REPLAYED
        record = letter.record
        size = len(record.key or b"") + len(record.value or b"") + len(pack(replay_headers(letter, origin)))
        return TOO_LARGE.format(topic=self._source) if size + RECORD_OVERHEAD > self._limits.max_bytes else None

    def plan(self, ends: Mapping[int, int], limit: int | None) -> Plan:
        """ends: behind the last of what was asked for, by partition."""
        found = np.array([np.frombuffer(column, np.int64) for column in self._columns], np.int64)
        found = found[:, np.lexsort((found[1], found[0]))]
        found = self._without(found, _repeated(found[6], found[7]), COPIES)
        came_back = [position in self._came_back for position in zip(*found[:2].tolist(), strict=True)]
        found = self._without(found, np.array(came_back, np.bool_), CAME_BACK)
        go_on = dict(ends)
        if limit is not None and limit < found.shape[1]:
            kept = _oldest(found[0], found[2], limit)
            go_on |= dict(reversed(found[:2, ~kept].T.tolist()))  # the first of each partition comes last, and stays
            found = found[:, kept]
        partitions, offsets, stamps, source_stamps, sizes, kinds, *_ = found
        names, skipped = tuple(self._kinds), dict(self._skipped)
        return Plan(partitions, offsets, stamps, source_stamps, sizes, kinds, names, skipped, go_on, self._limits)

    def _without(self, found: NDArray[np.int64], rows: NDArray[np.bool_], why: str) -> NDArray[np.int64]:
        if rows.any():
            self._skipped[why] += int(rows.sum())
        return found[:, ~rows]


def _repeated(partitions: Int64s, offsets: Int64s) -> NDArray[np.bool_]:
    """Which rows name a position that a row before them names."""
    repeated = np.ones(len(offsets), np.bool_)
    repeated[np.unique(np.stack((partitions, offsets)), axis=1, return_index=True)[1]] = False
    return repeated


def _oldest(partitions: Int64s, stamps: Int64s, limit: int) -> NDArray[np.bool_]:
    """Which rows are the oldest; of each partition they are the first, whatever its clocks said."""
    order = stamps.copy()
    for partition in np.unique(partitions):
        here = partitions == partition
        order[here] = np.maximum.accumulate(stamps[here])
    kept = np.zeros(len(stamps), np.bool_)
    kept[np.argsort(order, kind="stable")[:limit]] = True
    return kept


class _Line:
    """One replay's producer, and what of it is confirmed."""

    def __init__(self, clients: Clients, topic: str, plan: Plan) -> None:
        self._topic, self._plan, self._limits = topic, plan, plan.limits
        self._where = f"{clients.bootstrap} topic {topic}"
        self.confirmed = np.zeros(len(plan), np.bool_)
        self.sent = 0
        self.fault: BrokerError | None = None
        self._producer: Producer = clients.producer(
            message_timeout_ms=MESSAGE_TIMEOUT_S * 1000,
            message_max_bytes=max(CLIENT_BYTES, self._limits.max_bytes),
            batch_size=min(BATCH_BYTES, self._limits.max_bytes),
            linger_ms=LINGER_MS,
            compression_type="lz4",
        )

    def put(self, row: int, record: Record, stop: threading.Event) -> None:
        """Hand one letter's event to the client; waits while its queue is full."""
        letter = Letter.of(record)
        origin = letter.origin
        assert origin is not None  # noqa: S101
        more: dict[str, Any] = {}
        if record.key is None and origin.partition < self._limits.partitions:
            more["partition"] = origin.partition
        headers, stamp = replay_headers(letter, origin), self._stamp(origin.timestamp)
        while not stop.is_set() and self.fault is None:
            try:
                self._producer.produce(
                    self._topic, record.value, record.key,
                    headers=headers, timestamp=stamp, on_delivery=partial(self._on_delivery, row, record.place), **more,
                )  # fmt: skip
            except BufferError:
                self._producer.poll(QUEUE_WAIT_S)
                continue
            except KafkaException as error:
                raise broker_error(error.args[0], self._where) from None
            self.sent += 1
            break
        self._producer.poll(0)

    def _stamp(self, timestamp: int) -> int:
        now = time.time_ns() // 1_000_000
        kept = int(self._limits.stamps.clamp(np.array([timestamp], np.int64), now)[0])
        return kept or 1  # to the client 0 means the present

    def _on_delivery(self, row: int, place: str, error: KafkaError | None, _message: Message) -> None:
        if error is None:
            self.confirmed[row] = True
        elif self.fault is None:
            told = broker_error(error, self._where)
            self.fault = BrokerError(f"{place} was not acknowledged: {told.what}", where=told.where, mend=told.mend)

    def drain(self) -> None:
        """Wait until every record that was sent is confirmed or has failed."""
        deadline = time.monotonic() + MESSAGE_TIMEOUT_S + 5
        try:
            while self._producer.flush(QUEUE_WAIT_S * 10) and time.monotonic() < deadline:
                pass
        except KafkaException as error:
            self.fault = self.fault or broker_error(error.args[0], self._where)
        if self.fault is None and (left := len(self._producer)):
            self.fault = BrokerError(
                f"{left} records were not acknowledged in time", where=self._where, mend="check the broker"
            )
