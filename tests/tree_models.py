"""Models with trees in them, of whole libraries and by hand, and how a session of one is held against the runtime's."""

from __future__ import annotations

from functools import partial
from unittest import mock

import lightgbm
import numpy as np
import pytest
from ensembles import Form, ensemble, write, write_graph
from onnx import TensorProto, helper, numpy_helper
from onnx_support import ROWS, WIDTH
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType
from skl2onnx import to_onnx
from skl2onnx.common import _container
from skl2onnx.common import data_types as sklearn_types
from sklearn import ensemble as sk

from streamserve.adapters import onnx as adapter
from streamserve.adapters import onnx_trees
from streamserve.adapters.onnx import OnnxSession
from streamserve.adapters.onnx_ensembles import Trees, nodes_of, parse
from streamserve.demo.train import OPSET, export_onnx
from streamserve.models.session import ON_CPU, SessionSettings

PLAIN = SessionSettings(compiled_trees=False)
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
SCORES = ("scores", FLOAT, [None, 1])
TARGETS = np.where(ROWS[:, 0] * ROWS[:, 1] > 0.3, 2, ROWS[:, 2] > 0)  # three classes
CLASSES = {2: TARGETS > 0, 3: TARGETS, 0: ROWS[:, 0] - ROWS[:, 3] ** 2}


# ---- what is promised of each


def opened(path, settings=ON_CPU):
    """A session, and whether compiled trees are in it: only then it is another one than was made first."""
    other = []

    def noted(path, own, create):
        found = onnx_trees.with_compiled_trees(path, own, create)
        other.append(found is not own)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "with_compiled_trees", noted)
        return OnnxSession(path, settings), other == [True]


def said(session, rows):
    return [one.tobytes() for one in session.run({"features": rows}, [one.name for one in session.outputs])]


def comparable(arrays):
    return [one.tolist() if one.dtype == object else one.tobytes() for one in arrays]


def rows_of(path):
    """Rows at and around the model's own thresholds."""
    return onnx_trees.probes([Trees(node) for node in nodes_of(parse(path.read_bytes()))], WIDTH)


def check_same(path, rows, *, compiled):
    plain, (session, taken) = OnnxSession(path, PLAIN), opened(path)
    assert (session.inputs, session.outputs) == (plain.inputs, plain.outputs)
    assert said(session, rows) == said(plain, rows)
    assert taken is compiled


# ---- of libraries


def boosted(path, objective, classes, **more):
    rows = ROWS.astype(np.float64)
    if more.pop("gaps", False):
        rows[::3, :4] = np.nan
    if "categorical_feature" in more:
        rows[:, 0] = np.arange(len(rows)) % 9
    given = {"objective": objective, "num_leaves": 15, "num_threads": 1, "verbose": -1, "min_data_per_group": 1}
    if classes == 3:
        given["num_class"] = 3
    booster = lightgbm.train(given, lightgbm.Dataset(rows, CLASSES[classes], **more), 30)
    if classes == 2:
        return export_onnx(booster, WIDTH, path)
    made = convert_lightgbm(
        booster, initial_types=[("features", FloatTensorType([None, WIDTH]))], target_opset=OPSET, zipmap=False
    )
    for output in made.graph.output:
        output.type.tensor_type.shape.dim[0].Clear()
    return path.write_bytes(made.SerializeToString())


def fitted(path, model, classes):
    """A model of scikit-learn."""
    model.fit(ROWS, CLASSES[classes].astype(np.int64 if classes else np.float32))
    types = [("features", sklearn_types.FloatTensorType([None, WIDTH]))]
    options = {"zipmap": False} if classes else None
    with mock.patch.object(_container, "make_node", without_booleans):
        made = to_onnx(model, initial_types=types, target_opset={"": OPSET, "ai.onnx.ml": 3}, options=options)
    path.write_bytes(made.SerializeToString())


def without_booleans(*given, **attributes):
    """The library onnx 1.23 takes none as integers, and skl2onnx 1.20 gives them."""
    numbers = {
        name: [int(one) if isinstance(one, (bool, np.bool_)) else one for one in value]
        if isinstance(value, list)
        else value
        for name, value in attributes.items()
    }
    return helper.make_node(*given, **numbers)


# ---- made by hand

TREES, VOTES, SIGNS = (
    ensemble(Form(width=2)),
    ensemble(Form(classes=2, width=2, positive=True)),
    Form(classes=2, width=2),
)
AT_LEAF = [mode == "LEAF" for mode in TREES.attributes["nodes_modes"]]
PICK = numpy_helper.from_array(np.array([5, 7]), "pick")
SCALED = helper.make_node("Scaler", ["features"], ["fewer"], domain="ai.onnx.ml", offset=[1.0] * 5, scale=[2.0] * 5)
NAMED = helper.make_node("Relu", ["features"], ["scores"], name="TreeEnsembleOf")
TEXT = helper.make_node(
    "LabelEncoder",
    ["label"],
    ["text"],
    domain="ai.onnx.ml",
    keys_int64s=[7, -3],
    values_strings=["the first", "the other"],
)
LABELLED = [("label", INT64, [None]), ("scores", FLOAT, [None, 2])]


def only(nodes, shape=(None, 2), said=(SCORES,), **more):
    return lambda path: write(path, nodes, said, shape, **more)


def changed(form, **attributes):
    return ensemble(form, **attributes).write


def two_inputs(path):
    given = [helper.make_tensor_value_info(name, FLOAT, [None, 2]) for name in ("features", "more")]
    nodes = [helper.make_node("Add", ["features", "more"], ["both"]), TREES.node("both")]
    return write_graph(path, helper.make_graph(nodes, "two", given, [helper.make_tensor_value_info(*SCORES)]))


def with_zipmap(path):
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, [])))
    zipped = helper.make_node("ZipMap", ["scores"], ["zipped"], domain="ai.onnx.ml", classlabels_int64s=[7, -3])
    said = [helper.make_tensor_value_info("label", INT64, [None]), helper.make_value_info("zipped", maps)]
    given = [helper.make_tensor_value_info("features", FLOAT, [None, 2])]
    return write_graph(path, helper.make_graph([VOTES.node(), zipped], "zipped", given, said))


def newer(path):
    """The operator of trees of the newer standard, which is another one."""
    tensor = partial(helper.make_tensor, "")
    node = helper.make_node(
        "TreeEnsemble", ["features"], ["scores"], domain="ai.onnx.ml", n_targets=1, tree_roots=[0],
        nodes_featureids=[0], nodes_modes=tensor(TensorProto.UINT8, [1], [0]), nodes_splits=tensor(FLOAT, [1], [0.5]),
        nodes_truenodeids=[0], nodes_falsenodeids=[1], nodes_trueleafs=[1], nodes_falseleafs=[1],
        leaf_targetids=[0, 0], leaf_weights=tensor(FLOAT, [2], [1.0, 2.0]),
    )  # fmt: skip
    return only([node], ml=5)(path)


def far_leaf(number):
    features = TREES.attributes["nodes_featureids"]
    return ensemble(
        Form(width=2),
        nodes_featureids=[number if leaf else one for leaf, one in zip(AT_LEAF, features, strict=True)],
    )


ALONE = {
    "double": (only([TREES.node()], kind=TensorProto.DOUBLE), "other than rows of float32"),
    "cast": (only([helper.make_node("Cast", ["features"], ["wide"], to=TensorProto.DOUBLE), TREES.node("wide")]), ""),
    "text labels": (
        only(
            [ensemble(SIGNS, classlabels_int64s=None, classlabels_strings=["a", "b"]).node()],
            said=[("label", TensorProto.STRING, [None]), LABELLED[1]],
        ),
        "classlabels_strings",
    ),
    "both classes": (changed(SIGNS, class_ids=[0, 1] * 7), "both classes"),
    "several targets": (
        only([ensemble(Form(width=2), n_targets=2, target_ids=[0, 1] * 7).node()], said=[("scores", FLOAT, [None, 2])]),
        "several things",
    ),
    "least": (changed(Form(width=2), aggregate_function="MIN"), "no sum"),
    "most": (changed(Form(width=2), aggregate_function="MAX"), "no sum"),
    "equal": (changed(Form(width=2, modes=("BRANCH_EQ",))), "BRANCH_EQ"),
    "probit": (changed(Form(width=2, positive=True), post_transform="PROBIT"), "what becomes of their sums"),
    "softmax of two": (changed(SIGNS, post_transform="SOFTMAX"), "what becomes of their sums"),
    "two bases": (changed(SIGNS, base_values=[0.5, 0.25]), "base values"),
    "leaves": (changed(Form((257, 1), width=2)), "too many leaves"),
    "bushy": (changed(Form((200, 180), width=2)), "too large to gain"),
    "no threshold": (changed(Form((2,), width=2, shuffled=False), nodes_values=[np.nan, 0.0, 0.0]), "no number"),
    "no leaf's weight": (changed(Form((2,), width=2, shuffled=False), **{
        f"target_{name}": [value] for name, value in (("ids", 0), ("nodeids", 1), ("treeids", 0), ("weights", 1.0))
    }), "no weight"),
    "two inputs": (two_inputs, "other than rows of float32"),
    "only a name": (only([NAMED], said=[("scores", FLOAT, [None, 2])]), "none"),
    "newer": (newer, "none"),
}  # fmt: skip


WIDTHS = {"picked features of a dynamic width": 9, "scaled features of a dynamic width": 5}  # else 2
FORMS_OF_MODELS = {
    "a dynamic width": only([TREES.node()], (None, None)),
    "picked features of a dynamic width": only(
        [helper.make_node("Gather", ["features", "pick"], ["fewer"], axis=1), TREES.node("fewer")],
        (None, None), constants=[PICK],
    ),
    "scaled features of a dynamic width": only([SCALED, TREES.node("fewer")], (None, None)),
    "a map as an output": with_zipmap,
    "an output of no declared shape": only([TREES.node()], said=[("scores", FLOAT, None)]),
    "a leaf of a far feature": only([far_leaf(1 << 40).node()], (None, None)),
    "a leaf of no feature": only([ensemble(Form((1,), width=2), nodes_featureids=[-2]).node()], (None, None)),
    "text after the trees": only(
        [VOTES.node(), TEXT],
        said=[("text", TensorProto.STRING, [None])],
    ),
}  # fmt: skip


def cornered(path):
    """Two classes, of which one needs a row above the thresholds of 19 features."""
    inner = range(19)  # each has a leaf below it and the next one
    return ensemble(
        Form((20,), classes=2, width=19, shuffled=False),
        nodes_modes=["BRANCH_LEQ", "LEAF"] * 19 + ["LEAF"],
        nodes_featureids=[n for i in inner for n in (i, 0)] + [0],
        nodes_values=[0.5] * 39,
        nodes_truenodeids=[n for i in inner for n in (2 * i + 1, 0)] + [0],
        nodes_falsenodeids=[n for i in inner for n in (2 * i + 2, 0)] + [0],
        class_nodeids=[*range(1, 39, 2), 38],
        class_weights=[1.0] * 19 + [-1.0],
    ).write(path)


# attributes of a stump, and what is the matter with them
BROKEN = [
    ({"nodes_truenodeids": [0, 0, 0]}, "reached in two ways"),
    ({"nodes_truenodeids": [2, 0, 0]}, "reached in two ways"),
    ({"nodes_truenodeids": [9, 0, 0]}, "a node is missing"),
    ({"nodes_truenodeids": [-1, 0, 0]}, "a node is missing"),
    ({"nodes_modes": ["LEAF"] * 3, "target_nodeids": [0, 1]}, "out of reach"),
    ({"nodes_nodeids": [0, 1, 1]}, "aren't numbered"),
    ({"nodes_nodeids": [0, 1, 1 << 60]}, "aren't numbered"),
    ({"nodes_treeids": [0, 1, 0]}, "don't lie together"),
    ({"nodes_treeids": [-1, -1, -1]}, "aren't numbered"),
    ({"nodes_treeids": [0, 0]}, "unequal lengths"),
    ({"nodes_featureids": [1 << 40, 0, 0]}, "too many features"),
    ({"nodes_featureids": [-1, 0, 0]}, "too many features"),
    ({"nodes_values": [np.nan, 0, 0]}, "no number"),
    ({"target_weights": [1.0, np.inf]}, "not finite"),
    ({"base_values": [np.nan]}, "not finite"),
    ({"target_nodeids": [0, 1]}, "of no leaf"),
    ({"target_nodeids": [1, 1]}, "several weights"),
    ({"target_nodeids": [1, 7]}, "of no leaf"),
    ({"target_treeids": [1 << 60, 0]}, "of no leaf"),
    ({"target_ids": [3, 0]}, "no weight"),
]
LIGHTGBM = [
    ("binary", 2, {}, True),
    ("binary", 2, {"gaps": True}, True),
    ("binary", 2, {"categorical_feature": [0]}, False),
    ("multiclass", 3, {}, True),
    ("regression", 0, {"gaps": True}, True),
]
SCIKIT_LEARN = [
    (partial(sk.GradientBoostingClassifier, n_estimators=20), 2, True),
    (partial(sk.GradientBoostingClassifier, n_estimators=20), 3, True),
    (partial(sk.GradientBoostingRegressor, n_estimators=20), 0, True),
    (partial(sk.HistGradientBoostingClassifier, max_iter=20), 2, True),
    (partial(sk.HistGradientBoostingClassifier, max_iter=20), 3, True),
    (partial(sk.HistGradientBoostingRegressor, max_iter=20), 0, True),
    (partial(sk.RandomForestClassifier, n_estimators=9, max_depth=5, random_state=0), 2, True),
    (partial(sk.RandomForestClassifier, n_estimators=9, max_depth=5, random_state=0), 3, False),
    (partial(sk.RandomForestRegressor, n_estimators=9, max_depth=4, random_state=0), 0, True),
]
