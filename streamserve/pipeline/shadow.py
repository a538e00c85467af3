"""Shadow: which events of a batch a candidate scores beside stable, and what it is told of them.

A batch that stable has answered for is all that is taken from the stable path; inputs are filled, and the candidate
runs, elsewhere and later. What can't be done for an event is an error in its record, and nobody else's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamserve.features.arrays import listed
from streamserve.features.buffers import as_text
from streamserve.features.columns import BatchColumns
from streamserve.models.plan import FeaturePlan
from streamserve.models.session import Array
from streamserve.pipeline.prediction import LAST_MS, Provenance, is_told
from streamserve.records import (
    Assignment,
    FeatureMatrix,
    Indices,
    Int64s,
    Reason,
    Rule,
    Scores,
    Shadow,
    Variant,
)
from streamserve.rollouts.shadow import sampled
from streamserve.rollouts.targeting import decide

LONGEST = 200  # characters of a field that tells segments apart
INPUT, SEGMENT, STABLE = "input:", "segment:", "stable"


@dataclass(frozen=True, slots=True)
class Shadowed:
    """A batch that stable has answered for, to be scored by a candidate as well.

    answers: what each stable version was fed and said. Nothing in here is changed any more by the stable path.
    """

    shadow: Shadow
    columns: BatchColumns
    assignment: Assignment
    answers: tuple[tuple[FeatureMatrix, Scores, FeaturePlan], ...]
    about: Provenance

    def __len__(self) -> int:
        return sum(len(said.rows) for _, said, _ in self.answers)

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps in memory, as far as they count."""
        raw = self.columns.events.raw
        fed = sum(values.nbytes for matrix, _, _ in self.answers for values in matrix.inputs.values())
        return int(raw.values.nbytes + raw.keys.nbytes + self.columns.events.columns.nbytes + fed)


def choose(
    shadow: Shadow,
    columns: BatchColumns,
    assignment: Assignment,
    answers: Sequence[tuple[FeatureMatrix, Scores, FeaturePlan]],
    about: Provenance,
) -> Shadowed | None:
    """What of a batch is shadowed: what stable answered for, but not in place of the candidate; None: nothing."""
    events = columns.events
    raw, rows = events.raw, events.rows
    inside = sampled(raw.partitions[rows], raw.offsets[rows], shadow.share_bp)
    inside &= (assignment.variant == Variant.STABLE) & (assignment.reason != Reason.FALLBACK)
    if shadow.where is not None:
        inside &= decide([Rule("shadow", shadow.where, candidate=True)], events) != 0
    kept = []
    for matrix, said, plan in answers:
        chosen = np.flatnonzero(inside[said.rows])
        if len(chosen) and matrix.version != shadow.candidate:
            kept.append((matrix, _of(said, chosen), plan))
    return Shadowed(shadow, columns, assignment, tuple(kept), about) if kept else None


def _of(said: Scores, chosen: Indices) -> Scores:
    if len(chosen) == len(said.rows):
        return said
    return Scores(said.version, said.rows[chosen], said.names, said.values[chosen], said.labels, said.decisions[chosen])


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a candidate is told of events of one stable version, in columns, with what is the same of all of them.

    keys, timestamps: of the source records, one for each row of the table.
    """

    table: pa.RecordBatch
    keys: pa.BinaryArray
    timestamps: Int64s

    def __len__(self) -> int:
        return len(self.timestamps)


def sheets(batches: Iterable[tuple[Shadowed, BatchColumns]], plan: FeaturePlan) -> list[Sheet]:
    """Batches as they go to the candidate: one after the other, those of one stable version together.

    plan: the candidate's. With each batch, where its features come from: that may know of more views than stable's do.
    """
    parts = [_part(batch, plan, columns, answer) for batch, columns in batches for answer in batch.answers]
    return [_sheet(list(group)) for _, group in groupby(parts, key=lambda part: part.form)]


@dataclass(frozen=True, slots=True)
class _Part:
    """Of a sheet, the events of one batch. same: of all events of the sheet. there: which of the times there are."""

    same: Mapping[str, object]
    numbers: Mapping[str, Array]
    there: Mapping[str, NDArray[np.bool_]]
    lists: Mapping[str, Array]  # [rows, ...]
    texts: Mapping[str, pa.StringArray]
    segments: Mapping[str, pa.StringArray]
    keys: pa.BinaryArray
    timestamps: Int64s

    @property
    def form(self) -> object:
        """What is the same of the parts of one sheet."""
        return self.same, [(name, values.dtype, values.shape[1:]) for name, values in self.lists.items()]


def _part(
    shadowed: Shadowed, plan: FeaturePlan, columns: BatchColumns, answer: tuple[FeatureMatrix, Scores, FeaturePlan]
) -> _Part:
    matrix, said, known = answer
    events, about, rows = columns.events, shadowed.about, said.rows
    raw, raw_rows = events.raw, events.rows[rows]
    inputs, errors = _shared(matrix, rows) if known == plan else _filled(plan, columns, rows)
    times, stamps = events.event_times[rows], raw.timestamps[raw_rows]
    same = {
        "topic": raw.topic,
        "topology": about.topology,
        "model": about.model,
        "rollout_id": shadowed.shadow.rollout_id,
        "stable_version": matrix.version,
        "candidate_version": shadowed.shadow.candidate,
        "names": said.names,
        "labels": said.labels,
        "segments": shadowed.shadow.segments,
    }
    ids = pa.nulls(len(rows), pa.string())
    if about.event_id is not None:
        ids = as_text(_taken(events.columns.column(about.event_id), rows))
    return _Part(
        same,
        numbers={
            "partition": raw.partitions[raw_rows],
            "offset": raw.offsets[raw_rows],
            "event_time": times,
            "source_timestamp": stamps,
            "control_epoch": shadowed.assignment.control_epoch[rows],
            "stable_decision": said.decisions,
        },
        there={
            "event_time": is_told(times, stamps) & about.has_event_time,
            "source_timestamp": (stamps >= 0) & (stamps <= LAST_MS),
        },
        lists={STABLE: said.values, **{f"{INPUT}{name}": values for name, values in inputs.items()}},
        texts={"event_id": ids, "error": errors},
        segments={f"{SEGMENT}{path}": _texts(columns, path, rows) for path in shadowed.shadow.segments},
        keys=_taken(raw.keys, raw_rows),
        timestamps=stamps,
    )


def _sheet(parts: Sequence[_Part]) -> Sheet:
    first, found = parts[0], dict[str, pa.Array]()
    for name in first.numbers:
        mask = ~np.concatenate([part.there[name] for part in parts]) if name in first.there else None
        found[name] = pa.array(np.concatenate([part.numbers[name] for part in parts]), mask=mask)
    for name in first.lists:
        found[name] = listed(np.concatenate([part.lists[name] for part in parts]))
    for name in first.texts:
        found[name] = pa.concat_arrays([part.texts[name] for part in parts])
    for name in first.segments:
        found[name] = pc.utf8_slice_codeunits(pa.concat_arrays([part.segments[name] for part in parts]), 0, LONGEST)
    table = pa.RecordBatch.from_arrays(list(found.values()), names=list(found))
    inputs = {name.removeprefix(INPUT): values for name, values in first.lists.items() if name != STABLE}
    same = {**first.same, "inputs": {name: (str(values.dtype), values.shape[1:]) for name, values in inputs.items()}}
    return Sheet(
        table.replace_schema_metadata({"same": json.dumps(same)}),
        pa.concat_arrays([part.keys for part in parts]),
        np.concatenate([part.timestamps for part in parts]),
    )


def _taken(array: pa.Array, rows: Indices) -> pa.Array:
    """Some rows, which ascend, of a column."""
    return array if len(rows) == len(array) else array.take(pa.array(rows))


def _shared(matrix: FeatureMatrix, rows: Indices) -> tuple[Mapping[str, Array], pa.Array]:
    """The very inputs that stable was fed."""
    at = slice(None) if len(rows) == len(matrix.rows) else np.searchsorted(matrix.rows, rows)
    return {name: values[at] for name, values in matrix.inputs.items()}, pa.nulls(len(rows), pa.string())


def _filled(plan: FeaturePlan, columns: BatchColumns, rows: Indices) -> tuple[Mapping[str, Array], pa.Array]:
    """Inputs of its own; what the batch's columns have already is not computed again."""
    inputs, faults = plan.fill(columns)
    return {name: values[rows] for name, values in inputs.items()}, pa.array(
        [faults[row][0] if row in faults else None for row in rows.tolist()] if faults else [None] * len(rows),
        pa.string(),
    )


def _texts(columns: BatchColumns, path: str, rows: Indices) -> pa.StringArray:
    """A field as text, null where it has none."""
    place = columns.events.columns.schema.get_field_index(path)
    if place < 0 or pa.types.is_binary(columns.events.columns.schema.types[place]):  # some would be text, some not
        return pa.nulls(len(rows), pa.string())
    try:
        return as_text(_taken(columns.events.columns.column(place), rows))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # lists
        return pa.nulls(len(rows), pa.string())
