"""Promise: what /metrics says is what happened, under names that are documented, in a form that Prometheus reads."""

from __future__ import annotations

import itertools
import math
import re
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from test_pipeline import STATIC, event, pipeline, version
from test_pipeline import raw as events

from streamserve.adapters.cost import WINDOW_S, Cost
from streamserve.adapters.drift_metrics import DriftReading
from streamserve.adapters.latency import BOUNDS_S, EventLatency
from streamserve.adapters.metrics import CONTENT_TYPE, Metrics, Reading, Sent
from streamserve.drift.alerts import AlertState, Status
from streamserve.drift.distances import Comparison
from streamserve.drift.judge import Measured
from streamserve.features.breaker import State, StoreReading
from streamserve.records import (
    ControlView,
    Cutover,
    FeatureStatus,
    OutputBatch,
    RawBatch,
    Reject,
    RoutingEpoch,
    Shadow,
    Stage,
    StageTimes,
    binary,
)
from streamserve.rollouts.shadow import ShadowTally
from streamserve.testing import StubModel

NOW = 1_700_000_000_000
ABOUT = {"topology": "t", "version": "1", "python": "3", "onnxruntime": "1.31", "provider": "cpu"}
SENT = Sent(at_ms=NOW, took_ns=3_000_000)
WALL = {"gather": 1, "queue": 2_000_000, "decode": 3, "route": 4, "enrich": 5, "score": 6, "emit": 7}
ORDER = (
    "stage",
    "error",
    "candidate",
    "outcome",
    "agreed",
    "why",
    "view",
    "status",
    "version",
    "segment",
    "measure",
    "against",
    "change",
    "decision",
    "partition",
    "to",
    "kind",
    "le",
)
STORE = StoreReading(State.OPEN, "timeout: x", {State.OPEN: 2, State.CLOSED: 1}, {"timeout": 5, "gone": 1}, 70)
TYPES = {"counter", "gauge", "histogram"}


class Clock:
    """Seconds and CPU seconds that a test moves."""

    def __init__(self):
        self.seconds = self.cpu = 100.0

    def pass_(self, seconds, cpu):
        self.seconds, self.cpu = self.seconds + seconds, self.cpu + cpu


def raw(ages_ms):
    count = len(ages_ms)
    stamps = np.array([-1 if age is None else NOW - age for age in ages_ms], np.int64)
    kinds, zeros = np.ones(count, np.uint8), np.zeros(count, np.int32)
    return RawBatch("e", zeros, np.arange(count), stamps, kinds, binary([None] * count), binary([b""] * count))


def batch(ages_ms=(5, 40, None), rejects=(), **more):
    given_ = raw(ages_ms)
    times = StageTimes(WALL, {"v1": 4_000_000, "v2": 30_000_000})
    return OutputBatch(given_, (), {}, len(given_) - len(rejects), tuple(rejects), **{"times": times, **more})


def metrics(clock=None):
    clock = clock or Clock()
    return Metrics("t", ABOUT, price=0.04, cpu=lambda: clock.cpu, seconds=lambda: clock.seconds)


def full():
    """A worker's metrics after a batch that has everything in it."""
    found = metrics()
    rejects = (Reject(0, Stage.DECODE, "Broken", ""), Reject(1, Stage.DECODE, "Broken", ""))
    done = batch(
        (5, 40, None, 7), rejects, decisions={"late": 1, "": 1}, statuses={("v", FeatureStatus.STALE): 2},
        fallbacks={("v2", "LateError"): 3},
    )  # fmt: skip
    found.took(done.raw)
    found.record(done, SENT)
    whose = "v1", None
    window = SimpleNamespace(end_ms=7_200_000, rows=300)
    moved = Comparison("feature:x", 300, 0.5, 0.1, 0.4, 0.01, 150.0, 30.0, 1 / 300, 0.2, ())
    judged = SimpleNamespace(
        window=window, measures=(Measured(moved, Status.INSUFFICIENT, AlertState(), alerting=True),)
    )
    shadow = ShadowTally(Shadow("v2", "r", 100), compared=10, agreed=7, decided=9, failed=1, unanswered=2, shed=3)
    return found.exposition(
        Reading(
            partitions=2, in_flight=1, commits=5, lag={0: 7, 3: 0}, store=STORE, shadow=shadow, shadow_lost=4,
            drift=DriftReading(5, 1, 2, {whose: judged}, {(whose, "feature:x", "stable", "begins"): 3}),
        )
    )  # fmt: skip


def families(exposition):
    return {family.name: family for family in text_string_to_metric_families(exposition.decode())}


def samples(exposition):
    """By name and labels, without the topology's."""
    found = {}
    for family in text_string_to_metric_families(exposition.decode()):
        for one in family.samples:
            values = (one.labels[name] for name in ORDER if name in one.labels)
            key = one.name.removeprefix("streamserve_"), *values
            assert key not in found, f"{key} twice"
            found[key] = one.value
    return found


# ---- what is counted


def test_a_batch_is_counted_by_what_became_of_it():
    found = samples(full())
    assert found["events_total",] == 4
    assert found["predictions_total",] == 2
    assert found["dead_letters_total", "decode", "Broken"] == 2
    assert (found["decisions_total", "late"], found["decisions_total", ""]) == (1, 1)
    assert found["feature_status_total", "v", "STALE"] == 2
    assert (found["batch_rows_count",], found["batch_rows_sum",]) == (1, 4)


def test_each_stage_and_each_version_has_its_own_times():
    found = samples(full())
    assert {key[1] for key in found if key[0] == "stage_seconds_count"} == {*WALL, "send"}
    assert found["stage_seconds_sum", "send"] == 0.003
    assert found["stage_seconds_sum", "queue"] == 0.002
    assert (found["score_seconds_sum", "v1"], found["score_seconds_sum", "v2"]) == (0.004, 0.03)
    assert found["score_seconds_bucket", "v1", "0.005"] == 1
    assert found["score_seconds_bucket", "v2", "0.02"] == 0


def test_a_batch_without_times_is_counted_all_the_same():
    found = metrics()
    found.record(batch(times=None), SENT)
    found.record(batch(times=StageTimes({"decode": 1})), SENT)
    said = samples(found.exposition(Reading()))
    assert said["events_total",] == 6
    assert said["stage_seconds_count", "decode"] == 1
    assert not any(key[0].startswith("score_seconds") for key in said)


def test_what_is_in_flight_goes_up_and_comes_down():
    found, one, two = metrics(), batch((1,) * 30), batch((1,) * 12)
    in_flight = []
    for step in (
        lambda: found.took(one.raw),
        lambda: found.took(two.raw),
        lambda: found.record(one, SENT),
        lambda: found.record(two, SENT),
    ):
        step()
        in_flight.append(samples(found.exposition(Reading()))["rows_in_flight",])
    assert in_flight == [30, 42, 12, 0]


def test_readings_are_those_of_the_moment_and_a_partition_that_went_is_gone():
    found = metrics()
    said = samples(found.exposition(Reading(partitions=2, in_flight=1, commits=5, lag={0: 7, 10: 0})))
    assert (said["partitions_owned",], said["batches_in_flight",], said["commits_total",]) == (2, 1, 5)
    assert (said["consumer_lag_records", "0"], said["consumer_lag_records", "10"]) == (7, 0)
    said = samples(found.exposition(Reading(lag={10: 3})))
    assert [key for key in said if key[0] == "consumer_lag_records"] == [("consumer_lag_records", "10")]


def test_the_latest_drift_window_is_told():
    found = samples(full())
    of = ("v1", "", "feature:x")
    assert found["drift_psi", *of] == 0.5
    assert found["drift_psi_limit", *of] == pytest.approx(0.1)
    assert found["drift_alert", *of] == 1
    assert found["drift_window_end_seconds", "v1", ""] == 7_200
    assert found["drift_window_rows", "v1", ""] == 300
    assert found["drift_alert_changes_total", *of, "stable", "begins"] == 3
    assert (found["panes_chunks_total",], found["panes_chunks_lost_total",], found["drift_troubles_total",]) == (
        5,
        1,
        2,
    )


def test_what_the_store_says_is_told():
    said = samples(full())
    assert said["store_breaker_state",] == 1
    assert {to: said["store_breaker_transitions_total", to] for to in ("closed", "open", "half_open")} == {
        "closed": 1, "open": 2, "half_open": 0,
    }  # fmt: skip
    assert (said["store_failures_total", "timeout"], said["store_failures_total", "gone"]) == (5, 1)
    assert said["store_rows_skipped_total",] == 70


def test_before_the_first_batch_the_counts_are_there_and_zero():
    said = samples(metrics().exposition(Reading()))
    assert said["events_total",] == said["predictions_total",] == said["rows_in_flight",] == 0
    assert said["event_latency_seconds_count",] == 0


# ---- where the times come from


def test_the_pipeline_times_each_version_and_the_wait_before_it():
    clock = iter(range(1000, 10**6))  # each look at the clock is a nanosecond later

    def taking(nanoseconds):
        def model(x):
            for _ in range(nanoseconds):
                next(clock)
            return x.sum(axis=1)

        return StubModel({"in": 1}, {"y": 1}, model)

    versions = {name: version(name, ("x",), taking(ns)) for name, ns in (("v1", 50), ("v2", 7))}
    joined = pipeline(versions)
    joined._clock_ns = lambda: next(clock)
    epochs = (RoutingEpoch(3, "v1"), RoutingEpoch(5, "v2"))
    view = ControlView("t", epochs, {("events", 0): (Cutover(5, 4),)})
    given_ = replace(events([event(i) for i in range(9)]), first_ns=100, ready_ns=400)
    times = joined.process(given_, view, NOW).times
    assert times.versions == {"v1": 51, "v2": 8}
    assert times.wall == {
        "gather": 300, "queue": 600, "decode": 1, "route": 1, "enrich": 1, "score": 63, "emit": 1,
    }  # fmt: skip


def test_a_batch_that_no_intake_made_did_not_wait():
    times = pipeline().process(events([event(1)]), STATIC, NOW).times
    assert set(times.wall) == {"decode", "route", "enrich", "score", "emit"}


# ---- latency


def test_latency_is_that_of_each_event():
    said = samples(full())
    assert said["event_latency_seconds_count",] == 3  # the fourth has no timestamp
    assert said["event_latency_seconds_sum",] == pytest.approx(0.052)
    assert said["event_latency_seconds_bucket", "0.002"] == 0
    assert said["event_latency_seconds_bucket", "0.005"] == 1  # a bound is inside
    assert said["event_latency_seconds_bucket", "0.01"] == 2
    assert said["event_latency_seconds_bucket", "0.05"] == 3
    assert said["event_latency_seconds_bucket", "+Inf"] == 3


@given(st.lists(st.lists(st.integers(-5000, 10**10), max_size=30), max_size=4))
def test_latency_over_any_batches_is_a_plain_count(batches):
    """-5,000: clocks that disagree. The expected half is written the slow way."""
    latency = EventLatency("l_seconds", "help", ["a"], ["b"])
    for ages in batches:
        latency.observe(NOW - np.array(ages, np.int64), NOW)
    (family,) = latency.collect()
    seconds = [max(age, 0) / 1000 for ages in batches for age in ages if age <= NOW]
    found = {one.labels.get("le"): one.value for one in family.samples if one.name == "l_seconds_bucket"}
    assert found == {**{str(b): sum(s <= b for s in seconds) for b in BOUNDS_S}, "+Inf": len(seconds)}
    (total,) = (one.value for one in family.samples if one.name == "l_seconds_sum")
    assert total == pytest.approx(sum(seconds))


# ---- cost


def test_the_cost_of_a_million_is_cpu_times_price_over_predictions():
    clock = Clock()
    found = metrics(clock)
    clock.pass_(10, 3.6)
    found.record(batch((1,) * 100), SENT)
    said = samples(found.exposition(Reading()))
    assert said["cost_per_million_predictions",] == pytest.approx(3.6 / 3600 * 0.04 / 100 * 1e6)
    assert said["cpu_seconds_total",] == pytest.approx(103.6)


def test_the_cost_is_that_of_the_window():
    clock = Clock()
    cost = Cost(3600.0, cpu=lambda: clock.cpu, seconds=lambda: clock.seconds)
    for _ in range(10 * int(WINDOW_S)):  # dear: one second of CPU a prediction
        clock.pass_(1, 1)
        cost.add(1)
    assert cost.per_million() == pytest.approx(1e6)
    for _ in range(int(WINDOW_S)):  # a release makes it a tenth
        clock.pass_(1, 0.1)
        cost.add(1)
    assert cost.per_million() == pytest.approx(1e5)
    assert len(cost._samples) <= WINDOW_S + 2


def test_idle_cpu_makes_the_few_predictions_dear_and_without_any_there_is_no_figure():
    clock = Clock()
    cost = Cost(3600.0, cpu=lambda: clock.cpu, seconds=lambda: clock.seconds)
    assert math.isnan(cost.per_million())
    clock.pass_(2, 1)
    cost.add(1)
    clock.pass_(WINDOW_S / 2, 9)
    assert cost.per_million() == pytest.approx(10e6)
    clock.pass_(WINDOW_S, 1)
    assert math.isnan(cost.per_million())


def test_many_batches_a_second_do_not_fill_the_window():
    clock = Clock()
    cost = Cost(1.0, cpu=lambda: clock.cpu, seconds=lambda: clock.seconds)
    for _ in range(5000):
        clock.pass_(0.01, 0.001)
        cost.add(3)
    assert len(cost._samples) <= 51
    assert cost.per_million() == pytest.approx(0.001 / 3 / 3600 * 1e6)


# ---- names, types, labels, and the list of them


def documented(text):
    """By name: type and labels, from the table of docs/operations.md."""
    row = re.compile(r"^\| `((?:streamserve|process)_\w+)` \| (\w+) \| ?([\w, ]*) ?\| (.+) \|$", re.MULTILINE)
    rows = row.findall(text)
    assert len({name for name, *_ in rows}) == len(rows), "a metric stands there twice"
    return {name: (kind, frozenset(labels.replace(" ", "").split(",")) - {""}) for name, kind, labels, _ in rows}


def exposed(exposition):
    found = {}
    for family in text_string_to_metric_families(exposition.decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for one in family.samples for label in one.labels if label != "le"}
        found[name] = family.type, frozenset(labels)
    return found


def test_the_list_in_the_documentation_is_what_is_exposed():
    assert documented((ROOT / "docs" / "operations.md").read_text()) == exposed(full())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| `streamserve_events_total` |", "| `streamserve_event_total` |"),
        ("`streamserve_batch_rows` | histogram", "`streamserve_batch_rows` | gauge"),
        ("| topology, view, status |", "| topology, view |"),
        ("| `process_max_fds` | gauge |", "| process_max_fds | gauge |"),
    ],
)
def test_a_planted_difference_between_list_and_exposition_is_caught(old, new):
    text = (ROOT / "docs" / "operations.md").read_text()
    assert old in text
    assert documented(text.replace(old, new)) != exposed(full())


def faults(exposition):
    """What `promtool check metrics` would say, of the rules that can go wrong here."""
    found = []
    for name, family in families(exposition).items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            found.append(f"{name}: letters")
        if not family.documentation or family.documentation == name:
            found.append(f"{name}: no help")
        if family.type not in TYPES:
            found.append(f"{name}: type {family.type}")
        if family.type != "counter" and name.endswith(("_total", "_count", "_sum", "_bucket")):
            found.append(f"{name}: a {family.type} with a counter's or histogram's ending")
        if re.search(r"(milli|micro|nano)seconds|_ms$|_minutes|kilobytes|megabytes", name):
            found.append(f"{name}: no base unit")
        if family.type == "histogram":
            found += [f"{name}: buckets fall" for line in _buckets(family) if line != sorted(line)]
            found += [f"{name}: no +Inf" for one in _by_labels(family) if "+Inf" not in one]
    return found


def _by_labels(family):
    lines = {}
    for one in family.samples:
        if one.name.endswith("_bucket"):
            key = tuple(v for k, v in one.labels.items() if k != "le")
            lines.setdefault(key, {})[one.labels["le"]] = one.value
    return list(lines.values())


def _buckets(family):
    return [[line[le] for le in sorted(line, key=float)] for line in _by_labels(family)]


def test_names_units_and_buckets_are_as_prometheus_wants_them():
    assert faults(full()) == []
    counters = [line.split()[2] for line in full().decode().splitlines() if re.match(r"# TYPE \S+ counter$", line)]
    assert counters
    assert all(name.endswith("_total") for name in counters)
    assert b"_created" not in full()


@pytest.mark.parametrize(
    ("planted", "fault"),
    [
        ("# HELP x_total h\n# TYPE x_total gauge\nx_total 1\n", "ending"),
        ("# HELP x_ms h\n# TYPE x_ms gauge\nx_ms 1\n", "base unit"),
        ("# TYPE x gauge\nx 1\n", "no help"),
        ("x 1\n", "type"),
        ("# HELP camelCase h\n# TYPE camelCase gauge\ncamelCase 1\n", "letters"),
        ('# HELP x h\n# TYPE x histogram\nx_bucket{le="1.0"} 3\nx_bucket{le="+Inf"} 2\nx_sum 1\nx_count 2\n', "fall"),
        ('# HELP x h\n# TYPE x histogram\nx_bucket{le="1.0"} 3\nx_sum 1\nx_count 3\n', "+Inf"),
    ],
)
def test_planted_faults_of_names_and_buckets_are_caught(planted, fault):
    assert any(fault in one for one in faults(planted.encode()))


def test_the_content_type_names_the_version_of_the_format():
    """Prometheus 3 refuses an exposition whose content type does not say what it is."""
    assert re.fullmatch(r"text/plain; version=\d\.\d\.\d; charset=utf-8", CONTENT_TYPE)


def test_labels_are_escaped():
    found = metrics()
    found.record(batch(decisions={'a"b\\c\nd': 2}), SENT)
    assert samples(found.exposition(Reading()))["decisions_total", 'a"b\\c\nd'] == 2


def test_nothing_is_recorded_event_by_event():
    """A batch of 20,000 rejects is as many calls as one of two."""
    found, calls = metrics(), []
    labels = found._flows._dead.labels
    found._flows._dead.labels = lambda *values: calls.append(values) or labels(*values)
    rejects = tuple(Reject(i, Stage.SCORE, "E", "") for i in range(20_000))
    found.record(batch((1,) * 20_000, rejects), SENT)
    assert calls == [("t", "score", "E")]
    assert samples(found.exposition(Reading()))["dead_letters_total", "score", "E"] == 20_000


def test_a_batch_is_told_and_a_page_is_made_one_after_the_other():
    """The threads that send tell of batches, the event loop makes pages; the clock that both ask sees one at a time."""
    inside, most, seconds = [], [], itertools.count()

    def cpu() -> float:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0)  # lets another thread in, if one can come
        inside.pop()
        return 1.0

    found = Metrics("t", ABOUT, price=0.04, cpu=cpu, seconds=lambda: float(next(seconds)))
    tellers = [threading.Thread(target=lambda: [found.record(batch(), SENT) for _ in range(20)]) for _ in range(3)]
    for one in tellers:
        one.start()
    while any(one.is_alive() for one in tellers):
        found.exposition(Reading())
    for one in tellers:
        one.join()
    assert max(most) == 1
    rows = re.search(rb"^streamserve_batch_rows_count\{[^}]*\} (\S+)$", found.exposition(Reading()), re.MULTILINE)
    assert float(rows[1]) == 60
