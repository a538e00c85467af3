"""Drift as metrics: the latest window of each version, on the worker that tells windows; chunks, on every worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from streamserve.drift.judge import Judged

Whose = tuple[str, str | None]  # version, segment; None: of all events


@dataclass(frozen=True, slots=True)
class DriftReading:
    """chunks, lost: written, and not arrived. troubles: times that windows had to wait. windows: the latest of each.

    changes: alerts that began or ended, by whose they are, the measure, whether it is held against the reference or
        stable, and which of both it was.
    """

    chunks: int = 0
    lost: int = 0
    troubles: int = 0
    windows: Mapping[Whose, Judged] = field(default_factory=dict)
    changes: Mapping[tuple[Whose, str, str, str], int] = field(default_factory=dict)


def drift_metrics(topology: str, now: DriftReading) -> Iterable[Metric]:
    known = [topology]
    for name, help_, value in (
        ("panes_chunks", "Chunks of drift counts written.", now.chunks),
        ("panes_chunks_lost", "Chunks that did not reach their topic: windows are incomplete.", now.lost),
        ("drift_troubles", "Times that drift windows had to wait, see the log.", now.troubles),
    ):
        counter = CounterMetricFamily(f"streamserve_{name}", help_, labels=["topology"])
        counter.add_metric(known, value)
        yield counter
    labels = ["topology", "version", "segment"]
    psi = GaugeMetricFamily("streamserve_drift_psi", "PSI of the latest window.", labels=[*labels, "measure"])
    limit = GaugeMetricFamily(
        "streamserve_drift_psi_limit", "PSI above which a window may count for an alert.", labels=[*labels, "measure"]
    )
    alert = GaugeMetricFamily("streamserve_drift_alert", "1 while a measure has drifted.", labels=[*labels, "measure"])
    end = GaugeMetricFamily(
        "streamserve_drift_window_end_seconds", "End of the latest window, event time since 1970.", labels=labels
    )
    rows = GaugeMetricFamily("streamserve_drift_window_rows", "Events of the latest window.", labels=labels)
    for (version, segment), judged in now.windows.items():
        whose = [*known, version, segment or ""]
        end.add_metric(whose, judged.window.end_ms / 1000)
        rows.add_metric(whose, judged.window.rows)
        for one in judged.measures:
            psi.add_metric([*whose, one.found.key], one.found.psi)
            limit.add_metric([*whose, one.found.key], one.found.limit * one.found.unit)
            alert.add_metric([*whose, one.found.key], float(one.alerting))
    changes = CounterMetricFamily(
        "streamserve_drift_alert_changes",
        "Alerts that began or ended.",
        labels=[*labels, "measure", "against", "change"],
    )
    for ((version, segment), measure, against, change), count in now.changes.items():
        changes.add_metric([*known, version, segment or "", measure, against, change], count)
    yield from (psi, limit, alert, end, rows, changes)
