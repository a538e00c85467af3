"""What a run's versions are: a topology with a stored view, and models whose answers tell versions and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightgbm
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from chaos.events import SCHEMA_FILE
from streamserve.demo.train import export_onnx

VERSIONS = ("v1", "v2", "v3")
WEIGHTS = {"v1": (0.01, -0.7), "v2": (0.02, -0.3), "v3": (-0.01, 0.9)}  # of each version's two features
TREES, LEAVES, ROWS = 40, 15, 2000  # of the proof's models; of what they are trained on
SPENT = "customer.spent"


@dataclass(frozen=True)
class Kind:
    """What a topology and its versions are made of. features: by version, those of its model, in their order."""

    declared: str
    output: str
    features: dict[str, tuple[str, ...]]


LINEAR = Kind(
    "field('amount'), stored(customer)",
    "output('risk', column=0)",
    dict.fromkeys(VERSIONS, ("amount", SPENT)),
)
# The last one takes other features than its sisters, as any new version may
FOREST = Kind(
    "field('amount'), derived('root', lambda amount: amount**0.5, of='amount'), "
    "derived('cents', lambda amount: amount * 100 % 100, of='amount'), stored(customer)",
    "output('probabilities', column=1)",
    {
        "v1": ("amount", "root", "cents", SPENT),
        "v2": ("amount", "root", "cents", SPENT),
        "v3": (SPENT, "cents", "amount"),
    },
)


def topology_text(kind: Kind, name: str, topic: str, partitions: int, delivery: str) -> str:
    """A topology file. delivery: empty for what the product does by itself."""
    return (
        "from streamserve.topology import Source, Topology, View, derived, field, output, stored, threshold\n"
        "customer = View('customer', key='customer', fields=('spent',), default=0.0)\n"
        "topology = Topology(\n"
        f"    name={name!r},\n"
        f"    source=Source({topic!r}, schema={SCHEMA_FILE!r}, key='customer', event_time='made', id='payment',\n"
        f"                  partitions={partitions}),\n"
        f"    features=({kind.declared}),\n"
        f"    model={name!r},\n"
        f"    outputs={{'risk': {kind.output}}},\n"
        "    decision=threshold('risk', 0.6),\n"
        f"{delivery and f'    delivery={delivery!r},'}\n"
        ")\n"
    )


def write_model(kind: Kind, version: str, path: Path) -> Path:
    """The version's ONNX file."""
    if kind is LINEAR:
        return _linear(path, WEIGHTS[version])
    return _forest(path, len(kind.features[version]), seed=VERSIONS.index(version))


def _linear(path: Path, weighing: Sequence[float]) -> Path:
    """`features` [N, 2] in, `risk` [N, 1] out: the sigmoid of a weighted sum."""
    weights = numpy_helper.from_array(np.array(weighing, np.float32).reshape(2, 1), "weights")
    nodes = [
        helper.make_node("MatMul", ["features", "weights"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["risk"]),
    ]
    given = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 2])
    said = helper.make_tensor_value_info("risk", TensorProto.FLOAT, [None, 1])
    graph = helper.make_graph(nodes, "risk", [given], [said], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _forest(path: Path, width: int, seed: int) -> Path:
    """`features` [N, width] in, `probabilities` [N, 2] out: trees over all of the features."""
    dice = np.random.default_rng(seed)
    rows = dice.exponential(50.0, (ROWS, width))
    rows[:, 1:] %= dice.uniform(1, 100, width - 1)
    labels = (rows @ dice.normal(size=width) + dice.normal(0, 20, ROWS) > 0).astype(np.int8)
    settings = {"objective": "binary", "num_leaves": LEAVES, "num_threads": 1, "seed": seed, "verbose": -1}
    export_onnx(lightgbm.train(settings, lightgbm.Dataset(rows, labels), TREES), width, path)
    return path
