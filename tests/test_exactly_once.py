"""Promise: a reader with read_committed sees each event once, whatever becomes of the workers."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import ROOT, Project, Worker, wait_until
from support import Broker, Record, linear_model, prediction, renamed, serve_until, source_of

from streamserve.dev.probe import free_ports

HERE = ROOT / "tests" / "topologies"
pytestmark = pytest.mark.services
WAYS = {
    "classic": {},
    "kip848": {"STREAMSERVE_KAFKA": '{"group.protocol": "consumer"}'},
    "messages": {"STREAMSERVE_NATIVE": "false"},
}
TAKEOVER_S = 30.0  # a loaded machine; the figure itself is measured by `make chaos`


@pytest.fixture
def once(project: Project, request) -> tuple[Project, Path]:
    """A topology in force that delivers exactly once."""
    shutil.copy(HERE / "reading.avsc", project.folder / "schemas")
    linear_model(project.folder / "model.onnx", [1, 1, 1])
    name = f"once-{abs(hash(request.node.name)) % 10**9}"
    file = renamed(project, HERE / "readings.py", name, more="'delivery': 'exactly_once'")
    project.ok("topics", "apply", file)
    project.ok("models", "add", file, "v1", project.folder / "model.onnx")
    project.ok("topology", "init", file, "--version", "v1")
    return project, file


def name_of(file: Path) -> str:
    return file.stem.replace("_", "-")


def events(numbers: Iterable[int]) -> list[Record]:
    return [
        Record(f"k{n % 50}".encode(), json.dumps({"id": str(n), "sensor": "s", "value": n % 7}).encode())
        for n in numbers
    ]


def seen(broker: Broker, name: str) -> Counter[tuple[int, int]]:
    """How often each position is predicted, for a reader with read_committed."""
    return Counter(source_of(prediction(one)["prediction_id"]) for one in broker.read(f"{name}.predictions"))


def wait_for_commits(broker: Broker, name: str, seconds: float = TAKEOVER_S) -> None:
    ends = broker.ends(f"{name}.events")
    wait_until(
        lambda: broker.committed(f"streamserve.{name}", f"{name}.events") == ends, seconds, f"the commits of {name}"
    )


def progress_of(broker: Broker, topology: str) -> list[dict]:
    records = [json.loads(one.value) for one in broker.read("streamserve.progress")]
    return [one for one in records if one["topology"] == topology]


@pytest.mark.parametrize("way", WAYS)
def test_each_event_is_seen_once_and_partitions_are_released_in_good_order(once, way):
    project, file = once
    broker, name = Broker(project.endpoints.bootstrap), name_of(file)
    places = broker.produce(f"{name}.events", events(range(5000)))
    worker = project.worker(file, **WAYS[way])
    serve_until(worker, len(places))
    assert worker.stop() == 0, worker.log.read_text()
    assert seen(broker, name) == Counter(places)
    assert broker.committed(f"streamserve.{name}", f"{name}.events") == broker.ends(f"{name}.events")
    owned, *_, released = progress_of(broker, name)
    assert (owned["kind"], released["kind"]) == ("owned", "released")
    assert owned["transactional_id"].startswith(f"streamserve.{name}.")


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_workers_events_are_seen_once(once, way):
    """SIGKILL with a transaction open: who takes over fences it, and its half-sent predictions are never seen."""
    project, file = once
    broker, name = Broker(project.endpoints.bootstrap), name_of(file)
    slow = {**WAYS[way], "STREAMSERVE_TRANSACTION_INTERVAL": "10"}  # it will not have committed yet
    places = broker.produce(f"{name}.events", events(range(3000)))
    first = project.worker(file, **slow)
    serve_until(first, 3000)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait(10)
    assert not seen(broker, name), "nothing of an open transaction is seen"
    places += broker.produce(f"{name}.events", events(range(3000, 4000)))
    second = project.worker(file, **WAYS[way])
    wait_for_commits(broker, name)
    assert seen(broker, name) == Counter(places)
    assert "fenced 1 claims" in second.log.read_text()
    assert second.stop() == 0, second.log.read_text()


@pytest.mark.parametrize("way", ["classic", "kip848"])
def test_a_sleeper_that_wakes_up_does_no_harm_and_serves_again(once, way):
    """Stopped beyond its session, with a transaction open, while another takes its partitions."""
    project, file = once
    broker, name = Broker(project.endpoints.bootstrap), name_of(file)
    places = broker.produce(f"{name}.events", events(range(3000)))
    sleeper = project.worker(file, **WAYS[way], STREAMSERVE_TRANSACTION_INTERVAL="10")
    serve_until(sleeper, 3000)
    sleeper.process.send_signal(signal.SIGSTOP)
    other = project.worker(file, **WAYS[way])
    wait_for_commits(broker, name, 60)
    assert seen(broker, name) == Counter(places)
    sleeper.process.send_signal(signal.SIGCONT)
    wait_until(lambda: "joins again as a new member" in sleeper.log.read_text(), TAKEOVER_S, "a new incarnation")
    places += broker.produce(f"{name}.events", events(range(3000, 6000)))
    wait_for_commits(broker, name)
    other.stop()
    places += broker.produce(f"{name}.events", events(range(6000, 7000)))
    wait_for_commits(broker, name, 60)
    assert seen(broker, name) == Counter(places)
    assert sleeper.stop() == 0, sleeper.log.read_text()


SPOILING = """
    import itertools, sys
    from confluent_kafka import KafkaError
    from streamserve.adapters.exactly_once import ExactlyOnceEmitter
    from streamserve.cli import main

    commits, commit = itertools.count(1), ExactlyOnceEmitter.commit

    def spoilt_at_times(self, *args):
        if next(commits) % 3 == 0:
            self._spoil(KafkaError(KafkaError._FAIL))
        return commit(self, *args)

    ExactlyOnceEmitter.commit = spoilt_at_times
    main()
"""


def spoiling_worker(project: Project, file: Path, **environ: str) -> Worker:
    """A worker every third of whose transactions is lost."""
    port, log = free_ports(1)[0], project.folder / "spoiling.log"
    command = [sys.executable, "-c", textwrap.dedent(SPOILING), "worker", str(file), "--web-port", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=project.folder, env={**project.environ, **environ}, stdout=stream, stderr=stream
        )
    return Worker(process, f"http://127.0.0.1:{port}", log)


@pytest.mark.parametrize("way", WAYS)
def test_what_an_aborted_transaction_held_is_read_again(once, way):
    project, file = once
    broker, name = Broker(project.endpoints.bootstrap), name_of(file)
    worker = spoiling_worker(project, file, **WAYS[way], STREAMSERVE_BATCH_ROWS="100")
    try:
        places = []
        for chunk in range(20):
            places += broker.produce(f"{name}.events", events(range(chunk * 500, chunk * 500 + 500)))
        wait_for_commits(broker, name, 60)
        assert seen(broker, name) == Counter(places)
        per_key: dict[bytes, list[tuple[int, int]]] = {}
        for one in broker.read(f"{name}.predictions"):
            per_key.setdefault(one.key, []).append(source_of(prediction(one)["prediction_id"]))
        assert all(found == sorted(found) for found in per_key.values()), "in the order of each key"
        assert "are read again from where nothing counts yet" in worker.log.read_text()
        assert worker.stop() == 0, worker.log.read_text()
    finally:
        worker.process.kill()
