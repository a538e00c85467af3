"""The drift agent: pane chunks in, windows out, on the worker that owns partition 0 of the source.

It keeps nothing: what it has said stands in `<topology>.drift`, and what is still open is read again from
`<topology>.panes`. Whoever takes over goes on from there, and tells nothing twice and nothing otherwise. A worker that
slept may tell a window once more, in the same words.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from typing import Any

from streamserve.adapters.batch_topic import BatchTopic
from streamserve.adapters.control_log import LogWriter
from streamserve.adapters.drift_metrics import Whose
from streamserve.adapters.drift_topics import PaneRecord, PaneTail, end_of, read_open_windows
from streamserve.adapters.kafka import Clients
from streamserve.drift.chunks import Series
from streamserve.drift.fold import Fold
from streamserve.drift.judge import Beside, Change, Judged, States, judge
from streamserve.drift.reference import Reference
from streamserve.drift.windows import Window, WindowRule, told
from streamserve.errors import StreamserveError
from streamserve.pipeline.drift_window import encode, states_of, window_of
from streamserve.topology import Drift, Topology

LOG = logging.getLogger("streamserve.drift")
LOOK_S = 0.2
AGAIN_S = 5.0  # after trouble: windows wait, nobody waits for them
APPEND_S = 10.0
POLL_S = 0.2  # how long one look for chunks waits
LATELY = 50  # windows, by where they begin, whose counts are at hand for others of their time
SOURCES_S = 30.0  # between two looks for new partitions


class DriftAgent:
    """Of one worker. `run` is one thread's, which reads; `agent` is the Faust agent's function, which judges.

    Args:
        sources: how many partitions each source topic has, by now.
        owns: whether this worker has partition 0 of the source.
        reference: of a series; None: it is not to be had.
        stable: the version that is stable by now: others are held against it.
    """

    def __init__(
        self,
        clients: Clients,
        topology: Topology,
        drift: Drift,
        *,
        worker: str,
        schema_id: int,
        sources: Callable[[], Mapping[str, int]],
        owns: Callable[[], bool],
        reference: Callable[[Series], Reference | None],
        stable: Callable[[], str],
    ) -> None:
        self._clients, self._topology, self._worker, self._schema_id = clients, topology, worker, schema_id
        self._sources, self._owns, self._reference, self._stable = sources, owns, reference, stable
        self._rule = rule_of(drift)
        self._windows = LogWriter(clients, topology.topic("drift"), APPEND_S)
        self._alerts = LogWriter(clients, topology.topic("drift-alerts"), APPEND_S)
        self._tail: PaneTail | None = None
        self._fold = Fold(self._rule, {})
        self._states: dict[tuple[Series, str], States] = {}  # and against whom: "" is the reference
        self._lately: dict[int, dict[Series, Window]] = {}  # by where it begins
        self._trouble: Exception | None = None
        self._taken = threading.Event()
        self.told: dict[Whose, Judged] = {}  # the latest window of each, for the metrics
        self.changes: Counter[tuple[Whose, str, str, str]] = Counter()  # as `DriftReading` has them
        self.troubles = 0
        self._asked = 0.0

    # ---- reading

    def run(self, closing: threading.Event, topic: BatchTopic, loop: asyncio.AbstractEventLoop) -> None:
        """Read for the agent until the worker closes."""
        while not closing.wait(0 if self._tail is not None else LOOK_S):
            try:
                self._turn(closing, topic, loop)
            except StreamserveError as error:
                LOG.warning("drift windows wait: %s", error)
                self._rest(closing)
            except Exception:  # whatever it is, predictions go on
                LOG.exception("drift windows wait")
                self._rest(closing)
        self._close()

    def _rest(self, closing: threading.Event) -> None:
        self.troubles += 1
        self._close()
        closing.wait(AGAIN_S)

    def _turn(self, closing: threading.Event, topic: BatchTopic, loop: asyncio.AbstractEventLoop) -> None:
        if not self._owns():
            self._close()
            return
        if self._tail is None:
            self._open()
        assert self._tail is not None  # noqa: S101
        records = self._tail.poll(POLL_S)
        if not records:
            return
        self._taken.clear()
        topic.hand_over(records, loop)
        while not self._taken.wait(LOOK_S):
            if closing.is_set():
                return
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise trouble

    def _open(self) -> None:
        """Go on where whoever did this before was."""
        before = read_open_windows(self._clients, self._topology.topic("drift"), self._rule)
        windows = [window_of(one) for one in before]
        self._states, self._lately = states_of(before), {}
        for window in windows:
            self._remember(window)
        self._forget()
        earlier, panes = told(windows), self._topology.topic("panes")
        if earlier is not None and end_of(self._clients, panes) < earlier.panes_to:
            LOG.warning("%s is not the topic that windows were made of: those that were open are incomplete", panes)
            earlier = earlier.anew()
        self._fold = Fold(self._rule, self._sources(), earlier)
        self._tail = PaneTail(self._clients, panes, max(earlier.panes_from, 0) if earlier else 0)
        LOG.info("drift windows go on after %d that stand", len(windows))

    def _close(self) -> None:
        if self._tail is not None:
            self._tail.close()
            self._tail, self.told = None, {}

    # ---- judging

    async def agent(self, batches: AsyncIterable[Sequence[PaneRecord]]) -> None:
        """The Faust agent's function."""
        async for records in batches:
            try:
                await asyncio.to_thread(self._take, records)
            except Exception as error:  # noqa: BLE001  (raised again where it was read)
                self._trouble = error
            finally:
                self._taken.set()

    def _take(self, records: Sequence[PaneRecord]) -> None:
        if time.monotonic() - self._asked > SOURCES_S:
            self._fold.expect(self._sources())
            self._asked = time.monotonic()
        for record in records:
            why = self._fold.add(record.chunk, record.offset, record.timestamp)
            if why:
                LOG.debug("the chunk at offset %d does not count: %s", record.offset, why)
        due, stable = self._fold.due(), self._stable()
        for window in due:
            self._remember(window)
        for window in due:
            self._tell(window, self._stable_of(window, stable))
        self._forget()

    def _remember(self, window: Window) -> None:
        self._lately.setdefault(window.start_ms, {})[window.series] = window

    def _forget(self) -> None:
        for start in sorted(self._lately)[:-LATELY]:
            del self._lately[start]

    def _stable_of(self, window: Window, stable: str) -> Beside | None:
        """Stable's events of the same window; None: the window is stable's own, or there are none.

        Of several references of stable's, that of most events; they are not all of them then.
        """
        if window.series.version == stable:
            return None
        there = self._lately.get(window.start_ms, {})
        mine = [
            there[series] for series in there if (series.version, series.segment) == (stable, window.series.segment)
        ]
        for one in sorted(mine, key=lambda one: -one.rows):
            reference = self._reference(one.series)
            if reference is not None:
                return Beside(one, reference, whole=one.rows == sum(other.rows for other in mine))
        return None

    def _tell(self, window: Window, stable: Beside | None) -> None:
        of = window.series
        states = self._states.get((of, ""), {})
        beside = self._states.get((of, stable.window.series.version), {}) if stable else {}
        judged = judge(window, self._reference(of), states, stable, beside)
        now = time.time_ns() // 1_000_000
        value = encode(
            judged, topology=self._topology.name, model=self._topology.model, worker=self._worker, now_ms=now,
            schema_id=self._schema_id,
        )  # fmt: skip
        for change in judged.changes:
            self._alerts.append(json.dumps(self._alert(change, judged, now)).encode(), window.series.version)
        self._windows.append(value, window.series.version)
        for against, measures in (("", judged.measures), (judged.stable, judged.beside)):
            if measures:
                self._states[of, against] = {one.found.key: one.state for one in measures}
        whose = of.version, of.segment
        if whose not in self.told or self.told[whose].window.end_ms <= window.end_ms:
            self.told[whose] = judged

    def _alert(self, change: Change, judged: Judged, now: int) -> dict[str, Any]:
        window, found = judged.window, change.measured.found
        against = f"stable {change.against}" if change.against else "reference"
        whose = window.series.version, window.series.segment
        self.changes[whose, found.key, against.partition(" ")[0], "begins" if change.alert else "ends"] += 1
        now_is = "differs from" if change.alert else "is again as"
        LOG.warning("drift: %s of %s %s %s", found.key, window.series.name, now_is, against)
        return {
            "topology": self._topology.name,
            "model": self._topology.model,
            "version": window.series.version,
            "reference": window.series.reference,
            "segment": window.series.segment,
            "measure": found.key,
            "alert": change.alert,
            "against": against,
            "window": {"start": window.start_ms, "end": window.end_ms, "revision": window.revision},
            "n": found.n,
            "psi": found.psi,
            "noise": found.noise,
            "p": found.p,
            "moved": [{"bin": one.bin, "before": one.before, "after": one.after} for one in found.moved],
            "at": now,
            "worker": self._worker,
        }


def rule_of(drift: Drift) -> WindowRule:
    """A topology's windows as the fold takes them."""
    unit = dt.timedelta(milliseconds=1)
    slide = drift.window if drift.slide is None else drift.slide
    pane = drift.pane // unit
    lateness = -(-(drift.lateness // unit) // pane) * pane  # up to a whole pane
    return WindowRule(drift.window // unit, slide // unit, lateness, pane)
