"""The topics of drift: pane chunks from an offset on, and what was said of windows last. Outside any group."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from streamserve.adapters.follow import Follower
from streamserve.adapters.kafka import Clients
from streamserve.adapters.reading import Start, TopicReader
from streamserve.adapters.schema_ids import schema_ids
from streamserve.drift.chunks import Chunk
from streamserve.drift.windows import WindowRule
from streamserve.pipeline import drift_window, pane_chunk
from streamserve.simulate.explain import FramedReader, UnreadableError

LOG = logging.getLogger("streamserve.drift")
RECENT = 2_000  # windows that are looked at first for what was said last; more where not all open ones are among them
BROKEN = (UnreadableError, ValueError, KeyError, TypeError)  # the last three: it is a record of something else


@dataclass(frozen=True, slots=True)
class PaneRecord:
    """timestamp: milliseconds since 1970, as the broker has it."""

    offset: int
    timestamp: int
    chunk: Chunk


class PaneTail:
    """Chunks from an offset on, as they come. Not for several threads.

    Raises:
        BrokerError: (from every method) the topic can't be read.
    """

    def __init__(self, clients: Clients, topic: str, offset: int) -> None:
        """offset: where that is gone, what is left begins."""
        self._topic, self._reader = topic, FramedReader(schema_ids(clients.settings))
        self._follower = Follower(clients, [topic], offset)

    def poll(self, timeout: float) -> list[PaneRecord]:
        """What has come, waiting at most this many seconds for the first."""
        found = []
        for batch in self._follower.poll(timeout):
            columns = batch.offsets.tolist(), batch.timestamps.tolist(), batch.values.to_pylist()
            for offset, timestamp, value in zip(*columns, strict=True):
                try:
                    found.append(PaneRecord(offset, timestamp, pane_chunk.chunk_of(self._reader.read(value))))
                except BROKEN as broken:
                    LOG.warning("%s: the record at offset %d is no pane chunk: %s", self._topic, offset, broken)
        return found

    def close(self) -> None:
        self._follower.close()


def end_of(clients: Clients, topic: str) -> int:
    """The end of the panes topic, which has one partition.

    Raises:
        TopicError, BrokerError: it can't be read.
    """
    with TopicReader(clients, topic) as reader:
        return max(end for _, end in reader.spans(Start("end")).values())


def read_open_windows(clients: Clients, topic: str, rule: WindowRule) -> list[dict[str, Any]]:
    """The last records of windows, in their order, with all of those that may still be told anew.

    Raises:
        TopicError, BrokerError: it can't be read.
    """
    many = RECENT
    while True:
        found = read_windows(clients, topic, Start("last", many))
        # A window is told when the watermark passes its end, and not before
        if len(found) < many or found[0]["watermark"] <= found[-1]["watermark"] - rule.lateness_ms - rule.slide_ms:
            return found
        many *= 4


def read_windows(clients: Clients, topic: str, start: Start) -> list[dict[str, Any]]:
    """What stands of windows, in its order, as `drift_window.told_of` gives it.

    Raises:
        TopicError, BrokerError: it can't be read.
    """
    found, framed = [], FramedReader(schema_ids(clients.settings))
    with TopicReader(clients, topic) as reader:
        for record in reader.backlog(start):
            try:
                found.append(drift_window.told_of(framed.read(record.value)))
            except BROKEN as broken:
                LOG.warning("%s: the record at offset %d is no drift window: %s", topic, record.offset, broken)
    return found
