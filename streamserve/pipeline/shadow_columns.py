"""Shadow decisions encoded by pyruhvro: 0.6 us a record, 1 ms a batch; where the compiled writer was not built."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro
from numpy.typing import NDArray

from streamserve.pipeline import framing
from streamserve.pipeline.shadow import SEGMENT
from streamserve.pipeline.shadow_decision import FRAMED, FRAMED_NAMES, Decided
from streamserve.records import Floats, Indices, Int32s

MILLISECONDS = pa.timestamp("ms")
SAME = ("topology", "model", "rollout_id", "stable_version", "candidate_version")


def encode(made: Decided, schema_id: int, now_ms: int) -> pa.BinaryArray:
    """The framed record of each row."""
    sheet, same, said = made.sheet, made.same, made.said
    columns = {
        **framing.header_columns(schema_id, len(sheet)),
        **{name: pa.repeat(same[name], len(sheet)) for name in SAME},
        "prediction_id": _ids(same["topic"], sheet),
        "event_id": sheet.column("event_id"),
        "event_time": sheet.column("event_time").cast(MILLISECONDS),
        "source_timestamp": sheet.column("source_timestamp").cast(MILLISECONDS),
        "compared_at": pa.repeat(pa.scalar(now_ms, pa.int64()).cast(MILLISECONDS), len(sheet)),
        "control_epoch": sheet.column("control_epoch"),
        "stable_scores": _maps(same["names"], made.stable, np.zeros(len(sheet), bool)),
        "candidate_scores": _maps(said.names, said.values, made.failed),
        "stable_decision": _labels(same["labels"], made.decisions),
        "candidate_decision": _labels(said.labels, said.decisions),
        "agreement": pa.array(made.agreement > 0, mask=made.agreement < 0),
        "difference": pa.array(made.difference, mask=np.isnan(made.difference)),
        "error": made.errors,
        "segments": _segments(sheet),
    }
    table = pa.RecordBatch.from_arrays([columns[name] for name in FRAMED_NAMES], names=FRAMED_NAMES)
    (values,) = pyruhvro.serialize_record_batch(table, FRAMED, 1)
    return values


def _labels(labels: Sequence[str], decisions: Int32s) -> pa.StringArray:
    return pa.array(labels, pa.string()).take(pa.array(decisions, mask=decisions < 0))


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
