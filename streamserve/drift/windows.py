"""Windows over event time: which there are, and what is said of them. Values alone; `fold` makes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from streamserve.drift.chains import Sum
from streamserve.drift.chunks import Series
from streamserve.drift.watermark import Quorum
from streamserve.errors import ConfigError
from streamserve.records import Int64s

NOWHERE = -1  # before every offset


@dataclass(frozen=True, slots=True)
class WindowRule:
    """Windows [s, s + size_ms) of event time, s a multiple of slide_ms; slide_ms = size_ms: tumbling. Milliseconds.

    lateness_ms: how long after its end a window is mended. quorum: None: as its defaults, with lateness_ms ahead.
    idle_ms: how long an owner's word that nothing waits holds. block_chunks: how many chunks of a partition become one.
    max_panes: how many are held; of more, the latest are dropped.

    Raises:
        ConfigError: sizes are not multiples of the pane, or windows leave gaps.
    """

    size_ms: int
    slide_ms: int
    lateness_ms: int
    pane_ms: int
    quorum: Quorum | None = None
    idle_ms: int = 15_000
    block_chunks: int = 64
    max_panes: int = 10_000

    def __post_init__(self) -> None:
        lengths = self.size_ms, self.slide_ms, self.lateness_ms
        if self.pane_ms <= 0 or any(length % self.pane_ms for length in lengths) or self.lateness_ms < 0:
            raise ConfigError(
                f"window, slide and lateness of {lengths} ms are not multiples of the pane, {self.pane_ms} ms",
                mend="choose a pane that divides all three",
            )
        if not 0 < self.slide_ms <= self.size_ms:
            raise ConfigError(
                f"windows of {self.size_ms} ms that slide by {self.slide_ms} ms leave events out",
                mend="let them slide by at most their size",
            )

    def starts(self, pane: int) -> range:
        """Of all windows that hold this pane."""
        last = pane // self.slide_ms * self.slide_ms
        return range((pane - self.size_ms) // self.slide_ms * self.slide_ms + self.slide_ms, last + 1, self.slide_ms)

    def closes(self, pane: int) -> int:
        """The watermark from which on nothing can be added to this pane."""
        return pane // self.slide_ms * self.slide_ms + self.size_ms + self.lateness_ms


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One series in one window [start_ms, end_ms), as it was when this was said. rows, counted, counts: as in a cell.

    late: rows of the series that came after their last window closed, since its record before. wild: rows of any series
    whose event time was never believed, since the window before. shed: rows that may belong here and were not counted.
    sample_bp: the shares that rows were sampled at; mixed, where there are two. complete: no offset is missing that may
    belong here. watermark_ms: every window that ends by then was said before this, or with it. panes_from: where a new
    fold must begin to know all windows that are open then. panes_to: up to where in `T.panes` this one had read.
    """

    start_ms: int
    end_ms: int
    series: Series
    revision: int
    rows: int
    counted: int
    counts: Int64s
    digest: str
    late: int
    wild: int
    shed: int
    sample_bp: tuple[int, ...]
    complete: bool
    watermark_ms: int
    panes_from: int
    panes_to: int


@dataclass(frozen=True, slots=True)
class Emitted:
    """What must be known of a window's last record."""

    revision: int
    digest: str
    rows: int
    bins: int


@dataclass(frozen=True, slots=True)
class Told:
    """What earlier folds said, in the order in which they said it, with none left out in between.

    windows: by start and series; those that closed more than a slide before the watermark are not asked for.
    """

    watermark_ms: int
    panes_from: int
    panes_to: int
    windows: Mapping[tuple[int, Series], Emitted]

    def anew(self) -> Told:
        """Where `T.panes` is another one than that which was read: all that it had is gone."""
        return replace(self, panes_from=NOWHERE, panes_to=0)


def told(windows: Iterable[Window]) -> Told | None:
    """Of records in their order; None: there are none."""
    known: dict[tuple[int, Series], Emitted] = {}
    last = None
    for last in windows:
        known[last.start_ms, last.series] = Emitted(last.revision, last.digest, last.rows, len(last.counts))
    return None if last is None else Told(last.watermark_ms, last.panes_from, last.panes_to, known)


def digest(total: Sum, *, complete: bool) -> str:
    """Equal where a window's counts are, and where they are all of them."""
    counts = total.counts.astype("<i8").tobytes()
    return hashlib.blake2b(f"{total.rows} {total.counted} {complete} ".encode() + counts, digest_size=8).hexdigest()
