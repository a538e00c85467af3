"""Real ONNX models: trees for the flights, a net for vectors, and a graph of three types that fails on some rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fuzz.orders import CODES

ML = "ai.onnx.ml"


def trees(path: Path, width: int, seed: int, count: int = 60, depth: int = 5) -> Path:
    """Random trees, as boosting exports them: each full, its thresholds near the values that features have."""
    random = np.random.default_rng(seed)
    inner = 2**depth - 1
    each, number = 2 * inner + 1, count * (2 * inner + 1)
    place = np.tile(np.arange(each), count)
    leaf = place >= inner
    tree = np.repeat(np.arange(count), each)
    leaves = np.flatnonzero(leaf)
    node = helper.make_node(
        "TreeEnsembleClassifier",
        ["features"],
        ["label", "probabilities"],
        domain=ML,
        post_transform="LOGISTIC",
        classlabels_int64s=[0, 1],
        class_ids=[1] * len(leaves),
        class_nodeids=place[leaves].tolist(),
        class_treeids=tree[leaves].tolist(),
        class_weights=(random.standard_normal(len(leaves)) / 10).astype(np.float32).tolist(),
        nodes_nodeids=place.tolist(),
        nodes_treeids=tree.tolist(),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_featureids=np.where(leaf, 0, random.integers(0, width, number)).tolist(),
        nodes_values=np.where(leaf, 0, random.standard_normal(number) * 30 + 10).astype(np.float32).tolist(),
        nodes_truenodeids=np.where(leaf, 0, 2 * place + 1).tolist(),
        nodes_falsenodeids=np.where(leaf, 0, 2 * place + 2).tolist(),
        nodes_missing_value_tracks_true=random.integers(0, 2, number).tolist(),
        nodes_hitrates=[1.0] * number,
    )
    said = [("label", TensorProto.INT64, None), ("probabilities", TensorProto.FLOAT, 2)]
    return _save(path, [node], [("features", TensorProto.FLOAT, width)], said, {})


def net(path: Path, width: int, seed: int, classes: int = 10) -> Path:
    """Two layers, as bench/vectors.py has them."""
    random, hidden = np.random.default_rng(seed), 64
    shapes = {"w1": (width, hidden), "b1": (hidden,), "w2": (hidden, classes), "b2": (classes,)}
    nodes = [
        helper.make_node("Gemm", ["pixels", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    weights = {name: (random.standard_normal(shape) / 28).astype(np.float32) for name, shape in shapes.items()}
    return _save(
        path, nodes, [("pixels", TensorProto.FLOAT, width)], [("probabilities", TensorProto.FLOAT, classes)], weights
    )


def mixed(path: Path, width: int, seed: int) -> Path:
    """Numbers through a layer, a code that looks up a row of a table and fails outside of it, texts through labels."""
    random = np.random.default_rng(seed)
    weights = {
        "weights": (random.standard_normal((width, 3)) / width).astype(np.float32),
        "table": random.standard_normal((CODES, 3)).astype(np.float32),
        "axes": np.array([1], np.int64),
    }
    labels = {"keys_strings": ["-", "Ulm", "Oslo", "Rom", ""], "values_floats": [0.5, 1.0, 2.0, 3.0, 4.0]}
    nodes = [
        helper.make_node("MatMul", ["numbers", "weights"], ["layer"]),
        helper.make_node("Split", ["whole"], ["code", "gift", "number"], axis=1, num_outputs=3),
        helper.make_node("Squeeze", ["code", "axes"], ["flat"]),
        helper.make_node("Gather", ["table", "flat"], ["looked"], axis=0),
        helper.make_node("Cast", ["gift"], ["gift_f"], to=TensorProto.FLOAT),
        helper.make_node("LabelEncoder", ["texts"], ["labels"], domain=ML, default_float=-1.0, **labels),
        helper.make_node("ReduceSum", ["labels", "axes"], ["label"], keepdims=1),
        helper.make_node("Add", ["layer", "looked"], ["sum"]),
        helper.make_node("Add", ["sum", "gift_f"], ["more"]),
        helper.make_node("Add", ["more", "label"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ReduceSum", ["logits", "axes"], ["value"], keepdims=1),
    ]
    given = [("numbers", TensorProto.FLOAT, width), ("whole", TensorProto.INT64, 3), ("texts", TensorProto.STRING, 2)]
    said = [("probabilities", TensorProto.FLOAT, 3), ("value", TensorProto.FLOAT, 1)]
    return _save(path, nodes, given, said, weights)


def _save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    given: Sequence[tuple[str, int, int]],
    said: Sequence[tuple[str, int, int | None]],
    weights: dict[str, np.ndarray],
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(name, kind, [None, width]) for name, kind, width in given],
        [
            helper.make_tensor_value_info(name, kind, [None] if width is None else [None, width])
            for name, kind, width in said
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ML, 3)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(made)
    path.write_bytes(made.SerializeToString())
    return path
