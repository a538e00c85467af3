"""How the cost of an event grows: features, views, partitions, message size, worker processes; one at a time.

Everything is generated, and the model is a weighted sum, so that the framework's own cost shows.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import fastavro
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

from bench.contest import Results, Tell
from bench.project import Project
from bench.workers import drain

ENTITIES = 10_000
VIEW_FIELDS = 4
DISTINCT = 5000  # events; the topic holds them over and over
NOW_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Case:
    """One topology. size: bytes of a message, filled up by a text that no model reads; 0: no such text."""

    features: int = 10
    views: int = 1
    partitions: int = 12
    size: int = 0
    workers: int = 1

    @property
    def name(self) -> str:
        said = (self.features, self.views, self.partitions, self.size, self.workers)
        return "bench-growth-" + "-".join(map(str, said))

    def events(self, most: int) -> int:
        """How many make a run of some seconds: fewer, the more there is to an event. Ten times what is in flight."""
        weight = 1 + self.features / 40 + self.views / 5 + self.size / 2000
        return max(int(most / weight), most * 3 // 20) // 1000 * 1000 * self.workers


BASE = Case()
AXES: dict[str, tuple[int, ...]] = {
    "features": (10, 100, 1000),
    "views": (1, 3, 10),
    "partitions": (1, 12, 100),
    "size": (60, 300, 1000, 3000, 10_000),
    "workers": (1, 2),
}


def cases(axes: dict[str, tuple[int, ...]]) -> dict[tuple[str, int], Case]:
    """Every value of every axis, the others at their base."""
    found = {}
    for axis, values in axes.items():
        for value in values:
            found[axis, value] = replace(BASE, **{axis: value})
    return found


def growth(project: Project, rounds: int, most: int, axes: dict[str, tuple[int, ...]], tell: Tell) -> Results:
    """Each case so many times; a case on several axes is measured once."""
    wanted = cases(axes)
    found: dict[str, list[dict[str, object]]] = {}
    sizes = {}
    for case in dict.fromkeys(wanted.values()):
        topology, sizes[case.name] = prepare(project, case, case.events(most))
        for _ in range(rounds):
            cost = drain(project, topology, case.name, case.events(most), case.workers)
            found.setdefault(case.name, []).append(cost.as_dict())
            tell(f"{case}  {cost.rate:>9,.0f}/s  {cost.us:7.2f} us")
        project.drop(f"{case.name}.events", f"{case.name}.predictions")
    axes_found: dict[str, list[dict[str, object]]] = {axis: [] for axis in axes}
    for (axis, value), case in wanted.items():
        axes_found[axis].append({"value": value, "bytes": sizes[case.name], "runs": found[case.name]})
    return {"axes": axes_found, "base": {**vars(BASE)}}


def prepare(project: Project, case: Case, events: int) -> tuple[Path, int]:
    """Topology, model, view rows and events; the topology's file, and the bytes of an event."""
    folder = project.folder / case.name
    folder.mkdir(parents=True, exist_ok=True)
    schema = _schema(case)
    number = project.add_schema(f"{case.name}.avsc", json.dumps(schema))
    topology = folder / "topology.py"
    topology.write_text(_topology(case))
    width = case.features + VIEW_FIELDS * case.views
    project.put_in_force(topology, linear(folder / "linear.onnx", width), "v1")
    if case.views:
        rows = _view_rows(folder / "rows.parquet")
        project.run("features", "load", topology, *(f"view{n}={rows}" for n in range(case.views)))
    keys, values = _events(case, schema, number)
    project.feed(f"{case.name}.events", keys, values, events)
    return topology, len(values[0])


def _schema(case: Case) -> dict[str, object]:
    fields: list[dict[str, object]] = [{"name": "entity", "type": "string"}]
    fields += [{"name": f"f{n}", "type": "float"} for n in range(case.features)]
    if case.size:
        fields.append({"name": "note", "type": "string"})
    return {"type": "record", "name": "Event", "fields": fields}


def _topology(case: Case) -> str:
    fields = tuple(f"value{n}" for n in range(VIEW_FIELDS))
    return (
        "from streamserve.topology import Source, Topology, View, field, output, stored, threshold\n"
        f"views = [View(f'view{{n}}', key='entity', fields={fields!r}, default=0.0) for n in range({case.views})]\n"
        f"topology = Topology(name={case.name!r}, model={case.name!r},\n"
        f"    source=Source({case.name + '.events'!r}, schema={case.name + '.avsc'!r}, key='entity', "
        f"partitions={case.partitions}),\n"
        f"    features=(*(field(f'f{{n}}') for n in range({case.features})), *map(stored, views)),\n"
        "    outputs={'score': output('score', column=0)}, decision=threshold('score', 0.5))\n"
    )


def linear(path: Path, width: int) -> Path:
    """`features` [N, width] in, `score` [N, 1] out: the sigmoid of a weighted sum."""
    weights = np.random.default_rng(3).standard_normal((width, 1)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["features", "weights"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["score"]),
    ]
    given = [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, width])]
    said = [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])]
    graph = helper.make_graph(nodes, "linear", given, said, [numpy_helper.from_array(weights, "weights")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _view_rows(path: Path) -> Path:
    random = np.random.default_rng(4)
    columns = {
        "entity": pa.array([f"e{n:05}" for n in range(ENTITIES)]),
        "feature_time": pa.array([NOW_MS] * ENTITIES, pa.timestamp("ms", "UTC")),
        **{f"value{n}": pa.array(random.random(ENTITIES).astype(np.float32)) for n in range(VIEW_FIELDS)},
    }
    pq.write_table(pa.table(columns), path)
    return path


def _events(case: Case, schema: dict[str, object], schema_id: int) -> tuple[list[bytes | None], list[bytes]]:
    random, parsed = np.random.default_rng(5), fastavro.parse_schema(schema)
    numbers = random.random((DISTINCT, case.features)).astype(np.float32).tolist()
    entities = [f"e{n:05}" for n in random.integers(0, ENTITIES, DISTINCT).tolist()]
    note = _filler(case.size, 5 + 7 + 4 * case.features)  # frame, key with its length, floats
    values = []
    for entity, row in zip(entities, numbers, strict=True):
        out = io.BytesIO()
        event = {"entity": entity, **{f"f{n}": value for n, value in enumerate(row)}}
        if case.size:
            event["note"] = note
        fastavro.schemaless_writer(out, parsed, event)
        values.append(b"\x00" + schema_id.to_bytes(4) + out.getvalue())
    return [entity.encode() for entity in entities], values


def _filler(size: int, plain: int) -> str:
    """The text that makes a message of `plain` bytes `size` bytes long, its own length in Avro included."""
    for length_bytes in (1, 2, 3):
        length = size - plain - length_bytes
        if length < 1 << (7 * length_bytes - 1):  # a zigzag number of so many bytes
            break
    return "x" * max(length, 0)
