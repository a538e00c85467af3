"""The intake: one thread that owns the consumer. It reads micro-batches, commits, and answers the group's calls.

Every call to the consumer is made here, rebalance callbacks included (they run inside `poll`): a commit from another
thread while a callback blocks can deadlock. A batch is handed over only when there is room for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streamserve.adapters.kafka import Clients, broker_error
from streamserve.adapters.positions import starting_positions
from streamserve.delivery.emitter import BoundaryHook, Emitter
from streamserve.delivery.gate import Gate
from streamserve.delivery.ledger import Boundary, Ledger
from streamserve.errors import BrokerError
from streamserve.records import OutputBatch, RawBatch
from streamserve.topology import Source

LOG = logging.getLogger("streamserve.intake")
POLL_S = 0.1
ROOM_S = 0.05  # how long one wait for room takes before the group's calls are answered again
GATHER_S = 0.003  # after the first record of a batch: how long to wait for more; adds to latency, saves batches


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
            self._settle(consumer)
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
        messages = self._gather(consumer, first)
        for topic, group in groupby(self._readable(messages), key=Message.topic):
            self._hand_over(to_batch(topic, list(group), self._gate.epoch, started))

    def _gather(self, consumer: Consumer, first: Message) -> list[Message]:
        limit = self._settings.batch_rows - 1
        messages = [first, *consumer.consume(limit, 0)]
        if len(messages) <= limit and self._in_flight:
            # others are being worked on: a short wait fills this batch at no cost to it
            messages += consumer.consume(limit + 1 - len(messages), GATHER_S)
        return messages

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

    def _commit(self, consumer: Consumer) -> None:
        self._next_commit = time.monotonic() + self._settings.commit_interval
        with self._state:
            boundaries = self._ledger.boundaries()
        if not boundaries:
            return
        for hook in self.hooks:
            hook.prepare(boundaries)
        self._emitter.barrier()
        if self._commit_offsets(consumer, boundaries):
            with self._state:
                self._ledger.committed(boundaries)
            self.commits += 1
            for hook in self.hooks:
                hook.committed(boundaries)
        else:
            for hook in self.hooks:
                hook.void(boundaries)

    def _commit_offsets(self, consumer: Consumer, boundaries: Sequence[Boundary]) -> bool:
        """False where the group moved on meanwhile: what was to be committed is another member's now."""
        try:
            done = consumer.commit(
                offsets=[TopicPartition(b.topic, b.partition, b.stop) for b in boundaries], asynchronous=False
            )
        except KafkaException as error:
            code = error.args[0].code()
            if code in _MEMBERSHIP_GONE:
                LOG.warning("commit refused, the group moved on: %s", error.args[0].str())
                return False
            raise broker_error(error.args[0], self._clients.bootstrap) from None
        for tp in done:
            if tp.error is not None:
                raise broker_error(tp.error, f"{self._clients.bootstrap} commit of {tp.topic}-{tp.partition}")
        return True

    def _settle(self, consumer: Consumer) -> bool:
        """Wait until nothing is in flight, then commit. False: the deadline passed first."""
        limit = self._settings.drain_timeout
        with self._state:
            self._state.wait_for(lambda: self._in_flight == 0 or self._abandoned, timeout=limit)
            empty = self._in_flight == 0 and not self._abandoned
        if empty:
            self._commit(consumer)
        elif not self._abandoned:
            LOG.error("batches are still in flight after %.0f s; they will be scored again", limit)
        return empty

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
        headers=[m.headers() for m in messages],
        intake_epoch=epoch,
        first_ns=started_ns,
        ready_ns=time.monotonic_ns(),
    )


def _ints(values: Iterable[int], kind: type[np.generic], count: int) -> np.ndarray[tuple[int], np.dtype]:
    return np.fromiter(values, kind, count)
