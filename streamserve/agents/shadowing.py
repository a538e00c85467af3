"""Shadow off the stable path: batches that stable has answered for wait here, bounded, for a candidate of their own.

The candidate runs in another process (`agents/isolated.py`). What it is too slow for is shed, what it does not answer
is counted, and it is begun again after a pause that grows. Nothing here is waited for by whoever serves.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby
from typing import Protocol

import numpy as np
import pyarrow as pa

from streamserve.adapters.control_state import Control
from streamserve.adapters.kafka import Clients
from streamserve.adapters.redis_store import RedisStore
from streamserve.adapters.side_output import SideOutput
from streamserve.adapters.topics import Topics
from streamserve.agents.isolated import Isolated
from streamserve.errors import IsolatedError, StreamserveError
from streamserve.features.columns import BatchColumns
from streamserve.features.rows import FeatureStore
from streamserve.models.plan import FeaturePlan
from streamserve.pipeline.emit import TimestampLimits
from streamserve.pipeline.shadow import Shadowed, Sheet, sheets
from streamserve.records import Outgoing, Shadow
from streamserve.rollouts.shadow import ShadowTally
from streamserve.simulate.versions import LoadedVersions
from streamserve.topology import Topology

LOG = logging.getLogger("streamserve.shadow")
GATHER_S = 0.05  # for more of a batch: nobody waits for it, and a larger one costs less
GATHER_ROWS = 4000  # asked about at once
TOGETHER = 4 * GATHER_ROWS  # taken from what waits: while it is asked about some, others are made ready or written
TALLIES = 8
AGAIN_S = (1.0, 60.0)  # until a candidate that went is begun again: the first pause and the longest
WELL_S = 60.0  # without trouble, after which the next pause is the first again
DRAIN_S = 1.0  # at the end, for what is waiting
IDLE_S = 0.2


class Candidate(Protocol):
    """A candidate, ready to be asked; see `Isolated`."""

    def tell(self, sheets: Sequence[pa.RecordBatch]) -> None: ...

    def answer(self, seconds: float) -> pa.Table: ...

    def close(self) -> None: ...


class Output(Protocol):
    @property
    def lost(self) -> int: ...

    def write(self, out: Outgoing) -> None: ...

    def close(self, seconds: float) -> None: ...


class Shadowing:
    """`offer` may be called from any thread, `run` is one thread's.

    Args:
        wanted: what is to be shadowed now.
        begin: a candidate in a process of its own. Raises IsolatedError or StreamserveError.
        plan: how the inputs of a version are filled.
        store: for views that stable does not read. Not stable's own, whose breaker it would trip.
        rows, size: events and bytes that may wait.
        deadline: seconds that the candidate has for what was gathered.
    """

    def __init__(
        self,
        wanted: Callable[[], Shadow | None],
        begin: Callable[[str], Candidate],
        plan: Callable[[str], FeaturePlan],
        store: FeatureStore,
        output: Output,
        *,
        topic: str,
        limits: TimestampLimits,
        rows: int,
        size: int,
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._wanted, self._begin, self._plan = wanted, begin, plan
        self._store, self._output, self._topic, self._limits = store, output, topic, limits
        self._rows, self._size, self._deadline = rows, size, deadline
        self._clock, self._now_ms = clock, now_ms
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Shadowed, int]] = deque()  # with their bytes
        self._waiting_rows = self._waiting_bytes = 0
        self._tallies: dict[str, ShadowTally] = {}  # by rollout, in the order of their beginning; the last few
        self._runs: tuple[str, Candidate, FeaturePlan] | None = None
        self._tried = ""  # the rollout whose trouble the following is about
        self._pause, self._not_before, self._troubled = AGAIN_S[0], -math.inf, -math.inf

    # ---- from any thread

    def offer(self, batch: Shadowed) -> None:
        """A batch that was answered for; if there is no room for it, it is shed. Waits for nothing."""
        size = batch.nbytes
        with self._changed:
            self._tallies.setdefault(batch.shadow.rollout_id, ShadowTally(batch.shadow))
            while len(self._tallies) > TALLIES:
                del self._tallies[next(iter(self._tallies))]
            full = self._waiting_rows + len(batch) > self._rows or self._waiting_bytes + size > self._size
            if full and self._waiting:
                self._count(batch.shadow, shed=len(batch))
                return
            self._waiting.append((batch, size))
            self._waiting_rows, self._waiting_bytes = self._waiting_rows + len(batch), self._waiting_bytes + size
            if len(self._waiting) == 1 or self._waiting_rows >= GATHER_ROWS:  # what `_gather` waits for
                self._changed.notify_all()

    def tally(self) -> ShadowTally | None:
        """Of the shadow of now, or of the last one; None: there was none."""
        wanted = self._wanted()
        with self._changed:
            runs, found = self._runs, next(reversed(self._tallies.values()), None)
            if wanted is not None and wanted.rollout_id in self._tallies:
                found = replace(self._tallies[wanted.rollout_id], shadow=wanted)
        if found is None:
            return None
        return replace(found, running=runs is not None and runs[0] == found.shadow.candidate)

    @property
    def lost(self) -> int:
        """Records that did not reach their topic."""
        return self._output.lost

    @property
    def waiting(self) -> int:
        """Events that wait for the candidate."""
        return self._waiting_rows

    def _count(self, shadow: Shadow, why: str | None = None, **more: int) -> None:
        with self._changed:
            found = self._tallies.get(shadow.rollout_id) or ShadowTally(shadow)
            counts = {name: getattr(found, name) + count for name, count in more.items()}
            why = found.why if why is None else why
            self._tallies[shadow.rollout_id] = replace(found, shadow=shadow, **counts, why=why)

    # ---- the thread

    def run(self, closing: threading.Event) -> None:
        """Compare until the worker closes, and what waits then for a moment longer."""
        try:
            while not closing.is_set():
                self.turn(closing)
            limit = self._clock() + DRAIN_S
            while self._waiting and self._clock() < limit:
                self.turn(closing)
        finally:
            self._give_up()
            self._end()
            self._output.close(DRAIN_S)

    def turn(self, closing: threading.Event) -> None:
        """Keep the candidate that is wanted ready, and compare what has gathered."""
        shadow = self._wanted()
        if self._runs is not None and (shadow is None or shadow.candidate != self._runs[0]) and not self._is_owed():
            self._end()
        if shadow is not None and not closing.is_set():
            self._ready(shadow)
        for _, group in groupby(self._gather(closing), key=lambda batch: batch.shadow.rollout_id):
            self._compare(list(group))

    def _is_owed(self) -> bool:
        """The candidate that runs has events waiting for it, before all others."""
        with self._changed:
            runs = self._runs
            return bool(self._waiting) and runs is not None and self._waiting[0][0].shadow.candidate == runs[0]

    def _gather(self, closing: threading.Event) -> list[Shadowed]:
        """What waits, up to so many events; nothing after a moment without any."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting, IDLE_S):
                return []
            if not closing.is_set():
                self._changed.wait_for(lambda: self._waiting_rows >= GATHER_ROWS, GATHER_S)
            found, rows, most = list[Shadowed](), 0, GATHER_ROWS if closing.is_set() else TOGETHER
            while self._waiting and (not found or rows + len(self._waiting[0][0]) <= most):
                batch, size = self._waiting.popleft()
                found.append(batch)
                rows += len(batch)
                self._waiting_bytes -= size
            self._waiting_rows -= rows
            return found

    def _ready(self, shadow: Shadow) -> None:
        if self._runs is not None:
            return
        if shadow.rollout_id != self._tried:  # the trouble of the one before is not its own
            self._tried, self._not_before, self._troubled = shadow.rollout_id, -math.inf, -math.inf
        if self._clock() < self._not_before:
            return
        try:
            plan = self._plan(shadow.candidate)
            self._runs = shadow.candidate, self._begin(shadow.candidate), plan
        except Exception as error:
            LOG.debug("a candidate could not be begun", exc_info=True)
            self._trouble(shadow, error.what if isinstance(error, StreamserveError) else repr(error))
        else:
            LOG.info("%s shadows %g%% of %s", shadow.candidate, shadow.share_bp / 100, shadow.where or "the stream")
            self._count(shadow, why="")

    def _compare(self, batches: Sequence[Shadowed]) -> None:
        """Batches of one rollout."""
        runs, shadow = self._runs, batches[-1].shadow
        if runs is None or runs[0] != shadow.candidate:
            self._count(shadow, unanswered=sum(map(len, batches)))
            return
        left = sum(map(len, batches))
        asked: Sheet | None = None
        try:
            for more in chain(self._asks(batches, runs[2]), [None]):
                answer = None if asked is None else runs[1].answer(self._deadline)
                try:
                    if more is not None:
                        runs[1].tell([more.table])
                finally:
                    if asked is not None and answer is not None:
                        self._write(shadow, asked, answer)
                        left -= len(answer)
                asked = more
        except IsolatedError as error:
            self._count(shadow, unanswered=left)
            self._trouble(shadow, error.what)
        except Exception as error:
            LOG.debug("a batch could not be shadowed", exc_info=True)
            self._count(shadow, unanswered=left)
            self._trouble(shadow, f"{type(error).__name__}: {error}")

    def _asks(self, batches: Sequence[Shadowed], plan: FeaturePlan) -> Iterator[Sheet]:
        """Of some GATHER_ROWS events each; made when they are wanted."""
        parts, rows = [list[Shadowed]()], 0
        for batch in batches:
            rows += len(batch)
            if parts[-1] and rows > GATHER_ROWS:
                parts.append([])
                rows = len(batch)
            parts[-1].append(batch)
        for part in parts:
            yield from sheets([(batch, self._columns(batch, plan)) for batch in part], plan)

    def _columns(self, batch: Shadowed, plan: FeaturePlan) -> BatchColumns:
        columns = batch.columns
        more = [view for view in plan.views if not columns.stored.knows(view)]
        return columns.with_more(more, self._store) if more else columns

    def _write(self, shadow: Shadow, asked: Sheet, answer: pa.Table) -> None:
        answer.validate(full=True)  # compiled code reads it next
        if len(answer) != len(asked):
            raise IsolatedError(f"it answered for {len(answer)} of {len(asked)} events")
        told = json.loads(answer.schema.metadata[b"told"])
        stamps, values = self._limits.clamp(asked.timestamps, self._now_ms()), answer.column("value").combine_chunks()
        self._output.write(Outgoing(self._topic, np.arange(len(asked)), asked.keys, values, None, stamps))
        failed = sum(told["errors"].values())
        self._count(shadow, compared=len(asked) - failed, failed=failed, agreed=told["agreed"], decided=told["decided"])

    def _trouble(self, shadow: Shadow, why: str) -> None:
        now = self._clock()
        self._pause = AGAIN_S[0] if now - self._troubled > WELL_S + self._pause else min(2 * self._pause, AGAIN_S[1])
        self._troubled, self._not_before = now, now + self._pause
        LOG.warning("%s can't shadow: %s; it is begun again in %.0f s", shadow.candidate, why, self._pause)
        self._end()
        self._count(shadow, why=why)

    def _give_up(self) -> None:
        """Nothing that waits is shadowed any more."""
        with self._changed:
            left, rows = [batch for batch, _ in self._waiting], self._waiting_rows
            self._waiting.clear()
            self._waiting_rows = self._waiting_bytes = 0
        for batch in left:
            self._count(batch.shadow, unanswered=len(batch))
        if rows:
            LOG.warning("%d events were not shadowed any more: the worker stops", rows)

    def _end(self) -> None:
        if self._runs is not None:
            self._runs[1].close()
            self._runs = None


def make_shadowing(
    clients: Clients,
    topology: Topology,
    topics: Topics,
    control: Control,
    versions: LoadedVersions,
    begin: Callable[[str], Isolated],
) -> Shadowing:
    """A worker's.

    Raises:
        StreamserveError: its topic can't be looked at.
    """
    settings, topic = clients.settings, topology.topic("shadow-decisions")
    return Shadowing(
        lambda: control.state.shadow(),  # noqa: PLW0108  (of the state of that moment)
        begin,
        versions.plan,
        RedisStore(settings),
        SideOutput(clients, topics.max_bytes([topic])[topic]),
        topic=topic,
        limits=topics.limits(topic),
        rows=settings.shadow_rows,
        size=settings.shadow_bytes,
        deadline=settings.shadow_deadline,
    )
