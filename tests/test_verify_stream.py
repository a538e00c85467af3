"""Promise: `predictions verify` finds that a run is what its topics say, and what was tampered with."""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, Project, wait_until
from support import Broker, Record, linear_model, prediction, renamed, source_of
from test_rollout_stream import VERSIONS, Feed, caught_up, stop
from test_verify import changed, flipped

pytestmark = pytest.mark.services
HERE = ROOT / "tests" / "topologies"
NAME = f"verified-{uuid.uuid4().hex[:6]}"
EVENTS = f"{NAME}.events"
ROWS = 5
LEAST = 2000  # predictions


@pytest.fixture(scope="module")
def run(tmp_path_factory, endpoints):
    """Two workers, one of them killed, and some commands; the views stand still."""
    project = Project(tmp_path_factory.mktemp("verify"), endpoints)
    (project.folder / "schemas").mkdir()
    shutil.copy(HERE / "reading.avsc", project.folder / "schemas")
    file = renamed(project, HERE / "readings.py", NAME)
    project.ok("topics", "apply", file)
    for version, weights in VERSIONS.items():
        project.ok("models", "add", file, version, linear_model(project.folder / f"{version}.onnx", weights))
    project.ok("topology", "init", file, "--version", "v1")
    broker, workers = Broker(endpoints.bootstrap), []
    try:
        with Feed(broker, EVENTS, ROWS):
            workers = [project.worker(file), project.worker(file)]
            project.ok("rollout", "start", file, "v2", "--id", "r1")
            project.ok("rollout", "shift", file, "20%")
            workers[0].process.kill()
            project.ok("rollout", "kill", file, "v2")
            workers.append(project.worker(file))
            project.ok("rollout", "rollback", file)
            project.ok("rollout", "start", file, "v3", "--id", "r2")
            project.ok("rollout", "shift", file, "50%")
            broker.produce(EVENTS, [Record(b"bad", b"{") for _ in range(20)])
            wait_until(lambda: len(broker.read(f"{NAME}.predictions")) > LEAST, 60, "predictions")
        caught_up(broker, NAME)
        stop(*workers[1:])
        yield project, file, broker
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()


def verify(run, *options, code=0):
    project, file, _ = run
    done = project.run("predictions", "verify", file, "--json", *options)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_run_with_kills_and_commands_agrees_in_any_batches(run):
    found = verify(run, "--batch-rows", "37")
    assert (found["differs"], found["missing"], found["changed"], found["strays"]) == (0, 0, 0, 0)
    _, _, broker = run
    assert found["events"] == len(broker.read(EVENTS))
    assert found["dead_letter"] == 20
    assert found["agrees"] + found["fell_back"] == found["events"] - 20 > LEAST
    assert len(found["epochs"]) == 5
    assert {reason for _, _, reason, _ in found["routes"]} >= {"STATIC", "SPLIT"}
    assert {version for version, *_ in found["routes"]} >= {"v1", "v3"}
    other = verify(run, "--batch-rows", "4000")
    assert other["batches"] < found["batches"]
    same = ("events", "agrees", "fell_back", "repeated", "epochs", "routes")
    assert {name: other[name] for name in same} == {name: found[name] for name in same}


def test_a_part_of_the_stream_can_be_looked_at(run):
    found = verify(run, "--last", "100")
    assert (found["events"], found["differs"]) == (400, 0)
    assert verify(run, "--from", "-100")["events"] == 400
    whole = verify(run)["events"]
    assert verify(run, "--from", "2020-01-01T00:00:00Z")["events"] == whole
    none = verify(run, "--until", "2020-01-01T00:00:00Z", code=1)
    assert (none["events"], none["good"]) == (0, False)


def test_people_read_what_was_found(run):
    project, file, _ = run
    done = project.run("predictions", "verify", file, "--last", "50")
    assert done.returncode == 0
    assert "200 events scored again" in done.stdout
    assert "nothing differs" in done.stdout
    wrong = project.run("predictions", "verify", file, "--until", "yesterday")
    assert (wrong.returncode, "is no ISO time" in wrong.stderr) == (2, True)


@pytest.fixture
def copied(run) -> tuple[Project, Path, Broker, str]:
    """The topology under another name, with the same source and registry, and logs that a test may edit."""
    project, _, broker = run
    name = f"tampered-{uuid.uuid4().hex[:6]}"
    file = renamed(project, HERE / "readings.py", name, topic=EVENTS)
    project.ok("topics", "apply", file)
    return project, file, broker, name


def copy(copied, *, control=lambda said: said, progress=lambda said: said, predictions=lambda some: some):
    """What stands of the run, as of the other topology: each record may be edited, and predictions as a list."""
    _, _, broker, name = copied
    numbers = {}
    for topic, edit in (("control", control), ("progress", progress)):
        for record in broker.read(f"streamserve.{topic}"):
            if NAME.encode() not in (record.value or b""):
                continue  # another topology's, or not even JSON
            said = json.loads(record.value)
            if said.get("topology") != NAME:
                continue
            said = edit({**said, "topology": name})
            if "owner_epochs" in said:
                said["owner_epochs"] = {p: numbers["progress", e] for p, e in said["owner_epochs"].items()}
            if said["kind"] == "cutover":
                said["epoch"] = numbers["control", said["epoch"]]
            [(_, at)] = broker.produce(f"streamserve.{topic}", [Record(name.encode(), json.dumps(said).encode())])
            numbers[topic, record.offset] = at
    made = []
    for record in broker.read(f"{NAME}.predictions"):
        epoch = numbers["control", prediction(record)["control_epoch"]]
        made.append(replace(record, value=changed(record.value, topology=name, control_epoch=epoch), offset=-1))
    broker.produce(f"{name}.predictions", predictions(made))
    letters = [replace(one, offset=-1, timestamp=0) for one in broker.read(f"{NAME}.dead-letters")]
    broker.produce(f"{name}.dead-letters", letters)
    broker.move(f"streamserve.{name}", EVENTS, broker.ends(EVENTS))


def tampered(copied, code=1, **edits):
    copy(copied, **edits)
    return verify(copied[:3], code=code)


def edited(at, **fields):
    """Fields of one prediction, functions of what stood there."""

    def edit(some):
        said = prediction(some[at])
        value = changed(some[at].value, **{name: make(said[name]) for name, make in fields.items()})
        return [*some[:at], replace(some[at], value=value), *some[at + 1 :]]

    return edit


def test_a_copy_agrees(copied):
    found = tampered(copied, code=0)
    assert found["agrees"] > LEAST
    assert len(found["epochs"]) == 5


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("scores", lambda said: {name: flipped(score) for name, score in said.items()}),
        ("model_version", lambda said: "v1" if said != "v1" else "v2"),
        ("reason", lambda _: "TARGETING"),
        ("variant", lambda said: "CANDIDATE" if said == "STABLE" else "STABLE"),
    ],
)
def test_one_edited_prediction_is_found(copied, field, make):
    found = tampered(copied, predictions=edited(1234, **{field: make}))
    assert (found["differs"], found["fields"]) == (1, {field: 1})


def test_a_dropped_prediction_is_missing_and_a_doubled_one_is_counted(copied):
    times = Counter(prediction(one)["prediction_id"] for one in copied[2].read(f"{NAME}.predictions"))
    once = next(one for one, count in times.items() if count == 1)

    def edit(some):
        return [*(one for one in some if prediction(one)["prediction_id"] != once), some[-1]]

    found = tampered(copied, predictions=edit)
    assert (found["missing"], found["differs"]) == (1, 0)
    assert found["examples"] == [
        {"prediction_id": once, "verdict": "MISSING", "fields": {"answer": ["nothing", "prediction"]}}
    ]
    assert found["repeated"] == times.total() - len(times) + 1


def test_a_moved_cutover_is_found(copied):
    moved = []

    def move(said):
        if said["kind"] == "cutover" and not moved and max(said["offsets"].values()) > 10:
            p = max(said["offsets"], key=said["offsets"].get)
            moved.append((int(p), said["offsets"][p]))
            said = {**said, "offsets": {**said["offsets"], p: said["offsets"][p] - 5}}
        return said

    found = tampered(copied, progress=move)
    assert found["differs"] == found["fields"]["control_epoch"] == 5
    [(partition, offset)] = moved
    places = {source_of(one["prediction_id"]) for one in found["examples"]}
    assert places == {(partition, offset - n) for n in range(1, 6)}


def test_an_edited_command_is_found(copied):
    def edit(said):
        return {**said, "weight_bp": 2500} if said.get("weight_bp") == 2000 else said

    found = tampered(copied, control=edit)
    fields = found["fields"]
    assert fields["model_version"] > 0, "keys that were stable's at 20%"
    # Once v2 is killed, the same keys go to stable for another reason
    assert found["differs"] == fields["model_version"] + fields["reason"]
    assert "control_epoch" not in fields


def test_a_topic_without_events_is_no_agreement(project):
    shutil.copy(HERE / "reading.avsc", project.folder / "schemas")
    file = renamed(project, HERE / "readings.py", "empty-verified")
    project.ok("topics", "apply", file)
    nothing = project.run("predictions", "verify", file)
    assert (nothing.returncode, "no version of empty-verified is in force" in nothing.stderr) == (5, True)
    project.ok("models", "add", file, "v1", linear_model(project.folder / "v1.onnx", [1, 1, 1]))
    project.ok("topology", "init", file, "--version", "v1")
    done = project.run("predictions", "verify", file)
    assert (done.returncode, "nothing to compare" in done.stdout) == (1, True)
