"""Promise: a worker goes on through each fault of Redis, says so in each prediction, and recovers by itself."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Project, Worker, wait_until
from redis_support import Server
from support import Broker, Record, by_source, linear_model

pytestmark = pytest.mark.services


@dataclass
class Stream:
    """Events, a few each 20 ms until the end. sent: how many, numbered from 0."""

    AT_ONCE: ClassVar[int] = 4
    broker: Broker
    topic: str
    sent: int = 0
    places: list[tuple[int, int]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.02):  # the stream's pace
            events = [
                Record(f"k{at}".encode(), json.dumps({"id": str(at), "sensor": f"s{at % 5}", "value": 1.0}).encode())
                for at in range(self.sent, self.sent + self.AT_ONCE)
            ]
            self.places += self.broker.produce(self.topic, events)
            self.sent += len(events)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(20)


@dataclass(frozen=True)
class Served:
    project: Project
    file: Path
    server: Server
    worker: Worker

    def scored_since(self) -> Callable[[], int]:
        """Counts the predictions from now on."""
        begin = self.worker.metric("streamserve_predictions_total")

        def scored() -> int:
            assert self.worker.process.poll() is None, self.worker.log.read_text()
            return int(self.worker.metric("streamserve_predictions_total") - begin)

        return scored

    def state(self) -> float:
        return self.worker.metric("streamserve_store_breaker_state")

    def health(self) -> dict[str, object]:
        code, text = self.worker.get("/health")
        assert code == 200
        return json.loads(text)

    def slow_batches(self, seconds: float) -> float:
        """Batches whose features took longer than that; one of the histogram's bounds."""
        text = self.worker.get("/metrics")[1]

        def of(line: str) -> float:
            found = re.search(rf"^streamserve_stage_seconds_{line}.*\}} (\S+)$", text, re.MULTILINE)
            return float(found[1]) if found else 0.0

        return of(r'count\{.*stage="enrich"') - of(rf'bucket\{{le="{seconds}",stage="enrich"')


@pytest.fixture(scope="module")
def served(endpoints, tmp_path_factory) -> Iterator[Served]:
    """A worker with the default settings of a store, and a Redis of its own with a row for each sensor."""
    folder = tmp_path_factory.mktemp("faults")
    server = Server(tmp_path_factory.mktemp("redis"))
    server.start()
    project, name, here = Project(folder, replace(endpoints, redis_url=server.url)), "faults", ROOT / "tests/topologies"
    (folder / "schemas").mkdir()
    shutil.copy(here / "reading.avsc", folder / "schemas")
    linear_model(folder / "model.onnx", [1, 1, 1])
    file = folder / f"{name}.py"
    text = (here / "readings.py").read_text()
    changes = (('"readings"', f'"{name}"'), (f'topic="{name}"', f'topic="{name}.events"'), ("=4)", "=1)"))
    for old, new in changes:  # one partition: how many predictions there are says of which events
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    rows = {"sensor": [f"s{n}" for n in range(5)], "mean": [2.0] * 5}
    pq.write_table(pa.table({**rows, "feature_time": pa.array([0] * 5, pa.timestamp("ms"))}), folder / "site.parquet")
    project.ok("features", "load", file, "site=site.parquet")
    project.ok("topics", "apply", file)
    project.ok("models", "add", file, "v1", folder / "model.onnx")
    project.ok("topology", "init", file, "--version", "v1")
    worker = project.worker(file)
    try:
        yield Served(project, file, server, worker)
        assert worker.stop() == 0, worker.log.read_text()
    finally:
        worker.process.kill()
        worker.process.wait(10)
        server.kill()


@dataclass(frozen=True)
class Fault:
    begin: Callable[[Server], None]
    mend: Callable[[Server], None]
    kind: str


FAULTS = {
    "hangs": Fault(Server.hang, Server.go_on, "timeout"),
    "is killed": Fault(Server.kill, Server.start, "gone"),
    "loads": Fault(Server.start_loading, lambda server: wait_until(server.answers, 20, "Redis"), "loading"),
    "takes rights away": Fault(
        lambda server: server.ask("ACL", "SETUSER", "default", "-mget"),
        lambda server: server.ask("ACL", "SETUSER", "default", "+mget"),
        "denied",
    ),
}


@dataclass(frozen=True)
class Lived:
    """Numbers of events: scored before the fault; sent when it was noticed, and scored before it was mended; sent
    when that was noticed. opened, closed: seconds from the fault, and from its mending, until it was noticed.
    """

    well: int
    ill: tuple[int, int]
    well_again: int
    opened: float
    closed: float


def live_through(fault: Fault, served: Served, stream: Stream) -> Lived:
    scored, server = served.scored_since(), served.server

    def stream_goes_on(past: int) -> int:
        return wait_until(lambda: (count := scored()) > past + 60 and count, 20, "the stream")

    well = stream_goes_on(0)
    begun = time.monotonic()
    fault.begin(server)
    try:
        wait_until(lambda: served.state() > 0, 10, "the opening")
        opened = time.monotonic() - begun
        noticed = stream.sent + stream.AT_ONCE
        ill = noticed, stream_goes_on(noticed)
        assert served.worker.get("/ready")[0] == 200
        assert served.health()["store"]["features"] == "defaults"
    finally:
        fault.mend(server)
    begun = time.monotonic()
    wait_until(lambda: served.state() == 0, 20, "the closing")
    closed = time.monotonic() - begun
    well_again = stream.sent + stream.AT_ONCE
    stream_goes_on(well_again)
    return Lived(well, ill, well_again, opened, closed)


@pytest.mark.parametrize("name", FAULTS)
def test_a_worker_goes_on_through_a_fault_and_says_so_in_each_prediction(served, name):
    worker, topic = served.worker, served.file.stem
    broker = Broker(served.project.endpoints.bootstrap)
    start, text = broker.ends(f"{topic}.predictions"), len(worker.log.read_text())
    before = {bound: served.slow_batches(bound) for bound in (0.25, 1.0)}
    scored, stream = served.scored_since(), Stream(broker, f"{topic}.events")
    with stream:
        lived = live_through(FAULTS[name], served, stream)
    wait_until(lambda: scored() >= stream.sent, 20, "the whole stream")
    assert served.health() == {"ready": True, "store": {"breaker": "closed"}}
    wait_until(lambda: broker.ends(f"{topic}.predictions")[0] >= start[0] + stream.sent, 20, "the predictions")
    found = by_source(broker.read(f"{topic}.predictions", start))
    assert sorted(found) == sorted(stream.places), "each event has its prediction, and one"
    statuses = [found[place][1]["feature_status"]["site"] for place in stream.places]
    assert set(statuses) == {"PRESENT", "TIMEOUT"}
    assert set(statuses[: lived.well]) == {"PRESENT"}
    assert set(statuses[slice(*lived.ill)]) == {"TIMEOUT"}
    assert set(statuses[lived.well_again :]) == {"PRESENT"}
    assert f'kind="{FAULTS[name].kind}"' in worker.get("/metrics")[1]
    assert served.slow_batches(1.0) == before[1.0], "a batch waited for longer than the store may take"
    most = 3 + 3 - 1  # failures that open it, and what was in flight with the last of them
    assert served.slow_batches(0.25) - before[0.25] <= most, "more batches waited than it takes to open"
    assert lived.closed < 5.0 + 1.0, "asked again later than the longest pause"
    lines = [line for line in worker.log.read_text()[text:].splitlines() if "features are defaults" in line]
    assert 1 <= len(lines) <= 3, lines
