"""The prediction record: its Avro schema, one for every topology, what goes into one, and how a consumer reads many.

`schemas/streamserve.prediction.avsc` is this schema, published for consumers; a test keeps the two equal. A field
is only ever added, with a default: consumers resolve old and new.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro
from numpy.typing import NDArray

from streamserve.features.buffers import as_text
from streamserve.pipeline import framing
from streamserve.records import (
    Assignment,
    EventBatch,
    FeatureMatrix,
    FeatureStatus,
    Floats,
    Int32s,
    Int64s,
    Reason,
    Scores,
    Uint8s,
    Variant,
)

# Years 1 to 9999. Java and Rust hold any long, but Python's datetime ends there: a reader of the published schema fails
# on the whole record, so that one event with a time of garbage would stop its consumers.
FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999
PINNED_ID = 900_001  # the schema's id where no schema registry gives one; stands in schemas/index.json


def _enum(name: str, kind: type[Variant | Reason | FeatureStatus], doc: str) -> dict[str, object]:
    return {"type": "enum", "name": name, "doc": doc, "symbols": [member.name for member in kind]}


TIME = {"type": "long", "logicalType": "timestamp-millis"}
SCHEMA: dict[str, object] = {
    "type": "record",
    "name": "Prediction",
    "namespace": "streamserve",
    "doc": "What one model version said of one event, and on what grounds.",
    "fields": [
        {"name": "prediction_id", "type": "string", "doc": "Source topic-partition-offset; unique."},
        {"name": "topology", "type": "string"},
        {
            "name": "event_id",
            "type": ["null", "string"],
            "default": None,
            "doc": "The event's own id, if it has one.",
        },
        {"name": "event_time", "type": ["null", TIME], "default": None, "doc": "The event's own time."},
        {
            "name": "source_timestamp",
            "type": ["null", TIME],
            "default": None,
            "doc": "Of the source record.",
        },
        {"name": "scored_at", "type": TIME, "doc": "When the worker emitted it, by its clock."},
        {
            "name": "scores",
            "type": {"type": "map", "values": "double"},
            "doc": "By output name; output.i of a row.",
        },
        {
            "name": "decision",
            "type": ["null", "string"],
            "default": None,
            "doc": "Null: none asked, or a NaN score.",
        },
        {"name": "model", "type": "string"},
        {"name": "model_version", "type": "string"},
        {"name": "variant", "type": _enum("Variant", Variant, "Which side of a rollout answered.")},
        {"name": "rollout_id", "type": ["null", "string"], "default": None},
        {
            "name": "control_epoch",
            "type": "long",
            "doc": "Offset of the routing command in force, in the control log.",
        },
        {"name": "reason", "type": _enum("Reason", Reason, "Why this version.")},
        {
            "name": "feature_status",
            "type": {"type": "map", "values": _enum("FeatureStatus", FeatureStatus, "What a view had.")},
            "doc": "By view name.",
        },
    ],
}
SCHEMA_TEXT = json.dumps(SCHEMA)
FRAMED = json.dumps({**SCHEMA, "fields": [*framing.HEADER_FIELDS, *SCHEMA["fields"]]})  # type: ignore[misc]
FRAMED_NAMES = [field["name"] for field in json.loads(FRAMED)["fields"]]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What is the same for every prediction of a worker."""

    topology: str
    model: str
    event_id: str | None  # path of the event's id, among the batch's columns
    has_event_time: bool
    schema_id: int


@dataclass(frozen=True, slots=True)
class Predicted:
    """What one version said of some events of a batch, field by field; all arrays are as long as `rows`.

    rows: index into the EventBatch, ascending.
    event_ids: text, null where the event has none; None: events of this topology have none.
    has_event_time: where `event_times` is one that every reader can hold; None: events of this topology have none.
    source_timestamps: milliseconds since 1970, LAST_MS at most; below 0: none.
    scores: float64 [rows, names]. decisions: index into labels; below 0: none. statuses: uint8 [rows, views].
    version, rollout: index into versions, rollouts.
    """

    topic: str
    rows: NDArray[np.intp]
    partitions: Int32s
    offsets: Int64s
    event_ids: pa.StringArray | None
    event_times: Int64s
    has_event_time: NDArray[np.bool_] | None
    source_timestamps: Int64s
    names: tuple[str, ...]
    scores: Floats
    labels: tuple[str, ...]
    decisions: Int32s
    versions: tuple[str, ...]
    version: Int32s
    variant: Uint8s
    rollouts: tuple[str | None, ...]
    rollout: Int32s
    control_epoch: Int64s
    reason: Uint8s
    views: tuple[str, ...]
    statuses: Uint8s


def is_told(times: Int64s, stamps: Int64s) -> NDArray[np.bool_]:
    """Which events have a time that every reader can hold. stamps: of their records."""
    # Where neither the event nor its record has a time, the batch has the record's -1
    found: NDArray[np.bool_] = ~((stamps < 0) & (times == stamps)) & (times >= FIRST_MS) & (times <= LAST_MS)
    return found


def predicted(
    events: EventBatch, assignment: Assignment, matrix: FeatureMatrix, said: Scores, about: Provenance
) -> Predicted:
    """The rows that a version has scored."""
    rows, raw = said.rows, events.raw
    all_scored = len(rows) == len(events)
    # Rows ascend: all of them need not be picked one by one
    here = slice(None) if all_scored else rows
    there = here if all_scored and len(events) == len(raw) else events.rows[here]
    status = matrix.status
    if len(rows) != len(matrix.rows):
        status = status[np.isin(matrix.rows, rows)]
    event_ids = None
    if about.event_id is not None:
        event_ids = events.columns.column(about.event_id)
        event_ids = as_text(event_ids if all_scored else event_ids.take(pa.array(rows)))
    stamps, times = raw.timestamps[there], events.event_times[here]
    has_time = is_told(times, stamps) if about.has_event_time else None
    return Predicted(
        topic=raw.topic,
        rows=rows,
        partitions=raw.partitions[there],
        offsets=raw.offsets[there],
        event_ids=event_ids,
        event_times=times,
        has_event_time=has_time,
        source_timestamps=np.where(stamps > LAST_MS, -1, stamps),
        names=said.names,
        scores=said.values,
        labels=said.labels,
        decisions=said.decisions,
        versions=assignment.versions,
        version=assignment.version[here],
        variant=assignment.variant[here],
        rollouts=assignment.rollouts,
        rollout=assignment.rollout[here],
        control_epoch=assignment.control_epoch[here],
        reason=assignment.reason[here],
        views=matrix.views,
        statuses=status,
    )


def decode(values: pa.BinaryArray, schema_id: int) -> pa.RecordBatch:
    """Predictions as columns, for those who read many: 0.5 us a record. All must be of this schema id.

    Raises:
        ValueError: one of them is not.
    """
    framed = pc.equal(pc.binary_slice(values, 0, framing.HEADER), framing.header(schema_id))
    if framed.fill_null(False).true_count < len(values):
        raise ValueError(f"a record is not framed with schema id {schema_id}")
    found = pyruhvro.deserialize_array(values.to_pylist(), FRAMED)
    return found.select(FRAMED_NAMES[len(framing.HEADER_FIELDS) :])
