"""A candidate's answers beside stable's: scored, compared and encoded in columns. Runs where the candidate runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro
from numpy.typing import NDArray

from streamserve.errors import SignatureError
from streamserve.features.arrays import unlisted
from streamserve.pipeline import framing
from streamserve.pipeline.shadow import INPUT, SEGMENT, STABLE
from streamserve.pipeline.shadow_decision import FRAMED, FRAMED_NAMES
from streamserve.records import FeatureMatrix, Floats, Indices, Int32s, Int64s, Scores

MILLISECONDS = pa.timestamp("ms")


class Judge(Protocol):
    """The candidate."""

    names: tuple[str, ...]
    labels: tuple[str, ...]

    def score(self, matrix: FeatureMatrix, raw_rows: Int64s) -> Scores: ...


@dataclass(frozen=True, slots=True)
class Compared:
    """values: the framed record of each row. agreed: of `decided`, those on which both decided alike.

    errors: events that the candidate failed on, by the name of the error.
    """

    values: pa.BinaryArray
    agreed: int
    decided: int
    errors: Mapping[str, int] = field(default_factory=dict)


def compare(sheet: pa.RecordBatch, judge: Judge, schema_id: int, now_ms: int) -> Compared:
    """Score the rows of a sheet (`pipeline.shadow.Sheet.table`), and write down what both versions said of them."""
    same = json.loads(sheet.schema.metadata[b"same"])
    said, errors = _score(sheet, same, judge)
    stable = unlisted(sheet.column(STABLE), "float64", [len(same["names"])])
    decision = pa.array(judge.labels, pa.string()).take(pa.array(said.decisions, mask=said.decisions < 0))
    agreement = pc.equal(sheet.column("stable_decision"), decision)
    difference = _difference(same["names"], stable, judge.names, said.values)
    failed = np.isin(np.arange(len(sheet)), said.rows, invert=True)
    columns = {
        **framing.header_columns(schema_id, len(sheet)),
        **{name: pa.repeat(same[name], len(sheet)) for name in _SAME},
        "prediction_id": _ids(same["topic"], sheet),
        "event_id": sheet.column("event_id"),
        "event_time": sheet.column("event_time").cast(MILLISECONDS),
        "source_timestamp": sheet.column("source_timestamp").cast(MILLISECONDS),
        "compared_at": pa.repeat(pa.scalar(now_ms, pa.int64()).cast(MILLISECONDS), len(sheet)),
        "control_epoch": sheet.column("control_epoch"),
        "stable_scores": _maps(same["names"], stable, np.zeros(len(sheet), bool)),
        "candidate_scores": _maps(judge.names, said.values, failed),
        "stable_decision": sheet.column("stable_decision"),
        "candidate_decision": decision,
        "agreement": agreement,
        "difference": pa.array(difference, mask=np.isnan(difference)),
        "error": errors,
        "segments": _segments(sheet),
    }
    table = pa.RecordBatch.from_arrays([columns[name] for name in FRAMED_NAMES], names=FRAMED_NAMES)
    (values,) = pyruhvro.serialize_record_batch(table, FRAMED, 1)
    counts = errors.drop_null().value_counts().to_pylist()
    return Compared(
        values=values,
        agreed=agreement.true_count,
        decided=len(agreement) - agreement.null_count,
        errors={one["values"]: one["counts"] for one in counts},
    )


_SAME = ("topology", "model", "rollout_id", "stable_version", "candidate_version")


def _score(sheet: pa.RecordBatch, same: Mapping[str, Any], judge: Judge) -> tuple[Scores, pa.StringArray]:
    """What the candidate says of every row, NaN and no decision where it fails, and why it does there."""
    told: list[str | None] = sheet.column("error").to_pylist() if sheet.column("error").null_count < len(sheet) else []
    fit = np.array([one is None for one in told], bool) if told else np.ones(len(sheet), bool)
    rows = np.flatnonzero(fit)
    inputs = {
        name: unlisted(sheet.column(f"{INPUT}{name}"), dtype, shape)[rows]
        for name, (dtype, shape) in same["inputs"].items()
    }
    names = list[str | None](told or [None] * len(sheet))
    values = np.full((len(sheet), len(judge.names)), np.nan)
    decisions = np.full(len(sheet), -1, np.int32)
    answered = np.empty(0, np.intp)
    matrix = FeatureMatrix(str(same["candidate_version"]), rows, inputs, (), np.empty((len(rows), 0), np.uint8))
    try:
        said = judge.score(matrix, np.arange(len(sheet)))
    except SignatureError as error:  # of all rows alike
        for row in rows.tolist():
            names[row] = type(error).__name__
    else:
        answered = said.rows
        values[answered], decisions[answered] = said.values, said.decisions
        for reject in said.rejects:
            names[reject.row] = reject.error
    return (
        Scores(matrix.version, answered, judge.names, values, judge.labels, decisions),
        pa.array(names, pa.string()),
    )


def _difference(mine: Sequence[str], stable: Floats, others: Sequence[str], candidate: Floats) -> Floats:
    """The largest absolute difference of what both scored under one name; NaN where there is none."""
    shared = [name for name in mine if name in others]
    apart = np.full((len(stable), len(shared) + 1), np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        for place, name in enumerate(shared):
            apart[:, place] = np.abs(candidate[:, list(others).index(name)] - stable[:, list(mine).index(name)])
    found: Floats = np.fmax.reduce(apart, axis=1)
    return found


def _ids(topic: str, sheet: pa.RecordBatch) -> pa.StringArray:
    numbers = [sheet.column(name).cast(pa.string()) for name in ("partition", "offset")]
    return pc.binary_join_element_wise(pa.repeat(topic, len(sheet)), *numbers, "-")


def _maps(names: Sequence[str], values: Floats, empty: NDArray[np.bool_]) -> pa.MapArray:
    """One map a row, of all names; none in the rows that are empty."""
    full: Indices = np.flatnonzero(~empty)
    sizes: Int32s = np.where(empty, 0, len(names)).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    keys = pa.array(names, pa.string()).take(pa.array(np.tile(np.arange(len(names)), len(full))))
    return pa.MapArray.from_arrays(starts, keys, pa.array(np.ravel(values[full]), pa.float64()))


def _segments(sheet: pa.RecordBatch) -> pa.MapArray:
    """One map a row, of the fields that are not null."""
    names = [name for name in sheet.schema.names if name.startswith(SEGMENT)]
    if not names:
        nothing = pa.array([], pa.string())
        return pa.MapArray.from_arrays(np.zeros(len(sheet) + 1, np.int32), nothing, nothing)
    # Row by row: the values of all fields side by side, without the nulls
    columns = pa.chunked_array([sheet.column(name) for name in names]).combine_chunks()
    order = np.arange(len(names) * len(sheet)).reshape(len(names), len(sheet)).T.ravel()
    values = columns.take(pa.array(order))
    there = values.is_valid().to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(there.reshape(len(sheet), len(names)).sum(axis=1))]).astype(np.int32)
    fields = pa.array([name.removeprefix(SEGMENT) for name in names])
    keys = fields.take(pa.array(np.tile(np.arange(len(names)), len(sheet))[there]))
    return pa.MapArray.from_arrays(starts, keys, values.drop_null())
