"""The shadow decision record: what a candidate would have said of an event that stable answered for.

`schemas/streamserve.shadow-decision.avsc` is this schema, published for consumers; a test keeps the two equal. A field
is only ever added, with a default. After a crash an event may be compared a second time: who counts events keeps one
record a prediction id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamserve.pipeline import framing
from streamserve.pipeline.prediction import TIME
from streamserve.records import Floats, Int32s, Scores

PINNED_ID = 900_002  # the schema's id where no schema registry gives one; stands in schemas/index.json
_SCORES = {"type": "map", "values": "double"}
_TEXT = ["null", "string"]
SCHEMA: dict[str, object] = {
    "type": "record",
    "name": "ShadowDecision",
    "namespace": "streamserve",
    "doc": "What a candidate would have said of an event that stable answered for, beside what stable said.",
    "fields": [
        {"name": "prediction_id", "type": "string", "doc": "Of stable's prediction: source topic-partition-offset."},
        {"name": "topology", "type": "string"},
        {"name": "event_id", "type": _TEXT, "default": None, "doc": "The event's own id, if it has one."},
        {"name": "event_time", "type": ["null", TIME], "default": None, "doc": "The event's own time."},
        {"name": "source_timestamp", "type": ["null", TIME], "default": None, "doc": "Of the source record."},
        {"name": "compared_at", "type": TIME, "doc": "When the candidate had scored it, by the worker's clock."},
        {"name": "model", "type": "string"},
        {"name": "rollout_id", "type": "string"},
        {"name": "control_epoch", "type": "long", "doc": "Of stable's prediction."},
        {"name": "stable_version", "type": "string"},
        {"name": "candidate_version", "type": "string"},
        {"name": "stable_scores", "type": _SCORES, "doc": "By output name; output.i of a row."},
        {"name": "candidate_scores", "type": _SCORES, "doc": "The same; empty where it failed."},
        {"name": "stable_decision", "type": _TEXT, "default": None, "doc": "Null: none asked, or a NaN score."},
        {"name": "candidate_decision", "type": _TEXT, "default": None, "doc": "The same; null where it failed."},
        {
            "name": "agreement",
            "type": ["null", "boolean"],
            "default": None,
            "doc": "Whether both decided alike; null where one of them did not decide.",
        },
        {
            "name": "difference",
            "type": ["null", "double"],
            "default": None,
            "doc": "The largest absolute difference between scores of one name; null where none can be compared.",
        },
        {"name": "error", "type": _TEXT, "default": None, "doc": "Why the candidate failed: the name of an error."},
        {
            "name": "segments",
            "type": {"type": "map", "values": "string"},
            "doc": "What the fields that rules may name hold, as text; without those that are null.",
        },
    ],
}
SCHEMA_TEXT = json.dumps(SCHEMA)
FRAMED = json.dumps({**SCHEMA, "fields": [*framing.HEADER_FIELDS, *SCHEMA["fields"]]})  # type: ignore[misc]
FRAMED_NAMES = [field["name"] for field in json.loads(FRAMED)["fields"]]


@dataclass(frozen=True, slots=True)
class Decided:
    """What both versions said of the rows of a sheet (`pipeline.shadow.Sheet.table`), and of what all have in common.

    stable: float64 [rows, names]. decisions: of stable, index into same["labels"]; below 0: none.
    said: the candidate's scores and decisions of every row, NaN and none where it `failed`.
    agreement: 1: both decided alike, 0: they did not, -1: one of them did not decide.
    difference: NaN: none. errors: why it failed, null where it did not.
    """

    sheet: pa.RecordBatch
    same: Mapping[str, Any]
    stable: Floats
    decisions: Int32s
    said: Scores
    failed: NDArray[np.bool_]
    agreement: Int32s
    difference: Floats
    errors: pa.StringArray
