"""Promise: Redis slow, gone, restarted, full or refusing costs features, and says so; never an event, never a stall.

Each fault is one that a real Redis has; only what no Redis does (broken replies, single bytes) is played.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from conftest import ROOT, Project, Worker, wait_until
from redis.cluster import key_slot
from redis_support import Scripted, Server, asked
from support import Broker, Record, by_source, linear_model

from streamserve.adapters.redis_faults import ERRORS, Kind, kind_of
from streamserve.adapters.redis_store import PROBES, RedisStore
from streamserve.dev.probe import free_ports
from streamserve.errors import RedisError
from streamserve.features.breaker import State
from streamserve.records import FeatureStatus

TIMEOUT_S = 0.25  # of the store, in these tests
SLACK_S = 0.5  # for a loaded machine to notice that time is over
KEYS = [b"streamserve:v:f:%d" % at for at in range(50)]
ROWS = [b"row %d" % at for at in range(50)]


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def store() -> Iterator[Callable[..., RedisStore]]:
    """Opens stores that the test's end closes."""
    with contextlib.ExitStack() as stack:

        def opened(partner: Server | Scripted, **more: object) -> RedisStore:
            made = RedisStore(partner.settings(**{"store_timeout": TIMEOUT_S, **more}))
            stack.callback(made.close)
            return made

        yield opened


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    with contextlib.ExitStack() as stack:

        def started(serve: Callable[[socket.socket, int], None]) -> Scripted:
            made = Scripted(serve)
            stack.callback(made.close)
            return made

        yield started


def timed(store: RedisStore, keys=KEYS) -> tuple[float, FeatureStatus]:
    begun = time.monotonic()
    answer = store.fetch(keys)
    assert (answer.values is None) == (answer.status is FeatureStatus.TIMEOUT)
    return time.monotonic() - begun, answer.status


def back(store: RedisStore, seconds: float = 10.0) -> float:
    """Seconds until the breaker is closed, nobody asking meanwhile."""
    begun = time.monotonic()
    wait_until(lambda: store.reading().state is State.CLOSED, seconds, "the closing")
    return time.monotonic() - begun


def filled(server: Server, *options: str) -> None:
    server.start(*options)
    server.ask("MSET", *[one for pair in zip(KEYS, ROWS, strict=True) for one in pair])


# ---- the wait is bounded


def by_drops(reply: bytes, every_s: float) -> Callable[[socket.socket, int], None]:
    def serve(connection: socket.socket, number: int) -> None:
        asked(connection)
        never = threading.Event()
        for at in range(len(reply)):
            connection.sendall(reply[at : at + 1])
            never.wait(every_s)

    return serve


def test_a_server_that_sends_byte_after_byte_holds_a_batch_no_longer_than_one_that_is_mute(scripted, store):
    """Each byte comes within the socket's timeout: by that alone this takes 40 seconds."""
    slow = scripted(by_drops(b"*1\r\n$2000\r\n" + b"x" * 2000 + b"\r\n", TIMEOUT_S / 5))
    took, status = timed(store(slow), [b"k"])
    assert status is FeatureStatus.TIMEOUT
    assert TIMEOUT_S * 0.9 < took < TIMEOUT_S + SLACK_S


def test_a_handshake_by_single_bytes_is_bounded_too(scripted, store):
    slow = scripted(by_drops(b"-ERR " + b"x" * 500 + b"\r\n", TIMEOUT_S / 5))
    partner = slow.settings(store_timeout=TIMEOUT_S, store_failures=9)
    made = store(slow)
    made.close()
    url = partner.redis_url.replace("redis://", "redis://user:password@")
    made = RedisStore(partner.model_copy(update={"redis_url": url}))
    took, status = timed(made)
    made.close()
    assert status is FeatureStatus.TIMEOUT
    assert took < TIMEOUT_S + SLACK_S


def test_one_that_does_not_read_holds_a_batch_no_longer(scripted, store):
    """What is sent is larger than the buffers between."""
    mute = scripted(lambda connection, number: threading.Event().wait(5))
    took, status = timed(store(mute), [b"k" * 1000] * 20_000)
    assert status is FeatureStatus.TIMEOUT
    assert took < TIMEOUT_S + SLACK_S


def test_a_name_server_that_hangs_holds_a_batch_no_longer(monkeypatch, server, store):
    filled(server)
    real, hang, made = socket.getaddrinfo, threading.Event(), store(server)

    def late(*args, **kwargs):
        hang.wait(10)
        return real(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", late)
    for _ in range(3):
        took, status = timed(made)
        assert status is FeatureStatus.TIMEOUT
        assert took < TIMEOUT_S + SLACK_S
    assert timed(made)[0] < TIMEOUT_S / 2
    hang.set()
    back(made)
    assert made.fetch(KEYS).values == ROWS


def test_while_it_hangs_few_batches_wait_and_none_after_them(server, store):
    filled(server)
    made = store(server, store_pause=0.3)
    assert made.fetch(KEYS).values == ROWS
    server.hang()
    waits = [timed(made)[0] for _ in range(3)]
    later = [timed(made) for _ in range(1000)]
    assert max(waits) < TIMEOUT_S + SLACK_S
    assert made.reading().state is not State.CLOSED
    assert {status for _, status in later} == {FeatureStatus.TIMEOUT}
    assert sum(took for took, _ in later) < 2 * TIMEOUT_S, "batches waited"
    server.go_on()
    assert back(made) < 2
    assert made.fetch(KEYS).values == ROWS


def test_threads_that_hang_together_open_it_after_one_timeout(server, store):
    filled(server)
    made = store(server)
    server.hang()
    begun = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: timed(made), range(3)))
    assert made.reading().state is not State.CLOSED
    assert time.monotonic() - begun < TIMEOUT_S + SLACK_S
    server.go_on()


# ---- gone, and back


def test_a_restart_between_two_batches_costs_no_features(server, store):
    """Three connections lie in the pool, all of them dead."""
    filled(server)
    made = store(server)
    pool = made._redis.connection_pool
    for one in [pool.get_connection() for _ in range(3)]:
        pool.release(one)
    server.kill()
    server.start()
    assert [made.fetch(KEYS).status for _ in range(3)] == [FeatureStatus.PRESENT] * 3
    taken = [pool.get_connection() for _ in range(2)]
    assert made.fetch(KEYS).values == ROWS
    for one in taken:
        pool.release(one)
    assert made.reading().failures == {}


def test_a_connection_that_breaks_under_an_ask_is_made_anew_once(scripted, store):
    def serve(connection: socket.socket, number: int) -> None:
        while asked(connection) and number != 1:
            connection.sendall(b"*1\r\n$3\r\nrow\r\n")

    partner = scripted(serve)
    made = store(partner)
    assert made.fetch([b"k"]).values == [b"row"]
    assert (partner.connections, made.reading().failures) == (2, {})


def test_one_that_always_breaks_is_asked_twice_and_no_more(scripted, store):
    partner = scripted(lambda connection, number: asked(connection) and None)
    made = store(partner)
    assert made.fetch([b"k"]).values is None
    assert (partner.connections, made.reading().failures) == (2, {"gone": 1})


def test_killed_and_started_again_it_answers_without_anyone_asking(server, store):
    filled(server)
    made = store(server)
    server.kill()
    waits = [timed(made) for _ in range(10)]
    assert {status for _, status in waits} == {FeatureStatus.TIMEOUT}
    assert sum(took for took, _ in waits) < TIMEOUT_S + SLACK_S, "a refused connection is told at once"
    server.start()
    back(made)
    assert made.fetch(KEYS).values == ROWS
    assert set(made.reading().failures) == {"gone"}


def test_one_that_loads_its_rows_is_not_waited_for_and_says_so_at_a_start(server, store):
    filled(server)
    made = store(server)
    server.start_loading()
    wait_until(lambda: made.fetch(KEYS).values is None and "loading" in made.reading().failures, 10, "the loading")
    with pytest.raises(RedisError, match="LOADING") as told:
        store(server).check()
    assert "wait until it has loaded" in told.value.mend
    wait_until(lambda: made.fetch(KEYS).values == ROWS, 10, "the rows")


# ---- refusing


def test_rights_that_are_taken_away_are_a_failure_of_their_own_and_come_back(server, store):
    filled(server)
    made = store(server)
    assert made.fetch(KEYS).values == ROWS
    server.ask("ACL", "SETUSER", "default", "-mget")
    for _ in range(5):
        assert made.fetch(KEYS).values is None
    assert set(made.reading().failures) == {"denied"}
    assert made.reading().why.startswith("denied: ")
    server.ask("ACL", "SETUSER", "default", "+mget")
    back(made)
    assert made.fetch(KEYS).values == ROWS


def test_a_password_that_is_changed_is_a_failure_once_connections_are_new(server, store):
    filled(server)
    made = store(server)
    assert made.fetch(KEYS).values == ROWS
    server.ask("CONFIG", "SET", "requirepass", "new")
    assert made.fetch(KEYS).values == ROWS, "who is in stays in"
    with contextlib.closing(redis.Redis.from_url(server.url.replace("//", "//:new@"))) as admin:
        admin.client_kill_filter(_type="normal", skipme=True)
        assert made.fetch(KEYS).values is None
        assert made.reading().failures == {"denied": 1}
        admin.config_set("requirepass", "")
    assert made.fetch(KEYS).values == ROWS


def test_a_full_one_gives_rows_and_says_how_to_make_room(server, store):
    filled(server)
    made = store(server)
    server.ask("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(RedisError, match="OOM") as told:
        made.load([(b"more", b"x" * 12)])
    assert "maxmemory" in told.value.mend
    assert made.fetch(KEYS).values == ROWS


def test_a_replica_gives_rows_and_sends_who_loads_to_its_primary(server, store):
    filled(server)
    made = store(server)
    server.ask("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(RedisError, match="READONLY") as told:
        made.load([(b"more", b"x" * 12)])
    assert "primary" in told.value.mend
    assert made.fetch(KEYS).values == ROWS
    server.ask("CONFIG", "SET", "replica-serve-stale-data", "no")
    assert made.fetch(KEYS).values is None
    assert made.reading().failures == {"loading": 1}


@pytest.mark.parametrize("slots", [True, False], ids=["all slots here", "no slot here"])
def test_a_node_of_a_cluster_is_refused_at_the_start(server, store, slots):
    assert key_slot(PROBES[0]) != key_slot(PROBES[1])
    server.start("--cluster-enabled", "yes", "--cluster-port", str(free_ports(1)[0]))
    if slots:
        server.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

        def in_service() -> bool:
            return b"cluster_state:ok" in server.ask("CLUSTER", "INFO")

        wait_until(in_service, 10, "the cluster")
    with pytest.raises(RedisError, match="CROSSSLOT" if slots else "CLUSTERDOWN|CROSSSLOT") as told:
        store(server).check()
    assert "without cluster mode" in told.value.mend


def test_a_key_of_another_type_is_a_missing_row_and_its_neighbours_are_there(server, store):
    filled(server)
    server.ask("DEL", KEYS[7])
    server.ask("LPUSH", KEYS[7], "x")
    assert store(server).fetch(KEYS).values == [*ROWS[:7], None, *ROWS[8:]]


# ---- what no Redis says


GOOD = b"*2\r\n$3\r\nrow\r\n$-1\r\n"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Kind.GARBLED),
        (b"+OK\r\n", Kind.GARBLED),
        (b":2\r\n", Kind.GARBLED),
        (b"*-1\r\n", Kind.GARBLED),
        (b"*1\r\n$3\r\nrow\r\n", Kind.GARBLED),
        (b"*3\r\n$3\r\nrow\r\n$-1\r\n$-1\r\n", Kind.GARBLED),
        (b"*2\r\n:1\r\n:2\r\n", Kind.GARBLED),
        (b"*2\r\n$3\r\nrow\r\n-ERR one of them\r\n", Kind.GARBLED),
        (b"*2\r\n*0\r\n*0\r\n", Kind.GARBLED),
        (b":99999999999999999999999\r\n", Kind.GARBLED),
        (b"*1\r\n" * 2000, Kind.GARBLED),
        (b"-MOVED garbage\r\n", Kind.GARBLED),
        (b"-MOVED 866 127.0.0.1:1\r\n", Kind.CLUSTER),
        (b"-ASK 866 127.0.0.1:1\r\n", Kind.CLUSTER),
        (b"-TRYAGAIN Multiple keys request during rehashing\r\n", Kind.CLUSTER),
        (b"-CLUSTERDOWN The cluster is down\r\n", Kind.CLUSTER),
        (b"-\xff\xfe\r\n", Kind.REFUSED),
        (b"-BUSY Redis is busy running a script\r\n", Kind.REFUSED),
        (b"-ERR max number of clients reached\r\n", Kind.GONE),
        (b"-NOAUTH Authentication required.\r\n", Kind.DENIED),
        (b"-MASTERDOWN Link with MASTER is down\r\n", Kind.LOADING),
        (b"*2\r\n$3\r\nro", Kind.TIMEOUT),
    ],
)
def test_a_broken_or_strange_reply_is_a_failure_of_its_kind_and_the_next_ask_is_not_spoilt(
    scripted, store, reply, kind
):
    replies = iter([reply] * (2 if kind is Kind.GONE else 1))

    def serve(connection: socket.socket, number: int) -> None:
        while asked(connection):
            connection.sendall(next(replies, GOOD))

    made = store(scripted(serve))
    took, status = timed(made, [b"a", b"b"])
    assert (status, made.reading().failures) == (FeatureStatus.TIMEOUT, {kind.value: 1})
    assert took < TIMEOUT_S + SLACK_S
    assert made.fetch([b"a", b"b"]).values == [b"row", None]


def test_at_a_start_what_does_not_speak_redis_is_told(scripted, store):
    def serve(connection: socket.socket, number: int) -> None:
        asked(connection)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with pytest.raises(RedisError) as told:
        store(scripted(serve)).check()
    assert "does not speak Redis" in told.value.mend


def test_errors_that_memory_and_stack_give_are_of_the_reply():
    for error in (MemoryError(), RecursionError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "")):
        assert isinstance(error, ERRORS)
        assert kind_of(error) is Kind.GARBLED


@pytest.mark.parametrize("keys", [[object()], None, [b"k", {}]])
def test_what_is_wrongly_asked_is_not_an_outage(server, store, keys):
    server.start()
    with pytest.raises((redis.DataError, TypeError)):
        store(server).fetch(keys)


@pytest.mark.parametrize("fault", [TypeError, AttributeError, NameError, AssertionError])
def test_a_fault_of_the_program_under_an_ask_is_not_an_outage(server, store, fault):
    def wrong(keys):
        raise fault("planted")

    made = store(server)
    made._redis.mget = wrong
    with pytest.raises(fault, match="planted"):
        made.fetch(KEYS)
    assert made.reading().failures == {}


def test_rows_come_as_bytes_whatever_the_connection_settings_say(server, store):
    filled(server)
    server.ask("SET", KEYS[0], b"\xff\xfe")
    made = store(server, redis={"decode_responses": True, "protocol": 3})
    assert made.fetch(KEYS).values == [b"\xff\xfe", *ROWS[1:]]


# ---- a worker, a steady stream, and each fault in turn


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


@pytest.mark.services
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
