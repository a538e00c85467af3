"""Pane chunks: what a worker counted of each range of offsets, written to `<topology>.panes` beside the commits.

A chunk is written, and waited for shortly, before its offsets are committed: a worker that dies in between has its
range read again, and the chunk of whoever does so replaces this one (`drift.fold`). Its topic can't hold predictions
up: what it does not take in time is given up, and its gap makes a window incomplete, never wrong.

Every commit has its chunks, unless these are so many, or commits so frequent, that they would take more than MOST_CPU
of a core: then a chunk covers several commits, and a crash costs the counts since the last one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import numpy as np

from streamserve.delivery.ledger import Boundary
from streamserve.drift.chunks import Cell, Chunk
from streamserve.drift.tallies import BatchTallies, Tallies
from streamserve.records import Outgoing, OutputBatch, TopicPartition, binary

LOG = logging.getLogger("streamserve.panes")
MOST_CPU = 0.03  # of a core, for chunks: some 0.1 ms each
MOST_SUMS = 8_192  # in memory; a stream whose events are spread over more panes a second needs wider ones
IDLE_S = 0.9  # so often it is said that a partition is at its end: windows wait for the next word of it
CONFIRM_S = 0.1  # how long a commit waits for its chunks
NOTHING_AHEAD: Mapping[TopicPartition, Boundary] = MappingProxyType({})


class Writer(Protocol):
    """Where chunks go: `SideOutput`."""

    def write(self, out: Outgoing) -> None: ...

    def settled(self, seconds: float) -> bool: ...


@dataclass(slots=True)
class _Covered:
    """A partition: its chunks go up to start, its commits to stop. said: when it was last said to be idle."""

    start: int
    stop: int
    owner_epoch: int
    said: float = float("-inf")


class PaneChunks:
    """A `BoundaryHook`. What fails in it stops nobody.

    Args:
        encode: a chunk as a record's value. most_bytes: of key and value; the events of a larger one are shed.
        end_of: the end of a partition that was read up to it, where nothing of it waits; None: of others.
        clock: monotonic seconds. spent: CPU seconds of the thread that calls.
    """

    def __init__(
        self,
        writer: Writer,
        topic: str,
        encode: Callable[[Chunk], bytes],
        most_bytes: int,
        share_bp: int,
        end_of: Callable[[TopicPartition], int | None],
        clock: Callable[[], float],
        spent: Callable[[], float],
    ) -> None:
        self._writer, self._topic, self._encode, self._share_bp = writer, topic, encode, share_bp
        self._most_bytes = most_bytes
        self._end_of, self._clock, self._spent = end_of, clock, spent
        self._sent, self._held = Tallies(MOST_SUMS), Tallies(MOST_SUMS)  # since the last commit; since the last chunk
        self._covered: dict[TopicPartition, _Covered] = {}
        self._written: set[TopicPartition] = set()  # covered by chunks that the commit under way makes good
        self._due, self._slow = 0.0, False
        self.chunks = 0

    # ---- as a hook

    def sent(self, batch: OutputBatch) -> None:
        if isinstance(batch.tallied, BatchTallies):
            self._sent.add(batch.raw.topic, {partition for _, partition in batch.covers}, batch.tallied)

    def prepare(self, boundaries: Sequence[Boundary]) -> None:
        if self._clock() < self._due and not self._written:  # what a commit that is tried again has written is short
            return
        ahead = {(b.topic, b.partition): b for b in boundaries}
        rest = self._open() - ahead.keys()
        self._written = set(ahead)
        self._write_of([*ahead, *rest], ahead, wait=True)
        self._cover(rest)

    def committed(self, boundaries: Sequence[Boundary]) -> None:
        for b in boundaries:
            at = b.topic, b.partition
            covered = self._covered.setdefault(at, _Covered(b.start, b.stop, b.owner_epoch))
            covered.start, covered.stop, covered.owner_epoch = min(covered.start, b.start), b.stop, b.owner_epoch
            if at not in self._written:
                self._held.merge(at, self._sent)
                self._sent.forget(at)
        self._cover(self._written)
        self._written.clear()

    def void(self) -> None:
        self._sent.clear()
        if self._written:
            self._due = 0.0  # what stands there has rows that do not count: the next commit replaces it
        self._written.clear()

    def rest(self, positions: Sequence[Boundary]) -> None:
        now, chunks = self._clock(), []
        if now >= self._due and (waiting := self._open()):
            self._write_of(waiting)
            self._cover(waiting)
        for b in positions:
            at = b.topic, b.partition
            covered = self._covered.get(at)
            if covered is not None and (covered.stop > covered.start or now - covered.said < IDLE_S):
                continue
            end = self._end_of(at)
            if end is not None:
                where = b.start if b.start >= 0 else end
                covered = self._covered.setdefault(at, _Covered(where, where, b.owner_epoch))
                covered.said = now
                chunks.append(Chunk(*at, covered.start, covered.start, b.owner_epoch, True, 0, self._share_bp, ()))
        self._write(chunks)

    def give_up(self, partitions: Collection[TopicPartition]) -> None:
        self._write_of(self._open() & set(partitions), wait=True)

    def drop(self, partitions: Collection[TopicPartition]) -> None:
        for at in partitions:
            self._forget(at)
            self._covered.pop(at, None)

    # ---- chunks

    def _open(self) -> set[TopicPartition]:
        """Those of which something is committed, and in no chunk."""
        return {at for at, covered in self._covered.items() if covered.stop > covered.start}

    def _cover(self, partitions: Collection[TopicPartition]) -> None:
        """What is committed of these stands in chunks."""
        for at in partitions:
            self._covered[at].start = self._covered[at].stop
            self._forget(at)

    def _forget(self, at: TopicPartition) -> None:
        self._sent.forget(at)
        self._held.forget(at)

    def _chunk(self, at: TopicPartition, ahead: Boundary | None) -> Chunk:
        """Of all that is not written, up to a boundary or to what is committed."""
        covered = self._covered.get(at)
        both = Tallies(2 * MOST_SUMS)
        both.merge(at, self._held)
        if ahead is not None:
            both.merge(at, self._sent)
        sums, shed = both.of(at)
        last = ahead or covered
        assert last is not None  # noqa: S101
        # Offsets between what was covered and the first event hold no event
        start = last.start if covered is None else min(last.start, covered.start)
        cells = tuple(
            Cell(of.version, of.reference, of.segment, pane, one.rows, one.counted, one.latest, one.counts)
            for (of, pane), one in sums.items()
        )
        return Chunk(*at, start, last.stop, last.owner_epoch, False, shed, self._share_bp, cells)

    def _write_of(
        self,
        partitions: Collection[TopicPartition],
        ahead: Mapping[TopicPartition, Boundary] = NOTHING_AHEAD,
        *,
        wait: bool = False,
    ) -> None:
        if not partitions:
            return
        began = self._spent()
        self._write([self._chunk(at, ahead.get(at)) for at in partitions], wait=wait)
        self._due = self._clock() + (self._spent() - began) / MOST_CPU

    def _fitting(self, chunk: Chunk, most_bytes: int) -> bytes:
        """As a record's value that its topic takes."""
        value = self._encode(chunk)
        if len(value) <= most_bytes:
            return value
        events = sum(cell.rows for cell in chunk.cells if cell.segment is None)
        LOG.warning("%d events of %s-%d are not counted: %d panes are too many for a record of %s",
                    events, chunk.topic, chunk.partition, len(chunk.cells), self._topic)  # fmt: skip
        return self._encode(replace(chunk, cells=(), shed=chunk.shed + events))

    def _write(self, chunks: Sequence[Chunk], *, wait: bool = False) -> None:
        if not chunks:
            return
        keys = [f"{chunk.topic}-{chunk.partition}".encode() for chunk in chunks]
        values = [self._fitting(chunk, self._most_bytes - len(key)) for chunk, key in zip(chunks, keys, strict=True)]
        rows = np.arange(len(chunks))
        stamps = np.zeros(len(chunks), np.int64)
        self._writer.write(Outgoing(self._topic, rows, binary(keys), binary(values), None, stamps))
        self.chunks += len(chunks)
        if wait:
            # Who was slow once is not waited for again until it has caught up
            slow, self._slow = self._slow, not self._writer.settled(0.0 if self._slow else CONFIRM_S)
            if self._slow and not slow:
                LOG.warning("%s takes its records slowly: a crash now may leave drift windows incomplete", self._topic)
