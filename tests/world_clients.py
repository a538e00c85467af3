"""Kafka clients of the simulated world, as far as a worker calls them. Each call that asks the broker is a wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType, SimpleNamespace

import numpy as np
from confluent_kafka import KafkaError, TopicPartition
from world_broker import Broker, Member, Prediction, Sent, refusal
from world_tasks import Process, pause

from streamserve.adapters.control_log import CONTROL, LogRecord
from streamserve.adapters.kafka import broker_error
from streamserve.errors import BrokerError
from streamserve.records import RawBatch, binary

TOPIC = "e"
APPEND_S = 15.0
LETTER = 3  # one event of four is a dead letter


def key_of(partition: int, offset: int) -> bytes | None:
    """One event of five has no key."""
    return None if (partition + offset) % 5 == 4 else b"k%d.%d" % (partition, offset)


def is_letter(partition: int, offset: int) -> bool:
    return (partition * 2 + offset) % 4 == LETTER


@dataclass(eq=False)
class Wires:
    """What a worker's clients of all incarnations share, and the faults that wait for them."""

    broker: Broker
    process: Process
    rows: int = 0  # of each partition that the next read may take
    incarnation: str = ""
    tid: str | None = None
    consumer: FakeConsumer | None = None
    spoil: bool = False  # the next write fails
    stubborn: bool = False  # the next seek fails
    unread: tuple[Sent, dict[int, int]] | None = None  # its last cutover, until it was read back

    def ask(self) -> None:
        """On the way to the broker."""
        pause()


@lru_cache(1 << 12)
def _columns(rows: tuple[tuple[int, int], ...]) -> tuple[object, ...]:
    count = len(rows)
    partitions, offsets = zip(*rows, strict=True)
    return (
        np.array(partitions, np.int32), np.array(offsets, np.int64), np.zeros(count, np.int64),
        np.zeros(count, np.uint8), binary([key_of(*row) for row in rows]), binary([b""] * count), None,
    )  # fmt: skip


class FakeConsumer:
    def __init__(self, wires: Wires) -> None:
        self.wires, self.broker = wires, wires.broker
        self.positions: dict[int, int] = {}
        self._calls: dict[str, Callable[..., None]] = {}
        self.member: Member | None = None
        wires.consumer = self

    def subscribe(self, _: list[str], *, on_assign, on_revoke, on_lost) -> None:
        self._calls = {"assign": on_assign, "revoke": on_revoke, "lost": on_lost}
        self.member = self.broker.join(self.wires.process.name)

    def serve(self) -> None:
        """What the group has to say, inside a poll."""
        member = self.member
        assert member is not None
        while member.calls:
            call, partitions = member.calls.popleft()
            if call == "lost":
                self.member = None
                if self.positions:
                    self._tell("lost", sorted(self.positions))
                self.member = self.broker.join(self.wires.process.name)
                return
            self._tell(call, partitions)

    def _tell(self, call: str, partitions: Sequence[int]) -> None:
        self._calls[call](self, [TopicPartition(TOPIC, p) for p in partitions])

    def incremental_assign(self, placed: Sequence[TopicPartition]) -> None:
        self.positions |= {tp.partition: max(tp.offset, 0) for tp in placed}

    def incremental_unassign(self, partitions: Sequence[TopicPartition]) -> None:
        for tp in partitions:
            self.positions.pop(tp.partition, None)
        if self.member is not None:
            self.broker.let_go(self.member, [tp.partition for tp in partitions])

    def seek(self, tp: TopicPartition) -> None:
        if self.wires.stubborn:
            self.wires.stubborn = False
            raise refusal(KafkaError._STATE)
        self.positions[tp.partition] = max(tp.offset, 0)

    def commit(self, *, offsets: Sequence[TopicPartition], asynchronous: bool) -> list[SimpleNamespace]:
        assert not asynchronous
        self.wires.ask()
        member = self.member or Member("", "", kicked=True)
        self.broker.commit(member, {tp.partition: tp.offset for tp in offsets if tp.topic == TOPIC})
        self.wires.ask()
        return [SimpleNamespace(error=None) for _ in offsets]

    def committed(self, partitions: Sequence[TopicPartition], limit: float) -> list[SimpleNamespace]:
        self.wires.ask()
        asked, broker = [tp.partition for tp in partitions], self.broker
        if broker.unstable(asked):
            broker.laws.seen("a committed offset waits for a transaction's end")
            if not pause(lambda: not broker.unstable(asked), limit):
                raise refusal(KafkaError._TIMED_OUT)
        found = [SimpleNamespace(partition=p, offset=broker.committed[p], error=None) for p in asked]
        self.wires.ask()
        return found

    def consumer_group_metadata(self) -> Member:
        return self.member or Member("", "", kicked=True)

    def position(self, _: object) -> list[TopicPartition]:
        return []

    def assignment(self) -> list[TopicPartition]:
        return []

    def close(self) -> None:
        self.wires.ask()
        member = self.member
        if member is not None:
            member.calls.clear()
            if self.positions:
                self._tell("lost" if member.kicked else "revoke", sorted(self.positions))
            self.broker.kick(member)


class FakeReader:
    """A BatchReader: a read takes some of each partition, and the group's calls are served before."""

    def __init__(self, consumer: FakeConsumer, epoch: Callable[[], int], _: str) -> None:
        self._consumer, self._epoch, self._wires = consumer, epoch, consumer.wires

    ended: Mapping[int, int] = MappingProxyType({})

    def take(self, _: object) -> None:
        """Nothing: the consumer's positions are all there is."""

    def release(self, _: object) -> None:
        """Nothing, as above."""

    def forget_end(self, _: int) -> None:
        """Nothing, as above."""

    def close(self) -> None:
        """Nothing, as above."""

    def idle(self) -> Sequence[RawBatch]:
        pause(resting=True)
        self._consumer.serve()
        return ()

    def read(self, fill) -> Sequence[RawBatch]:
        self.idle()
        rows = []
        for partition, at in self._consumer.positions.items():
            end = min(at + min(self._wires.rows, fill.max_rows), self._wires.broker.ends[partition])
            rows += [(partition, offset) for offset in range(at, end)]
            self._consumer.positions[partition] = max(at, end)
        if not rows:
            return ()
        return [RawBatch(TOPIC, *_columns(tuple(rows)), self._epoch())]


class FakeProducer:
    """tid: its transactional id, or none. incarnation: whose records it sends."""

    def __init__(self, wires: Wires, tid: str | None, incarnation: str = "") -> None:
        self.wires, self.tid, self.incarnation = wires, tid, incarnation
        self._epoch = 0
        self.inside: list[Prediction] = []
        self._fenced = False

    def produce(self, what: list[Prediction]) -> None:
        if self.tid is None:
            self.wires.broker.produced.setdefault(self.incarnation, deque()).append(what)
        else:
            self.inside += what

    def flush(self, _: float) -> int:
        self.wires.ask()
        waiting = self.wires.broker.produced.get(self.incarnation, ())
        while waiting:
            self.wires.broker.emit(self.incarnation)
        return 0

    def init_transactions(self, _: float) -> None:
        self.wires.ask()
        broker = self.wires.broker
        if not self.incarnation:
            broker.laws.fenced(self.tid, self.wires.process.name)
        self._epoch = broker.begin_life(self.tid)
        self.wires.ask()

    def begin_transaction(self) -> None:
        """Nothing is sent by it."""

    def send_offsets_to_transaction(self, offsets, member: Member, _: float) -> None:
        self.wires.ask()
        self.wires.broker.alive(self.tid, self._epoch).inside = list(self.inside)
        self.wires.broker.hold_offsets(self.tid, self._epoch, member, {tp.partition: tp.offset for tp in offsets})
        self.wires.ask()

    def commit_transaction(self, _: float) -> None:
        self.wires.ask()
        self.wires.broker.end_transaction(self.tid, self._epoch)
        self.inside = []
        self.wires.ask()

    def abort_transaction(self, _: float) -> None:
        self.wires.ask()
        self.wires.broker.alive(self.tid, self._epoch).drop()
        self.inside = []
        self.wires.broker.laws.seen("a transaction is aborted")


class FakeOutput:
    """An Output: its batches hold predictions as they are (`world_worker.Said`)."""

    where, stopping = "world", False
    _refused: KafkaError | None = None  # at least once: by the broker, after the write

    def __init__(self, clients: Clients, _topic: str, _release: str, _limits: object, **more: object) -> None:
        self._wires = clients.wires
        tid = more.get("transactional_id")
        self._wires.tid = tid if isinstance(tid, str) else None
        self.producer = FakeProducer(self._wires, self._wires.tid, self._wires.incarnation)

    def write(self, batch) -> KafkaError | None:
        if self._wires.spoil:
            self._wires.spoil = False
            if self.producer.tid is not None:
                return KafkaError(KafkaError._TIMED_OUT)
            self._wires.broker.laws.seen("a record is refused")
            self._refused = KafkaError(KafkaError.UNKNOWN)
            return None
        said = [one for out in batch.outgoing for one in out.said]
        self.producer.produce([one._replace(incarnation=self.producer.incarnation) for one in said])
        return None

    def failure(self) -> BrokerError | None:
        return None if self._refused is None else broker_error(self._refused, self.where)

    def refused(self) -> KafkaError | None:
        return self._refused

    def unconfirmed(self) -> int:
        return 0

    def raise_if_stopping(self) -> None:
        if self.stopping:
            raise BrokerError("the worker stopped before the broker acknowledged everything")

    def close(self) -> None:
        """Nothing is held here."""


class Clients:
    """Opens them for one process."""

    bootstrap = "world"

    def __init__(self, wires: Wires, settings: object) -> None:
        self.wires, self.settings = wires, settings

    def member(self, _: str, *, ends: bool) -> tuple[FakeConsumer, None]:
        return FakeConsumer(self.wires), None

    def producer(self, *, transactional_id: str) -> FakeProducer:
        return FakeProducer(self.wires, transactional_id)


class FakeLogReader:
    """A LogReader. What comes after its start, the scheduler hands to the folds."""

    def __init__(self, clients: Clients, topic: str = CONTROL) -> None:
        broker = clients.wires.broker
        self._log = broker.control if topic == CONTROL else broker.progress

    def to_end(self) -> Iterator[LogRecord]:
        return iter([LogRecord(offset, 0, value) for offset, value in enumerate(self._log)])

    def answers(self, _: float) -> bool:
        return True


class FakeLogWriter:
    def __init__(self, clients: Clients, _topic: str, _seconds: float) -> None:
        self._wires = clients.wires

    def append(self, value: bytes, _key: str) -> int:
        wires = self._wires
        sent = Sent(wires.incarnation, value)
        wires.broker.sent.append(sent)
        wires.broker.laws.appended(wires, sent)
        if not pause(lambda: sent.landed is not None, APPEND_S):
            sent.gone = True
            wires.broker.laws.late(sent.incarnation)
            raise BrokerError("the broker did not acknowledge the record in time")
        assert sent.landed is not None
        return sent.landed
