"""The world of a run: a Kafka and a Redis of its own, a topology with a stored view, a generator, workers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from bench.project import Project
from chaos.broker import Broker
from chaos.events import SCHEMA, SCHEMA_FILE, customers
from chaos.models import LINEAR, VERSIONS, Kind, topology_text, write_model
from chaos.points import AT_LEAST_ONCE
from chaos.schedule import FEWEST
from streamserve.dev import Endpoints, reset, services, up
from streamserve.dev.place import Place
from streamserve.dev.probe import HOST
from streamserve.dev.process import send, wait_gone
from streamserve.dev.servers import KAFKA, REDIS
from streamserve.errors import BrokerError, DevError
from streamserve.models.registry import Registry

NAME, TOPIC, GROUP = "chaos", "chaos.events", "streamserve.chaos"
PREDICTION_ID = 900_001
# Above these, ports are lent to clients: one that looks for a dead broker can connect to itself, and hold the port
PORTS = range(20_000, 32_000)
FLUSH_S = 150.0
GONE_S = 10.0
LEADERS_S = 60.0
PAUSE_S = 0.2
UP_S = 200.0  # on a machine that does a lot else, a broker's start and its logs' recovery took more than a minute


@dataclass(frozen=True)
class Options:
    """One run. folder: of everything that it leaves. commands: versions are switched all the while. settings: of the
    workers' environment. kind: of the versions. shadows: among the commands. workers: to begin with.
    """

    folder: Path
    delivery: str = AT_LEAST_ONCE
    seed: int = 1
    faults: int = 100
    rate: float = 400.0
    burst: int = 4_000
    partitions: int = 6
    commands: bool = True
    settings: Mapping[str, str] | None = None
    kind: Kind = LINEAR
    shadows: bool = True
    workers: int = FEWEST


@dataclass(frozen=True)
class World:
    """Everything but the workers."""

    options: Options
    project: Project
    topology: Path
    broker: Broker
    generator: subprocess.Popen[str]
    schema_id: int
    services: Path

    @property
    def environ(self) -> dict[str, str]:
        """Of the workers."""
        return {**self.project.environ, "NO_COLOR": "1", **(self.options.settings or {})}

    @property
    def manifests(self) -> dict[str, str]:
        """By version, the hash that a command pins."""
        registry = Registry(self.project.settings.registry)
        return {version: registry.manifest_sha256(NAME, version) for version in VERSIONS}

    # ---- the generator

    def burst(self) -> None:
        """Thousands of events at once."""
        self._tell(f"burst {self.options.burst}")

    def finish(self) -> int:
        """Nothing more comes; returns how many events there were, when the broker has all of them."""
        self._tell("end")
        said, _ = self.generator.communicate(timeout=FLUSH_S)
        if self.generator.returncode:
            raise RuntimeError(f"the generator ended with {self.generator.returncode}")
        return int(said)

    def _tell(self, line: str) -> None:
        assert self.generator.stdin is not None  # noqa: S101  (it was asked for)
        self.generator.stdin.write(line + "\n")
        self.generator.stdin.flush()

    # ---- the services

    def strike(self, name: str) -> int:
        """SIGKILL to Kafka or Redis; returns when, nanoseconds since 1970."""
        state = Place.of(self.services).read(name)
        if state is None:
            raise RuntimeError(f"{name} does not run")
        at = time.time_ns()
        send(state.process, signal.SIGKILL)
        if wait_gone([state.process], GONE_S):
            raise RuntimeError(f"{name} outlived SIGKILL")
        return at

    def revive(self, name: str) -> None:
        """Start it again, with its data, where clients look for it.

        Raises:
            DevError: it does not come up, or its port is another's now.
        """
        before, limit = self.project.endpoints, time.monotonic() + UP_S
        while True:
            try:
                found = up(self.services, owner_pid=os.getpid(), kafka=name == KAFKA, redis=name == REDIS)
                break
            except DevError:
                if time.monotonic() > limit:
                    raise
        if (found.bootstrap or before.bootstrap, found.redis_url or before.redis_url) != (
            before.bootstrap,
            before.redis_url,
        ):
            raise DevError(f"{name} lost its port while it was down", mend="run it again")


@contextlib.contextmanager
def world(options: Options, tell: Callable[[str], None]) -> Iterator[World]:
    """Services without a trace of earlier runs, for the length of a block; nothing of them is left."""
    folder = options.folder / "services"
    reset(folder)
    _choose_ports(folder)
    try:
        with services(folder, progress=tell) as endpoints:
            yield from _furnished(options, endpoints, folder)
    finally:
        with contextlib.suppress(DevError):
            _keep_logs(folder, options.folder)
            reset(folder)


def _furnished(options: Options, endpoints: Endpoints, folder: Path) -> Iterator[World]:
    project = Project(options.folder, endpoints)
    schema_id = project.add_schema(SCHEMA_FILE, SCHEMA)
    topology = _write_topology(options)
    pq.write_table(customers(options.seed), options.folder / "customer.parquet")
    _patiently(lambda: project.run("topics", "apply", topology))
    project.run("features", "load", topology, f"customer={options.folder / 'customer.parquet'}")
    for version in VERSIONS:
        model = write_model(options.kind, version, options.folder / f"{version}.onnx")
        features = f"features={','.join(options.kind.features[version])}"
        project.run("models", "add", topology, version, model, "--input", features)
    _patiently(lambda: project.run("topology", "init", topology, "--version", "v1", "--if-new"))
    broker = Broker(endpoints.bootstrap, TOPIC, GROUP, options.partitions)
    generator = _start_generator(project, options, schema_id)
    try:
        yield World(options, project, topology, broker, generator, schema_id, folder)
    finally:
        generator.kill()
        generator.communicate()


def _patiently(step: Callable[[], None]) -> None:
    """Topics that were made a moment ago may not have their leaders yet."""
    limit = time.monotonic() + LEADERS_S
    while True:
        try:
            step()
        except BrokerError:
            if time.monotonic() > limit:
                raise
        else:
            return
        time.sleep(PAUSE_S)


def _start_generator(project: Project, options: Options, schema_id: int) -> subprocess.Popen[str]:
    words = (project.endpoints.bootstrap, TOPIC, options.seed, schema_id, options.rate, os.getpid())
    with (options.folder / "generator.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "chaos.generator", *map(str, words)],
            env=project.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True,
        )  # fmt: skip


def _choose_ports(folder: Path) -> None:
    place = Place.of(folder)
    place.make()
    # From a place of its own: another run's port looks free while its broker is down
    place_of_ours = os.getpid() * 16 % len(PORTS)
    free = (port for port in (*PORTS[place_of_ours:], *PORTS[:place_of_ours]) if _free(port))
    for name in (KAFKA, REDIS):
        place.port_file(name).write_text(str(next(free)))


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _keep_logs(services: Path, folder: Path) -> None:
    for log in (Place.of(services).root / "logs").glob("*.log*"):
        log.replace(folder / log.name)


def _write_topology(options: Options) -> Path:
    path = options.folder / "topology.py"
    delivery = "" if options.delivery == AT_LEAST_ONCE else options.delivery
    path.write_text(topology_text(options.kind, NAME, TOPIC, options.partitions, delivery))
    return path
