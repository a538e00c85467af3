"""The prediction record: its Avro schema, one for every topology, and how a batch of them is encoded.

`schemas/streamserve.prediction.avsc` is this schema, published for consumers; a test keeps the two equal. A field
is only ever added, with a default: consumers resolve old and new.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro
from numpy.typing import NDArray

from streamserve.pipeline import framing
from streamserve.records import Assignment, EventBatch, FeatureMatrix, FeatureStatus, Reason, Scores, Variant

PINNED_ID = 900_001  # the schema's id where no schema registry gives one; stands in schemas/index.json


def _enum(name: str, kind: type[Variant | Reason | FeatureStatus], doc: str) -> dict[str, object]:
    return {"type": "enum", "name": name, "doc": doc, "symbols": [member.name for member in kind]}


_TIME = {"type": "long", "logicalType": "timestamp-millis"}
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
        {"name": "event_time", "type": ["null", _TIME], "default": None, "doc": "The event's own time."},
        {
            "name": "source_timestamp",
            "type": ["null", _TIME],
            "default": None,
            "doc": "Of the source record.",
        },
        {"name": "scored_at", "type": _TIME, "doc": "When the worker emitted it, by its clock."},
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


def encode(
    events: EventBatch,
    assignment: Assignment,
    matrices: Sequence[FeatureMatrix],
    scores: Sequence[Scores],
    about: Provenance,
    now_ms: int,
) -> tuple[NDArray[np.intp], pa.BinaryArray]:
    """The scored rows (indices into the EventBatch, ascending) and the framed record of each."""
    parts = [part for part in zip(matrices, scores, strict=True) if len(part[1].rows)]
    if not parts:
        return np.empty(0, np.intp), pa.array([], pa.binary())
    rows = np.concatenate([said.rows for _, said in parts])
    maps = {
        "scores": _join([_map(said.names, said.values, pa.float64()) for _, said in parts]),
        "decision": _join([_decisions(said) for _, said in parts]),
        "feature_status": _join([_statuses(matrix, said) for matrix, said in parts]),
    }
    if len(parts) > 1:
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        maps = {name: values.take(pa.array(order)) for name, values in maps.items()}
    columns = {
        **framing.header_columns(about.schema_id, len(rows)),
        **_identity(events, rows, about, now_ms),
        **_grounds(assignment, rows, about),
        **maps,
    }
    batch = pa.RecordBatch.from_arrays([columns[name] for name in FRAMED_NAMES], names=FRAMED_NAMES)
    (values,) = pyruhvro.serialize_record_batch(batch, FRAMED, 1)
    return rows, values


def decode(values: pa.BinaryArray, schema_id: int) -> pa.RecordBatch:
    """Predictions as columns, for those who read many: 0.5 us a record. All must be of this schema id.

    Raises:
        ValueError: one of them is not.
    """
    framed = pc.equal(pc.binary_slice(values, 0, framing.HEADER), framing.header(schema_id))
    if not pc.all(framed.fill_null(False)).as_py():
        raise ValueError(f"a record is not framed with schema id {schema_id}")
    found = pyruhvro.deserialize_array(values.to_pylist(), FRAMED)
    return found.select(FRAMED_NAMES[len(framing.HEADER_FIELDS) :])


def prediction_ids(events: EventBatch, rows: NDArray[np.intp]) -> pa.Array:
    raw, at = events.raw, events.rows[rows]
    partitions = pa.array(raw.partitions[at]).cast(pa.string())
    offsets = pa.array(raw.offsets[at]).cast(pa.string())
    return pc.binary_join_element_wise(pa.repeat(raw.topic, len(rows)), partitions, offsets, "-")


def _identity(events: EventBatch, rows: NDArray[np.intp], about: Provenance, now_ms: int) -> dict[str, pa.Array]:
    count, at = len(rows), events.rows[rows]
    stamps = events.raw.timestamps[at]
    event_id = pa.nulls(count, pa.string())
    if about.event_id is not None:
        event_id = events.columns.column(about.event_id).take(pa.array(rows)).cast(pa.string())
    event_time = pa.nulls(count, pa.timestamp("ms"))
    if about.has_event_time:
        times = events.event_times[rows]
        nowhere = (stamps < 0) & (times == stamps)  # neither the event nor its record has one
        event_time = pa.array(times, mask=nowhere).cast(pa.timestamp("ms"))
    return {
        "prediction_id": prediction_ids(events, rows),
        "topology": pa.repeat(about.topology, count),
        "event_id": event_id,
        "event_time": event_time,
        "source_timestamp": pa.array(stamps, mask=stamps < 0).cast(pa.timestamp("ms")),
        "scored_at": pa.repeat(pa.scalar(now_ms, pa.int64()).cast(pa.timestamp("ms")), count),
    }


def _grounds(assignment: Assignment, rows: NDArray[np.intp], about: Provenance) -> dict[str, pa.Array]:
    def named(names: Sequence[str | None], codes: NDArray[np.generic]) -> pa.Array:
        return pa.array(names, pa.string()).take(pa.array(codes[rows]))

    return {
        "model": pa.repeat(about.model, len(rows)),
        "model_version": named(assignment.versions, assignment.version),
        "variant": named([v.name for v in Variant], assignment.variant),
        "rollout_id": named(assignment.rollouts, assignment.rollout),
        "control_epoch": pa.array(assignment.control_epoch[rows]),
        "reason": named([r.name for r in Reason], assignment.reason),
    }


def _map(names: Sequence[str], values: NDArray[np.generic], kind: pa.DataType) -> pa.Array:
    """One map a row from a [rows, names] array."""
    count = len(values)
    offsets = np.arange(count + 1, dtype=np.int32) * len(names)
    keys = pa.array(names, pa.string()).take(pa.array(np.tile(np.arange(len(names)), count)))
    return pa.MapArray.from_arrays(offsets, keys, pa.array(values.ravel(), kind))


def _decisions(said: Scores) -> pa.Array:
    if not said.labels:
        return pa.nulls(len(said.rows), pa.string())
    return pa.array(said.labels, pa.string()).take(pa.array(said.decisions, mask=said.decisions < 0))


STATUS_NAMES = pa.array([status.name for status in FeatureStatus], pa.string())


def _statuses(matrix: FeatureMatrix, said: Scores) -> pa.Array:
    status = matrix.status
    if len(said.rows) != len(matrix.rows):
        status = status[np.isin(matrix.rows, said.rows)]
    count, views = status.shape
    offsets = np.arange(count + 1, dtype=np.int32) * views
    keys = pa.array(matrix.views, pa.string()).take(pa.array(np.tile(np.arange(views), count)))
    return pa.MapArray.from_arrays(offsets, keys, STATUS_NAMES.take(pa.array(status.ravel())))


def _join(arrays: Sequence[pa.Array]) -> pa.Array:
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)
