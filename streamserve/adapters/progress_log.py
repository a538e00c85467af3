"""The progress log of a worker: followed from its start in a thread of the worker's, appended to by its intake."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

from streamserve.adapters.control_log import PROGRESS, LogReader, LogRecord, LogWriter
from streamserve.adapters.kafka import Clients
from streamserve.delivery.progress import Form, Progress
from streamserve.errors import BrokerError
from streamserve.records import Cutover, TopicPartition

LOG = logging.getLogger("streamserve.progress")
ASK_S, ANSWER_S = 3.0, 2.0  # a log that stood still for so long is asked for its end; how long the answer may take
SILENT_S = 10.0
APPEND_S = 15.0  # what an append may take: beyond it the broker is away, and the worker starts again


class ProgressLog:
    """Safe from several threads; `read` is one thread's.

    Raises:
        TopicError: (from the constructor) the log is not there, or not whole.
        BrokerError: no broker answers.
    """

    def __init__(self, clients: Clients, topology: str) -> None:
        self._where = f"{clients.bootstrap} topic {PROGRESS}"
        self._reader = LogReader(clients, PROGRESS)
        self._writer = LogWriter(clients, PROGRESS, APPEND_S)
        self._changed = threading.Condition()
        self._fold = Progress(topology)
        self._position = 0
        self._heard = time.monotonic()
        self.read(self._reader.to_end())

    @property
    def position(self) -> int:
        """The offset after the last record that was read."""
        return self._position

    def read(self, records: Iterable[LogRecord] | None = None, wait: float = 0.2) -> None:
        """Fold what has arrived, waiting so long (seconds) for the first record."""
        for record in self._reader.poll(wait) if records is None else records:
            with self._changed:
                why = self._fold.step(record.offset, record.value)
                self._position = record.offset + 1
                self._changed.notify_all()
            self._heard = time.monotonic()
            if why is not None:
                LOG.warning("progress %d does not count: %s", record.offset, why)
        if time.monotonic() - self._heard > ASK_S and self._reader.answers(ANSWER_S):
            self._heard = time.monotonic()

    def silence(self) -> str:
        """That the broker does not answer, and since when; empty: it does. From any thread."""
        silent = time.monotonic() - self._heard
        return f"the broker has not answered for {silent:.0f} s" if silent > SILENT_S else ""

    def append(self, record: Form) -> int:
        """Write a record, and wait until the broker has it; returns its offset.

        Raises:
            BrokerError: it did not take it in time.
        """
        return self._writer.append(record.encode(), record.topology)

    def wait_for(self, offset: int, limit: float = APPEND_S) -> None:
        """Return once the record at this offset was read.

        Raises:
            BrokerError: it did not come in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._position > offset, limit):
                raise BrokerError(
                    f"the progress log was read to offset {self._position}, and its record {offset} did not come",
                    where=self._where,
                    mend="check the broker's health, and the right to READ this topic",
                )

    def superseded(self, epochs: Iterable[tuple[TopicPartition, int]]) -> list[TopicPartition]:
        """Of these partitions, each with the owner epoch under which it is held, those that have a later owner."""
        with self._changed:
            return [partition for partition, epoch in epochs if self._fold.latest(partition) > epoch]

    def predecessors(self, partitions: Iterable[TopicPartition], owner_epoch: int) -> list[str]:
        """Transactional ids of whoever claimed one of these before this owner epoch, and did not release it."""
        with self._changed:
            return sorted(self._fold.before(partitions, owner_epoch))

    @property
    def cutover_count(self) -> int:
        """Grows with each cutover that was read."""
        return self._fold.cutover_count

    def cutovers(self) -> tuple[int, dict[TopicPartition, tuple[Cutover, ...]]]:
        """The count, and the cutovers by partition, as of the same moment."""
        with self._changed:
            return self._fold.cutover_count, self._fold.cutovers()

    def close(self) -> None:
        self._reader.close()
