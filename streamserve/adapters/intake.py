"""The intake: one thread that owns the consumer. It reads micro-batches, commits, and answers the group's calls.

Every call to the consumer is made here, rebalance callbacks included (they run inside `poll`): a commit from another
thread while a callback blocks can deadlock. A batch is handed over only when there is room for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from itertools import groupby

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streamserve.adapters.kafka import Clients, broker_error
from streamserve.adapters.positions import starting_positions
from streamserve.delivery.emitter import BoundaryHook, Emitter
from streamserve.delivery.gate import Gate
from streamserve.delivery.ledger import Boundary, Ledger
from streamserve.errors import BrokerError, StreamserveError
from streamserve.records import OutputBatch, RawBatch
from streamserve.topology import Source

LOG = logging.getLogger("streamserve.intake")
POLL_S = 0.1
ROOM_S = 0.05  # how long one wait for room takes before the group's calls are answered again
RETRY_S = 0.2  # until the next try of the last commit, where the coordinator moves or starts
LAST_FLUSH_S = 1.0  # what the last barrier gets at least
UNREADABLE_HEADERS: list[tuple[str, bytes | None]] = [
    ("streamserve.headers", b"left out: a name among them is not UTF-8")
]
GATHER_S = 0.003  # after the first record of a batch: how long to wait for more; adds to latency, saves batches


class Outcome(Enum):
    """What became of a commit."""

    DONE = "done"
    LATER = "later"  # the broker can't take it now: it is tried again
    MOVED_ON = "moved on"  # what was to be committed is another member's now


class Intake:
    """Reads `topic` as a member of `group` and calls `deliver` with each batch, from its own thread.

    Args:
        deliver: takes a batch; called at most `batches_in_flight` times ahead of `finished`.
        on_failure: told what stopped the thread.
    """

    def __init__(
        self,
        clients: Clients,
        source: Source,
        group: str,
        emitter: Emitter,
        deliver: Callable[[RawBatch], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._clients, self._settings, self._topic = clients, clients.settings, source.topic
        self._emitter, self._deliver, self._on_failure = emitter, deliver, on_failure
        self._group = group
        self._state = threading.Condition()
        self._in_flight = 0
        self._gate, self._ledger = Gate(), Ledger()
        self._abandoned = False
        self._stopping = threading.Event()
        self._next_commit = 0.0
        self._admin = clients.admin()
        self._thread = threading.Thread(target=self._main, name="intake", daemon=True)
        self.hooks: list[BoundaryHook] = []
        self.commits = 0

    # ---- called from other threads

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Read nothing more; what is in flight is finished, committed, and the group is left."""
        self._stopping.set()

    def abandon(self) -> None:
        """Something failed for good: what is in flight will not finish, and must not be committed."""
        with self._state:
            self._abandoned = True
            self._stopping.set()
            self._state.notify_all()

    def join(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def send(self, batch: OutputBatch) -> None:
        """Send what of a batch still counts, and enter it into the ledger.

        Raises:
            BrokerError: the output can't be delivered.
        """
        with self._state:
            passed = self._gate.pass_through(batch)
        self._emitter.send(passed)
        with self._state:
            self._ledger.sent({tp: span for tp, span in passed.covers.items() if self._gate.admits(batch.raw, tp[1])})

    def finished(self) -> None:
        """A batch is sent, or was given up: there is room for another."""
        with self._state:
            self._in_flight -= 1
            self._state.notify_all()

    @property
    def partitions(self) -> int:
        return len(self._gate.partitions)

    @property
    def in_flight(self) -> int:
        return self._in_flight

    # ---- the thread

    def _main(self) -> None:
        consumer: Consumer | None = None
        try:
            consumer = self._clients.member(self._group)
            consumer.subscribe(
                [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not self._stopping.is_set():
                self._turn(consumer)
            self._finish(consumer)
        except BaseException as error:  # noqa: BLE001  (handed to the worker, which stops with it)
            self._on_failure(error)
        finally:
            if consumer is not None:
                consumer.close()

    def _turn(self, consumer: Consumer) -> None:
        if time.monotonic() >= self._next_commit:
            self._commit(consumer)
        if not self._wait_for_room():
            return
        first = consumer.poll(POLL_S)
        if first is None:
            return
        started = time.monotonic_ns()
        for epoch, messages in self._gather(consumer, first):
            for topic, group in groupby(self._readable(messages), key=Message.topic):
                self._hand_over(to_batch(topic, list(group), epoch, started))

    def _gather(self, consumer: Consumer, first: Message) -> list[tuple[int, list[Message]]]:
        """Messages by the intake epoch in which they were read: each call may take partitions up anew."""
        limit = self._settings.batch_rows - 1
        reads = [(self._gate.epoch, [first])]
        count = 1 + self._read(consumer, limit, 0, reads)
        if count <= limit and self._in_flight:
            # others are being worked on: a short wait fills this batch at no cost to it
            self._read(consumer, limit + 1 - count, GATHER_S, reads)
        return reads

    def _read(self, consumer: Consumer, limit: int, wait: float, reads: list[tuple[int, list[Message]]]) -> int:
        found: list[Message] = consumer.consume(limit, wait)
        if reads[-1][0] == self._gate.epoch:
            reads[-1][1].extend(found)
        else:
            reads.append((self._gate.epoch, found))
        return len(found)

    def _hand_over(self, batch: RawBatch) -> None:
        with self._state:
            self._in_flight += 1
        self._deliver(batch)

    def _wait_for_room(self) -> bool:
        with self._state:
            return self._state.wait_for(lambda: self._in_flight < self._settings.batches_in_flight, timeout=ROOM_S)

    def _readable(self, messages: Sequence[Message]) -> list[Message]:
        good = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
                raise BrokerError(
                    f"the committed offset of {message.topic()}-{message.partition()} is out of range: {error.str()}",
                    where=self._clients.bootstrap,
                    mend="records were deleted before they were scored, or the topic was made anew; decide where to "
                    "go on with `kafka-consumer-groups --reset-offsets`",
                )
            elif error.fatal() or not (error.retriable() or error.code() < 0):
                raise broker_error(error, f"{self._clients.bootstrap} topic {message.topic()}")
            else:
                LOG.warning("%s", error.str())
        return good

    # ---- commits: the barrier, then the offsets, in this thread

    def _commit(self, consumer: Consumer, limit: float | None = None) -> Outcome:
        """limit: seconds that the barrier may take, if not the emitter's own."""
        self._next_commit = time.monotonic() + self._settings.commit_interval
        with self._state:
            boundaries = self._ledger.boundaries()
        if not boundaries:
            return Outcome.DONE
        for hook in self.hooks:
            hook.prepare(boundaries)
        self._emitter.barrier(limit)
        outcome = self._commit_offsets(consumer, boundaries)
        if outcome is Outcome.DONE:
            with self._state:
                self._ledger.committed(boundaries)
            self.commits += 1
            for hook in self.hooks:
                hook.committed(boundaries)
        else:
            for hook in self.hooks:
                hook.void(boundaries)
        return outcome

    def _commit_offsets(self, consumer: Consumer, boundaries: Sequence[Boundary]) -> Outcome:
        try:
            done = consumer.commit(
                offsets=[TopicPartition(b.topic, b.partition, b.stop) for b in boundaries], asynchronous=False
            )
        except KafkaException as error:
            return self._refused(error.args[0], self._clients.bootstrap)
        for tp in done:
            if tp.error is not None:
                return self._refused(tp.error, f"{self._clients.bootstrap} commit of {tp.topic}-{tp.partition}")
        return Outcome.DONE

    def _refused(self, error: KafkaError, where: str) -> Outcome:
        if error.code() in _MEMBERSHIP_GONE:
            LOG.warning("commit refused, the group moved on: %s", error.str())
            return Outcome.MOVED_ON
        if error.code() in _COORDINATOR_AWAY:
            LOG.warning("commit not taken, it is tried again: %s", error.str())
            return Outcome.LATER
        raise broker_error(error, where)

    def _finish(self, consumer: Consumer) -> None:
        """The end that a signal asked for: exit code 0 says that everything in flight was committed.

        Raises:
            StreamserveError: it was not.
        """
        deadline = time.monotonic() + self._settings.drain_timeout
        done = self._drained()
        while done and self._commit(consumer, max(deadline - time.monotonic(), LAST_FLUSH_S)) is Outcome.LATER:
            with self._state:
                done = not self._state.wait_for(lambda: self._abandoned, timeout=RETRY_S)
            done = done and time.monotonic() < deadline
        if not done and not self._abandoned:
            raise StreamserveError(
                f"what was in flight was not committed within {self._settings.drain_timeout:g} s of the signal",
                where=f"group {self._group}",
                mend="nothing is lost, the next worker scores it again; look at the warnings above for who is slow",
            )

    def _settle(self, consumer: Consumer) -> None:
        """Partitions are about to go: wait until nothing is in flight, then commit."""
        if self._drained():
            self._commit(consumer)
        elif not self._abandoned:
            LOG.error("batches are still in flight; they will be scored again")

    def _drained(self) -> bool:
        """Nothing is in flight any more. False: the deadline passed first, or the worker failed."""
        limit = self._settings.drain_timeout
        with self._state:
            self._state.wait_for(lambda: self._in_flight == 0 or self._abandoned, timeout=limit)
            return self._in_flight == 0 and not self._abandoned

    # ---- the group's calls, inside poll: `list_topics`, `poll` and `consume` of the consumer are forbidden here

    def _count(self, topic: str) -> int:
        return self._clients.partitions(self._admin, topic)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        placed = starting_positions(consumer, partitions, self._settings, self._count)
        with self._state:
            epoch = self._gate.open((tp.topic, tp.partition) for tp in placed)
        consumer.incremental_assign(placed)
        LOG.info("took up partitions %s (intake epoch %d)", [tp.partition for tp in placed], epoch)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._settle(consumer)
        self._let_go(consumer, partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        LOG.warning("lost partitions %s; nothing of them is committed", [tp.partition for tp in partitions])
        self._let_go(consumer, partitions)

    def _let_go(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        keys = [(tp.topic, tp.partition) for tp in partitions]
        with self._state:
            self._gate.close(keys)
            self._ledger.forget(keys)
        consumer.incremental_unassign(partitions)
        LOG.info("gave up partitions %s", [tp.partition for tp in partitions])


_MEMBERSHIP_GONE = frozenset(
    (
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError.STALE_MEMBER_EPOCH,
    )
)
_COORDINATOR_AWAY = frozenset(
    (
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError._WAIT_COORD,  # noqa: SLF001
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    )
)


def to_batch(topic: str, messages: Sequence[Message], epoch: int, started_ns: int) -> RawBatch:
    """Client messages as arrays. Seven accessor calls an event, 0.12 us each: see ARCHITECTURE.md."""
    stamps = [m.timestamp() for m in messages]
    count = len(messages)
    return RawBatch(
        topic=topic,
        partitions=_ints((m.partition() for m in messages), np.int32, count),
        offsets=_ints((m.offset() for m in messages), np.int64, count),
        timestamps=_ints((stamp if kind else -1 for kind, stamp in stamps), np.int64, count),
        timestamp_types=_ints((kind for kind, _ in stamps), np.uint8, count),
        keys=[m.key() for m in messages],
        values=[m.value() for m in messages],
        headers=headers_of(messages),
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
