"""What the end-to-end tests share: a plain client's view of the topics, and a project's steps from file to worker."""

from __future__ import annotations

import functools
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fastavro
import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from conftest import ROOT, Project, Worker, wait_until
from onnx import TensorProto, helper, numpy_helper

from streamserve.adapters.messages import headers_of
from streamserve.demo import data, views

TIMEOUT_S = 20.0
Position = tuple[int, int]  # partition, offset
Headers = list[tuple[str, bytes | None]]


# ---- records, as any Kafka client has them


@dataclass(frozen=True)
class Record:
    key: bytes | None = None
    value: bytes | None = None
    headers: Headers | None = None
    timestamp: int = 0  # 0, for those that are to be sent: the present
    partition: int = -1  # -1, for those that are to be sent: by key
    offset: int = -1

    @property
    def position(self) -> Position:
        return self.partition, self.offset

    @property
    def header(self) -> dict[str, str]:
        """The last value of each header that streamserve added, as text, by the rest of its name."""
        return {
            k.removeprefix("streamserve."): v.decode() for k, v in self.headers or () if k.startswith("streamserve.")
        }


@dataclass(frozen=True)
class Broker:
    """A plain client of the broker: no streamserve in it."""

    bootstrap: str
    group: str = "tests"
    _open: list[Producer] = field(default_factory=list)

    def producer(self) -> Producer:
        if not self._open:
            config = {
                "bootstrap.servers": self.bootstrap,
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                "enable.idempotence": True,
                "queue.buffering.max.messages": 1_000_000,
            }
            self._open.append(Producer(config))
        return self._open[0]

    def consumer(self, group: str = "tests", **more: object) -> Consumer:
        config = {
            "bootstrap.servers": self.bootstrap,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": False,
            "isolation.level": "read_committed",
            **more,
        }
        return Consumer(config)

    def produce(self, topic: str, records: Iterable[Record]) -> list[Position]:
        """Where each record went, in their order."""
        producer, where = self.producer(), list[Position]()

        def note(at: int):
            def delivered(error, message) -> None:
                assert error is None, error
                where[at] = (message.partition(), message.offset())

            return delivered

        for at, one in enumerate(records):
            where.append((-1, -1))
            producer.produce(
                topic, one.value, one.key,
                partition=one.partition, headers=one.headers, timestamp=one.timestamp, on_delivery=note(at),
            )  # fmt: skip
            producer.poll(0)
        assert producer.flush(TIMEOUT_S) == 0
        return where

    def ends(self, topic: str) -> dict[int, int]:
        consumer = self.consumer()
        partitions = consumer.list_topics(topic, TIMEOUT_S).topics[topic].partitions
        found = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), TIMEOUT_S)[1] for p in partitions}
        consumer.close()
        return found

    def read(self, topic: str, start: Mapping[int, int] | None = None) -> list[Record]:
        """Everything from `start` (the beginning) to the end, as a reader with read_committed sees it."""
        partitions = self.ends(topic)
        consumer, found, ended = self.consumer(**{"enable.partition.eof": True}), list[Record](), set[int]()
        consumer.assign([TopicPartition(topic, p, (start or {}).get(p, 0)) for p in partitions])
        while ended != set(partitions):  # not a count of offsets: the ends of transactions have some
            messages = consumer.consume(5000, 0.2 if found else 1.0)
            for m in messages:
                if m.error() is not None:
                    assert m.error().code() == KafkaError._PARTITION_EOF, m.error()
                    ended.add(m.partition())
                    continue
                found.append(
                    Record(m.key(), m.value(), headers_of([m])[0], m.timestamp()[1], m.partition(), m.offset())
                )
        consumer.close()
        return found

    def committed(self, group: str, topic: str) -> dict[int, int]:
        consumer = self.consumer(group)
        asked = [TopicPartition(topic, p) for p in consumer.list_topics(topic, TIMEOUT_S).topics[topic].partitions]
        found = {tp.partition: tp.offset for tp in consumer.committed(asked, TIMEOUT_S)}
        consumer.close()
        return found

    def move(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """Where a group without members goes on."""
        consumer = self.consumer(group)
        consumer.commit(offsets=[TopicPartition(topic, p, o) for p, o in offsets.items()], asynchronous=False)
        consumer.close()


# ---- predictions, as any Avro reader has them


@functools.cache
def _published() -> object:
    return fastavro.parse_schema(json.loads((ROOT / "schemas" / "streamserve.prediction.avsc").read_text()))


def prediction(record: Record) -> dict[str, object]:
    assert record.value is not None
    assert record.value[:5] == b"\x00" + (900_001).to_bytes(4)
    body = io.BytesIO(record.value[5:])
    found = fastavro.schemaless_reader(body, _published())
    assert not body.read(), "bytes are left over"
    return found


def source_of(prediction_id: str) -> Position:
    _, partition, offset = prediction_id.rsplit("-", 2)
    return int(partition), int(offset)


def by_source(records: Iterable[Record]) -> dict[Position, tuple[Record, dict[str, object]]]:
    """Record and prediction by the position of the event; each event once."""
    found: dict[Position, tuple[Record, dict[str, object]]] = {}
    for one in records:
        said = prediction(one)
        where = source_of(said["prediction_id"])
        assert where not in found, f"{where} is predicted twice"
        found[where] = one, said
    return found


def framed(schema: object, event: object, schema_id: int) -> bytes:
    """An event in the Confluent wire format, by fastavro."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, event)
    return b"\x00" + schema_id.to_bytes(4) + out.getvalue()


# ---- a project's steps


def renamed(project: Project, file: Path, name: str, *, more: str = "", **source: object) -> Path:
    """A topology file in the project: the one of `file` under names of its own, so that tests don't meet.

    more: further changes, as the inside of a dict display. source: changes of its source.
    """
    path = project.folder / f"{name.replace('-', '_')}.py"
    path.write_text(
        "from pathlib import Path\n"
        "from streamserve.topology import Drift, hours, load_topology, output\n"
        f"base = load_topology(Path({str(file)!r}))\n"
        f"source = base.source.model_copy(update={{'topic': {name + '.events'!r}, **{source!r}}})\n"
        f"topology = base.model_copy(update={{'name': {name!r}, 'source': source, {more}}})\n"
        "del base  # a file names one topology\n"
    )
    return path


def with_schemas(project: Project) -> None:
    shutil.copytree(ROOT / "schemas", project.folder / "schemas", dirs_exist_ok=True)


def serve_until(worker: Worker, count: int, seconds: float = 60.0) -> None:
    """Until so many events are predicted or dead letters, by the worker's own count."""

    def done() -> bool:
        assert worker.process.poll() is None, worker.log.read_text()
        metrics = ("streamserve_predictions_total", "streamserve_dead_letters_total")
        return sum(worker.metric(name) for name in metrics) >= count

    wait_until(done, seconds, f"{count} events ({worker.log})")


# ---- models


def direct(path: Path, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
    """ONNX Runtime run directly over everything at once, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(list(outputs), dict(inputs))


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float64).view(np.int64)


def linear_model(path: Path, weights: Sequence[float], name: str = "features") -> Path:
    """`features` [N, n] in; `probabilities` [N, 2] out: one minus, and the sigmoid of the weighted sum."""
    column = np.array(weights, np.float32).reshape(-1, 1)
    nodes = [
        helper.make_node("MatMul", [name, "weights"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["one"]),
        helper.make_node("Sub", ["unit", "one"], ["zero"]),
        helper.make_node("Concat", ["zero", "one"], ["probabilities"], axis=1),
    ]
    constants = [numpy_helper.from_array(column, "weights"), numpy_helper.from_array(np.float32([[1]]), "unit")]
    given = helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, len(weights)])
    said = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])
    save(helper.make_graph(nodes, "linear", [given], [said], constants), path)
    return path


def save(graph: onnx.GraphProto, path: Path) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


# ---- the flights of 2013, read once a session


@functools.cache
def flights() -> pa.Table:
    return data.flights_table(_frame())


@functools.cache
def late() -> np.ndarray:
    return _frame()["late"].to_numpy(np.int8)


@functools.cache
def view_tables() -> dict[str, pa.Table]:
    return views.view_tables(_frame())


@functools.cache
def _frame() -> object:
    return data.flights_frame()
