"""Models of trees made node by node, in every form that the compiled trees take, and rows that find their edges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import GraphProto, NodeProto, TensorProto, helper

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT")
LABELS = (7, -3, 1 << 40, 0, 12)
TINY = np.float32(1e-45)  # the smallest number above zero
EDGES = np.array([0, -0.0, TINY, -TINY, 1e-40, np.inf, -np.inf, 3.4e38, -3.4e38], np.float32)
NO_NUMBERS = np.array([np.nan, -np.nan], np.float32)
NODES = (
    "treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids", "missing_value_tracks_true",
)  # fmt: skip
WEIGHTS = ("treeids", "nodeids", "ids", "weights")


@dataclass(frozen=True)
class Form:
    """What an ensemble is like; its numbers are drawn by `seed`.

    leaves: of each tree. classes: 0: one value; 2: all weights are of the first class; more: each tree is of a class.
    chained: each node has a leaf. edges: which share of the thresholds is taken from EDGES. coarse: how many thresholds
    there are to choose from. scale: of the weights. positive: all of them are.
    """

    leaves: tuple[int, ...] = (3, 4, 1, 6)
    classes: int = 0
    transform: str = "NONE"
    average: bool = False
    positive: bool = False
    base: float | None = None
    width: int = 3
    modes: tuple[str, ...] = ("BRANCH_LEQ",)
    missing: bool = True
    chained: bool = False
    edges: float = 0.0
    coarse: int = 50
    scale: float = 1.0
    shuffled: bool = True
    seed: int = 0


KINDS: dict[str, dict[str, Any]] = {
    "a sum": {},
    "an average": {"average": True},
    "two classes by votes": {"classes": 2, "positive": True},
    "two classes by votes, logistic": {"classes": 2, "positive": True, "transform": "LOGISTIC"},
    "two classes by signs": {"classes": 2},
    "two classes by signs, logistic": {"classes": 2, "transform": "LOGISTIC"},
    "three classes": {"classes": 3},
    "three classes, logistic": {"classes": 3, "transform": "LOGISTIC"},
    "five classes, softmax": {"classes": 5, "transform": "SOFTMAX"},
}


@st.composite
def forms(draw: st.DrawFn, kind: str) -> Form:
    fixed = KINDS[kind]
    classes = fixed.get("classes", 0)
    leaves = draw(st.lists(st.sampled_from((1, 2, 3, 4, 5, 7, 9, 16)), min_size=max(1, classes), max_size=40))
    if len(leaves) > 5 and draw(st.booleans()):  # a tree of two or three words
        leaves[draw(st.integers(0, len(leaves) - 1))] = draw(st.sampled_from((31, 32, 33, 64, 65, 70)))
    varied = st.fixed_dictionaries({
        "base": st.sampled_from((None, 0.0, 0.25, -1.5, 0.1)),
        "width": st.integers(1, 6),
        "modes": st.lists(st.sampled_from(MODES), min_size=1, unique=True).map(tuple),
        "missing": st.booleans(),
        "chained": st.booleans(),
        "edges": st.sampled_from((0.0, 0.2, 1.0)),
        "coarse": st.sampled_from((1, 4, 50)),
        "scale": st.sampled_from((1.0, 1e-40, 1e-3, 30.0, 1e37)),
        "shuffled": st.booleans(),
        "seed": st.integers(0, 1 << 32),
    })  # fmt: skip
    return Form(tuple(leaves), **(fixed | draw(varied)))


@dataclass
class Made:
    """An ensemble's attributes, and what rows are made of."""

    form: Form
    attributes: dict[str, Any]
    random: np.random.Generator

    def node(self, given: str = "features") -> NodeProto:
        op, said = ("Classifier", ["label", "scores"]) if self.form.classes else ("Regressor", ["scores"])
        return helper.make_node(f"TreeEnsemble{op}", [given], said, domain="ai.onnx.ml", **self.attributes)

    def write(self, path: Path, *, any_width: bool = False) -> Path:
        said = [("scores", TensorProto.FLOAT, [None, self.form.classes or 1])]
        if self.form.classes:
            said.insert(0, ("label", TensorProto.INT64, [None]))
        return write(path, [self.node()], said, [None, None if any_width else self.form.width])

    def rows(self, count: int) -> np.ndarray:
        """At thresholds, next to them, at the edges of numbers, and anywhere."""
        own = np.array(self.attributes["nodes_values"], np.float32)
        with np.errstate(over="ignore", under="ignore"):
            near = np.concatenate([own, np.nextafter(own, np.float32(np.inf)), np.nextafter(own, np.float32(-np.inf))])
        choice = self.random.choice
        shape = (count, self.form.width)
        drawn = [choice(near, shape), choice(EDGES, shape), self.random.normal(size=shape), choice(NO_NUMBERS, shape)]
        return np.choose(choice(4, shape, p=[0.6, 0.1, 0.2, 0.1]), [one.astype(np.float32) for one in drawn])


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    said: Sequence[tuple[str, int, Any]],
    shape: Sequence[int | None],
    kind: int = TensorProto.FLOAT,
    constants: Sequence[TensorProto] = (),
    ml: int = 3,
) -> Path:
    """A model of `features` in."""
    given = helper.make_tensor_value_info("features", kind, shape)
    outputs = [helper.make_tensor_value_info(*one) for one in said]
    return write_graph(path, helper.make_graph(nodes, "of trees", [given], outputs, constants), ml)


def write_graph(path: Path, graph: GraphProto, ml: int = 3) -> Path:
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", ml)]
    path.write_bytes(helper.make_model(graph, opset_imports=versions, ir_version=8).SerializeToString())
    return path


def ensemble(form: Form, **changed: Any) -> Made:
    """changed: attributes that are others than the form's; None: it has none of that name."""
    random = np.random.default_rng(form.seed)
    what = "class" if form.classes else "target"
    found: dict[str, Any] = {f"nodes_{name}": [] for name in NODES} | {f"{what}_{name}": [] for name in WEIGHTS}
    pool = random.normal(size=form.coarse).astype(np.float32)
    for tree, leaves in enumerate(form.leaves):
        for node, *row in _tree(form, leaves, pool, random):
            _append(found, "nodes_", NODES, (tree, node, *row))
            if row[2] == "LEAF":
                weight = float(np.float32((abs(random.normal()) + 0.01) * form.scale))
                if not form.positive and (tree + node == 0 or random.integers(2)):
                    weight = -weight
                _append(
                    found, f"{what}_", WEIGHTS, (tree, node, tree % form.classes if form.classes > 2 else 0, weight)
                )
    found["post_transform"] = form.transform
    found["base_values"] = (
        None if form.base is None else [form.base + k for k in range(form.classes if form.classes > 2 else 1)]
    )
    if form.classes:
        found["classlabels_int64s"] = list(LABELS[: form.classes])
    else:
        found |= {"n_targets": 1, "aggregate_function": "AVERAGE" if form.average else "SUM"}
    if not form.missing:
        found["nodes_missing_value_tracks_true"] = None
    found = {name: value for name, value in (found | changed).items() if value is not None}
    return Made(form, found, random)


def _append(found: dict[str, Any], prefix: str, names: Sequence[str], row: Sequence[Any]) -> None:
    for name, value in zip(names, row, strict=True):
        found[prefix + name].append(value)


def _tree(form: Form, leaves: int, pool: np.ndarray, random: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """Of each node all but its tree, the first of all the root."""
    below: list[tuple[int, ...]] = []

    def grow(count: int) -> int:
        here = len(below)
        below.append(())
        if count > 1:
            left = 1 if form.chained else int(random.integers(1, count))
            sides = (left, count - left) if random.integers(2) else (count - left, left)
            below[here] = (grow(sides[0]), grow(sides[1]))
        return here

    grow(leaves)
    places = range(1, len(below))
    names = random.permutation(len(below)).tolist() if form.shuffled else list(range(len(below)))
    for node in (0, *(random.permutation(places).tolist() if form.shuffled else places)):
        if not below[node]:
            yield names[node], 0, 0.0, "LEAF", 0, 0, 0
            continue
        mode = str(random.choice(form.modes))
        threshold = float(random.choice(EDGES if random.random() < form.edges else pool))
        yield (
            names[node], int(random.integers(form.width)), threshold, mode, *(names[side] for side in below[node]),
            int(random.integers(2)),
        )  # fmt: skip
