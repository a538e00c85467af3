"""Predictions encoded from Arrow columns by pyruhvro: 1 us a record, where the compiled encoder was not built."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro
from numpy.typing import NDArray

from streamserve.pipeline import framing
from streamserve.pipeline.prediction import FRAMED, FRAMED_NAMES, Predicted, Provenance
from streamserve.records import FeatureStatus, Reason, Variant

MILLISECONDS = pa.timestamp("ms")
STATUSES = [status.name for status in FeatureStatus]


def encode(made: Predicted, about: Provenance, now_ms: int) -> pa.BinaryArray:
    """The framed record of each row."""
    count = len(made.rows)
    times = None if made.has_event_time is None else pa.array(made.event_times, mask=~made.has_event_time)
    stamps = made.source_timestamps
    columns = {
        **framing.header_columns(about.schema_id, count),
        "prediction_id": _ids(made),
        "topology": pa.repeat(about.topology, count),
        "event_id": pa.nulls(count, pa.string()) if made.event_ids is None else made.event_ids,
        "event_time": pa.nulls(count, MILLISECONDS) if times is None else times.cast(MILLISECONDS),
        "source_timestamp": pa.array(stamps, mask=stamps < 0).cast(MILLISECONDS),
        "scored_at": pa.repeat(pa.scalar(now_ms, pa.int64()).cast(MILLISECONDS), count),
        "scores": _map(made.names, pa.array(np.ravel(made.scores), pa.float64()), count),
        "decision": _named(made.labels, made.decisions, made.decisions < 0),
        "model": pa.repeat(about.model, count),
        "model_version": _named(made.versions, made.version),
        "variant": _named([v.name for v in Variant], made.variant),
        "rollout_id": _named(made.rollouts, made.rollout),
        "control_epoch": pa.array(made.control_epoch),
        "reason": _named([r.name for r in Reason], made.reason),
        "feature_status": _map(made.views, _named(STATUSES, np.ravel(made.statuses)), count),
    }
    batch = pa.RecordBatch.from_arrays([columns[name] for name in FRAMED_NAMES], names=FRAMED_NAMES)
    (values,) = pyruhvro.serialize_record_batch(batch, FRAMED, 1)
    return values


def _ids(made: Predicted) -> pa.StringArray:
    numbers = [pa.array(one).cast(pa.string()) for one in (made.partitions, made.offsets)]
    return pc.binary_join_element_wise(pa.repeat(made.topic, len(made.rows)), *numbers, "-")


def _named(
    names: Sequence[str | None], codes: NDArray[np.generic], null: NDArray[np.bool_] | None = None
) -> pa.StringArray:
    return pa.array(names, pa.string()).take(pa.array(codes, mask=null))


def _map(names: Sequence[str], items: pa.Array, rows: int) -> pa.MapArray:
    """One map a row, of all names."""
    starts = np.arange(rows + 1, dtype=np.int32) * len(names)
    keys = pa.array(names, pa.string()).take(pa.array(np.tile(np.arange(len(names)), rows)))
    return pa.MapArray.from_arrays(starts, keys, items)
