"""The intake: one thread that owns the consumer. It reads micro-batches, commits, and answers the group's calls.

Every call to the consumer is made here, rebalance callbacks included (they run inside `poll`): a commit from another
thread while a callback blocks can deadlock. A batch is handed over only when there is room for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from confluent_kafka import Consumer

from streamserve.adapters.client_io import Fill
from streamserve.adapters.incarnation import Incarnation
from streamserve.adapters.tenure import InForce, Tenure
from streamserve.delivery.brake import Brake
from streamserve.delivery.custody import Custody
from streamserve.delivery.emitter import Emitter, Outcome, StartAnewError
from streamserve.delivery.pacing import Pace
from streamserve.errors import BrokerError, StreamserveError
from streamserve.records import ControlView, OutputBatch, RawBatch, Stage
from streamserve.settings import Settings
from streamserve.topology import Topology

LOG = logging.getLogger("streamserve.intake")
POLL_S = 0.1
ROOM_S = 0.05  # how long one wait for room takes before the next look at what else is to be done
IDLE_S = 1.0  # without room or leave to read for so long, the group's calls are answered all the same
SLOW_COMMIT_S = 5.0  # a commit that takes longer is told to whoever asks whether this worker serves
RETRY_S = 0.2  # until the next try of a commit, where the coordinator moves or starts
COMMIT_S = 120.0  # a broker that acknowledges nothing for this long stops the worker: nothing is committed
LAST_COMMIT_S = 1.0  # what the last commit gets at least
SETTLED_S = 30.0  # an incarnation that lives so long is none that fails at once
BARREN = 5  # incarnations in a row that took up partitions and committed nothing: a new try does not mend it
ANEW_S = (0.2, 5.0)  # between two incarnations, growing: the first pause and the longest


class Lives(Protocol):
    """Where incarnations come from."""

    def begin(self, epoch: Callable[[], int]) -> Incarnation: ...


class Intake:
    """Reads a topology's source and calls `deliver` with each batch, from its own thread.

    Args:
        control: what is in force. A batch is handed over with the view that routes it.
        count: the partitions of a topic, asked of a client of its own.
        deliver: takes a batch and its view; called at most `batches_in_flight` times ahead of `finished`.
        on_failure: told what stopped the thread.
    """

    def __init__(
        self,
        lives: Lives,
        topology: Topology,
        settings: Settings,
        control: InForce,
        count: Callable[[str], int],
        deliver: Callable[[RawBatch, ControlView], None],
        on_failure: Callable[[BaseException], None],
        custody: Custody,
    ) -> None:
        self._lives, self._settings, self._control, self._count = lives, settings, control, count
        self._deliver, self._on_failure = deliver, on_failure
        self._topic, self._name = topology.source.topic, topology.name
        exactly_once = topology.delivery == "exactly_once"
        self._interval = settings.transaction_interval if exactly_once else settings.commit_interval
        self.custody = custody
        self._state = threading.Condition()
        self._flying: deque[RawBatch] = deque()  # handed over, not finished; they finish in their order
        self._brake = Brake(settings.dead_letter_share)
        self._pace = Pace(topology.target_p99_ms / 1000, settings.batch_rows)
        self._lag: dict[int, int] = {}
        self._life: Incarnation | None = None
        self._abandoned = False
        self._stopping = threading.Event()
        self._next_commit = self._last_read = 0.0
        self._committing_since: float | None = None
        self._began = 0.0
        self._pause = ANEW_S[0]
        self._fruitless_since: float | None = None  # since when no incarnation has taken up a partition
        self._committed = self._barren = 0  # commits at the last one's end; how many made none since
        self._thread = threading.Thread(target=self._main, name="intake", daemon=True)
        self.incarnations = 0

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
        life = self._life
        if life is not None:
            life.end("the worker stops")

    def join(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def send(self, batch: OutputBatch) -> None:
        """Send what of a batch still counts, and enter it into the ledger.

        Raises:
            BrokerError: the output can't be delivered.
        """
        with self._state:
            self._learn(batch)
            held = self._brake_learns(batch)
        if held:
            LOG.error("%s", self.trouble())
        life = self._life
        try:
            self.custody.send(batch, self._emitter)
        except BrokerError:
            if life is None or not life.is_over():
                raise  # else it is another incarnation's, or another worker's, now

    def _emitter(self) -> Emitter | None:
        return None if self._life is None or self._life.is_over() else self._life.emitter

    def _learn(self, batch: OutputBatch) -> None:
        if batch.times is not None and batch.raw.ready_ns:
            wall, versions = batch.times.wall, batch.times.versions
            work = sum(wall.get(stage.value, 0) for stage in Stage)
            version = max(versions, key=lambda name: versions[name], default="")
            since = time.monotonic_ns() - batch.raw.first_ns
            waited = batch.raw.ready_ns - batch.raw.first_ns
            self._pace.sent(version, len(batch.raw), work / 1e9, since / 1e9, waited / 1e9)

    def _brake_learns(self, batch: OutputBatch) -> bool:
        """Whether the brake has changed to hold."""
        before = self._brake.held
        self._brake.learn(len(batch.raw), len(batch.rejects), time.monotonic())
        if before and not self._brake.held:
            LOG.warning("events are scored again: reading goes on")
        return self._brake.held and not before

    def trouble(self) -> str:
        """Why this worker does not get on; empty: it does. From any thread."""
        if self._fruitless_since is not None:
            return f"nothing can be taken up since {time.monotonic() - self._fruitless_since:.0f} s, see the log"
        since = self._committing_since
        if since is not None and (waited := time.monotonic() - since) > SLOW_COMMIT_S:
            return f"the broker has not confirmed a commit for {waited:.0f} s"
        if self._brake.held:
            return (
                f"{self._brake.share:.0%} of the last events became dead letters, more than "
                f"STREAMSERVE_DEAD_LETTER_SHARE allows ({self._brake.limit:.0%}): reading is paused but for probes"
            )
        return ""

    def lag(self) -> dict[int, int]:
        """Records between what was read and the end of each partition, as of the last commit; from any thread."""
        return self._lag

    def finished(self) -> None:
        """A batch is sent, or was given up: there is room for another."""
        with self._state:
            self._flying.popleft()
            self._state.notify_all()

    @property
    def partitions(self) -> int:
        return len(self.custody.partitions)

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    def end_of(self, place: tuple[str, int]) -> int | None:
        """The end of a partition, if it was read up to it and nothing of it is in flight. In the thread, as commits."""
        life = self._life
        if (
            life is None
            or place in self.custody.rewound
            or any((raw.partitions == place[1]).any() for raw in self.flying())
        ):
            return None
        return life.reader.ended.get(place[1])

    # ---- for the tenure, in the thread

    @property
    def abandoned(self) -> bool:
        return self._abandoned

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def flying(self) -> tuple[RawBatch, ...]:
        """What was handed over and is not finished."""
        with self._state:
            return tuple(self._flying)

    def took_up(self) -> None:
        """This life has come to something."""
        self._fruitless_since = None

    # ---- the thread

    def _main(self) -> None:
        try:
            while not self._live():
                pass
        except BaseException as error:  # noqa: BLE001  (handed to the worker, which stops with it)
            self._on_failure(error)

    def _live(self) -> bool:
        """One incarnation from its beginning to its end; True: it was the last."""
        try:
            life = self._begin()
        except BrokerError as error:
            if not self.incarnations:
                raise
            return self._pause_after(error)
        try:
            tenure = self._tenure(life)
            tenure.subscribe()
            while not self._stopping.is_set():
                self._turn(life, tenure)
            self._finish(life)
        except StartAnewError as why:
            life.end(str(why))
            LOG.warning("%s; this worker joins again as a new member", why)
            return self._pause_after(why.__cause__)
        except BaseException:
            life.end("the worker stops")
            raise
        else:
            return True
        finally:
            self._end(life)

    def _tenure(self, life: Incarnation) -> Tenure:
        return Tenure(self._topic, self._settings, life, self.custody, self._control, self._count, desk=self)

    def _begin(self) -> Incarnation:
        life = self._lives.begin(self._current_epoch)
        self._life, self._committing_since, self._began = life, None, time.monotonic()
        self.incarnations += 1
        return life

    def _pause_after(self, cause: BaseException | None) -> bool:
        """Between two incarnations, the longer the less the last ones got done; True: the worker stops.

        Raises:
            BrokerError: none has come to anything for a while, or for some tries, for this cause.
        """
        now, commits = time.monotonic(), self._committed
        self._committed = self.custody.commits
        if self._committed != commits:
            self._barren = 0
        if self._fruitless_since is None:
            self._barren += 1
            self._fruitless_since, self._pause = now, ANEW_S[0]
        if isinstance(cause, BrokerError) and (now - self._fruitless_since > COMMIT_S or self._barren >= BARREN):
            raise cause
        self._pause = min(2 * self._pause, ANEW_S[1])
        return self._stopping.wait(self._pause)

    def _end(self, life: Incarnation) -> None:
        """The reader's end comes before the consumer's, whose last callbacks let its partitions go in good order."""
        life.reader.close()
        try:
            life.consumer.close()
        finally:
            life.end("it was closed")
            self.custody.drop(self.custody.owner_epochs())
            self._life = None
            life.emitter.close()

    def _current_epoch(self) -> int:
        return self.custody.epoch

    def _turn(self, life: Incarnation, tenure: Tenure) -> None:
        self._see_successors(life)
        if time.monotonic() >= self._next_commit or life.emitter.spoilt:
            self._commit(life)
            self._lag = self._measure_lag(life.consumer)
            if time.monotonic() - self._began > SETTLED_S:
                self._fruitless_since = None  # it lasts: there may be no partition for it
        tenure.read_again()
        tenure.cut_over()
        for batch in self._read(life):
            view = self._control.view()
            self._see_successors(life)  # by now: their cutovers stand in the view, of epochs that may not be read here
            with self._state:
                self._pace.arrived(len(batch), time.monotonic())
                self._brake.read()
                self._flying.append(batch)
            self._deliver(batch, view)
        if life.is_over():
            raise StartAnewError(life.why)

    def _see_successors(self, life: Incarnation) -> None:
        late = life.ownership.superseded(self.custody.owner_epochs())
        if late:
            raise StartAnewError(f"partitions {[p for _, p in late]} have a later owner")

    def _read(self, life: Incarnation) -> Iterable[RawBatch]:
        now = time.monotonic()
        with self._state:
            room = self._state.wait_for(lambda: len(self._flying) < self._settings.batches_in_flight, timeout=ROOM_S)
            most = self._brake.rows(self._settings.batch_rows, len(self._flying), now) if room else 0
        if most:
            self._last_read = now
            return life.reader.read(self._fill(most))
        if now - self._last_read > IDLE_S:
            self._last_read = now
            return life.reader.idle()
        if room:
            self._stopping.wait(ROOM_S)
        return ()

    def _fill(self, most: int) -> Fill:
        settings = self._settings
        with self._state:
            rows, seconds = self._pace.wait() if settings.pacing else (1, 0.0)
        wait = min(POLL_S, max(self._next_commit - time.monotonic(), 0.0))
        return Fill(wait, min(rows, most), seconds, most, settings.batch_bytes)

    def _measure_lag(self, consumer: Consumer) -> dict[int, int]:
        """From what the client knows by its last fetches: asks nobody."""
        found = {}
        for tp in consumer.position(consumer.assignment()):
            _, high = consumer.get_watermark_offsets(tp, cached=True)
            if tp.offset >= 0 and high >= 0:
                found[tp.partition] = max(high - tp.offset, 0)
        return found

    # ---- commits

    def _commit(self, life: Incarnation, limit: float = COMMIT_S) -> Outcome:
        now = time.monotonic()
        self._next_commit, self._committing_since = now + self._interval, now
        outcome = self.custody.commit(life.emitter, life.member, limit)
        self._committing_since = None
        return outcome

    def _finish(self, life: Incarnation) -> None:
        """The end that a signal asked for: exit code 0 says that everything in flight was committed.

        Raises:
            StreamserveError: it was not.
        """
        deadline = time.monotonic() + self._settings.drain_timeout
        try:
            done = self.drained() and self.commit_until(life, deadline)
        except StartAnewError as why:  # there is no new life to do it in
            LOG.warning("%s", why)
            done = False
        if not done and not self._abandoned:
            raise StreamserveError(
                f"what was in flight was not committed within {self._settings.drain_timeout:g} s of the signal",
                where=f"topology {self._name}",
                mend="nothing is lost, the next worker scores it again; look at the warnings above for who is slow",
            )

    def commit_until(self, life: Incarnation, deadline: float) -> bool:
        """Commit, and try again where the coordinator moves or starts."""
        while True:
            outcome = self._commit(life, max(deadline - time.monotonic(), LAST_COMMIT_S))
            if outcome is not Outcome.LATER:
                return outcome is Outcome.DONE
            with self._state:
                if self._state.wait_for(lambda: self._abandoned, timeout=RETRY_S) or time.monotonic() > deadline:
                    return False

    def drained(self) -> bool:
        """Nothing is in flight any more. False: the deadline passed first, or the worker failed."""
        limit = self._settings.drain_timeout
        with self._state:
            self._state.wait_for(lambda: not self._flying or self._abandoned, timeout=limit)
            return not self._flying and not self._abandoned
