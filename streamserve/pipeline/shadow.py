"""Shadow: which events of a batch a candidate scores beside stable, and what it is told of them.

A batch that stable has answered for is all that is taken from the stable path; inputs are filled, and the candidate
runs, elsewhere and later. What can't be done for an event is an error in its record, and nobody else's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamserve.features.arrays import listed
from streamserve.features.buffers import as_text
from streamserve.features.columns import BatchColumns
from streamserve.models.plan import FeaturePlan
from streamserve.models.session import Array
from streamserve.pipeline.prediction import FIRST_MS, LAST_MS, Provenance
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
    """What a candidate is told of some events of one stable version, in columns, with what is the same of all of them.

    rows: of the RawBatch, one for each row of the table.
    """

    table: pa.RecordBatch
    rows: Int64s


def sheets(shadowed: Shadowed, plan: FeaturePlan, columns: BatchColumns) -> list[Sheet]:
    """A batch as it goes to the candidate, stable version by stable version.

    plan: the candidate's. columns: where its features come from; they may know of more views than stable's do.
    """
    return [_sheet(shadowed, plan, columns, answer) for answer in shadowed.answers]


def _sheet(
    shadowed: Shadowed, plan: FeaturePlan, columns: BatchColumns, answer: tuple[FeatureMatrix, Scores, FeaturePlan]
) -> Sheet:
    matrix, said, known = answer
    events, about, rows = columns.events, shadowed.about, said.rows
    raw, raw_rows = events.raw, events.rows[rows]
    inputs, errors = _shared(matrix, rows) if known == plan else _filled(plan, columns, rows)
    times, stamps = events.event_times[rows], raw.timestamps[raw_rows]
    told = ~((stamps < 0) & (times == stamps)) & (times >= FIRST_MS) & (times <= LAST_MS) & about.has_event_time
    ids = pa.nulls(len(rows), pa.string())
    if about.event_id is not None:
        ids = as_text(events.columns.column(about.event_id).take(pa.array(rows)))
    found: dict[str, pa.Array] = {
        "partition": pa.array(raw.partitions[raw_rows]),
        "offset": pa.array(raw.offsets[raw_rows]),
        "event_id": ids,
        "event_time": pa.array(times, mask=~told),
        "source_timestamp": pa.array(stamps, mask=(stamps < 0) | (stamps > LAST_MS)),
        "control_epoch": pa.array(shadowed.assignment.control_epoch[rows]),
        "error": errors,
        "stable_decision": pa.array(said.labels, pa.string()).take(pa.array(said.decisions, mask=said.decisions < 0)),
        STABLE: listed(said.values),
        **{f"{SEGMENT}{path}": _texts(columns, path, rows) for path in shadowed.shadow.segments},
        **{f"{INPUT}{name}": listed(values) for name, values in inputs.items()},
    }
    same = {
        "topic": raw.topic,
        "topology": about.topology,
        "model": about.model,
        "rollout_id": shadowed.shadow.rollout_id,
        "stable_version": matrix.version,
        "candidate_version": shadowed.shadow.candidate,
        "names": said.names,
        "inputs": {name: (str(values.dtype), values.shape[1:]) for name, values in inputs.items()},
    }
    table = pa.RecordBatch.from_arrays(list(found.values()), names=list(found))
    return Sheet(table.replace_schema_metadata({"same": json.dumps(same)}), raw_rows)


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
    column = columns.events.columns.column(place).take(pa.array(rows))
    try:
        return pc.utf8_slice_codeunits(as_text(column), 0, LONGEST)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # lists
        return pa.nulls(len(rows), pa.string())
