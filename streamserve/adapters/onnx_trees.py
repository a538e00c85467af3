"""Tree ensembles in a session by the compiled part, `native/trees.c`: the runtime's bits in a fraction of its time.

ONNX Runtime still runs the model: a node of trees is replaced by an operator that is registered with it, and all that
comes after it stays as it is. What is taken: trees of up to 256 leaves over the model's float32 rows that compare
numbers (what LightGBM, XGBoost and scikit-learn make of boosting) for one value, two classes, or classes with trees of
their own. Everything else is left to the runtime: categories, double precision, labels that are text, forests whose
leaves hold several classes, trees behind a scaler.

Whether the two agree is not believed but looked at: before a session with such an operator is used, it answers rows at
and around the model's own thresholds to the last bit as the runtime's own does, or it is dropped.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from streamserve.adapters.onnx_ensembles import Ensemble, LeftAlone, Trees, nodes_of, parse
from streamserve.native import Signature, array_of, load, path_of

LOG = logging.getLogger("streamserve.onnx")
DOMAIN = "streamserve"
MARK = b"TreeEnsemble"
LARGEST = 16 << 20  # bytes of a model that is read for its trees: 8 ms a megabyte, with the interpreter's lock held
PROBES = 512  # rows that are compared at most
WIDEST = 4096  # features of a row
VALUES = 1 << 19  # of all probes: wider rows are fewer
SPECIAL = np.array([np.nan, np.nan, np.nan, 0, -0.0, np.inf, -np.inf], np.float32)
Register = Callable[[ort.SessionOptions], None]
Create = Callable[[bytes, Register], ort.InferenceSession]

_FUNCTIONS: dict[str, Signature] = {
    "operator_new": (c_void_p, [POINTER(Ensemble), c_int32, POINTER(c_char_p)]),
    "operators_offer": (None, [c_void_p, c_int32]),
    "operator_close": (None, [c_void_p]),
    "use_lanes": (None, [c_int32]),
}


@cache
def library() -> ctypes.CDLL | None:
    return load("trees", _FUNCTIONS)


def with_compiled_trees(path: Path, own: ort.InferenceSession, create: Create) -> ort.InferenceSession:
    """The runtime's own session, or one that says the same by compiled trees.

    path: of the model. create: makes a session of a model's bytes, with options that are changed before.
    """
    lib = library()
    if lib is None:
        return own
    try:
        return _compiled(lib, path, own, create)
    except LeftAlone as why:
        LOG.debug("%s: its trees are left to ONNX Runtime: %s", path, why)
    return own


def _compiled(lib: ctypes.CDLL, path: Path, own: ort.InferenceSession, create: Create) -> ort.InferenceSession:
    given = own.get_inputs()
    if len(given) != 1 or given[0].type != "tensor(float)" or len(given[0].shape) != 2:  # noqa: PLR2004
        raise LeftAlone("the model takes other than rows of float32")
    model = _read(path)
    nodes = nodes_of(model)
    if not nodes:
        raise LeftAlone("there are none")
    if any(list(node.input) != [given[0].name] for node in nodes):
        raise LeftAlone("what they get is made by the model")  # and is not to be probed then
    trees = [Trees(node) for node in nodes]
    rows = probes(trees, _width(given[0], trees))
    operators: list[int] = []
    try:
        for number, (node, one) in enumerate(zip(nodes, trees, strict=True)):
            operators.append(_operator(lib, one, number))
            node.op_type, node.domain = f"Trees{number}", DOMAIN
            del node.attribute[:]
        model.opset_import.add(domain=DOMAIN, version=1)
        made = _create(lib, model.SerializeToString(), operators, create)
    finally:
        for operator in operators:
            lib.operator_close(operator)
    if not _agree(own, made, {given[0].name: rows}):
        LOG.warning("%s: compiled trees say other than those of ONNX Runtime, which serve", path)
        raise LeftAlone("they disagree")
    return made


def _create(lib: ctypes.CDLL, content: bytes, operators: Sequence[int], create: Create) -> ort.InferenceSession:
    offered = array_of(c_void_p, len(operators))(*operators)

    def register(options: ort.SessionOptions) -> None:
        lib.operators_offer(offered, len(operators))
        options.register_custom_ops_library(str(path_of("trees")))

    try:
        return create(content, register)
    except Exception as error:  # whatever the runtime has against it: its own session is at hand
        raise LeftAlone(str(error)) from error
    finally:
        lib.operators_offer(None, 0)


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST:
            raise LeftAlone("the model is too large to be looked at")
        content = path.read_bytes()
        if MARK not in content:
            raise LeftAlone("there are none")
        return parse(content)
    except (OSError, DecodeError) as error:
        raise LeftAlone(str(error)) from error


def _operator(lib: ctypes.CDLL, trees: Trees, number: int) -> int:
    problem = c_char_p()
    made: int | None = lib.operator_new(byref(trees.ensemble()), number, byref(problem))
    if made is None:
        raise LeftAlone((problem.value or b"").decode())
    return made


def _width(given: ort.NodeArg, trees: Sequence[Trees]) -> int:
    """How many features a row of the model has."""
    needed = max((int(one.features.max()) + 1 for one in trees if len(one.features)), default=1)
    width = given.shape[1] if isinstance(given.shape[1], int) else needed
    if not needed <= width <= WIDEST:
        raise LeftAlone("rows are narrower than they need, or too wide to be probed")
    return width


def probes(trees: Sequence[Trees], width: int) -> NDArray[np.float32]:
    """Rows with values that are thresholds of their feature, or next to one, or missing: float32 [rows, width]."""
    random = np.random.default_rng(0)
    features = np.concatenate([one.features for one in trees])
    thresholds = np.concatenate([one.thresholds for one in trees])[np.argsort(features, kind="stable")]
    known = np.bincount(features, minlength=width)
    shape = min(PROBES, VALUES // width), width
    place = np.cumsum(known) - known + (random.random(shape) * known).astype(np.intp)
    rows = np.append(thresholds, np.float32(0))[np.where(known > 0, place, len(thresholds))]
    how, above, below = random.random(shape), np.float32(np.inf), np.float32(-np.inf)
    with np.errstate(all="ignore"):  # next to the largest number is infinity
        rows = np.where(how < 3 / 8, np.nextafter(rows, np.where(how < 1 / 8, below, above)), rows)
    return np.where(how > 7 / 8, random.choice(SPECIAL, shape), rows)


def _agree(own: ort.InferenceSession, made: ort.InferenceSession, given: Mapping[str, NDArray[np.float32]]) -> bool:
    asked = [one.name for one in own.get_outputs() if one.type.startswith("tensor(")]
    try:
        return all(
            left.shape == right.shape and left.dtype == right.dtype and _bits(left) == _bits(right)
            for left, right in zip(own.run(asked, given), made.run(asked, given), strict=True)
        )
    except Exception as error:  # the runtime's own says it when it is asked again
        raise LeftAlone(str(error)) from error


def _bits(answer: NDArray[Any]) -> object:
    return answer.tolist() if answer.dtype == object else answer.tobytes()
