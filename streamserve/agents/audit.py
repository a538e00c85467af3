"""The audit, `streamserve.rollouts`: what became of every command, and when it was in force on every partition.

One worker writes it, the owner of partition 0; whoever takes that over goes on after the last record that is there. A
worker that slept may write one twice: of records of one topology, `offset` and `event` there is one to keep.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from streamserve import __version__
from streamserve.adapters.control_log import LogWriter
from streamserve.adapters.control_sender import ControlDesk
from streamserve.adapters.control_state import Control
from streamserve.adapters.kafka import Clients
from streamserve.adapters.reading import Start, TopicReader
from streamserve.control.outcome import audit
from streamserve.delivery.cutovers import in_force
from streamserve.errors import StreamserveError

LOG = logging.getLogger("streamserve.audit")
ROLLOUTS = "streamserve.rollouts"
LOOK_S = 0.5
AGAIN_S = 10.0  # after trouble: the audit waits, nobody waits for it
APPEND_S = 10.0
COMMAND, IN_FORCE = "command", "in_force"


class Audit:
    """Of one worker. `run` is one thread's.

    Args:
        topic: the source. owns: whether this worker has its partition 0.
    """

    def __init__(
        self, clients: Clients, topology: str, topic: str, control: Control, worker: str, owns: Callable[[], bool]
    ) -> None:
        self._clients, self._topology, self._topic, self._control = clients, topology, topic, control
        self._worker, self._owns = worker, owns
        self._admin, self._writer = clients.admin(), LogWriter(clients, ROLLOUTS, APPEND_S)
        self._desk: ControlDesk | None = None
        self._written: set[tuple[str, int]] = set()  # (event, offset)

    def run(self, closing: threading.Event) -> None:
        """Write until the worker closes."""
        while not closing.wait(LOOK_S):
            try:
                self.turn()
            except StreamserveError as error:
                LOG.warning("the audit waits: %s", error.what)
                self._close()
                closing.wait(AGAIN_S)
        self._close()

    def turn(self) -> None:
        """Write what has come.

        Raises:
            StreamserveError: a log can't be read, or the audit not written.
        """
        if not self._owns():
            self._close()
            return
        if self._desk is None:
            self._written = self._read()
            self._desk = ControlDesk.unread(self._clients, self._topology)
        for record, outcome in self._desk.judged():
            if outcome.accepted or outcome.rejection is not None or outcome.held:
                self._write(COMMAND, record.offset, {"sent_at": record.timestamp, **audit(outcome)})
        self._tell_in_force()

    def _tell_in_force(self) -> None:
        """The newest epoch, once every partition obeys it; one that was passed over never is in force everywhere."""
        view = self._control.view()
        newest = view.epochs[-1].number if view.epochs else -1
        if newest < 0 or (IN_FORCE, newest) in self._written:
            return
        count = self._clients.partitions(self._admin, self._topic)
        places = [(self._topic, partition) for partition in range(count)]
        if all(in_force(view.epochs, view.cutovers, place) >= newest for place in places):
            self._write(IN_FORCE, newest, {"partitions": count})

    def _write(self, event: str, offset: int, about: dict[str, Any]) -> None:
        if (event, offset) in self._written:
            return
        said = {
            **about,
            "event": event,
            "topology": self._topology,
            "offset": offset,
            "at": time.time_ns() // 1_000_000,
            "worker": self._worker,
            "release": __version__,
        }
        self._writer.append(json.dumps(said).encode(), self._topology)
        self._written.add((event, offset))

    def _read(self) -> set[tuple[str, int]]:
        with TopicReader(self._clients, ROLLOUTS) as reader:
            return set(_written(self._topology, (record.value for record in reader.backlog(Start.parse("beginning")))))

    def _close(self) -> None:
        if self._desk is not None:
            self._desk.close()
            self._desk = None


def _written(topology: str, values: Iterator[bytes | None]) -> Iterator[tuple[str, int]]:
    for value in values:
        try:
            found = json.loads(value or b"")
        except ValueError:
            continue
        if isinstance(found, dict) and found.get("topology") == topology:
            yield str(found.get("event")), int(found.get("offset", -1))
