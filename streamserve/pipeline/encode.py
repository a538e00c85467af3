"""Encode: what each version said of its events becomes framed prediction records, in the order of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamserve.pipeline import prediction_columns, prediction_packed
from streamserve.pipeline.prediction import Predicted, Provenance, predicted
from streamserve.records import Assignment, EventBatch, FeatureMatrix, Scores


def encode(
    events: EventBatch,
    assignment: Assignment,
    matrices: Sequence[FeatureMatrix],
    scores: Sequence[Scores],
    about: Provenance,
    now_ms: int,
) -> tuple[NDArray[np.intp], pa.BinaryArray]:
    """The scored rows (indices into the EventBatch, ascending) and the framed record of each."""
    parts = [
        predicted(events, assignment, matrix, said, about)
        for matrix, said in zip(matrices, scores, strict=True)
        if len(said.rows)
    ]
    if not parts:
        return np.empty(0, np.intp), pa.array([], pa.binary())
    values = [_records(part, about, now_ms) for part in parts]
    rows = np.concatenate([part.rows for part in parts])
    if len(parts) == 1:
        return rows, values[0]
    order = np.argsort(rows, kind="stable")
    return rows[order], pa.concat_arrays(values).take(pa.array(order))


def _records(part: Predicted, about: Provenance, now_ms: int) -> pa.BinaryArray:
    packed = prediction_packed.encode(part, about, now_ms)
    return prediction_columns.encode(part, about, now_ms) if packed is None else packed
