"""What was done to a worker to break it, and stays mended: hostile records, narrow topics, signals, moving groups."""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from dataclasses import dataclass, field
from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from conftest import ROOT, Project
from support import TIMEOUT_S, Broker, Record, by_source, linear_model, serve_until

from streamserve.adapters.at_least_once import AtLeastOnceEmitter
from streamserve.adapters.incarnation import Incarnation
from streamserve.adapters.intake import Intake
from streamserve.adapters.kafka import Clients
from streamserve.adapters.member import Member
from streamserve.adapters.messages import MessageReader
from streamserve.adapters.output import Output
from streamserve.delivery.custody import Custody
from streamserve.errors import BrokerError, StreamserveError
from streamserve.records import ControlView, OutputBatch, RawBatch, RoutingEpoch
from streamserve.settings import Settings
from streamserve.topology import load_topology

HERE = ROOT / "tests" / "topologies"
TOPIC = "t"


# ---- an intake whose consumer does what it is told


def said(place: int) -> Message:
    return Message(topic=TOPIC, partition=0, offset=place, timestamp=(1, 1_700_000_000_000))


@dataclass
class Told:
    """A consumer. reads: what each call of `consume` does; refusals: the codes that its commits are answered with."""

    reads: list = field(default_factory=list)
    refusals: list = field(default_factory=list)
    committed: list = field(default_factory=list)

    def poll(self, seconds):
        return said(7)

    def consume(self, limit, seconds):
        return self.reads.pop(0)() if self.reads else []

    def commit(self, offsets, asynchronous):
        if self.refusals:
            raise KafkaException(KafkaError(self.refusals.pop(0)))
        self.committed += [(tp.partition, tp.offset) for tp in offsets]
        return offsets

    def subscribe(self, *_, **__):
        pass

    incremental_assign = incremental_unassign = subscribe

    def assignment(self):
        return []

    def position(self, partitions):
        return partitions

    def close(self):
        pass


class Sent:
    """An emitter that has everything."""

    spoilt = transactional = False

    def send(self, batch):
        pass

    def commit(self, boundaries, group, limit):
        return group.commit(boundaries)

    abort = stop = close = lambda self: None


class Alone:
    """Ownership where nobody else is."""

    def take(self, topic, partitions):
        return 0

    def release(self, topic, owner_epochs):
        pass

    def superseded(self, owner_epochs):
        return []


@dataclass
class Lives:
    consumer: Told

    def begin(self, epoch):
        reader = MessageReader(self.consumer, epoch, "nowhere")
        return Incarnation(self.consumer, reader, Member(self.consumer, lambda: 0, "nowhere"), Alone(), Sent())


class Began:
    """A control log with one command, obeyed everywhere."""

    def view(self):
        return ControlView(TOPIC, (RoutingEpoch(0, "v1"),))

    def due(self, owned):
        return None

    def wait_for(self, places):
        pass


def intake(consumer: Told) -> tuple[Intake, list[RawBatch], list[BaseException]]:
    batches, failures = [], []
    topology = load_topology(HERE / "readings.py")
    topology = topology.model_copy(update={"source": topology.source.model_copy(update={"topic": TOPIC})})
    settings = Settings(drain_timeout=0.3, batches_in_flight=1)
    made = Intake(
        Lives(consumer), topology, settings, Began(), lambda topic: 1, lambda raw, _: batches.append(raw),
        failures.append, Custody(),
    )  # fmt: skip
    made._life = made._lives.begin(made._current_epoch)
    made.tenure = made._tenure(made._life)
    return made, batches, failures


def take_up(made: Intake) -> None:
    with pytest.MonkeyPatch.context() as patch:
        placed = lambda consumer, partitions, *_: partitions  # noqa: E731
        patch.setattr("streamserve.adapters.tenure.starting_positions", placed)
        made.tenure._on_assign(made._life.consumer, [TopicPartition(TOPIC, 0, 0)])


def test_what_was_read_before_a_rewind_in_the_same_turn_does_not_count():
    """A callback may run inside `consume`, after `poll` has returned a record of the earlier assignment."""
    consumer = Told()
    made, batches, _ = intake(consumer)
    take_up(made)

    def rewound():
        made.tenure._on_revoke(consumer, [TopicPartition(TOPIC, 0)])
        take_up(made)
        return [said(0), said(1)]

    consumer.reads = [rewound]
    made._turn(made._life, made.tenure)
    counts = [(batch.offsets.tolist(), made.custody._gate.admits(batch, 0)) for batch in batches]
    assert counts == [([7], False), ([0, 1], True)]


def sent(made: Intake, batch: RawBatch) -> None:
    made.send(OutputBatch(batch, (), {(TOPIC, 0): (7, 8)}, 1, ()))
    made.finished()


@pytest.mark.parametrize("code", [KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError._TIMED_OUT, KafkaError.UNKNOWN])
def test_a_coordinator_that_starts_or_whose_disk_is_full_is_asked_again(code):
    """Its first commit after a restart is refused so, or its last before the disk ends it: that ended the worker."""
    consumer = Told(refusals=[code, code])
    made, batches, failures = intake(consumer)
    take_up(made)
    made._turn(made._life, made.tenure)
    sent(made, batches[0])
    made._commit(made._life)
    assert not consumer.committed
    made._finish(made._life)
    assert consumer.committed == [(0, 8)]
    assert not failures


def test_an_end_that_left_something_in_flight_is_a_failure():
    made, _, _ = intake(consumer := Told())
    take_up(made)
    made._turn(made._life, made.tenure)
    with pytest.raises(StreamserveError, match=r"not committed within 0\.3 s"):
        made._finish(made._life)
    assert not consumer.committed


def test_a_last_commit_that_a_stranger_may_not_make_is_a_failure():
    """The group has forgotten this member while it stopped: exit code 0 would say that all was committed."""
    consumer = Told()
    made, batches, _ = intake(consumer)
    take_up(made)
    made._turn(made._life, made.tenure)
    sent(made, batches[0])
    consumer.refusals = [KafkaError.UNKNOWN_MEMBER_ID]
    with pytest.raises(StreamserveError, match=r"not committed within 0\.3 s"):
        made._finish(made._life)
    assert not consumer.committed


# ---- the real thing


@pytest.fixture(scope="module")
def attacked(endpoints, tmp_path_factory) -> tuple[Project, Path]:
    """A topology in force whose predictions must be small."""
    project, name = Project(tmp_path_factory.mktemp("attacks"), endpoints), "attacked"
    (project.folder / "schemas").mkdir()
    shutil.copy(HERE / "reading.avsc", project.folder / "schemas")
    linear_model(project.folder / "model.onnx", [1, 1, 1])
    file = project.folder / f"{name}.py"
    text = (HERE / "readings.py").read_text()
    file.write_text(text.replace('"readings"', f'"{name}"').replace(f'topic="{name}"', f'topic="{name}.events"'))
    project.ok("topics", "apply", file)
    project.ok("models", "add", file, "v1", project.folder / "model.onnx")
    project.ok("topology", "init", file, "--version", "v1")
    entry = ConfigEntry("max.message.bytes", "20000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, f"{name}.predictions", incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": endpoints.bootstrap})
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(TIMEOUT_S)
    return project, file


def reading(at: int, headers=None) -> Record:
    value = json.dumps({"id": str(at), "sensor": "s", "value": at % 7}).encode()
    return Record(f"k{at}".encode(), value, headers)


def produce_with_header_name(bootstrap: str, topic: str, value: bytes, name: bytes) -> None:
    """Into partition 0, by librdkafka itself: its Python client refuses names that are not UTF-8."""
    folder = Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
    library = ctypes.CDLL(str(next(folder.glob("librdkafka-*"), "librdkafka.so.1")))
    for made in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_headers_new"):
        getattr(library, made).restype = c_void_p
    told = ctypes.create_string_buffer(512)
    config = c_void_p(library.rd_kafka_conf_new())
    library.rd_kafka_conf_set(config, b"bootstrap.servers", bootstrap.encode(), told, c_size_t(512))
    producer = c_void_p(library.rd_kafka_new(0, config, told, c_size_t(512)))
    headers = c_void_p(library.rd_kafka_headers_new(c_size_t(1)))
    library.rd_kafka_header_add(headers, name, ctypes.c_ssize_t(len(name)), b"x", ctypes.c_ssize_t(1))
    topic_, partition, value_, flags, headers_ = 1, 3, 4, 7, 10  # rd_kafka_vtype_t; flag 2: copy
    assert not library.rd_kafka_producev(
        producer, topic_, c_char_p(topic.encode()), partition, c_int(0), value_, c_char_p(value), c_size_t(len(value)),
        flags, c_int(2), headers_, headers, 0,
    )  # fmt: skip
    assert not library.rd_kafka_flush(producer, int(TIMEOUT_S * 1000))
    library.rd_kafka_destroy(producer)


@pytest.mark.services
def test_no_record_stops_the_stream(attacked):
    """Headers that no prediction can carry, headers that can't be read, and batches larger than the topic takes."""
    project, file = attacked
    broker, name = Broker(project.endpoints.bootstrap), file.stem
    places = broker.produce(f"{name}.events", [reading(at) for at in range(4000)])
    large = broker.produce(f"{name}.events", [reading(4000, [("h", b"x" * 30_000)])])
    produce_with_header_name(broker.bootstrap, f"{name}.events", reading(4001).value, b"\xff\xfe")
    unreadable = (0, broker.ends(f"{name}.events")[0] - 1)
    places += broker.produce(f"{name}.events", [reading(at) for at in range(4002, 4100)])
    worker = project.worker(file)
    try:
        serve_until(worker, 4100)
        assert worker.stop() == 0, worker.log.read_text()
    finally:
        worker.process.kill()
    found = by_source(broker.read(f"{name}.predictions"))
    letters = broker.read(f"{name}.dead-letters")
    assert sorted(found) == sorted([*places, unreadable])
    assert [h for h, _ in found[unreadable][0].headers] == ["streamserve.headers"]
    assert [(one.header["stage"], one.header["error"], one.headers[0]) for one in letters] == [
        ("emit", "TooLarge", ("h", b"x" * 30_000))
    ]
    assert [(int(one.header["source.partition"]), int(one.header["source.offset"])) for one in letters] == large


@pytest.mark.services
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_worker_starts_ends_it(attacked, number):
    """At a broker that takes connections and never says a word."""
    project, file = attacked
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(TIMEOUT_S)
        environ = {**project.environ, "STREAMSERVE_BOOTSTRAP": f"127.0.0.1:{mute.getsockname()[1]}"}
        command = [sys.executable, "-m", "streamserve", "worker", str(file), "--web-port", "0"]
        process = subprocess.Popen(command, cwd=project.folder, env=environ, stderr=subprocess.PIPE, text=True)
        try:
            mute.accept()[0].close()
            process.send_signal(number)
            assert "Traceback" not in process.communicate(timeout=15)[1]
            assert process.returncode == (0 if number == signal.SIGTERM else 130)
        finally:
            process.kill()


@pytest.mark.services
def test_who_waits_for_a_broker_that_is_gone_gives_up_when_the_worker_stops(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        clients = Clients(Settings(bootstrap=f"127.0.0.1:{taken.getsockname()[1]}"))
        output = Output(clients, "d", "0", {"p": 1000, "d": 1000})
        emitter = AtLeastOnceEmitter(output)
        output.producer.produce("p", b"x")
        told: list[str] = []
        waits = threading.Event()

        def wait() -> None:
            waits.set()
            try:
                emitter.barrier(60)
            except BrokerError as error:
                told.append(error.what)

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert waits.wait(5)
        emitter.stop()
        waiting.join(5)
        assert told == ["the worker stopped before the broker acknowledged everything"]
        emitter.close()
