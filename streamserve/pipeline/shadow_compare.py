"""A candidate's answers beside stable's: scored, compared and encoded in columns. Runs where the candidate runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from streamserve.errors import SignatureError
from streamserve.features.arrays import unlisted
from streamserve.features.buffers import numbers
from streamserve.pipeline import shadow_columns, shadow_packed
from streamserve.pipeline.shadow import INPUT, STABLE
from streamserve.pipeline.shadow_decision import Decided
from streamserve.records import FeatureMatrix, Floats, Int32s, Int64s, Scores


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
    made = decide(sheet, judge)
    values = shadow_packed.encode(made, schema_id, now_ms)
    if values is None:
        values = shadow_columns.encode(made, schema_id, now_ms)
    return Compared(
        values=values,
        agreed=int(np.count_nonzero(made.agreement > 0)),
        decided=int(np.count_nonzero(made.agreement >= 0)),
        errors=Counter(made.errors.drop_null().to_pylist()),
    )


def decide(sheet: pa.RecordBatch, judge: Judge) -> Decided:
    """Have the candidate score the rows of a sheet."""
    same = json.loads(sheet.schema.metadata[b"same"])
    said, errors = _score(sheet, same, judge)
    stable = unlisted(sheet.column(STABLE), "float64", [len(same["names"])])
    decisions = numbers(sheet.column("stable_decision"), np.int32).astype(np.int32, copy=False)
    return Decided(
        sheet=sheet,
        same=same,
        stable=stable,
        decisions=decisions,
        said=said,
        failed=np.isin(np.arange(len(sheet)), said.rows, invert=True),
        agreement=_agreement(same["labels"], decisions, judge.labels, said.decisions),
        difference=_difference(same["names"], stable, judge.names, said.values),
        errors=errors,
    )


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


def _agreement(mine: Sequence[str], stable: Int32s, others: Sequence[str], candidate: Int32s) -> Int32s:
    """1 where both decided alike, 0 where they did not, -1 where one of them did not decide. Two may have one label."""
    places = {label: place for place, label in enumerate({*mine, *others})}
    one, other = (
        np.array([places[label] for label in labels] or [0])[codes]
        for labels, codes in ((mine, stable), (others, candidate))
    )
    return np.where((stable < 0) | (candidate < 0), -1, one == other).astype(np.int32)


def _difference(mine: Sequence[str], stable: Floats, others: Sequence[str], candidate: Floats) -> Floats:
    """The largest absolute difference of what both scored under one name; NaN where there is none."""
    shared = [name for name in mine if name in others]
    apart = np.full((len(stable), len(shared) + 1), np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        for place, name in enumerate(shared):
            apart[:, place] = np.abs(candidate[:, list(others).index(name)] - stable[:, list(mine).index(name)])
    found: Floats = np.fmax.reduce(apart, axis=1)
    return found
