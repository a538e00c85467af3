"""A circuit breaker: when a store that fails is no longer waited for, and when it is asked again.

Closed, every batch asks. Open, none does, so none waits; a probe beside the stream asks now and then, one at a time,
and its success closes the breaker. Pure: times are given, and whoever holds a breaker serialises the calls.

What opens it is a bucket: a failure adds one, a success takes `FORGIVEN` away. So failures in a row always open it, and
so does a share of failures above a tenth in the end. A count in a row alone would let a store that is late for every
fifth batch cost 50 ms a batch for ever, where a batch's own work is 3 to 5 ms; a window of time would behave otherwise
at ten batches a second than at a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

FORGIVEN = 0.1  # of a failure, by a success: with answers of 3 ms and waits of 250, a tenth late costs 25 ms a batch
GROWTH = 2.0  # of the pause, after each probe in vain and each opening that follows soon upon a closing


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"  # a probe is on its way


@dataclass(frozen=True, slots=True)
class Rules:
    """failures: in a row, that open. first_pause, longest_pause: seconds from opening to a probe, and at most."""

    failures: int
    first_pause: float
    longest_pause: float


@dataclass(frozen=True, slots=True)
class StoreReading:
    """What can be told of a store behind a breaker.

    Args:
        why: the kind and the text of the latest failure, while the breaker is not closed.
        transitions: how often each state was entered; failures: asks in vain by kind, probes included.
        skipped: rows that were not asked for, because the breaker was open.
    """

    state: State = State.CLOSED
    why: str = ""
    transitions: Mapping[State, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    skipped: int = 0


@dataclass(slots=True)
class Breaker:
    """Tickets are handed out for asking; what became of an ask is told with its ticket.

    A ticket holds for the state that it was given in: what is told with an older one changes nothing. An answer that
    a batch still waited for when the others gave up closes nothing, and its failure does not lengthen the pause.
    """

    rules: Rules
    state: State = State.CLOSED
    probe_at: float = math.inf  # when the next probe is due
    _ticket: int = 0
    _level: float = 0.0
    _pause: float = 0.0
    _closed_at: float = -math.inf

    def admit(self) -> int | None:
        """A ticket for a batch; None: do not ask, do not wait."""
        return self._ticket if self.state is State.CLOSED else None

    def probe(self, now: float) -> int | None:
        """A ticket for the one probe that is due; None: none is, or it is on its way."""
        if self.state is not State.OPEN or now < self.probe_at:
            return None
        self._enter(State.HALF_OPEN)
        return self._ticket

    def succeeded(self, ticket: int, now: float) -> None:
        if ticket != self._ticket:
            return
        if self.state is State.HALF_OPEN:
            self._closed_at, self._level = now, 0.0
            self._enter(State.CLOSED)
        else:
            self._level = max(self._level - FORGIVEN, 0.0)

    def failed(self, ticket: int, now: float) -> None:
        if ticket != self._ticket:
            return
        if self.state is State.HALF_OPEN:
            self._open(now)
        else:
            self._level += 1
            if self._level >= self.rules.failures:
                if now - self._closed_at > self._pause:  # it had been well for a while
                    self._pause = 0.0
                self._open(now)

    def _open(self, now: float) -> None:
        self._pause = min(max(self._pause * GROWTH, self.rules.first_pause), self.rules.longest_pause)
        self.probe_at = now + self._pause
        self._enter(State.OPEN)

    def _enter(self, state: State) -> None:
        self.state = state
        self._ticket += 1
        if state is not State.OPEN:
            self.probe_at = math.inf
