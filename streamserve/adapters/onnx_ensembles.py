"""Tree ensembles as an ONNX file holds them: the nodes that are trees, and their arrays for `native/trees.c`.

The messages are those of onnx.proto, as far as they are read here; whatever else a model holds is carried along as it
is. The library `onnx` would say the same for 12 MB more in each worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.typing import NDArray

from streamserve.native import address

CLASSIFIER, REGRESSOR = "TreeEnsembleClassifier", "TreeEnsembleRegressor"
DOMAIN = "ai.onnx.ml"
REGRESSION, BINARY, CLASSES = range(3)
MODES = {b"LEAF": 0, b"BRANCH_LEQ": 1, b"BRANCH_LT": 2, b"BRANCH_GTE": 3, b"BRANCH_GT": 4}
TRANSFORMS = {b"NONE": 0, b"LOGISTIC": 1, b"SOFTMAX": 2}
ARRAYS = (
    "tree_ids", "node_ids", "features", "true_ids", "false_ids", "values", "modes", "missing_true",
    "weight_trees", "weight_nodes", "weight_scores", "weights", "bases", "labels",
)  # fmt: skip
NODES = {
    f"nodes_{name}"
    for name in (
        "falsenodeids", "featureids", "hitrates", "missing_value_tracks_true", "modes", "nodeids", "treeids",
        "truenodeids", "values",
    )
}  # fmt: skip
KNOWN = {
    CLASSIFIER: NODES | {"class_ids", "class_nodeids", "class_treeids", "class_weights", "classlabels_int64s",
                         "base_values", "post_transform"},
    REGRESSOR: NODES | {"target_ids", "target_nodeids", "target_treeids", "target_weights", "n_targets",
                        "base_values", "post_transform", "aggregate_function"},
}  # fmt: skip


class LeftAlone(Exception):  # noqa: N818  (no error: the runtime's own trees serve)
    """Why trees are left to the runtime."""


class Ensemble(Structure):
    """`ensemble` of the C file. It points into the arrays of the `Trees` that it was made by."""

    _fields_ = [
        ("node_count", c_int64),
        ("weight_count", c_int64),
        *((name, c_void_p) for name in ARRAYS),
        *((name, c_int32) for name in ("label_count", "score_count", "kind", "transform", "average")),
    ]


class Trees:
    """A node of trees.

    thresholds: float32, of each node that compares. features: which it compares.

    Raises:
        LeftAlone: it says more than `native/trees.c` knows.
    """

    def __init__(self, node: Any) -> None:
        self._given = {attribute.name: attribute for attribute in node.attribute}
        if unknown := self._given.keys() - KNOWN[node.op_type]:
            raise LeftAlone(f"they have {min(unknown)}")
        self._classifies = node.op_type == CLASSIFIER
        if len(node.input) != 1 or len(node.output) != 1 + self._classifies or not all(node.output):
            raise LeftAlone("their inputs or outputs are others")
        self._arrays = self._read("class" if self._classifies else "target")
        nodes, weights = len(self._arrays["tree_ids"]), len(self._arrays["weights"])
        for name in ARRAYS[:-2]:
            if len(self._arrays[name]) != (weights if name.startswith("weight") else nodes):
                raise LeftAlone("their arrays are of unequal lengths")
        compares = self._arrays["modes"] != MODES[b"LEAF"]
        self.features, self.thresholds = self._arrays["features"][compares], self._arrays["values"][compares]

    def ensemble(self) -> Ensemble:
        nodes, weights = len(self._arrays["tree_ids"]), len(self._arrays["weights"])
        labels = len(self._arrays["labels"])
        kind, scores = self._kind(labels)
        if len(self._arrays["bases"]) not in {0, scores}:
            raise LeftAlone("they have another number of base values")
        if not len(self._arrays["bases"]):
            self._arrays["bases"] = np.zeros(scores, np.float32)
        return Ensemble(
            nodes,
            weights,
            *(address(self._arrays[name]) for name in ARRAYS),
            labels,
            scores,
            kind,
            self._transform(kind),
            self._text("aggregate_function", b"SUM") == b"AVERAGE",
        )

    def _kind(self, labels: int) -> tuple[int, int]:
        if not self._classifies:
            targets = self._given["n_targets"].i if "n_targets" in self._given else 0
            if targets != 1 or self._text("aggregate_function", b"SUM") not in {b"SUM", b"AVERAGE"}:
                raise LeftAlone("they say several things, or no sum")
            return REGRESSION, 1
        if labels == 2:  # noqa: PLR2004
            if self._arrays["weight_scores"].any():
                raise LeftAlone("both classes have weights")
            return BINARY, 1
        scored = np.unique(self._arrays["weight_scores"])
        if labels < 2 or not np.array_equal(scored, np.arange(labels)):  # noqa: PLR2004
            raise LeftAlone("not each class has trees")
        return CLASSES, labels

    def _transform(self, kind: int) -> int:
        found = TRANSFORMS.get(self._text("post_transform", b"NONE"))
        if found is None or (kind == REGRESSION and found) or (kind == BINARY and found == TRANSFORMS[b"SOFTMAX"]):
            raise LeftAlone("what becomes of their sums is not known")
        return found

    def _read(self, what: str) -> dict[str, NDArray[Any]]:
        nodes = self._ints("nodes_treeids")
        missing = self._ints("nodes_missing_value_tracks_true")
        modes = self._given["nodes_modes"].strings if "nodes_modes" in self._given else ()
        try:
            known = bytes(map(MODES.__getitem__, modes))
        except KeyError as mode:
            raise LeftAlone(f"they compare by {mode}") from mode
        return {
            "tree_ids": nodes,
            "node_ids": self._ints("nodes_nodeids"),
            "features": self._ints("nodes_featureids"),
            "true_ids": self._ints("nodes_truenodeids"),
            "false_ids": self._ints("nodes_falsenodeids"),
            "values": self._floats("nodes_values"),
            "modes": np.frombuffer(known, np.uint8),
            "missing_true": (missing == 1).astype(np.uint8) if len(missing) else np.zeros(len(nodes), np.uint8),
            "weight_trees": self._ints(f"{what}_treeids"),
            "weight_nodes": self._ints(f"{what}_nodeids"),
            "weight_scores": self._ints(f"{what}_ids"),
            "weights": self._floats(f"{what}_weights"),
            "bases": self._floats("base_values"),
            "labels": self._ints("classlabels_int64s"),
        }

    def _ints(self, name: str) -> NDArray[np.int64]:
        return _array(self._given[name].ints if name in self._given else (), np.int64)

    def _floats(self, name: str) -> NDArray[np.float32]:
        return _array(self._given[name].floats if name in self._given else (), np.float32)

    def _text(self, name: str, default: bytes) -> bytes:
        return bytes(self._given[name].s) if name in self._given else default


def nodes_of(model: Any) -> list[Any]:
    return [node for node in model.graph.node if node.op_type in KNOWN and node.domain == DOMAIN]


def parse(content: bytes) -> Any:
    """A model; raises google.protobuf.message.DecodeError where it is none."""
    model = _messages()["ModelProto"]()
    model.ParseFromString(content)
    return model


def _array(values: Sequence[Any], dtype: type[Any]) -> NDArray[Any]:
    return np.array(values, dtype)  # of a repeated field: 30 times as fast as np.fromiter


@cache
def _messages() -> dict[str, Any]:
    """Of onnx.proto what is read here, by its numbers of fields."""
    kinds = descriptor_pb2.FieldDescriptorProto
    text, data, number, real = kinds.TYPE_STRING, kinds.TYPE_BYTES, kinds.TYPE_INT64, kinds.TYPE_FLOAT
    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    described = {
        "AttributeProto": [
            ("name", 1, text, one), ("f", 2, real, one), ("i", 3, number, one), ("s", 4, data, one),
            ("floats", 7, real, many), ("ints", 8, number, many), ("strings", 9, data, many),
        ],
        "NodeProto": [
            ("input", 1, text, many), ("output", 2, text, many), ("op_type", 4, text, one),
            ("attribute", 5, "AttributeProto", many), ("domain", 7, text, one),
        ],
        "GraphProto": [("node", 1, "NodeProto", many)],
        "OperatorSetIdProto": [("domain", 1, text, one), ("version", 2, number, one)],
        "ModelProto": [("graph", 7, "GraphProto", one), ("opset_import", 8, "OperatorSetIdProto", many)],
    }  # fmt: skip
    file = descriptor_pb2.FileDescriptorProto(name="streamserve/onnx.proto", package="streamserve.onnx")
    for name, fields in described.items():
        message = file.message_type.add(name=name)
        for field, place, kind, label in fields:
            added = message.field.add(name=field, number=place, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".{file.package}.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
        for name in described
    }
