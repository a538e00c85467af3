"""The second workload: 784 floats an event, a small network; Avro and JSON.

The floor is a sum, each part measured alone in the same run: the fastest decoder of the format, ONNX Runtime, and the
Kafka client's own reading of these events and writing of records of the predictions' size.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import fastavro
import numpy as np
import onnx
from confluent_kafka import Consumer, TopicPartition
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench.contest import LOOP, STREAMSERVE, SUM, Contestant, Results, Tell, as_results, in_rounds
from bench.decoders import AVRO, FLOATS, JSON
from bench.events import write_events
from bench.measure import Cost
from bench.project import ROOT, Project
from bench.workers import drain, script

HIDDEN, CLASSES = 128, 10
DISTINCT = 2000  # events; the topic holds them over and over
SCHEMA = "digit.avsc"
WRITERS = ("produce", "produce_batch")


@dataclass(frozen=True)
class Vectors:
    """The workload in one format."""

    project: Project
    format: str
    topology: Path
    model: Path
    events_file: Path
    matrix: Path
    events: int

    @property
    def name(self) -> str:
        return f"bench-vectors-{self.format}"

    @property
    def topic(self) -> str:
        return f"{self.name}.events"

    @property
    def sent(self) -> Path:
        """Predictions as streamserve wrote them."""
        return self.topology.parent / "sent.arrow"


def prepare(project: Project, kind: str, events: int) -> Vectors:
    """Model, topics and events. kind: avro or json."""
    name = f"bench-vectors-{kind}"
    folder = project.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    number = project.add_schema(SCHEMA, (ROOT / "schemas" / SCHEMA).read_text())
    topology = folder / "topology.py"
    topology.write_text(
        "from streamserve.topology import Source, Topology, argmax, output, vector\n"
        f"source = Source({name + '.events'!r}, schema={SCHEMA!r}, format={kind!r}, event_time='taken', "
        "id='picture_id')\n"
        f"topology = Topology(name={name!r}, source=source, features=(vector('pixels', {FLOATS}),), model={name!r}, "
        "outputs={'probability': output('probabilities')}, decision=argmax('probability'))\n"
    )
    model = network(folder / "network.onnx")
    matrix = np.random.default_rng(1).random((DISTINCT, FLOATS)).round(4).astype(np.float32)
    np.save(folder / "matrix.npy", matrix)
    values = as_avro(matrix, number) if kind == "avro" else as_json(matrix)
    keys: list[bytes | None] = [b"%d" % at for at in range(DISTINCT)]
    write_events(folder / "events.arrow", keys, values)
    project.put_in_force(topology, model, "v1")
    made = Vectors(project, kind, topology, model, folder / "events.arrow", folder / "matrix.npy", events)
    project.feed(made.topic, keys, values, events)
    return made


def network(path: Path) -> Path:
    """A perceptron: 784 floats, 128 hidden, 10 classes; random weights cost as much as trained ones."""
    random = np.random.default_rng(2)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((random.standard_normal(shape) / 28).astype(np.float32), name)

    nodes = [
        helper.make_node("Gemm", ["pixels", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    given = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [None, FLOATS])]
    said = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, CLASSES])]
    constants = [
        weights("w1", FLOATS, HIDDEN), weights("b1", HIDDEN), weights("w2", HIDDEN, CLASSES), weights("b2", CLASSES),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "perceptron", given, said, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def as_avro(matrix: NDArray[np.float32], schema_id: int) -> list[bytes]:
    """Events in the Confluent wire format."""
    schema = fastavro.parse_schema(json.loads((ROOT / "schemas" / SCHEMA).read_text()))
    found = []
    for at, row in enumerate(matrix.tolist()):
        out = io.BytesIO()
        fastavro.schemaless_writer(
            out, schema, {"picture_id": f"p{at}", "camera": None, "taken": 1_700_000_000_000 + at, "pixels": row}
        )
        found.append(b"\x00" + schema_id.to_bytes(4) + out.getvalue())
    return found


def as_json(matrix: NDArray[np.float32]) -> list[bytes]:
    """Events as a producer writes them: four decimals."""
    return [
        b'{"picture_id":"p%d","taken":%d,"pixels":[%s]}'
        % (at, 1_700_000_000_000 + at, b",".join(b"%.4f" % value for value in row))
        for at, row in enumerate(matrix.tolist())
    ]


def keep_predictions(made: Vectors) -> None:
    """Put what streamserve wrote into a file, for the floor's writing."""
    consumer = Consumer({"bootstrap.servers": made.project.endpoints.bootstrap, "group.id": "bench-vectors"})
    consumer.assign([TopicPartition(f"{made.name}.predictions", 0, 0)])
    messages = [m for m in consumer.consume(DISTINCT, 10) if m.error() is None]
    consumer.close()
    write_events(made.sent, [m.key() for m in messages], [m.value() for m in messages])


def floor(made: Vectors, tell: Tell, kept: list[dict[str, dict[str, object]]]) -> Cost:
    """The sum of what can't be left out. kept: gets every part of it, the candidates of each included."""
    bootstrap, few = made.project.endpoints.bootstrap, max(made.events // 4, 4 * DISTINCT)
    output = made.project.topic(f"bench.out.{made.name}")
    schema = made.project.schemas / SCHEMA

    def alone(*words: object) -> Cost:
        return Cost.of(made.project.child("bench.alone", *words))

    decoders = AVRO if made.format == "avro" else JSON
    parts = {f"decode: {name}": alone("decode", name, schema, made.events_file, few) for name in decoders}
    parts["ONNX Runtime"] = alone("ort", made.model, made.matrix, "pixels", made.events)
    parts["read"] = alone("read", bootstrap, made.topic, made.events)
    for how in WRITERS:
        parts[f"write: {how}"] = alone("write", how, bootstrap, output, made.sent, made.events)
    made.project.drop(output)
    kept.append({name: cost.as_dict() for name, cost in parts.items()})
    tell("  " + ", ".join(f"{name} {cost.us:.2f}" for name, cost in parts.items()))
    return total(parts)


def total(parts: dict[str, Cost]) -> Cost:
    """The parts one after the other, of several candidates ("decode: json") the cheapest. Per event, as one Cost."""
    best: dict[str, Cost] = {}
    for name, cost in parts.items():
        part = name.partition(":")[0]
        if part not in best or cost.us < best[part].us:
            best[part] = cost
    events = max(cost.events for cost in best.values())
    seconds = sum(cost.seconds / cost.events for cost in best.values()) * events
    cpu = sum(cost.us for cost in best.values()) * events / 1e6
    rss = max(cost.rss for cost in best.values())
    return Cost(events, seconds, cpu, rss)


def vectors(made: Vectors, rounds: int, loop_events: int, tell: Tell) -> Results:
    """All three; streamserve comes first, because the floor writes what it wrote."""
    parts: list[dict[str, dict[str, object]]] = []
    about = {
        "BENCH_SCORER": "bench.loops.vectors",
        "BENCH_MODEL": str(made.model),
        "BENCH_SCHEMA": str(made.project.schemas / SCHEMA),
        "BENCH_FORMAT": made.format,
    }

    def ours(events: int) -> Cost:
        cost = drain(made.project, made.topology, made.name, events)
        if not made.sent.exists():
            keep_predictions(made)
        return cost

    def by_hand(events: int) -> Cost:
        return script(made.project, "bench.loops.plain_loop", made.topic, events, about)

    made.sent.unlink(missing_ok=True)
    entries = [
        Contestant(STREAMSERVE, made.events, ours),
        Contestant(LOOP, min(loop_events, made.events), by_hand),
        Contestant(SUM, made.events, lambda _: floor(made, tell, parts)),
    ]
    found = in_rounds(entries, rounds, tell)
    made.project.drop(made.topic)
    return {**as_results(dict(reversed(found.items()))), "parts": parts}
