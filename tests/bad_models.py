"""Models that score zeros, as at a warm-up, and misbehave on data. All as `support.linear_model`: `features` [N, 3] in,
`probabilities` [N, 2] out; a row is told by its first feature.

They are ordinary ONNX files: nothing in them is refused by a checker, or by ONNX Runtime when they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from support import save

BLOCK = 64 * 1024  # floats that a greedy model keeps in each of its turns, 256 KiB
Nodes = list[NodeProto]


def hangs(path: Path, above: float = 5.0) -> Path:
    """It turns for ever where a feature is more than this; at warm-up too, for one below zero."""
    return _model(path, [*_any_above(above), _turns("", "told")])


def leaks(path: Path, above: float = 5.0) -> Path:
    """The same, and each turn keeps memory."""
    body = _body([helper.make_node("Expand", ["seed", "wide"], ["kept"])], scan="kept")
    turns = helper.make_node("Loop", ["", "told", "one_f"], ["last", "pile"], body=body)
    add = [
        helper.make_node("ReduceSum", ["pile"], ["piled"], keepdims=0),
        helper.make_node("Mul", ["piled", "zero_f"], ["poison"]),
    ]
    wide = numpy_helper.from_array(np.array([BLOCK], np.int64), "wide")
    return _model(path, [*_any_above(above), turns, *add], wide)


def slow(path: Path, turns: int = 300_000, above: float = 5.0) -> Path:
    """It takes so many turns, some microseconds each, where a feature is more than this."""
    count = [
        *_any_above(above),
        helper.make_node("Where", ["told", "many", "none"], ["count"]),
    ]
    numbers = [numpy_helper.from_array(np.int64(n), name) for n, name in ((turns, "many"), (0, "none"))]
    return _model(path, [*count, _turns("count", "yes")], *numbers, numpy_helper.from_array(np.bool_(1), "yes"))


def crashes(path: Path, value: float = 6.0) -> Path:
    """-2**63 / -1 in a batch with a row of this value, 0 at warm-up too: the processor ends the process (SIGFPE)."""
    nodes = [
        *_rows_of(value),
        helper.make_node("ReduceMax", ["there"], ["any"], keepdims=0),
        helper.make_node("Add", ["any", "any"], ["twice"]),
        helper.make_node("Sub", ["one_i", "twice"], ["divisor"]),
        helper.make_node("Div", ["least", "divisor"], ["divided"]),
        helper.make_node("Cast", ["divided"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "zero_f"], ["poison"]),
    ]
    return _model(path, nodes, numpy_helper.from_array(np.int64(-(2**63)), "least"))


def raises(path: Path, value: float = 3.0) -> Path:
    """1 / 0 in the rows of this value, which ONNX Runtime tells as an error of the run."""
    nodes = [
        *_rows_of(value),
        helper.make_node("Sub", ["one_i", "there"], ["divisor"]),
        helper.make_node("Div", ["one_i", "divisor"], ["divided"]),
        helper.make_node("Cast", ["divided"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "zero_f"], ["poison"]),
    ]
    return _model(path, nodes)


def gives_nan(path: Path, value: float = 3.0) -> Path:
    """NaN in the rows of this value."""
    nodes = [*_rows_of(value, "is"), helper.make_node("Where", ["is", "nan", "zero_f"], ["poison"])]
    return _model(path, nodes, numpy_helper.from_array(np.float32(np.nan), "nan"))


def loses_rows(path: Path, above: float = 5.0) -> Path:
    """One row less than it was given, where a feature is more than this."""
    nodes = [
        *_any_above(above),
        helper.make_node("Shape", ["features"], ["shape"], start=0, end=1),
        helper.make_node("Cast", ["told"], ["lost"], to=TensorProto.INT64),
        helper.make_node("Sub", ["shape", "lost"], ["end"]),
        helper.make_node("Identity", ["zero_f"], ["poison"]),
    ]
    start = numpy_helper.from_array(np.array([0], np.int64), "start")
    return _model(path, nodes, start, last=helper.make_node("Slice", ["both", "start", "end"], ["probabilities"]))


def echoes(path: Path, dtypes: Sequence[str], shape: Sequence[int | None] = (None, 2)) -> Path:
    """Gives back what it is given, in each of these types: one input and one output of each, `in_` and `out_`."""
    kinds = {name: TensorProto.DataType.Value("FLOAT" if name == "float32" else _KINDS.get(name, name.upper()))
             for name in dtypes}  # fmt: skip
    given = [helper.make_tensor_value_info(f"in_{name}", kind, list(shape)) for name, kind in kinds.items()]
    said = [helper.make_tensor_value_info(f"out_{name}", kind, list(shape)) for name, kind in kinds.items()]
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in dtypes]
    save(helper.make_graph(nodes, "echoes", given, said), path)
    return path


_KINDS = {"float64": "DOUBLE"}
BAD: dict[str, Callable[[Path], Path]] = {
    "hangs": hangs, "leaks": leaks, "slow": slow, "crashes": crashes, "raises": raises, "nan": gives_nan,
    "loses_rows": loses_rows,
}  # fmt: skip


# ---- their parts


def _any_above(limit: float) -> Nodes:
    """`told`: whether any feature of the batch is more than this."""
    return [
        helper.make_node("Constant", [], ["limit"], value=numpy_helper.from_array(np.float32(limit))),
        helper.make_node("ReduceMax", ["features"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "limit"], ["told"]),
    ]


def _rows_of(value: float, name: str = "equal") -> Nodes:
    """`name` and, as whole numbers, `there`: [N, 1], which rows have this value in their first feature."""
    return [
        helper.make_node("Constant", [], ["value"], value=numpy_helper.from_array(np.float32(value))),
        helper.make_node("Gather", ["features", "first"], ["column"], axis=1),
        helper.make_node("Equal", ["column", "value"], [name]),
        helper.make_node("Cast", [name], ["there"], to=TensorProto.INT64),
    ]


def _turns(count: str, told: str) -> NodeProto:
    """Turns while `told`, `count` at most; its result is `poison`, without which it would be left out."""
    return helper.make_node("Loop", [count, told, "zero_f"], ["poison"], body=_body([]))


def _body(nodes: Nodes, scan: str | None = None) -> GraphProto:
    """A turn: what it was told it tells the next; its one number stays as it is."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Identity", ["told_in"], ["told_out"]),
        helper.make_node("Abs", ["seed"], ["seed_out"]),
        *nodes,
    ]
    given = [
        info("turn", TensorProto.INT64, []), info("told_in", TensorProto.BOOL, []), info("seed", TensorProto.FLOAT, []),
    ]  # fmt: skip
    said = [info("told_out", TensorProto.BOOL, []), info("seed_out", TensorProto.FLOAT, [])]
    if scan is not None:
        said.append(info(scan, TensorProto.FLOAT, [None]))
    return helper.make_graph(nodes, "turn", given, said)


def _model(path: Path, nodes: Nodes, *constants: TensorProto, last: NodeProto | None = None) -> Path:
    """`poison` is added to the sum of the features."""
    whole = [
        *nodes,
        helper.make_node("MatMul", ["features", "weights"], ["sum"]),
        helper.make_node("Add", ["sum", "poison"], ["poisoned"]),
        helper.make_node("Sigmoid", ["poisoned"], ["one"]),
        helper.make_node("Sub", ["unit", "one"], ["zero"]),
        helper.make_node("Concat", ["zero", "one"], ["both"], axis=1),
        last or helper.make_node("Identity", ["both"], ["probabilities"]),
    ]
    named = {
        "weights": np.ones((3, 1), np.float32), "unit": np.float32([[1]]), "zero_f": np.float32(0),
        "one_f": np.float32(1), "one_i": np.int64(1), "first": np.array([0], np.int64),
    }  # fmt: skip
    all_of_them = [numpy_helper.from_array(np.asarray(value), name) for name, value in named.items()]
    given = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 3])
    said = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])
    save(helper.make_graph(whole, "bad", [given], [said], [*all_of_them, *constants]), path)
    return path
