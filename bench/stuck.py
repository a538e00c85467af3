"""Models that do harm: as wide as the contest's, at rest on zeros, so that they pass every check before they shadow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LONG = 2**62  # rounds, where one never ends
SLOW = 20_000  # some 50 ms


def write_looping(path: Path, width: int, rounds: int) -> Path:
    """One that goes round so many times for a batch with any feature above 5."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Identity", ["sum"], ["same"])],
        "round",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [None, 1]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, [None, 1]),
        ],
    )
    nodes = [
        helper.make_node("MatMul", ["features", "weights"], ["before"]),
        helper.make_node("ReduceMax", ["features"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "five"], ["go"]),
        helper.make_node("Loop", ["rounds", "go", "before"], ["after"], body=body),
        helper.make_node("Sigmoid", ["after"], ["one"]),
        helper.make_node("Sub", ["unit", "one"], ["zero"]),
        helper.make_node("Concat", ["zero", "one"], ["probabilities"], axis=1),
    ]
    constants = {
        "weights": np.zeros((width, 1), np.float32),
        "five": np.float32(5),
        "rounds": np.int64(rounds),
        "unit": np.ones((1, 1), np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "looping",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path
