"""A worker of the simulated world: the product's own folds, intake, tenure, ownership, custody, emitters and router.

Only what it is wired to is of the world: threads and clock, clients, and a pipeline that routes and does not score.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
from greenlet import GreenletExit
from world_broker import Broker, Prediction
from world_clients import (
    TOPIC,
    Clients,
    FakeLogReader,
    FakeLogWriter,
    FakeOutput,
    FakeReader,
    Wires,
    is_letter,
)
from world_tasks import Process, Running, stand_in

from streamserve.adapters import (
    at_least_once,
    control_state,
    exactly_once,
    incarnation,
    intake,
    member,
    ownership,
    progress_log,
    tenure,
)
from streamserve.adapters.control_log import LogRecord
from streamserve.control import fold
from streamserve.delivery import custody
from streamserve.delivery.emitter import StartAnewError
from streamserve.errors import StreamserveError
from streamserve.pipeline import pipeline
from streamserve.pipeline import route as router
from streamserve.records import Assignment, ControlView, EventBatch, Int64s, OutputBatch, RawBatch, Reason, Variant

TOPOLOGY = "t"
NO_COLUMNS = pa.RecordBatch.from_arrays([pa.array([], pa.int64())], ["nothing"])
SETTINGS = SimpleNamespace(
    batches_in_flight=2, batch_rows=100, batch_bytes=1 << 20, pacing=False, drain_timeout=1.0, start="earliest",
    dead_letter_share=1.0, commit_interval=0.06, transaction_interval=0.06, control_secrets={},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Said:
    """As an Outgoing: what was said of some rows of a batch."""

    rows: Int64s
    said: list[Prediction]

    def take(self, places: Int64s) -> Said:
        return Said(self.rows[places], [self.said[place] for place in places.tolist()])


def predictions(raw: RawBatch, rows: Int64s, a: Assignment) -> list[Prediction]:
    columns = raw.partitions[rows], raw.offsets[rows], a.control_epoch, a.version, a.variant, a.reason
    return [
        Prediction(partition, offset, epoch, a.versions[version], variant, Reason(reason).name, "")
        for partition, offset, epoch, version, variant, reason in zip(*(c.tolist() for c in columns), strict=True)
    ]


class Worker(Process):
    """One process. asleep: it is given no turn. failed: what stopped it."""

    def __init__(self, name: str, broker: Broker, delivery: str) -> None:
        super().__init__(name)
        Running.process = self
        self.broker, self.asleep, self.failed = broker, False, ""
        self.incarnations = 0
        self.turned = (0, 0)  # how often, while nobody else did anything
        self.wires = Wires(broker, self)
        clients = Clients(self.wires, SETTINGS)
        topology = SimpleNamespace(
            name=TOPOLOGY, delivery=delivery, target_p99_ms=20, drift=None, source=SimpleNamespace(topic=TOPIC),
            topic="t.{}".format,
        )  # fmt: skip
        self.progress = progress_log.ProgressLog(clients, TOPOLOGY)
        self.heard = len(broker.control)  # how far the control log was read
        self.control = control_state.Control(clients, TOPOLOGY, self.progress)
        lives = incarnation.Incarnations(clients, topology, "g", self.progress, {})
        self.flying: deque[tuple[RawBatch, ControlView, int]] = deque()
        self.custody = custody.Custody()
        self.intake = intake.Intake(
            lives, topology, SETTINGS, self.control, lambda _: len(broker.ends), self._deliver, self._on_failure,
            self.custody,
        )  # fmt: skip
        self.intake.start()

    def name_incarnation(self) -> str:
        self.incarnations += 1
        self.wires.incarnation = f"{self.name}.{self.incarnations}"
        return self.wires.incarnation

    @property
    def member(self):
        return self.wires.consumer.member if self.wires.consumer else None

    def _on_failure(self, error: BaseException) -> None:
        if isinstance(error, GreenletExit):
            return
        self.failed = f"{type(error).__name__}: {error}"
        expected = isinstance(error, (StreamserveError, StartAnewError)) and not self.progress_failed(error)
        if not expected:
            self.broker.laws.fault(error)

    @staticmethod
    def progress_failed(error: BaseException) -> bool:
        """A worker that gives up because its transactions fail one after the other would do so for ever."""
        return "in a row" in str(error)

    def where(self) -> str:
        """Which of the product's functions its intake waits in."""
        frame, names = self.task.gr_frame, []
        while frame is not None:
            if "world_" not in frame.f_code.co_filename:
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        return names[0] if names else "begins"

    # ---- what the scheduler does in its name

    def can_run(self) -> bool:
        """Its intake has something to do."""
        told = self.member is None or self.member.calls or self.intake.stopping
        return bool(told or self.custody._ledger._accounts or not self.task.resting) and self.task.can_hurry()

    def read_progress(self) -> None:
        Running.process = self
        at = self.progress.position
        self.progress.read([LogRecord(at, 0, self.broker.progress[at])])
        self.broker.laws.folded(self.progress.position, self.progress.cutovers()[1])

    def read_control(self) -> None:
        Running.process = self
        self.control._take(LogRecord(self.heard, 0, self.broker.control[self.heard]))
        self.heard += 1

    def can_send(self) -> bool:
        return bool(self.flying) and self.custody._whole.owner is None and not self.failed

    def send(self, *, fallback: bool) -> None:
        """The oldest batch goes out."""
        Running.process = self
        raw, view, read = self.flying.popleft()
        try:
            self.intake.send(self._process(raw, view, read, fallback=fallback))
        except Exception as error:  # noqa: BLE001  (whatever it is: it stops the worker, and may be a finding)
            if not isinstance(error, StreamserveError):
                self.broker.laws.fault(error)
            self.failed = f"{type(error).__name__}: {error}"
            self.intake.abandon()
        self.intake.finished()

    def _process(self, raw: RawBatch, view: ControlView, read: int, *, fallback: bool) -> OutputBatch:
        places = list(zip(raw.partitions.tolist(), raw.offsets.tolist(), strict=True))
        letters = [row for row, place in enumerate(places) if is_letter(*place)]
        rows = np.array([row for row in range(len(places)) if row not in letters], np.int64)
        outgoing = [
            Said(np.array(letters, np.int64), [Prediction(*places[row], None, "", 0, "", "") for row in letters])
        ]
        assignment = router.route(EventBatch(raw, rows, NO_COLUMNS, raw.timestamps), view)
        if fallback and (fallen := np.flatnonzero(assignment.variant == Variant.CANDIDATE)).size:
            assignment = assignment.fallen_back(fallen)
        outgoing.append(Said(rows, predictions(raw, rows, assignment)))
        self.broker.laws.routed(read, outgoing[1].said)
        return OutputBatch(raw, tuple(outgoing), pipeline.covers(raw), len(rows), ())

    def _deliver(self, raw: RawBatch, view: ControlView) -> None:
        self.broker.laws.delivered(self, raw)
        self.flying.append((raw, view, self.progress.position))


class Fold:
    """The real fold of the control log, worked out once where several workers read the same records."""

    State = fold.State

    def __init__(self) -> None:
        self._known: list[tuple[fold.State, tuple[fold.State, fold.Outcome]]] = []

    def forget(self) -> None:
        """Another world begins."""
        self._known.clear()

    def step(self, state, offset, value, headers, secrets):
        if offset < len(self._known):
            before, after = self._known[offset]
            if state is before or (offset == 0 and state == before):
                return after
        found = fold.step(state, offset, value, headers, secrets)
        if offset == len(self._known):
            self._known.append((state, found))
        return found


FOLD = Fold()


def wired() -> contextlib.AbstractContextManager[None]:
    """The product's modules, wired to the world."""
    name = SimpleNamespace(token_hex=lambda _: Running.process.name_incarnation())
    logs = {"LogReader": FakeLogReader, "LogWriter": FakeLogWriter}
    return stand_in(
        {
            **{module: {} for module in (at_least_once, exactly_once, member, ownership, tenure, intake, custody)},
            progress_log: logs,
            control_state: {"LogReader": FakeLogReader, "fold": FOLD},
            incarnation: {
                "MessageReader": FakeReader,
                "Output": FakeOutput,
                "secrets": name,
                "worker_name": lambda: Running.process.name,
            },
        }
    )
