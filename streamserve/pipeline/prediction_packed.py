"""Predictions encoded by the compiled writer: 0.1 us a record, next to nothing a batch."""

from __future__ import annotations

from functools import lru_cache

import pyarrow as pa

from streamserve.pipeline import framing
from streamserve.pipeline import record_packed as record
from streamserve.pipeline.prediction import Predicted, Provenance
from streamserve.records import Reason, Variant


def encode(made: Predicted, about: Provenance, now_ms: int) -> pa.BinaryArray | None:
    """The framed record of each row; None where the writer was not built.

    Raises:
        SettingsError: they may come to more than 2 GiB.
    """
    layout = _layout(about, made.topic, made.names, made.labels, made.versions, made.rollouts, made.views)
    return layout.write(
        len(made.rows),
        {
            "prediction_id": (made.partitions, made.offsets),
            "event_id": () if made.event_ids is None else (made.event_ids,),
            "event_time": () if made.has_event_time is None else (made.event_times, made.has_event_time),
            "source_timestamp": (made.source_timestamps,),
            "scored_at": (now_ms,),
            "scores": (made.scores,),
            "decision": (made.decisions,),
            "model_version": (made.version,),
            "variant": (made.variant,),
            "rollout_id": (made.rollout,),
            "control_epoch": (made.control_epoch,),
            "reason": (made.reason,),
            "feature_status": (made.statuses,),
        },
    )


@lru_cache(maxsize=256)
def _layout(
    about: Provenance,
    topic: str,
    names: tuple[str, ...],
    labels: tuple[str, ...],
    versions: tuple[str, ...],
    rollouts: tuple[str | None, ...],
    views: tuple[str, ...],
) -> record.Layout:
    return record.Layout(
        {
            "header": record.constant(framing.header(about.schema_id)),
            "prediction_id": record.place(topic),
            "topology": record.constant(record.text(about.topology)),
            "event_id": record.TEXT,
            "event_time": record.STAMPS,
            "source_timestamp": record.STAMPS,
            "scored_at": record.ONE_FOR_ALL,
            "scores": record.mapped(record.Kind.SCORES, names, 8),
            "decision": record.named([record.optional(one) for one in labels], null=True),
            "model": record.constant(record.text(about.model)),
            "model_version": record.named([record.text(one) for one in versions]),
            "variant": record.coded([record.long(one) for one in Variant]),
            "rollout_id": record.named([record.optional(one) for one in rollouts]),
            "control_epoch": record.LONGS,
            "reason": record.coded([record.long(one) for one in Reason]),
            "feature_status": record.mapped(record.Kind.CODES, views, 2),
        },
        where=about.topology,
    )
