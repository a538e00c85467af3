"""Promise: workers agree with the two logs about which version scores which event, whatever commands come when."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import pyarrow as pa
import pytest
from conftest import ROOT, Project, Worker, wait_until
from support import Broker, Record, linear_model, prediction, renamed, source_of

sys.path.insert(0, str(ROOT))  # chaos is a part of the checkout, not of the package

from chaos.law import Desk, cutovers, expected

pytestmark = pytest.mark.services
HERE = ROOT / "tests" / "topologies"
VERSIONS = {"v1": [1, 1, 1], "v2": [2, 2, 2], "v3": [-1, -1, -1]}
ROWS = 200


@pytest.fixture(params=["at_least_once", "exactly_once"])
def topology(project: Project, request) -> tuple[Project, Path, str]:
    """v1 in force, v2 and v3 in the registry."""
    shutil.copy(HERE / "reading.avsc", project.folder / "schemas")
    name = f"rolled-{request.param.replace('_', '-')}-{uuid.uuid4().hex[:6]}"
    file = renamed(project, HERE / "readings.py", name, more=f"'delivery': {request.param!r}, 'segments': ('value',)")
    project.ok("topics", "apply", file)
    for version, weights in VERSIONS.items():
        model = project.folder / f"{version}.onnx"
        linear_model(model, weights)
        project.ok("models", "add", file, version, model)
    project.ok("topology", "init", file, "--version", "v1")
    return project, file, name


class Feed:
    """Events that come all the while, each key over and over. rows: so many, fifty times a second."""

    def __init__(self, broker: Broker, topic: str, rows: int = ROWS) -> None:
        self._broker, self._topic, self._rows = broker, topic, rows
        self.places: list[tuple[int, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            there = len(self.places)
            self.places += self._broker.produce(self._topic, _events(range(there, there + self._rows)))


def _events(numbers: Iterable[int]) -> Iterator[Record]:
    for n in numbers:
        value = json.dumps({"id": str(n), "sensor": "s", "value": n % 7}).encode()
        yield Record(None if n % 40 == 0 else f"k{n % 997}".encode(), value)


def said_of(broker: Broker, topic: str) -> dict[tuple[int, int], dict[str, object]]:
    """By position, what was predicted; of several the one of the highest control epoch."""
    found: dict[tuple[int, int], dict[str, object]] = {}
    for record in broker.read(topic):
        said = prediction(record)
        place = source_of(said["prediction_id"])
        if place not in found or found[place]["control_epoch"] < said["control_epoch"]:
            found[place] = said
    return found


class Inputs:
    """What `expected` asks of."""

    def __init__(self, records: list[Record]) -> None:
        self.partitions = pa.array([r.partition for r in records]).to_numpy()
        self.offsets = pa.array([r.offset for r in records]).to_numpy()
        self.keys = pa.array([r.key for r in records], pa.binary())


def lawful(broker: Broker, name: str) -> Desk:
    """Hold every prediction against the logs; returns the control log's."""
    desk = Desk(name)
    desk.read((r.offset, r.value) for r in broker.read("streamserve.control"))
    events = broker.read(f"{name}.events")
    cuts = cutovers(((r.offset, r.value) for r in broker.read("streamserve.progress")), name)
    wanted = expected(Inputs(events), desk.epochs, cuts)
    said = said_of(broker, f"{name}.predictions")
    assert said.keys() == {record.position for record in events}
    for at, record in enumerate(events):
        one = said[record.position]
        what = (one["control_epoch"], one["model_version"], one["variant"], one["reason"])
        law = (wanted.epochs[at], wanted.versions[at], wanted.variants[at], wanted.reasons[at])
        fell = (wanted.epochs[at], wanted.stables[at], "STABLE", "FALLBACK")
        assert what == law or (what == fell and wanted.variants[at] == "CANDIDATE"), record.position
        value = json.loads(record.value)["value"]
        assert (one["scores"]["alarm"] > 0.5) == (VERSIONS[one["model_version"]][0] > 0) or value == 0
    return desk


def caught_up(broker: Broker, name: str) -> None:
    ends = broker.ends(f"{name}.events")
    wait_until(lambda: broker.committed(f"streamserve.{name}", f"{name}.events") == ends, 60, f"the commits of {name}")


def stop(*workers: Worker) -> None:
    for worker in workers:
        assert worker.stop() == 0, worker.log.read_text()


def test_a_version_is_prepared_ramped_killed_revived_and_promoted_under_the_stream(topology):
    project, file, name = topology
    broker = Broker(project.endpoints.bootstrap)
    with Feed(broker, f"{name}.events"):
        workers = [project.worker(file), project.worker(file)]
        assert "v2 is ready on 2 of 2 workers" in project.ok("rollout", "start", file, "v2", "--id", "r1")
        for weight in ("5%", "20%"):
            assert "in effect on" in project.ok("rollout", "shift", file, weight)
        workers[0].process.kill()
        project.ok("rollout", "kill", file, "v2", "--reason", "it is on fire")
        workers.append(project.worker(file))
        project.ok("rollout", "revive", file, "v2")
        refused = project.run("rollout", "shift", file, "50%")
        assert (refused.returncode, "PAUSED" in refused.stderr) == (5, True)
        project.ok("rollout", "resume", file)
        project.ok("rollout", "shift", file, "100%")
        project.ok("rollout", "promote", file)
        status = project.ok("rollout", "status", file)
        assert "stable v2" in status
        assert "no rollout is open" in status
    caught_up(broker, name)
    stop(*workers[1:])
    desk = lawful(broker, name)
    assert (desk.stable, len(desk.epochs)) == ("v2", 7)
    history = project.ok("rollout", "history", file)
    assert "it is on fire" in history
    assert "PAUSED" in history


def test_a_candidate_that_cannot_be_loaded_is_answered_for_by_stable(topology):
    project, file, name = topology
    broker = Broker(project.endpoints.bootstrap)
    with Feed(broker, f"{name}.events"):
        worker = project.worker(file)
        project.ok("rollout", "start", file, "v3", "--id", "r1", "--timeout", "0")
        (project.folder / "registry" / "readings" / "v3").rename(project.folder / "v3.gone")
        refused = project.run("rollout", "shift", file, "50%", "--timeout", "3")
        ready = "v3 is ready on 1 of 1" in refused.stdout
        if not ready:
            assert refused.returncode == 5, refused.stdout
            assert "not ready on every worker" in refused.stderr
            project.ok("rollout", "shift", file, "50%", "--override", "we know", "--timeout", "5")
        wait_until(lambda: worker.metric("streamserve_predictions_total") > 5000, 60, "predictions")
    caught_up(broker, name)
    stop(worker)
    lawful(broker, name)


def test_rules_send_segments_to_the_candidate_or_keep_them_from_it(topology):
    project, file, name = topology
    broker = Broker(project.endpoints.bootstrap)
    unknown = project.run("rollout", "start", file, "v3", "--id", "r0", "--always", "sensor=s", "--timeout", "0")
    assert (unknown.returncode, "UNKNOWN_FIELD" in unknown.stderr) == (5, True)
    with Feed(broker, f"{name}.events"):
        worker = project.worker(file)
        rules = ("--always", "value=3", "--never", "value=4,5")
        project.ok("rollout", "start", file, "v3", "--id", "r1", *rules)
        project.ok("rollout", "shift", file, "100%")
        before = len(broker.read(f"{name}.predictions"))
        wait_until(lambda: worker.metric("streamserve_predictions_total") > before + 2000, 60, "predictions")
    caught_up(broker, name)
    stop(worker)
    events = {record.position: record for record in broker.read(f"{name}.events")}
    said = said_of(broker, f"{name}.predictions")
    epoch = max(one["control_epoch"] for one in said.values())
    after = {place: one for place, one in said.items() if one["control_epoch"] == epoch and one["reason"] != "FALLBACK"}
    assert len(after) > 1000
    for place, one in after.items():
        value, key = json.loads(events[place].value)["value"], events[place].key
        wanted = (
            ("CANDIDATE", "TARGETING") if value == 3
            else ("STABLE", "TARGETING") if value in (4, 5)
            else ("STABLE", "SPLIT") if key is None
            else ("CANDIDATE", "SPLIT")
        )  # fmt: skip
        assert (one["variant"], one["reason"]) == wanted, place
