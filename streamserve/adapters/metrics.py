"""Prometheus metrics, recorded once a micro-batch: never for each event. Seconds, bytes and rows are base units.

docs/operations.md lists each of them; a test keeps that list and what is exposed here equal.
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client import disable_created_metrics as _no_created_series
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamserve.adapters.cost import Cost
from streamserve.adapters.drift_metrics import DriftReading, drift_metrics
from streamserve.adapters.latency import EventLatency
from streamserve.features.breaker import State, StoreReading
from streamserve.records import FeatureStatus, OutputBatch, RawBatch
from streamserve.rollouts.shadow import ShadowTally

SECONDS = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ROWS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
CONTENT_TYPE = CONTENT_TYPE_LATEST
SEND = "send"
STATES = {State.CLOSED: 0, State.OPEN: 1, State.HALF_OPEN: 2}

_no_created_series()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads


@dataclass(frozen=True, slots=True)
class Sent:
    """at_ms: the wall clock when a batch was in the Kafka client's hands; took_ns: how long that took."""

    at_ms: int
    took_ns: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What the intake and the store know when they are asked. lag: records behind the end, by partition."""

    partitions: int = 0
    in_flight: int = 0
    commits: int = 0
    aborts: int = 0
    incarnations: int = 0
    trouble: bool = False
    lag: Mapping[int, int] = field(default_factory=dict)
    store: StoreReading = field(default_factory=StoreReading)
    shadow: ShadowTally | None = None
    shadow_waiting: int = 0
    shadow_lost: int = 0
    drift: DriftReading | None = None


class Metrics:
    """The metrics of one worker, on a registry of its own.

    Args:
        about: labels of the build: version, provider, ...
        price: of one core for one hour.
        cpu: seconds of CPU that the process has used; seconds: a monotonic clock.
    """

    def __init__(
        self,
        topology: str,
        about: Mapping[str, str],
        *,
        price: float,
        cpu: Callable[[], float] = time.process_time,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = on = CollectorRegistry()
        self._lock = threading.Lock()  # batches are told from the threads that send them, pages from the event loop
        self._topology, self._cost = topology, Cost(price, cpu=cpu, seconds=seconds)
        self._flows = _Flows(on, topology)
        self._times = _Timings(on, topology)
        self._standing = _Standing(topology, cpu, self._cost)
        on.register(self._standing)
        ProcessCollector(registry=on)
        Info("streamserve_build", "What runs here; always 1.", registry=on).info(dict(about))

    def took(self, raw: RawBatch) -> None:
        """A batch was read. From the intake's thread."""
        self._flows.rows_in_flight.inc(len(raw))

    def record(self, batch: OutputBatch, sent: Sent) -> None:
        """A batch was sent. From any thread."""
        with self._lock:
            self._flows.record(batch)
            self._times.record(batch, sent)
            self._cost.add(batch.events)

    def exposition(self, reading: Reading) -> bytes:
        with self._lock:
            self._standing.reading = reading
            return generate_latest(self.registry)


class _Flows:
    """What went through, by what became of it."""

    def __init__(self, on: CollectorRegistry, topology: str) -> None:
        def counter(name: str, help_: str, *labels: str) -> Counter:
            return Counter(f"streamserve_{name}", help_, ["topology", *labels], registry=on)

        self._name = topology
        self._events = counter("events_total", "Events taken from the source and answered for.")
        self._predictions = counter("predictions_total", "Predictions sent.")
        self._dead = counter("dead_letters_total", "Events sent to dead letters.", "stage", "error")
        self._decisions = counter("decisions_total", "Decisions, by label.", "decision")
        self._fallbacks = counter("fallbacks_total", "Events that stable answered for a candidate.", "candidate", "why")
        self._statuses = counter("feature_status_total", "Events by what a view had for them.", "view", "status")
        self.rows_in_flight = Gauge(
            "streamserve_rows_in_flight", "Events between intake and output.", ["topology"], registry=on
        ).labels(topology)
        for one in (self._events, self._predictions):
            one.labels(topology)  # 0 before the first batch: a rate over nothing is no rate

    def record(self, batch: OutputBatch) -> None:
        name = self._name
        self.rows_in_flight.dec(len(batch.raw))
        self._events.labels(name).inc(len(batch.raw))
        self._predictions.labels(name).inc(batch.events)
        rejects = Tally((reject.stage.value, reject.error) for reject in batch.rejects)
        for (stage, error), count in rejects.items():
            self._dead.labels(name, stage, error).inc(count)
        for (version, why), count in batch.fallbacks.items():
            self._fallbacks.labels(name, version, why).inc(count)
        for label, count in batch.decisions.items():
            self._decisions.labels(name, label).inc(count)
        for (view, status), count in batch.statuses.items():
            self._statuses.labels(name, view, FeatureStatus(status).name).inc(count)


class _Timings:
    """How long a batch's stages took, how old its events were, how large it was."""

    def __init__(self, on: CollectorRegistry, topology: str) -> None:
        def histogram(name: str, help_: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"streamserve_{name}", help_, ["topology", *labels], buckets=buckets, registry=on)

        self._name = topology
        self._stages = histogram("stage_seconds", "Time that a batch spends in a stage.", SECONDS, "stage")
        self._scores = histogram("score_seconds", "Time of a model's run over its batch.", SECONDS, "version")
        self._rows = histogram("batch_rows", "Events of a batch.", ROWS)
        self._latency = EventLatency(
            "streamserve_event_latency_seconds",
            "From the timestamp of an event's record to the sending of what became of it.",
            ["topology"],
            [topology],
        )
        on.register(self._latency)

    def record(self, batch: OutputBatch, sent: Sent) -> None:
        name, raw = self._name, batch.raw
        self._rows.labels(name).observe(len(raw))
        self._latency.observe(raw.timestamps, sent.at_ms)
        self._stages.labels(name, SEND).observe(sent.took_ns / 1e9)
        if batch.times is not None:
            for stage, took in batch.times.wall.items():
                self._stages.labels(name, stage).observe(took / 1e9)
            for version, took in batch.times.versions.items():
                self._scores.labels(name, version).observe(took / 1e9)


class _Standing(Collector):
    """What is asked for at each exposition rather than recorded: positions, CPU, cost.

    A partition that was given up is gone at the next exposition, instead of standing still at its last lag.
    """

    def __init__(self, topology: str, cpu: Callable[[], float], cost: Cost) -> None:
        self._topology, self._cpu, self._cost = topology, cpu, cost
        self.reading = Reading()

    def collect(self) -> Iterable[Metric]:
        now, known = self.reading, [self._topology]

        def gauge(name: str, help_: str, value: float) -> Metric:
            family = GaugeMetricFamily(f"streamserve_{name}", help_, labels=["topology"])
            family.add_metric(known, value)
            return family

        def counter(name: str, help_: str, value: float) -> Metric:
            family = CounterMetricFamily(f"streamserve_{name}", help_, labels=["topology"])
            family.add_metric(known, value)
            return family

        lag = GaugeMetricFamily(
            "streamserve_consumer_lag_records",
            "Records between a partition's position and its end.",
            labels=["topology", "partition"],
        )
        for partition, behind in sorted(now.lag.items()):
            lag.add_metric([*known, str(partition)], behind)
        yield lag
        yield gauge("batches_in_flight", "Batches between intake and output.", now.in_flight)
        yield gauge("partitions_owned", "Source partitions that this worker owns.", now.partitions)
        yield counter("commits", "Offset commits that succeeded.", now.commits)
        yield counter("aborts", "Transactions that were given up; their events were read again.", now.aborts)
        yield counter("incarnations", "Times that this worker joined its group, the first included.", now.incarnations)
        yield gauge("in_trouble", "1 while /ready says why this worker does not get on, else 0.", float(now.trouble))
        yield counter("cpu_seconds", "CPU that the process used, user and system.", self._cpu())
        yield from self._store(now.store)
        yield from self._shadow(now)
        if now.drift is not None:
            yield from drift_metrics(self._topology, now.drift)
        yield gauge(
            "cost_per_million_predictions",
            "Price of the CPU of a million predictions, over the last five minutes.",
            self._cost.per_million(),
        )

    def _shadow(self, now: Reading) -> Iterable[Metric]:
        known, found = [self._topology], now.shadow
        events = CounterMetricFamily(
            "streamserve_shadow_events",
            "Events of the open rollout's shadow, by what became of them.",
            labels=["topology", "candidate", "outcome"],
        )
        decided = CounterMetricFamily(
            "streamserve_shadow_decisions",
            "Events on which both versions decided, by whether they decided alike.",
            labels=["topology", "candidate", "agreed"],
        )
        if found is not None:
            name = found.shadow.candidate
            for outcome in ("compared", "failed", "unanswered", "shed"):
                events.add_metric([*known, name, outcome], getattr(found, outcome))
            decided.add_metric([*known, name, "yes"], found.agreed)
            decided.add_metric([*known, name, "no"], found.decided - found.agreed)
        waiting = GaugeMetricFamily(
            "streamserve_shadow_rows_waiting", "Events that wait for the shadowing candidate.", labels=["topology"]
        )
        waiting.add_metric(known, now.shadow_waiting)
        lost = CounterMetricFamily(
            "streamserve_shadow_records_lost", "Shadow decisions that did not reach their topic.", labels=["topology"]
        )
        lost.add_metric(known, now.shadow_lost)
        return events, decided, waiting, lost

    def _store(self, now: StoreReading) -> Iterable[Metric]:
        known = [self._topology]
        state = GaugeMetricFamily(
            "streamserve_store_breaker_state",
            "0 closed, 1 open: the store is not asked, 2 probing.",
            labels=["topology"],
        )
        state.add_metric(known, STATES[now.state])
        transitions = CounterMetricFamily(
            "streamserve_store_breaker_transitions",
            "Changes of the breaker, by the new state.",
            labels=["topology", "to"],
        )
        for to in State:
            transitions.add_metric([*known, to.value], now.transitions.get(to, 0))
        failures = CounterMetricFamily(
            "streamserve_store_failures", "Asks of the store in vain, probes included.", labels=["topology", "kind"]
        )
        for kind, count in sorted(now.failures.items()):
            failures.add_metric([*known, kind], count)
        skipped = CounterMetricFamily(
            "streamserve_store_rows_skipped", "Rows not asked for: the breaker was open.", labels=["topology"]
        )
        skipped.add_metric(known, now.skipped)
        return state, transitions, failures, skipped
