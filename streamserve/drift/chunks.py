"""What workers write to `T.panes`: mergeable counts of events, cut at commit boundaries. Pure; no bytes, no schema.

A *pane* is a short piece of event time, [pane_ms, pane_ms + its length). A *cell* counts the events of one pane that
one version answered. A *chunk* has all cells of the source offsets [start, stop) of one partition. Counts are opaque
here: a whole number for each bin of the version's drift reference, in its order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamserve.records import NOBODY, Int64s

ALL_BP = 10_000  # basis points: every event is counted


@dataclass(frozen=True, slots=True)
class Series:
    """Whose counts may be added up. reference: the fingerprint that says what the bins mean; "": there are none.

    segment: a part of the stream; None: all of it.
    """

    version: str
    reference: str
    segment: str | None

    @property
    def name(self) -> str:
        """For people."""
        return self.version if self.segment is None else f"{self.version}, {self.segment}"

    @property
    def order(self) -> tuple[str, str, bool, str]:
        """A key to sort by."""
        return self.version, self.reference, self.segment is not None, self.segment or ""


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """Events of one version, segment and pane.

    pane_ms: where the pane starts; latest_ms: the largest event time in it; both in milliseconds since 1970.
    rows: events. counted: those of them that are in `counts` (fewer where a share is sampled).
    counts: int64, one a bin; empty where the version has no reference.
    """

    version: str
    reference: str
    segment: str | None
    pane_ms: int
    rows: int
    counted: int
    latest_ms: int
    counts: Int64s

    @property
    def series(self) -> Series:
        return Series(self.version, self.reference, self.segment)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Source offsets [start, stop) of a partition, as one owner counted them.

    A chunk starts where the last commit ended, and is acknowledged before its own commit: so whatever follows it
    without a gap says that it was committed. owner_epoch: the offset of the owner's claim in the progress log.
    idle: the owner confirmed that the partition's end was reached, and nothing waits; an idle word may be empty.
    shed: rows that should have been counted and were not. sample_bp: the share of keys that is counted.
    """

    topic: str
    partition: int
    start: int
    stop: int
    owner_epoch: int
    idle: bool
    shed: int
    sample_bp: int
    cells: tuple[Cell, ...]


def refusal(chunk: Chunk) -> str:
    """Why no owner could have written this; "": it may count."""
    if not 0 <= chunk.start <= chunk.stop or chunk.partition < 0 or chunk.owner_epoch < NOBODY:
        return f"offsets [{chunk.start}, {chunk.stop}) of partition {chunk.partition}, owner epoch {chunk.owner_epoch}"
    if chunk.shed < 0 or not 0 <= chunk.sample_bp <= ALL_BP:
        return f"shed {chunk.shed}, sampled {chunk.sample_bp} of {ALL_BP}"
    return next((f"pane {cell.pane_ms} of {cell.version}: {why}" for cell in chunk.cells if (why := _wrong(cell))), "")


def _wrong(cell: Cell) -> str:
    if not 0 <= cell.counted <= cell.rows or not cell.rows:
        return f"{cell.counted} of {cell.rows} rows counted"
    if cell.latest_ms < cell.pane_ms:
        return f"its latest event time is {cell.latest_ms}"
    if cell.counts.dtype != np.int64 or cell.counts.ndim != 1 or (cell.counts < 0).any():
        return "its counts are not whole numbers from 0 on"
    return ""
