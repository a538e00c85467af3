"""Prometheus metrics, recorded once a micro-batch. Buckets are in seconds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from streamserve.records import FeatureStatus, OutputBatch

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ROWS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """The metrics of one worker, on a registry of its own."""

    def __init__(self, topology: str) -> None:
        self.registry = CollectorRegistry()
        on = self.registry
        self._topology = topology
        self._events = Counter("streamserve_predictions_total", "Predictions sent.", ["topology"], registry=on)
        self._dead = Counter(
            "streamserve_dead_letters_total",
            "Events sent to dead letters.",
            ["topology", "stage", "error"],
            registry=on,
        )
        self._decisions = Counter(
            "streamserve_decisions_total", "Decisions, by label.", ["topology", "decision"], registry=on
        )
        self._statuses = Counter(
            "streamserve_feature_status_total",
            "Events by what a view had.",
            ["topology", "view", "status"],
            registry=on,
        )
        self._stages = Histogram(
            "streamserve_stage_seconds",
            "Time of a stage, a batch.",
            ["topology", "stage"],
            buckets=SECONDS,
            registry=on,
        )
        self._rows = Histogram("streamserve_batch_rows", "Rows of a batch.", ["topology"], buckets=ROWS, registry=on)
        self.in_flight = Gauge("streamserve_batches_in_flight", "Batches between intake and output.", registry=on)
        self.partitions = Gauge("streamserve_partitions_owned", "Source partitions that this worker owns.", registry=on)
        self.commits = Gauge("streamserve_commits", "Offset commits that succeeded since the start.", registry=on)

    def record(self, batch: OutputBatch) -> None:
        name = self._topology
        self._rows.labels(name).observe(len(batch.raw))
        self._events.labels(name).inc(batch.events)
        for reject in batch.rejects:
            self._dead.labels(name, reject.stage.value, reject.error).inc()
        for label, count in batch.decisions.items():
            self._decisions.labels(name, label).inc(count)
        for (view, status), count in batch.statuses.items():
            self._statuses.labels(name, view, FeatureStatus(status).name).inc(count)
        if batch.times is not None:
            for stage, nanoseconds in batch.times.wall.items():
                self._stages.labels(name, stage).observe(nanoseconds / 1e9)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
