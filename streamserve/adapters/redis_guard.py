"""Keeps a stream from waiting for a store that fails: a breaker, the probe beside the stream, and what is told of both.

A batch that asks waits for one ask at most, and while the breaker is open for none: probes are made by a thread of
their own, because batches are sent in order, so that one which probed would hold up all that follow it. The probe
asks for the rows that were last asked for in vain: a store that answers one key in time, and a thousand never, is not
well.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamserve.adapters.quiet import Repeats
from streamserve.adapters.redis_faults import Failure, Kind
from streamserve.features.breaker import Breaker, Rules, State, StoreReading

LOG = logging.getLogger("streamserve.redis")
SINGLE = logging.getLogger("streamserve.redis.single")  # failures that open nothing: told once in a while
SINGLE.addFilter(Repeats())

Rows = list[bytes | None]
Ask = Callable[[Sequence[bytes]], Rows | Failure]


@dataclass(frozen=True, slots=True)
class Outage:
    """seconds: since the breaker opened; skipped: rows that were not asked for meanwhile."""

    seconds: float
    skipped: int


class Guard:
    """Safe from several threads.

    Args:
        ask: one ask within its deadline; safe from several threads.
        clock: seconds, monotonic.
    """

    def __init__(self, ask: Ask, rules: Rules, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = ask, clock
        self._lock = threading.Lock()
        self._breaker = Breaker(rules)
        self._transitions: Counter[State] = Counter()
        self._failures: Counter[str] = Counter()
        self._skipped = self._skipped_before = 0
        self._latest = Failure(Kind.GONE, "")
        self._opened_at = 0.0
        self._in_vain: Sequence[bytes] = ()  # the keys of the latest failure: what the probe asks for
        self._fault: BaseException | None = None
        self._closing = threading.Event()

    def fetch(self, keys: Sequence[bytes]) -> Rows | None:
        """The rows in the order of their keys; None: there was no answer, or it is not asked for now.

        Raises:
            Exception: a fault of the program, here or in a probe; no outage is one.
        """
        if self._fault is not None:
            raise self._fault
        with self._lock:
            ticket = self._breaker.admit()
            if ticket is None:
                self._skipped += len(keys)
                return None
        said = self._ask(keys)
        self._tell(ticket, keys, said)
        return None if isinstance(said, Failure) else said

    def reading(self) -> StoreReading:
        with self._lock:
            state = self._breaker.state
            return StoreReading(
                state,
                "" if state is State.CLOSED else f"{self._latest.kind.value}: {self._latest.text}",
                dict(self._transitions),
                dict(self._failures),
                self._skipped,
            )

    def close(self) -> None:
        """No more probes."""
        self._closing.set()

    def _tell(self, ticket: int, keys: Sequence[bytes], said: Rows | Failure) -> None:
        with self._lock:
            before, now = self._breaker.state, self._clock()
            if isinstance(said, Failure):
                self._failures[said.kind.value] += 1
                changed_kind = said.kind is not self._latest.kind
                self._latest, self._in_vain = said, keys
                self._breaker.failed(ticket, now)
            else:
                changed_kind = False
                self._breaker.succeeded(ticket, now)
            after = self._breaker.state
            if after is not before:
                self._transitions[after] += 1
            if before is State.CLOSED and after is State.OPEN:
                self._opened_at = now
                self._skipped_before = self._skipped
                threading.Thread(target=self._probe, name="redis-probe", daemon=True).start()
            outage = Outage(now - self._opened_at, self._skipped - self._skipped_before)
        _log(before, after, said, outage, news=changed_kind, rows=len(keys))

    def _probe(self) -> None:
        """Until it answers. One such thread at a time: it is started at an opening and ends with the closing."""
        while True:
            with self._lock:
                pause = self._breaker.probe_at - self._clock()
            if self._closing.wait(max(pause, 0)):
                return
            with self._lock:
                ticket = self._breaker.probe(self._clock())
                if ticket is None:
                    continue
                self._transitions[State.HALF_OPEN] += 1
                keys = self._in_vain
            try:
                said = self._ask(keys)
            except BaseException as error:  # noqa: BLE001  (raised by the next batch: there it stops the worker)
                self._fault = error
                return
            self._tell(ticket, keys, said)
            if not isinstance(said, Failure):
                return


def _log(before: State, after: State, said: Rows | Failure, outage: Outage, *, news: bool, rows: int) -> None:
    """A line when the breaker opens or closes, or fails for another reason; news: that reason is another one."""
    if isinstance(said, Failure):
        if after is before:
            SINGLE.warning("%s: %s; defaults are used for %d rows", said.kind.value, said.text, rows)
        elif before is State.CLOSED:
            LOG.warning("not asked any more, features are defaults (%s: %s)", said.kind.value, said.text)
        elif news:
            LOG.warning("still not asked, features are defaults (%s: %s)", said.kind.value, said.text)
    elif after is not before:
        LOG.info("answers again, after %.1f s in which %d rows were defaults", outage.seconds, outage.skipped)
