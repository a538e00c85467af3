"""The brake: when too many events become dead letters, reading pauses, rather than emptying a topic into them.

A wrong deployment (a model, a schema, a topology file that does not fit) makes dead letters of everything. Once their
share over the last events passes the limit, nothing is read but a small probe at times; the first probe that comes out
well lets the stream flow again, so that what was mended elsewhere needs no restart. Pure: times are given.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW = 1000  # events over which the share counts: a few bad ones in a quiet hour are no wrong deployment
PROBE_ROWS = 50
PAUSES_S = (5.0, 60.0)  # until the first probe, and the longest between two


@dataclass(slots=True)
class Brake:
    """Its caller serialises the calls.

    limit: share of events that may become dead letters; at 1 the brake never holds.
    """

    limit: float
    held: bool = False
    _recent: deque[tuple[int, int]] = field(default_factory=deque)
    _events: int = 0
    _letters: int = 0
    _pause: float = PAUSES_S[0]
    _next: float = 0.0
    _probing: bool = False

    @property
    def share(self) -> float:
        """Of dead letters among the last events."""
        return self._letters / self._events if self._events else 0.0

    def learn(self, events: int, letters: int, now: float) -> None:
        """What became of a batch. now: seconds on a monotonic clock."""
        self._count(events, letters)
        if self._probing:
            self._probing = False
            if letters <= self.limit * events:
                self.held, self._pause = False, PAUSES_S[0]
                self._recent.clear()
                self._events = self._letters = 0
            else:
                self._pause = min(2 * self._pause, PAUSES_S[1])
                self._next = now + self._pause
        elif not self.held and self.limit < 1 and self._events >= WINDOW and self.share > self.limit:
            self.held, self._next = True, now + self._pause

    def _count(self, events: int, letters: int) -> None:
        self._recent.append((events, letters))
        self._events += events
        self._letters += letters
        while self._recent and self._events - self._recent[0][0] >= WINDOW:
            gone = self._recent.popleft()
            self._events -= gone[0]
            self._letters -= gone[1]

    def rows(self, rows: int, in_flight: int, now: float) -> int:
        """How many of so many rows may be read now. in_flight: batches on their way; a probe goes alone."""
        if not self.held:
            return rows
        if self._probing or in_flight or now < self._next:
            return 0
        return min(rows, PROBE_ROWS)

    def read(self) -> None:
        """A batch was read; while the brake holds, it is a probe."""
        self._probing = self.held
