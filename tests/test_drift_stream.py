"""Promise: a window's counts are those of its events, whoever counted them and whoever died; and what moved is told."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import fastavro
import numpy as np
import pytest
from confluent_kafka.admin import AdminClient
from conftest import ROOT, Project, Worker, wait_until
from streams import DELIVERIES, NO_REDIS
from support import Broker, Record, linear_model, prediction, renamed, serve_until

pytestmark = pytest.mark.services
HOUR, BEGAN = 3_600_000, 1_767_225_600_000  # the first of January 2026
PARTITIONS = 4
HOURS = 6
EVENTS = 3_000  # an hour
TOLD_S = 30.0
WINDOW = fastavro.parse_schema(json.loads((ROOT / "schemas" / "streamserve.drift-window.avsc").read_text()))
SENSORS = (*"ab" * 18, "c", None)  # c has too few of the training rows for windows of its own
QUIET = ("feature:square", "feature:value", "score:alarm")


@dataclass
class Watched:
    """A topology with drift in windows of an hour, and its reference."""

    project: Project
    file: object
    name: str

    @cached_property
    def broker(self) -> Broker:
        return Broker(self.project.endpoints.bootstrap)

    @cached_property
    def reference(self) -> dict:
        return json.loads((self.project.folder / "registry" / "readings" / "v1" / "drift-reference.json").read_text())

    def start(self, **environ: str) -> Worker:
        return self.project.worker(self.file, STREAMSERVE_REDIS_URL=NO_REDIS, **environ)

    def send(self, records: Iterable[Record]) -> None:
        self.broker.produce(f"{self.name}.events", records)

    def windows(self) -> list[dict]:
        """Every record, in its order."""
        return [
            fastavro.schemaless_reader(io.BytesIO(one.value[5:]), WINDOW)
            for one in self.broker.read(f"{self.name}.drift")
        ]

    def latest(self) -> dict[int, dict]:
        """Of each window, by its hour, the record of the highest revision."""
        found: dict[int, dict] = {}
        for one in sorted(self.windows(), key=lambda one: one["revision"]):
            if one["segment"] is not None:
                continue
            assert one["version"] == "v1"
            found[(one["start"] - BEGAN) // HOUR] = one
        return found

    def alerts(self) -> list[dict]:
        return [json.loads(one.value) for one in self.broker.read(f"{self.name}.drift-alerts")]

    def wait_for(self, hours: int, workers: Iterable[Worker], seconds: float = TOLD_S) -> None:
        def told() -> bool:
            for worker in workers:
                assert worker.process.poll() is None, worker.log.read_text()
            return self.latest().keys() >= set(range(hours))

        wait_until(told, seconds, f"windows up to hour {hours} of {self.name}")

    def end(self, hour: int, workers: Iterable[Worker], partitions: Iterable[int] = range(PARTITIONS)) -> None:
        """Once all that was sent is committed, go on at this hour."""
        topic = f"{self.name}.events"
        sent = self.broker.ends(topic)

        def committed() -> bool:
            for worker in workers:
                assert worker.process.poll() is None, worker.log.read_text()
            found = self.broker.committed(f"streamserve.{self.name}", topic)
            return all(found.get(partition, 0) >= end for partition, end in sent.items() if end)

        wait_until(committed, TOLD_S, f"the commits of {self.name}")
        self.send(ends(hour, partitions))

    def counts(self, window: dict, measure: str) -> list[int]:
        """The counts of a measure, bin by bin."""
        flat = [n for told in window["counts"] for n in ([told] if told > 0 else [0] * -told)]
        widths = [len(one["counts"]) for one in self.reference["measures"]]
        names = [f"{one['of']}:{one['name']}" for one in self.reference["measures"]]
        at = names.index(measure)
        first = sum(widths[:at])
        return flat[first : first + widths[at]]

    def expected(self, records: Iterable[Record], measure: str) -> dict[int, list[int]]:
        """The same from the events alone, by hour."""
        (about,) = [one for one in self.reference["measures"] if f"{one['of']}:{one['name']}" == measure]
        edges = np.array(about["edges"], np.float32)
        found: dict[int, list[int]] = {}
        for one in records:
            value, hour = json.loads(one.value)["value"], (one.timestamp - BEGAN) // HOUR
            if value is None:  # missing; and what is derived of nothing is no number
                bin_ = 0 if measure == "feature:value" else 1
            else:
                bin_ = 3 + int((edges < np.float32(value if measure == "feature:value" else value**2)).sum())
            found.setdefault(hour, [0] * (len(edges) + 4))[bin_] += 1
        return found


def name_of(request) -> str:
    return f"drift-{abs(hash(request.node.name)) % 10**9}"


def make(
    project: Project,
    name: str,
    delivery: str = "at_least_once",
    drift: str = "window=hours(1)",
    sensors: Sequence[str | None] = (None,),
) -> Watched:
    """As a user makes one."""
    shutil.copy(ROOT / "tests" / "topologies" / "reading.avsc", project.folder / "schemas")
    linear_model(project.folder / "model.onnx", [0.5, -0.1])
    more = f"'delivery': {delivery!r}, 'features': base.features[:2], 'drift': Drift({drift})"
    file = renamed(project, ROOT / "tests" / "topologies" / "readings.py", name, more=more)
    project.ok("topics", "apply", file)
    project.ok("models", "add", file, "v1", project.folder / "model.onnx")
    project.ok("topology", "init", file, "--version", "v1")
    rng = np.random.default_rng(7)
    values = [None if n % 50 == 49 else value for n, value in enumerate(rng.normal(size=20_000).tolist())]
    lines = [
        json.dumps({"id": str(n), "sensor": sensors[n % len(sensors)], "value": value})
        for n, value in enumerate(values)
    ]
    (project.folder / "training.jsonl").write_text("\n".join(lines))
    project.ok("drift", "reference", file, "v1", "--events", project.folder / "training.jsonl")
    return Watched(project, file, name)


def hours(
    first: int,
    stop: int,
    *,
    partitions: Iterable[int] = range(PARTITIONS),
    shift: Mapping[int, float] = {},
    sensors: Sequence[str | None] = (None,),
):
    """Readings in the order of their time, which is their records' own; one of fifty has no value.

    shift: by hour, of the last sensor but two.
    """
    rng, at = np.random.default_rng([first, stop]), tuple(partitions)
    made = []
    for hour in range(first, stop):
        times = np.sort(rng.integers(0, HOUR, EVENTS)) + BEGAN + hour * HOUR
        values = rng.normal(size=EVENTS)
        for n, (time, value) in enumerate(zip(times.tolist(), values.tolist(), strict=True)):
            sensor = sensors[n % len(sensors)]
            moved = value + (shift.get(hour, 0.0) if sensor == sensors[-3:][0] else 0.0)
            told = {"id": f"{hour}-{n}", "sensor": sensor, "value": None if n % 50 == 49 else moved}
            partition = at[int(rng.integers(len(at)))]
            made.append(Record(b"k", json.dumps(told).encode(), timestamp=time, partition=partition))
    return made


def ends(hour: int, partitions: Iterable[int] = range(PARTITIONS)) -> list[Record]:
    """Events, enough to be believed where they come by themselves, with which all windows before this hour are over."""
    return [
        Record(b"k", b'{"id": "end", "value": 0.0}', timestamp=BEGAN + hour * HOUR + n, partition=partition)
        for n in range(100)
        for partition in partitions
    ]


def check(watched: Watched, records: list[Record], first: int = 0) -> None:
    """Each window is whole, and its counts are those of its events."""
    latest = watched.latest()
    for measure in ("feature:value", "feature:square"):
        for hour, counts in watched.expected(records, measure).items():
            if hour >= first:
                assert watched.counts(latest[hour], measure) == counts, (measure, hour)
                assert latest[hour]["complete"], hour
                assert latest[hour]["rows"] == latest[hour]["counted"] == EVENTS


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_windows_hold_what_was_sent_and_nothing_without_drift_is_an_alert(project, request, delivery):
    watched = make(project, name_of(request), delivery)
    records = hours(0, HOURS)
    worker = watched.start()
    watched.send(records)
    watched.end(HOURS + 1, [worker])
    watched.wait_for(HOURS, [worker])
    assert worker.stop() == 0, worker.log.read_text()
    check(watched, records)
    assert [one["status"] for one in watched.latest().values()][:HOURS] == ["OK"] * HOURS
    assert watched.alerts() == []
    assert {one["revision"] for one in watched.windows()} == {0}
    for one in watched.windows():
        assert one["worker"]
        assert {each["measure"] for each in one["measures"]} >= set(QUIET)


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_killed_worker_and_what_is_read_again_leave_the_windows_as_they_are(project, request, delivery):
    watched = make(project, name_of(request), delivery)
    records = hours(0, HOURS)
    workers = [watched.start(STREAMSERVE_COMMIT_INTERVAL="0.3") for _ in range(2)]
    parts = [records[at : at + EVENTS] for at in range(0, len(records), EVENTS)]
    for number, part in enumerate(parts):
        watched.send(part)
        if number in {1, 3}:  # in the midst of what it has read and not committed
            workers[0].process.kill()
            workers[0].process.wait(10)
            workers = [*workers[1:], watched.start(STREAMSERVE_COMMIT_INTERVAL="0.3")]
    watched.end(HOURS + 1, workers)
    watched.wait_for(HOURS, workers, 60)
    told = watched.windows()
    for worker in workers:
        assert worker.stop() == 0, worker.log.read_text()
    check(watched, records)
    kept: dict[tuple[int, int], str] = {}
    for one in told:  # who takes over may say the same again, and nothing else
        assert kept.setdefault((one["start"], one["revision"]), one["digest"]) == one["digest"]


def test_who_takes_over_says_nothing_twice_and_goes_on(project, request):
    watched = make(project, name_of(request))
    records = hours(0, HOURS)
    half = len(records) // 2 + 700  # in the midst of an hour
    worker = watched.start()
    watched.send(records[:half])
    watched.wait_for(HOURS // 2 - 1, [worker])  # the end of a burst is believed with what comes after it
    assert worker.stop() == 0
    worker = watched.start()
    watched.send(records[half:])
    watched.end(HOURS + 1, [worker])
    watched.wait_for(HOURS, [worker])
    assert worker.stop() == 0
    check(watched, records)
    said = [(one["start"], one["revision"]) for one in watched.windows()]
    assert len(set(said)) == len(said)


def test_a_partition_that_has_nothing_holds_no_window_up_once_that_is_sure(project, request):
    watched = make(project, name_of(request))
    records = hours(0, 2, partitions=[1, 3])
    worker = watched.start()
    watched.send(records)
    watched.end(3, [worker], [1, 3])
    watched.wait_for(2, [worker])
    check(watched, records)
    assert worker.stop() == 0


def test_what_moves_is_told_and_so_is_its_end(project, request):
    watched = make(project, name_of(request), drift="window=hours(1), clear=2")
    records = hours(0, 8, shift={2: 0.3, 3: 0.3, 4: 0.3})
    worker = watched.start()
    watched.send(records)
    watched.end(9, [worker])
    watched.wait_for(8, [worker])
    assert worker.stop() == 0
    value = [
        next(each for each in one["measures"] if each["measure"] == "feature:value")
        for _, one in sorted(watched.latest().items())
    ]
    assert [one["status"] for one in value[:8]] == ["OK", "OK", "WARN", "ALERT", "ALERT", "ALERT", "OK", "OK"]
    assert all(one["psi"] > 3 * one["limit"] > one["noise"] for one in value[2:5])
    assert all(one["p"] < 1e-6 for one in value[2:5])
    told = [(one["alert"], (one["window"]["start"] - BEGAN) // HOUR) for one in watched.alerts()
            if one["measure"] == "feature:value"]  # fmt: skip
    assert told == [(True, 3), (False, 6)]
    reported(watched)
    rebuilt(watched)


def reported(watched: Watched) -> None:
    """What people are shown of it."""
    project, file = watched.project, watched.file
    assert "readings v1: no drift in" in project.ok("drift", "report", file)
    told = json.loads(project.ok("drift", "report", file, "--json", "--last", "4"))
    assert [len(one["measures"]) for one in told["windows"]] == [4] * 4
    project.ok("drift", "report", file, "--html", project.folder / "drift.html")
    assert (project.folder / "drift.html").read_text().startswith("<!doctype html>")
    lines = project.ok("drift", "watch", file, "--no-follow", "--from", "beginning").splitlines()
    assert sum("ALERT" in line for line in lines) == 3
    refused = project.run("drift", "report", file, "--version", "v9")
    assert (refused.returncode, "there are windows of v1" in refused.stderr) == (2, True)


def rebuilt(watched: Watched) -> None:
    """A reference of the stream itself, in place of that of the training data."""
    project, file = watched.project, watched.file
    refused = project.run("drift", "reference", file, "v1", "--from", "-1000")
    assert (refused.returncode, "--replace" in refused.stderr) == (8, True)
    said = project.ok("drift", "reference", file, "v1", "--from", "-1000", "--replace", "--like", "v1")
    assert f"4,000 events of topic {watched.name}.events from -1000" in said
    few = project.run("drift", "reference", file, "v1", "--from", "-10", "--replace")
    assert (few.returncode, "40 of 40 events could be scored" in few.stderr) == (8, True)
    neither = project.run("drift", "reference", file, "v1")
    assert neither.returncode == 2
    training = project.folder / "training.jsonl"
    both = ("drift", "definitions", file, "v1", "--events", training, "--against", training)
    told = json.loads(project.ok(*both, "--json"))
    assert told.keys() == {"feature:value", "feature:square", "score:alarm"}
    assert all(value == 0 for one in told.values() for value in one.values())
    assert "sturges-floor" in project.ok(*both)


def test_late_events_make_a_window_anew_within_the_lateness_and_are_counted_beyond_it(project, request):
    watched = make(project, name_of(request), drift="window=hours(1), lateness=hours(1)")
    records = hours(0, 3)
    middle = len(records) // 2
    late, later = records[100:160], records[200:230]
    worker = watched.start()
    watched.send([*records[:100], *records[160:200], *records[230:middle]])
    watched.wait_for(1, [worker])  # it is over, and open for as long again
    watched.send(late)
    wait_until(lambda: watched.latest()[0]["rows"] == EVENTS - 30, TOLD_S, "the first window anew")
    watched.send(records[middle:])
    watched.end(4, [worker])
    watched.wait_for(3, [worker])
    watched.send(later)
    watched.end(6, [worker])
    watched.wait_for(5, [worker])
    assert worker.stop() == 0
    told = [(one["revision"], one["rows"]) for one in watched.windows() if one["start"] == BEGAN]
    assert (told[0], told[-1][1]) == ((0, EVENTS - 90), EVENTS - 30)
    assert told == sorted(set(told))  # the late ones came in one batch or in several
    assert [revision for revision, _ in told] == list(range(len(told)))
    assert sum(one["late"] for one in watched.windows()) == 30


def test_segments_have_windows_references_and_alerts_of_their_own(project, request):
    watched = make(project, name_of(request), drift="window=hours(1), segment='sensor'", sensors=SENSORS)
    assert [one["value"] for one in watched.reference["segments"]] == ["a", "b"]
    records = hours(0, 5, sensors=SENSORS, shift={2: 0.6, 3: 0.6})
    worker = watched.start()
    watched.send(records)
    watched.end(6, [worker])
    watched.wait_for(5, [worker])
    assert worker.stop() == 0
    told: dict[str | None, list[dict]] = {}
    for one in watched.windows():
        told.setdefault(one["segment"], []).append(one)
    assert told.keys() == {None, "a", "b"}
    for segment in ("a", "b"):
        mine = [one for one in records if json.loads(one.value)["sensor"] == segment]
        for hour, counts in watched.expected(mine, "feature:value").items():
            window = told[segment][hour]
            assert (watched.counts(window, "feature:value"), window["rows"]) == (counts, sum(counts))
            assert window["complete"]
    assert [one["rows"] for one in told[None]][:5] == [EVENTS] * 5
    assert [one["status"] for one in told["a"]][:5] == ["OK"] * 5
    assert [one["status"] for one in told["b"]][:5] == ["OK", "OK", "WARN", "ALERT", "ALERT"]
    assert {one["segment"] for one in watched.alerts()} <= {None, "b"}
    assert ("b", "feature:value") in {(one["segment"], one["measure"]) for one in watched.alerts()}
    report = ("drift", "report", watched.file)
    assert "readings v1, b: " in project.ok(*report, "--segment", "b")
    assert "no drift in a" in project.ok(*report)
    refused = project.run(*report, "--segment", "c")
    assert (refused.returncode, "v1; v1, a; v1, b" in refused.stderr) == (2, True)
    assert "v1, b" in project.ok("drift", "watch", watched.file, "--no-follow", "--from", "beginning")


def test_predictions_go_on_where_chunks_can_not_be_written(project, request):
    watched = make(project, name_of(request))
    worker = watched.start()
    watched.send(hours(0, 1))
    serve_until(worker, EVENTS)
    admin = AdminClient({"bootstrap.servers": project.endpoints.bootstrap})
    for done in admin.delete_topics([f"{watched.name}.panes", f"{watched.name}.drift"]).values():
        done.result()
    records = hours(1, 3)
    for one, other in pairwise([0, EVENTS, 2 * EVENTS]):
        watched.send(records[one:other])
        serve_until(worker, EVENTS + other)
    assert worker.stop() == 0, worker.log.read_text()
    assert len({prediction(one)["prediction_id"] for one in watched.broker.read(f"{watched.name}.predictions")}) == (
        3 * EVENTS
    )
