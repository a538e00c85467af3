"""The intake: one thread that owns the consumer. It reads micro-batches, commits, and answers the group's calls.

Every call to the consumer is made here, rebalance callbacks included (they run inside `poll`): a commit from another
thread while a callback blocks can deadlock. A batch is handed over only when there is room for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streamserve.adapters.client_io import BatchReader, Fill
from streamserve.adapters.kafka import Clients, broker_error
from streamserve.adapters.messages import MessageReader
from streamserve.adapters.native import Handle
from streamserve.adapters.packed import PackedReader
from streamserve.adapters.positions import starting_positions
from streamserve.delivery.emitter import BoundaryHook, Emitter
from streamserve.delivery.gate import Gate
from streamserve.delivery.ledger import Boundary, Ledger
from streamserve.delivery.pacing import Pace
from streamserve.errors import StreamserveError
from streamserve.records import OutputBatch, RawBatch, Stage
from streamserve.topology import Source

LOG = logging.getLogger("streamserve.intake")
POLL_S = 0.1
ROOM_S = 0.05  # how long one wait for room takes before the group's calls are answered again
RETRY_S = 0.2  # until the next try of the last commit, where the coordinator moves or starts
LAST_FLUSH_S = 1.0  # what the last barrier gets at least


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
        target_s: seconds from an event's arrival to its prediction that batches are made for.
    """

    def __init__(
        self,
        clients: Clients,
        source: Source,
        group: str,
        emitter: Emitter,
        deliver: Callable[[RawBatch], None],
        on_failure: Callable[[BaseException], None],
        target_s: float = 0.02,
    ) -> None:
        self._clients, self._settings, self._topic = clients, clients.settings, source.topic
        self._emitter, self._deliver, self._on_failure = emitter, deliver, on_failure
        self._group = group
        self._state = threading.Condition()
        self._in_flight = 0
        self._gate, self._ledger = Gate(), Ledger()
        self._pace = Pace(target_s, self._settings.batch_rows)
        self._lag: dict[int, int] = {}
        self._abandoned = False
        self._stopping = threading.Event()
        self._next_commit = 0.0
        self._admin = clients.admin()
        self._reader: BatchReader | None = None
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
            self._learn(batch)
            self._ledger.sent({tp: span for tp, span in passed.covers.items() if self._gate.admits(batch.raw, tp[1])})

    def _learn(self, batch: OutputBatch) -> None:
        if batch.times is not None and batch.raw.ready_ns:
            wall, versions = batch.times.wall, batch.times.versions
            work = sum(wall.get(stage.value, 0) for stage in Stage)
            version = max(versions, key=lambda name: versions[name], default="")
            since = time.monotonic_ns() - batch.raw.first_ns
            waited = batch.raw.ready_ns - batch.raw.first_ns
            self._pace.sent(version, len(batch.raw), work / 1e9, since / 1e9, waited / 1e9)

    def lag(self) -> dict[int, int]:
        """Records between what was read and the end of each partition, as of the last commit; from any thread."""
        return self._lag

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
            consumer, handle = self._clients.member(self._group)
            self._reader = self._open_reader(consumer, handle)
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
                if self._reader is not None:
                    self._reader.close()
                consumer.close()

    def _open_reader(self, consumer: Consumer, handle: Handle | None) -> BatchReader:
        where = self._clients.bootstrap
        if handle is None:
            return MessageReader(consumer, self._current_epoch, where)
        return PackedReader(consumer, handle, self._topic, self._current_epoch, self._settings.batch_rows, where)

    def _current_epoch(self) -> int:
        return self._gate.epoch

    def _turn(self, consumer: Consumer) -> None:
        if time.monotonic() >= self._next_commit:
            self._commit(consumer)
            self._lag = self._measure_lag(consumer)
        if not self._wait_for_room():
            return
        assert self._reader is not None  # noqa: S101  (opened before the first turn)
        for batch in self._reader.read(self._fill()):
            with self._state:
                self._pace.arrived(len(batch), time.monotonic())
            self._hand_over(batch)

    def _fill(self) -> Fill:
        with self._state:
            rows, seconds = self._pace.wait() if self._settings.pacing else (1, 0.0)
        return Fill(POLL_S, rows, seconds, self._settings.batch_rows, self._settings.batch_bytes)

    def _measure_lag(self, consumer: Consumer) -> dict[int, int]:
        """From what the client knows by its last fetches: asks nobody."""
        found = {}
        for tp in consumer.position(consumer.assignment()):
            _, high = consumer.get_watermark_offsets(tp, cached=True)
            if tp.offset >= 0 and high >= 0:
                found[tp.partition] = max(high - tp.offset, 0)
        return found

    def _hand_over(self, batch: RawBatch) -> None:
        with self._state:
            self._in_flight += 1
        self._deliver(batch)

    def _wait_for_room(self) -> bool:
        with self._state:
            return self._state.wait_for(lambda: self._in_flight < self._settings.batches_in_flight, timeout=ROOM_S)

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
        if self._reader is not None:
            self._reader.take(placed)
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
        if self._reader is not None:
            self._reader.release(partitions)
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
