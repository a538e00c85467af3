"""Kafka clusters of a test's own: three nodes, each broker and controller, that are killed, stopped and started singly.

Everything listens on loopback and ends with the block, whatever happens in it.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from conftest import wait_until

import streamserve.dev
from streamserve.dev.jars import find_jars
from streamserve.dev.java import find_java
from streamserve.dev.probe import free_ports
from streamserve.dev.process import die_with_parent

# A dead broker is given up after 2 s, and an acknowledged record is on two disks at least, where there are three.
PROPERTIES = """\
process.roles=broker,controller
node.id={node}
listeners=CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENTS://127.0.0.1:{port}
listener.security.protocol.map=CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENTS
controller.listener.names=CONTROLLER
controller.quorum.voters={voters}
log.dirs={disk}/data
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
replica.lag.time.max.ms=2000
controller.quorum.election.timeout.ms=500
controller.quorum.fetch.timeout.ms=1000
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=2
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={enough}
transaction.state.log.num.partitions=2
default.replication.factor={replicas}
min.insync.replicas={enough}
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
log.segment.bytes=16777216
log.cleaner.enable=false
num.network.threads=2
num.io.threads=2
"""
JVM = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
START_S = 60.0
LOOK_S = 0.5  # a look takes a client of its own, and the nodes need the processor to start


@dataclass
class Node:
    """One broker, and its share of the controller."""

    number: int
    folder: Path
    argv: list[str]
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def log(self) -> Path:
        return self.folder / "kafka.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  (ends with the tests, even by SIGKILL)
            )  # fmt: skip

    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL; nothing where it has ended already."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def hang(self) -> None:
        """Its connections stay open, and nothing comes of them: a machine that hangs, a network that drops packets."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@dataclass
class Cluster:
    bootstrap: str
    nodes: dict[int, Node]

    def admin(self) -> AdminClient:
        """A new one: a client that saw a broker die may ask that one for ever."""
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def is_whole(self) -> bool:
        """All nodes take part, and every partition is on all the disks that it should be on."""
        for node in self.nodes.values():
            assert node.runs(), node.log.read_text()[-4000:]
        try:
            found = self.admin().list_topics(timeout=5)
        except KafkaException:
            return False
        partitions = [p for topic in found.topics.values() for p in topic.partitions.values()]
        return len(found.brokers) == len(self.nodes) and all(set(p.isrs) == set(p.replicas) for p in partitions)

    def mend(self) -> None:
        """Whatever a test did to the nodes."""
        for node in self.nodes.values():
            if node.runs():
                node.wake()
            else:
                node.start()
        self.wait_until_whole()

    def demand(self, topic: str, replicas: int) -> None:
        """A record that fewer disks have is refused."""
        entry = ConfigEntry("min.insync.replicas", str(replicas), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        admin = self.admin()
        for done in admin.incremental_alter_configs([resource]).values():
            done.result(20)

    def wait_until_whole(self) -> None:
        logs = [str(node.log) for node in self.nodes.values()]
        wait_until(self.is_whole, START_S, f"a whole cluster ({logs})", LOOK_S)


@contextlib.contextmanager
def cluster(folder: Path, count: int = 3, disk: Path | None = None) -> Iterator[Cluster]:
    """A cluster that answers. disk: where a single node keeps its data, if not in its folder."""
    ports = free_ports(2 * count)
    made = _prepare(folder, ports[:count], ports[count:], disk)
    try:
        for node in made.nodes.values():
            node.start()
        made.wait_until_whole()
        yield made
    finally:
        for node in made.nodes.values():
            node.kill()


def _prepare(folder: Path, ports: Sequence[int], controllers: Sequence[int], disk: Path | None) -> Cluster:
    java = find_java()
    jars = find_jars(folder / "libs", java, lambda _: None)
    log_settings = Path(streamserve.dev.__file__).with_name("log4j2.properties")
    java_line = [str(java), *JVM, f"-Dlog4j2.configurationFile={log_settings.as_uri()}", "-cp", f"{jars}/*"]
    voters = ",".join(f"{number}@127.0.0.1:{port}" for number, port in enumerate(controllers, 1))
    nodes = {}
    for number, (port, controller) in enumerate(zip(ports, controllers, strict=True), 1):
        home = folder / f"node-{number}"
        home.mkdir(parents=True)
        text = PROPERTIES.format(
            node=number, port=port, controller=controller, voters=voters, disk=disk or home,
            replicas=len(ports), enough=min(len(ports), 2),
        )  # fmt: skip
        (home / "server.properties").write_text(text)
        nodes[number] = Node(number, home, [*java_line, "kafka.Kafka", "server.properties"])
    _format(java_line, nodes[1].folder)
    for number in list(nodes)[1:]:
        _copy_format(nodes[1].folder / "data", nodes[number].folder / "data", number)
    return Cluster(",".join(f"127.0.0.1:{port}" for port in ports), nodes)


def _format(java_line: list[str], home: Path) -> None:
    command = [*java_line, "kafka.tools.StorageTool", "format", "-t", _new_id(), "-c", "server.properties"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _copy_format(formatted: Path, data: Path, number: int) -> None:
    """What the formatting tool would write in two seconds more: the same but for the ids of node and folder."""
    shutil.copytree(formatted, data)
    meta = data / "meta.properties"
    text = re.sub(r"(?m)^node\.id=.*$", f"node.id={number}", meta.read_text())
    meta.write_text(re.sub(r"(?m)^directory\.id=.*$", f"directory.id={_new_id()}", text))


def _new_id() -> str:
    """As Kafka writes them; one that began with a dash would read as an option."""
    return "s" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
