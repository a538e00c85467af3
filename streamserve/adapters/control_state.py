"""What is in force: the control log's fold, followed to its end, joined with the cutovers of the progress log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from streamserve.adapters.control_log import CONTROL, LogReader, LogRecord
from streamserve.adapters.kafka import Clients
from streamserve.adapters.progress_log import APPEND_S, ProgressLog
from streamserve.control import fold
from streamserve.delivery.cutovers import Due, due
from streamserve.errors import BrokerError
from streamserve.records import ControlView, TopicPartition

LOG = logging.getLogger("streamserve.control")


class Control:
    """Safe from several threads; `read` is one thread's.

    Raises:
        TopicError: (from the constructor) the log is not there, or not whole.
        BrokerError: no broker answers.
    """

    def __init__(self, clients: Clients, topology: str, progress: ProgressLog) -> None:
        self._progress = progress
        self._secrets = clients.settings.control_secrets
        self._log = LogReader(clients)
        self._where = f"{clients.bootstrap} topic {CONTROL}"
        self._changed = threading.Condition()
        self._state = fold.State(topology)
        self._joined: tuple[fold.State, int, ControlView] | None = None
        for record in self._log.to_end():
            self._take(record)

    @property
    def state(self) -> fold.State:
        """The fold of what was read so far."""
        return self._state

    def read(self, wait: float = 0.2, until: Callable[[], bool] = lambda: False) -> None:
        """Fold what has arrived, waiting so long (seconds) for the first record. until: stop in the midst of it."""
        for record in self._log.poll(wait):
            self._take(record)
            if until():
                return

    def _take(self, record: LogRecord) -> None:
        before = self._state
        state, outcome = fold.step(before, record.offset, record.value, record.headers, self._secrets)
        if outcome.rejection is not None:
            LOG.warning("control %d rejected: %s %s", record.offset, outcome.rejection.value, outcome.detail)
        elif outcome.accepted:
            LOG.info("control %d: %s accepted, generation %d", record.offset, outcome.label.kind, outcome.generation)
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def view(self) -> ControlView:
        """A snapshot of both logs; the same object as before where nothing has come."""
        state, joined = self._state, self._joined
        count = self._progress.cutover_count
        if joined is None or joined[0] is not state or joined[1] != count:
            count, cutovers = self._progress.cutovers()
            self._joined = joined = state, count, state.view(cutovers)
        return joined[2]

    def due(self, owned: Iterable[TopicPartition]) -> Due | None:
        """What the owner of these partitions has to write into the progress log now; None: they obey."""
        view = self.view()
        return due(view.epochs, view.cutovers, owned)

    def wait_for(self, places: Iterable[TopicPartition], limit: float = APPEND_S) -> None:
        """Return once every epoch that is in force on these partitions was read in the control log.

        Raises:
            BrokerError: one did not come in time: its rows can't be routed here.
        """
        _, cutovers = self._progress.cutovers()
        wanted = max((cuts[-1].epoch for place in places if (cuts := cutovers.get(place))), default=-1)
        with self._changed:
            if not self._changed.wait_for(lambda: self._state.epochs[-1].number >= wanted, limit):
                raise BrokerError(
                    f"control epoch {wanted} is in force, and the control log was read to "
                    f"{self._state.epochs[-1].number} only",
                    where=self._where,
                    mend="check the broker's health, and the right to READ this topic",
                )

    def close(self) -> None:
        self._log.close()
