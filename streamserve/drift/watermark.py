"""How far event time has come: what is believed of each partition, and the watermark of them all. Pure.

An event time is believed if it is at most `ahead_ms` past the latest pane that a *quorum* of the partition's recent
events has reached: several events, and a share of all. So a few clocks that are wrong by a day move nothing, and after
a hole (a night without flights) time goes on as soon as enough events say so. The very first events need a quorum, too.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamserve.drift.chunks import Chunk
from streamserve.records import TopicPartition


@dataclass(frozen=True, slots=True)
class Quorum:
    """Whom to believe.

    ahead_ms: how far past it an event time is believed. No more than a window's lateness: then whatever less than a
    quorum says, a window may pass too early, but is mended, and none closes before a quorum has reached its end.
    events, share_bp: a quorum is so many events, and this share of the recent ones; a quarter, since with one clock in
    twenty wrong, 16 of 64 are once in ten million times. recent_rows: so many events are recent, and the rest of their
    chunks; of a busy partition that is all of its last chunk.
    """

    ahead_ms: int
    events: int = 3
    share_bp: int = 2_500
    recent_rows: int = 64

    def of(self, rows: int) -> int:
        return max(self.events, -(-rows * self.share_bp // 10_000))


@dataclass(frozen=True, slots=True)
class Heard:
    """A chunk's event times. panes: by pane, the rows and the latest time."""

    start: int
    block: int
    rows: int
    panes: Mapping[int, tuple[int, int]]


def heard(chunk: Chunk, block: int, pane_ms: int) -> Heard:
    """An event is counted by the version that answered; those of segments are among them."""
    rows: Counter[int] = Counter()
    latest: dict[int, int] = {}
    for cell in (one for one in chunk.cells if one.segment is None):
        pane = cell.pane_ms // pane_ms * pane_ms
        rows[pane] += cell.rows
        latest[pane] = max(latest.get(pane, pane), min(cell.latest_ms, pane + pane_ms - 1))
    return Heard(chunk.start, block, rows.total(), {pane: (count, latest[pane]) for pane, count in rows.items()})


class Belief:
    """One partition. reach: the largest believed event time. limit: panes up to here are believed. None: none yet.

    wild: rows that were never believed, and are not recent any more.
    """

    def __init__(self, quorum: Quorum) -> None:
        self._quorum = quorum
        self._recent: deque[Heard] = deque()
        self.reach: int | None = None
        self.limit: int | None = None
        self.wild = 0

    def hear(self, heard: Heard) -> None:
        """Take a chunk's event times."""
        if not heard.rows:
            return
        self._recent.append(heard)
        gone = []
        while sum(one.rows for one in self._recent) - self._recent[0].rows >= self._quorum.recent_rows:
            gone.append(self._recent.popleft())
        self.limit = self._limit()
        if self.limit is None:
            return
        self.wild += sum(rows for one in gone for pane, (rows, _) in one.panes.items() if pane > self.limit)
        times = [late for one in self._recent for pane, (_, late) in one.panes.items() if pane <= self.limit]
        self.reach = max(times if self.reach is None else [self.reach, *times], default=None)

    def _limit(self) -> int | None:
        panes: Counter[int] = Counter()
        for one in self._recent:
            panes.update({pane: rows for pane, (rows, _) in one.panes.items()})
        need, seen = self._quorum.of(panes.total()), 0
        for pane in sorted(panes, reverse=True):
            seen += panes[pane]
            if seen >= need:
                return pane + self._quorum.ahead_ms
        return self.limit

    def forget(self, replaced: Sequence[tuple[int, int]], reach: int | None) -> None:
        """Chunks of these offsets do not count any more: it is back to what was believed before them.

        Were it not, windows would pass before these events are counted again.
        """
        spans = [(start, max(stop, start + 1)) for start, stop in replaced]
        kept = [one for one in self._recent if not any(start <= one.start < stop for start, stop in spans)]
        self._recent, self.reach = deque(kept), reach

    @property
    def recent(self) -> tuple[int | None, int | None]:
        """The first source offsets of the first and the last of the recent chunks; None: there are none."""
        starts = [one.start for one in self._recent]
        return min(starts, default=None), max(starts, default=None)

    @property
    def block(self) -> int | None:
        """The first block of `T.panes` that the recent chunks came in."""
        return min((one.block for one in self._recent), default=None)

    @property
    def latest(self) -> int | None:
        """The largest recent event time, believed or not."""
        return max((late for one in self._recent for _, late in one.panes.values()), default=self.reach)


class Watermark:
    """The topic's: it never goes back.

    The smallest reach of the partitions that are not idle; where all are idle, the largest, for nothing waits anywhere.
    A partition that never spoke holds it, as does one that fell silent: it may have anything to say.
    """

    def __init__(self, idle_ms: int, quorum: Quorum, known: Mapping[str, int], begin: int | None) -> None:
        self._idle_ms, self._quorum = idle_ms, quorum
        self._known = dict(known)
        self._idle: dict[TopicPartition, int] = {}
        self._granted: dict[TopicPartition, int | None] = {}  # how far the others were when it was said to be idle
        self.beliefs: dict[TopicPartition, Belief] = {}
        self._newest: int | None = None
        self.at = begin
        self.expect(known)

    def expect(self, known: Mapping[str, int]) -> None:
        """So many partitions are known to exist, by topic; there are never fewer than before."""
        for topic, count in known.items():
            self._known[topic] = max(count, self._known.get(topic, 0))
            for partition in range(self._known[topic]):
                self.belief((topic, partition))

    def belief(self, source: TopicPartition) -> Belief:
        if source not in self.beliefs:
            self.beliefs[source] = Belief(self._quorum)
        return self.beliefs[source]

    def is_known(self, topic: str) -> bool:
        return topic in self._known

    def tick(self, at_ms: int) -> None:
        """A record with this timestamp was read: the only clock there is. Give it LogAppendTime."""
        self._newest = at_ms if self._newest is None else max(self._newest, at_ms)

    def said(self, source: TopicPartition, at_ms: int, *, idle: bool) -> None:
        """The owner's latest word on whether anything waits."""
        if idle:
            self._idle[source] = at_ms
            self._granted[source] = self._reached()
        else:
            self._idle.pop(source, None)

    def _is_idle(self, source: TopicPartition) -> bool:
        said = self._idle.get(source)
        return said is not None and self._newest is not None and self._newest - said <= self._idle_ms

    def step(self) -> int | None:
        """Move it on as far as it may go. None: it has not begun.

        What came since a partition was last said to be idle may have come there too, and is not counted yet.
        """
        granted = [self._granted[source] for source in self.beliefs if self._is_idle(source)]
        bounds = [bound for bound in (self._reached(), *granted) if bound is not None]
        if len(bounds) == 1 + len(granted):
            self.at = min(bounds) if self.at is None else max(self.at, min(bounds))
        return self.at

    def _reached(self) -> int | None:
        """The smallest reach of those that are not idle, else the largest of all; None: there is none yet."""
        active = [belief.reach for source, belief in self.beliefs.items() if not self._is_idle(source)]
        heard = [reach for reach in (active or [one.reach for one in self.beliefs.values()]) if reach is not None]
        if heard and len(heard) >= len(active):
            return min(heard) if active else max(heard)
        return None

    @property
    def foremost(self) -> int | None:
        """The largest event time that is believed of any partition."""
        return max((one.reach for one in self.beliefs.values() if one.reach is not None), default=None)
