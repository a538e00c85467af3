"""Two models that every test of sessions is made on: trees, and a net. Features in, probabilities out."""

from __future__ import annotations

import itertools
from pathlib import Path

import lightgbm
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from support import save

from streamserve.demo.train import export_onnx

WIDTH = 12
ROWS = np.random.default_rng(7).normal(size=(2000, WIDTH)).astype(np.float32)


def trees(path: Path) -> Path:
    labels = (ROWS[:, 0] * ROWS[:, 1] + ROWS[:, 2] > 0).astype(np.int8)
    settings = {"objective": "binary", "num_leaves": 15, "num_threads": 1, "verbose": -1}
    booster = lightgbm.train(settings, lightgbm.Dataset(ROWS.astype(np.float64), labels), 40)
    export_onnx(booster, WIDTH, path)
    return path


def net(path: Path) -> Path:
    """Three layers, and nodes to be folded and fused, so that there is something to optimise."""
    random, nodes, constants, last = np.random.default_rng(8), [], [], "features"
    sizes = (WIDTH, 48, 48, 2)
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        weights = (random.normal(size=(rows, columns)) / np.sqrt(rows)).astype(np.float32)
        constants += [
            numpy_helper.from_array(weights, f"w{layer}"),
            numpy_helper.from_array(random.normal(size=columns).astype(np.float32), f"b{layer}"),
        ]
        final = layer == len(sizes) - 2
        nodes += [
            helper.make_node("Identity", [f"w{layer}"], [f"i{layer}"]),
            helper.make_node("MatMul", [last, f"i{layer}"], [f"m{layer}"]),
            helper.make_node("Add", [f"m{layer}", f"b{layer}"], [f"a{layer}"]),
            helper.make_node(
                "Softmax" if final else "Relu", [f"a{layer}"], ["probabilities" if final else f"h{layer}"]
            ),
        ]
        last = f"h{layer}"
    given = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, WIDTH])
    said = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])
    save(helper.make_graph(nodes, "net", [given], [said], constants), path)
    return path


MAKERS = {"trees": trees, "net": net}
