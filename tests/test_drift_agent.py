"""Promise: the drift agent holds each window against what it may be held against, and shows the latest of each."""

from __future__ import annotations

import datetime as dt
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from prometheus_client.core import CollectorRegistry
from prometheus_client.exposition import generate_latest
from pydantic import ValidationError

from streamserve.adapters.drift_metrics import DriftReading, drift_metrics
from streamserve.adapters.drift_topics import RECENT, PaneRecord, read_open_windows
from streamserve.adapters.schema_ids import PinnedIndex
from streamserve.adapters.topics import panes_kept_ms
from streamserve.agents import drift as agents
from streamserve.drift import calibration
from streamserve.drift.building import numeric
from streamserve.drift.chunks import Cell, Chunk
from streamserve.drift.reference import Reference, build
from streamserve.drift.windows import WindowRule
from streamserve.pipeline.drift_window import told_of
from streamserve.simulate.explain import FramedReader
from streamserve.topology import Drift

PANE = 60_000
READER = FramedReader(PinnedIndex(ROOT / "schemas"))
MEASURE = numeric("x", np.random.default_rng(0).normal(size=2_000))
LOW, HIGH = 4, 6  # bins


class Log:
    """A topic that is written to."""

    def __init__(self, *_: object) -> None:
        self.values: list[bytes] = []

    def append(self, value: bytes, _: str) -> None:
        self.values.append(value)


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setattr(calibration, "DRAWS", (50, 50))
    monkeypatch.setattr(agents, "LogWriter", Log)


def reference(version: str, source: str = "one") -> Reference:
    return build(
        [MEASURE], model="m", version=version, manifest_sha256="0" * 64, rows=2_000, source=source,
        created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    )  # fmt: skip


class Exposed:
    """What prometheus asks."""

    def __init__(self, reading: DriftReading) -> None:
        self._reading = reading

    def collect(self):
        return drift_metrics("t", self._reading)


class Desk:
    """An agent, and the records that it is handed."""

    def __init__(self, *references: Reference, stable: str = "v1", lateness: int = 0) -> None:
        self.stable, self.offset = stable, 0
        known = {(one.version, one.fingerprint): one for one in references}
        drift = Drift(window=dt.timedelta(milliseconds=PANE), lateness=dt.timedelta(milliseconds=lateness))
        self.agent = agents.DriftAgent(
            None, SimpleNamespace(topic=lambda name: name, name="t", model="m"), drift, worker="w", schema_id=900_004,
            sources=lambda: {"t": 1}, owns=lambda: True, stable=lambda: self.stable,
            reference=lambda series: known.get((series.version, series.reference)),
        )  # fmt: skip

    def record(self, *cells: Cell) -> PaneRecord:
        self.offset += 1
        chunk = Chunk("t", 0, 9_000 * self.offset, 9_000 * (self.offset + 1), 1, False, 0, 10_000, cells)
        return PaneRecord(self.offset, self.offset, chunk)

    def hear(self, *cells: Cell) -> None:
        self.agent._take([self.record(*cells)])

    def windows(self, version: str) -> list[dict]:
        told = (told_of(READER.read(value)) for value in self.agent._windows.values)
        return [one for one in told if one["version"] == version]

    def alerts(self) -> list[tuple[bool, str]]:
        return [(one["alert"], one["against"]) for one in map(json.loads, self.agent._alerts.values)]

    def exposed(self) -> list[str]:
        reading = DriftReading(windows=dict(self.agent.told), changes=dict(self.agent.changes))
        registry = CollectorRegistry()
        registry.register(Exposed(reading))
        return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def cell(of: Reference, window: int, bin_: int, rows: int = 1_000) -> Cell:
    counts = np.zeros(len(MEASURE.bins), np.int64)
    counts[bin_] = rows
    return Cell(of.version, of.fingerprint, None, window * PANE, rows, rows, window * PANE + 1, counts)


def test_in_a_catch_up_every_window_of_a_candidate_is_held_against_stables():
    one, two = reference("v1"), reference("v2")
    desk = Desk(one, two)
    desk.agent._take([desk.record(cell(one, k, LOW), cell(two, k, LOW)) for k in range(80)])
    told = desk.windows("v2")
    assert len(told) >= 78
    assert all(window["beside"] for window in told)


def test_of_two_references_of_stables_that_of_most_events_counts_and_ends_no_alert():
    one, other, two = reference("v1"), reference("v1", "other"), reference("v2")
    desk = Desk(one, other, two)
    for k in range(9):
        split = (cell(one, k, HIGH, 60), cell(other, k, LOW, 940)) if k > 3 else (cell(other, k, LOW),)
        desk.hear(*split, cell(two, k, HIGH if k < 4 else LOW))
    told = desk.windows("v2")
    assert [window["beside"][0]["status"] for window in told[:4]] == ["WARN", "ALERT", "ALERT", "ALERT"]
    assert {window["beside"][0]["status"] for window in told[4:]} == {"ALERT"}  # what is not whole ends nothing
    assert all(window["beside"][0]["psi"] < 0.01 for window in told[4:])


def test_an_alert_against_a_stable_that_is_no_more_is_not_held_against_the_next():
    one, two, three = reference("v1"), reference("v2"), reference("v3")
    desk = Desk(one, two, three)
    for k in range(12):
        desk.stable = "v1" if k < 6 else "v3"
        stable = cell(one, k, LOW) if k < 5 else cell(three, k, HIGH)
        desk.hear(stable, cell(two, k, HIGH))
    told = [(window["stable"], window["beside"][0]["status"]) for window in desk.windows("v2")]
    assert told[:5] == [("v1", "WARN"), *[("v1", "ALERT")] * 4]
    assert set(told[5:]) == {("v3", "OK")}
    assert [one for one in desk.alerts() if "stable" in one[1]] == [(True, "stable v1")]
    assert desk.agent.changes[("v2", None), "feature:x", "stable", "begins"] == 1


def test_metrics_show_the_latest_window_once_whatever_was_revised_or_replaced():
    one, other = reference("v1"), reference("v1", "other")
    desk = Desk(one, other, lateness=5 * PANE)
    for k in range(5):
        desk.hear(cell(one, k, LOW))
    desk.hear(cell(one, 1, LOW, 3))
    assert [window["start"] // PANE for window in desk.windows("v1")][-1] == 1
    (latest,) = desk.agent.told.values()
    assert latest.window.start_ms == 3 * PANE
    for k in range(5, 8):
        desk.hear(cell(other, k, LOW))
    names = [line.rpartition(" ")[0] for line in desk.exposed()]
    assert len(set(names)) == len(names)
    assert (
        f'streamserve_drift_window_end_seconds{{segment="",topology="t",version="v1"}} {7 * PANE / 1000}'
        in desk.exposed()
    )


def test_the_gauge_of_an_alert_stays_up_in_a_window_of_too_few_events():
    one = reference("v1")
    desk = Desk(one)
    for k, rows in enumerate((1_000, 1_000, 1_000, 20, 1_000)):
        desk.hear(cell(one, k, LOW, rows))
    assert [window["status"] for window in desk.windows("v1")] == ["WARN", "ALERT", "ALERT", "INSUFFICIENT"]
    assert [line[-3:] for line in desk.exposed() if line.startswith("streamserve_drift_alert{")] == ["1.0"]


@pytest.mark.parametrize(("lateness", "asked"), [(0, 1), (3_000, 2), (10**9, 3)])
def test_all_windows_that_may_be_told_again_are_read_whatever_their_number(monkeypatch, lateness, asked):
    rule, looked = WindowRule(1, 1, lateness, 1), []
    there = [{"watermark": n, "end": n} for n in range(10_000)]

    def read(_clients, _topic, start):
        looked.append(start.value)
        return there[-start.value :]

    monkeypatch.setattr("streamserve.adapters.drift_topics.read_windows", read)
    found = read_open_windows(None, "drift", rule)
    assert looked == [RECENT * 4**n for n in range(asked)]
    assert len(found) == len(there) or found[0]["watermark"] < 10_000 - lateness - 1


@pytest.mark.parametrize(
    ("drift", "kept_days"),
    [(None, 7), (Drift(), 7), (Drift(window=dt.timedelta(days=5), lateness=dt.timedelta(days=1)), 12)],
)
def test_counts_are_kept_longer_than_windows_are_open(drift, kept_days):
    assert panes_kept_ms(drift) == kept_days * 86_400_000


@pytest.mark.parametrize(
    "given",
    [
        {"window": dt.timedelta(minutes=1), "slide": dt.timedelta(seconds=1), "lateness": dt.timedelta(hours=6)},
        {"window": dt.timedelta(minutes=1), "slide": dt.timedelta(seconds=0.5)},
        {"window": dt.timedelta(hours=1), "slide": dt.timedelta(minutes=7.31)},
    ],
)
def test_windows_of_too_many_panes_are_refused(given):
    with pytest.raises(ValidationError):
        Drift(**given)
