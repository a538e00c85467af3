"""What a worker says of itself to whoever sends commands: its heartbeats, and how the loading of versions went."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

import numpy as np

from streamserve import __version__
from streamserve.adapters.control_state import Control
from streamserve.adapters.heartbeats import Heartbeats
from streamserve.adapters.intake import Intake
from streamserve.adapters.kafka import Clients
from streamserve.adapters.progress_log import ProgressLog
from streamserve.agents.preparing import Preparing, Shelf
from streamserve.agents.shadowing import Shadowing
from streamserve.agents.web import Health
from streamserve.delivery.cutovers import in_force
from streamserve.delivery.progress import Prepared
from streamserve.errors import BrokerError
from streamserve.records import OutputBatch
from streamserve.rollouts.heartbeat import Heartbeat, ShadowBeat

LOG = logging.getLogger("streamserve.worker")
RECENT = 256  # batches of a version, whose times are told


class Presence:
    """Of one worker. name: host and process."""

    def __init__(self, clients: Clients, topology: str, name: str, log: ProgressLog, control: Control) -> None:
        self._topology, self._name, self._log, self._control = topology, name, log, control
        self._heartbeats = Heartbeats(clients, self._beat)
        self._times: dict[str, deque[float]] = {}

    def record(self, batch: OutputBatch) -> None:
        """A batch was sent. From any thread."""
        for version, took in batch.times.versions.items() if batch.times else ():
            self._times.setdefault(version, deque(maxlen=RECENT)).append(took / 1e6)

    def prepared(self, version: str, why_not: str, seconds: float) -> None:
        """Tell the progress log how the loading of a version went."""
        record = Prepared(
            topology=self._topology,
            worker=self._name,
            release=__version__,
            version=version,
            manifest=self._control.state.manifest(version) or "",
            why_not=why_not[:2000],
            seconds=seconds,
        )
        try:
            self._log.append(record)
        except BrokerError as error:
            LOG.warning("the progress log was not told of version %s: %s", version, error.what)

    def run(
        self,
        closing: threading.Event,
        intake: Intake,
        shelf: Shelf,
        preparing: Preparing,
        health: Health,
        shadowing: Shadowing,
    ) -> None:
        """Beat until the worker closes. A thread's of its own."""
        self._intake, self._shelf, self._preparing, self._health = intake, shelf, preparing, health
        self._shadowing = shadowing
        self._heartbeats.run(closing)

    def _beat(self, last: bool) -> Heartbeat:  # noqa: FBT001
        view, why = self._control.view(), self._health.why
        loaded = self._shelf.loaded()
        owned = sorted(self._intake.custody.partitions)
        return Heartbeat(
            topology=self._topology,
            worker=self._name,
            release=__version__,
            at=time.time_ns() // 1_000_000,
            ready=not why,
            why=why[:2000],
            leaving=last,
            control=view.epochs[-1].number,
            partitions={place[1]: in_force(view.epochs, view.cutovers, place) for place in owned},
            lag=sum(self._intake.lag().values()),
            versions=tuple(sorted(loaded)),
            failed=dict(self._preparing.failed),
            shadow=_shadow(self._shadowing),
            batch_ms={name: _spread(list(times)) for name, times in list(self._times.items()) if name in loaded},
        )


def _spread(times: list[float]) -> tuple[float, float]:
    p50, p99 = np.percentile(times, (50, 99)).round(2).tolist()
    return p50, p99


def _shadow(shadowing: Shadowing) -> ShadowBeat | None:
    found = shadowing.tally()
    if found is None:
        return None
    return ShadowBeat(
        rollout=found.shadow.rollout_id,
        candidate=found.shadow.candidate,
        share=found.shadow.share_bp,
        running=found.running,
        why=found.why[:2000],
        compared=found.compared,
        agreed=found.agreed,
        decided=found.decided,
        failed=found.failed,
        unanswered=found.unanswered,
        shed=found.shed,
        lost=shadowing.lost,
    )
