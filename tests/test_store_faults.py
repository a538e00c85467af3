"""Promise: Redis slow, gone, restarted, full or refusing costs features, and says so; never an event, never a stall.

Each fault is one that a real Redis has; only what no Redis does (broken replies, single bytes) is played.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from conftest import wait_until
from redis.cluster import key_slot
from redis_support import Scripted, Server, asked

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
    assert "gone" in made.reading().failures


def test_one_that_loads_its_rows_is_not_waited_for_and_says_so_at_a_start(server, store):
    filled(server)
    made = store(server)
    server.start_loading()
    wait_until(lambda: made.fetch(KEYS).values is None and "loading" in made.reading().failures, 10, "the loading")
    with pytest.raises(RedisError) as told:
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
    with pytest.raises(RedisError) as told:
        made.load([(b"more", b"x" * 12)])
    assert "maxmemory" in told.value.mend
    assert made.fetch(KEYS).values == ROWS


def test_a_replica_gives_rows_and_sends_who_loads_to_its_primary(server, store):
    filled(server)
    made = store(server)
    server.ask("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(RedisError) as told:
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
    with pytest.raises(RedisError) as told:
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
