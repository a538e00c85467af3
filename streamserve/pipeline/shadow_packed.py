"""Shadow decisions encoded by the compiled writer: 0.3 us a record, next to nothing a batch."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
import pyarrow as pa

from streamserve.features.buffers import numbers, valid
from streamserve.pipeline import framing
from streamserve.pipeline import record_packed as record
from streamserve.pipeline.shadow import SEGMENT
from streamserve.pipeline.shadow_decision import Decided


def encode(made: Decided, schema_id: int, now_ms: int) -> pa.BinaryArray | None:
    """The framed record of each row; None where the writer was not built."""
    sheet, said = made.sheet, made.said
    layout = _layout(schema_id, sheet.schema.metadata[b"same"], said.names, said.labels)
    return layout.write(
        len(sheet),
        {
            "prediction_id": (numbers(sheet.column("partition"), np.int32), numbers(sheet.column("offset"), np.int64)),
            "event_id": (sheet.column("event_id"),),
            **{name: _time(sheet.column(name)) for name in ("event_time", "source_timestamp")},
            "compared_at": (now_ms,),
            "control_epoch": (numbers(sheet.column("control_epoch"), np.int64),),
            "stable_scores": (made.stable,),
            "candidate_scores": (said.values, ~made.failed),
            "stable_decision": (made.decisions,),
            "candidate_decision": (said.decisions,),
            "agreement": (made.agreement,),
            "difference": (made.difference,),
            "error": (made.errors,),
            "segments": [sheet.column(f"{SEGMENT}{path}") for path in made.same["segments"]],
        },
    )


def _time(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    there = valid(column)
    return numbers(column, np.int64), np.ones(len(column), bool) if there is None else there


@lru_cache(maxsize=64)
def _layout(schema_id: int, told: bytes, names: tuple[str, ...], labels: tuple[str, ...]) -> record.Layout:
    """told: what is the same of all rows of a sheet."""
    same = json.loads(told)

    def decided(labels: tuple[str, ...]) -> record.Field:
        return record.named([record.optional(one) for one in labels], null=True)

    return record.Layout(
        {
            "header": record.constant(framing.header(schema_id)),
            "prediction_id": record.place(same["topic"]),
            "topology": record.constant(record.text(same["topology"])),
            "event_id": record.TEXT,
            "event_time": record.STAMPS,
            "source_timestamp": record.STAMPS,
            "compared_at": record.ONE_FOR_ALL,
            "model": record.constant(record.text(same["model"]), record.text(same["rollout_id"])),
            "control_epoch": record.LONGS,
            "versions": record.constant(record.text(same["stable_version"]), record.text(same["candidate_version"])),
            "stable_scores": record.mapped(record.Kind.SCORES, same["names"], 8),
            "candidate_scores": record.mapped(record.Kind.SCORES, names, 8),
            "stable_decision": decided(same["labels"]),
            "candidate_decision": decided(labels),
            "agreement": record.named([record.long(1) + flag for flag in (b"\x00", b"\x01")], null=True),
            "difference": record.NUMBERS,
            "error": record.TEXT,
            "segments": record.mapped(record.Kind.TEXTS, same["segments"], record.LONGEST),
        },
        where=same["topology"],
    )
