"""The pane chunk: counts that a worker made of a range of source offsets, to be merged with those of others.

`schemas/streamserve.pane-chunk.avsc` is this schema, published for consumers; a test keeps the two equal. A field is
only ever added, with a default. How chunks merge, and which of them count, is told in `drift.fold`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import fastavro
import numpy as np

from streamserve.drift.chunks import Cell, Chunk
from streamserve.pipeline import framing
from streamserve.records import Int64s

MOST_BINS = 1_000_000
PINNED_ID = 900_003  # the schema's id where no schema registry gives one; stands in schemas/index.json
_CELL: dict[str, object] = {
    "type": "record",
    "name": "Cell",
    "fields": [
        {"name": "version", "type": "string", "doc": "Who answered."},
        {"name": "reference", "type": "string", "doc": "Fingerprint of its drift reference; empty: it has none."},
        {"name": "segment", "type": ["null", "string"], "default": None},
        {"name": "pane", "type": "long", "doc": "Where the event-time pane begins, milliseconds since 1970."},
        {"name": "rows", "type": "long", "doc": "Events."},
        {"name": "counted", "type": "long", "doc": "Events in `counts`: fewer where a share is sampled."},
        {"name": "latest", "type": "long", "doc": "The largest event time, milliseconds since 1970."},
        {
            "name": "counts",
            "type": {"type": "array", "items": "long"},
            "doc": "Events a bin, in the reference's order of measures and bins; -n: n bins without any.",
        },
    ],
}
SCHEMA: dict[str, object] = {
    "type": "record",
    "name": "PaneChunk",
    "namespace": "streamserve",
    "doc": "Mergeable counts of the events of a range of source offsets.",
    "fields": [
        {"name": "topology", "type": "string"},
        {"name": "worker", "type": "string"},
        {"name": "topic", "type": "string", "doc": "The source topic."},
        {"name": "partition", "type": "int"},
        {"name": "start", "type": "long", "doc": "The first offset that it covers."},
        {"name": "stop", "type": "long", "doc": "The one after the last."},
        {"name": "owner_epoch", "type": "long", "doc": "Under which the range was read; -1: none."},
        {"name": "idle", "type": "boolean", "doc": "The partition's end was reached; nothing waits there."},
        {"name": "shed", "type": "long", "doc": "Events that were to be counted, and were not."},
        {"name": "share_bp", "type": "int", "doc": "Of the keys, counted; basis points."},
        {"name": "cells", "type": {"type": "array", "items": _CELL}},
    ],
}
SCHEMA_TEXT = json.dumps(SCHEMA)
_PARSED = fastavro.parse_schema(json.loads(SCHEMA_TEXT))


def encode(chunk: Chunk, topology: str, worker: str, schema_id: int) -> bytes:
    """A framed record."""
    out = io.BytesIO()
    out.write(framing.header(schema_id))
    fastavro.schemaless_writer(
        out,
        _PARSED,
        {
            "topology": topology,
            "worker": worker,
            "topic": chunk.topic,
            "partition": chunk.partition,
            "start": chunk.start,
            "stop": chunk.stop,
            "owner_epoch": chunk.owner_epoch,
            "idle": chunk.idle,
            "shed": chunk.shed,
            "share_bp": chunk.sample_bp,
            "cells": [
                {
                    "version": cell.version,
                    "reference": cell.reference,
                    "segment": cell.segment,
                    "pane": cell.pane_ms,
                    "rows": cell.rows,
                    "counted": cell.counted,
                    "latest": cell.latest_ms,
                    "counts": runs(cell.counts),
                }
                for cell in chunk.cells
            ],
        },
    )
    return out.getvalue()


def chunk_of(told: Mapping[str, Any]) -> Chunk:
    """A chunk from the fields of its record.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    cells = tuple(
        Cell(
            one["version"], one["reference"], one["segment"], one["pane"], one["rows"], one["counted"], one["latest"],
            spread(one["counts"]),
        )
        for one in told["cells"]
    )  # fmt: skip
    return Chunk(
        told["topic"], told["partition"], told["start"], told["stop"], told["owner_epoch"], told["idle"], told["shed"],
        told["share_bp"], cells,
    )  # fmt: skip


def runs(counts: Int64s) -> list[int]:
    """Counts, each run of n zeros as -n."""
    empty = counts == 0
    starts = np.flatnonzero(empty & ~np.concatenate(([False], empty[:-1])))
    stops = np.flatnonzero(empty & ~np.concatenate((empty[1:], [False]))) + 1
    kept = ~empty
    kept[starts] = True
    found = counts.copy()
    found[starts] = starts - stops
    return found[kept].tolist()  # type: ignore[no-any-return]


def spread(told: list[int]) -> Int64s:
    """The counts that `runs` tells of.

    Raises:
        ValueError: they are more than any reference has.
    """
    given = np.array(told, np.int64)
    many = np.where(given < 0, -given, 1)
    if len(many) > MOST_BINS or (many < 0).any() or (many > MOST_BINS).any() or many.sum() > MOST_BINS:
        raise ValueError(f"counts of more than {MOST_BINS:,} bins")
    return np.repeat(np.maximum(given, 0), many)
