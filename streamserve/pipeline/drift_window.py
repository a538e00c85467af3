"""The drift window record: what a version was fed and said in a window of event time, held against its reference.

`schemas/streamserve.drift-window.avsc` is this schema, published for consumers; a test keeps the two equal. A field is
only ever added, with a default. Of a window the record of the highest revision counts. It carries what a successor of
the drift agent needs to go on: nothing else is kept anywhere.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import fastavro

from streamserve.drift.alerts import AlertState
from streamserve.drift.chunks import Series
from streamserve.drift.history import series_of
from streamserve.drift.judge import Judged, Measured, States
from streamserve.drift.windows import Window
from streamserve.pipeline import framing
from streamserve.pipeline.pane_chunk import runs, spread

PINNED_ID = 900_004  # the schema's id where no schema registry gives one; stands in schemas/index.json
_NUMBER = ["null", "double"]
_MOVED: dict[str, object] = {
    "type": "record",
    "name": "MovedBin",
    "fields": [
        {"name": "bin", "type": "string"},
        {"name": "before", "type": "double", "doc": "Its share of the reference, or of stable's events."},
        {"name": "after", "type": "double", "doc": "Its share of the window."},
        {"name": "contribution", "type": "double", "doc": "To the PSI."},
    ],
}
_MEASURE: dict[str, object] = {
    "type": "record",
    "name": "WindowMeasure",
    "fields": [
        {"name": "measure", "type": "string", "doc": "feature:, score:, decision: or view: and its name."},
        {"name": "n", "type": "long", "doc": "Events that were counted."},
        {"name": "psi", "type": _NUMBER, "doc": "Population stability index against the reference."},
        {"name": "noise", "type": _NUMBER, "doc": "What it is without drift, on average."},
        {"name": "p", "type": _NUMBER, "doc": "The chance, without drift, that it is as large."},
        {"name": "limit", "type": _NUMBER, "doc": "The PSI above which a window may count for an alert."},
        {"name": "distance", "type": _NUMBER, "doc": "Kolmogorov-Smirnov's of numbers, else Jensen-Shannon's."},
        {"name": "status", "type": "string", "doc": "OK, WARN (over its limits), ALERT or INSUFFICIENT."},
        {"name": "moved", "type": {"type": "array", "items": _MOVED}, "doc": "The bins that moved most."},
        {"name": "state", "type": "string", "doc": "Of the alert, for who goes on with it."},
    ],
}
SCHEMA: dict[str, object] = {
    "type": "record",
    "name": "DriftWindow",
    "namespace": "streamserve",
    "doc": "A window of event time of one version, held against the version's drift reference.",
    "fields": [
        {"name": "topology", "type": "string"},
        {"name": "model", "type": "string"},
        {"name": "version", "type": "string"},
        {"name": "reference", "type": "string", "doc": "Fingerprint; empty: the version has none."},
        {"name": "segment", "type": ["null", "string"], "default": None},
        {"name": "start", "type": "long", "doc": "Milliseconds since 1970, of event time."},
        {"name": "end", "type": "long", "doc": "The same; not in the window."},
        {"name": "revision", "type": "int", "doc": "From 0 on: late events make a window anew."},
        {"name": "status", "type": "string", "doc": "Of the worst measure; NO_REFERENCE: nothing was compared."},
        {"name": "complete", "type": "boolean", "doc": "No events are known to be missing."},
        {"name": "rows", "type": "long"},
        {"name": "counted", "type": "long", "doc": "Fewer than rows where a share of the keys is counted."},
        {"name": "late", "type": "long", "doc": "Events that came after their last window had closed, since then."},
        {"name": "wild", "type": "long", "doc": "Events with times that were not believed, since then."},
        {"name": "shed", "type": "long", "doc": "Events that may belong here and were not counted."},
        {"name": "share_bp", "type": {"type": "array", "items": "int"}, "doc": "Of the keys, counted; basis points."},
        {"name": "measures", "type": {"type": "array", "items": _MEASURE}},
        {"name": "stable", "type": "string", "doc": "Of a candidate: whose events `beside` is about; else empty."},
        {
            "name": "beside",
            "type": {"type": "array", "items": "WindowMeasure"},
            "doc": "Of a candidate: measures that both count in the same bins, held against stable's in this window.",
        },
        {"name": "counts", "type": {"type": "array", "items": "long"}, "doc": "As in a pane chunk."},
        {"name": "digest", "type": "string", "doc": "Equal where the counts are."},
        {"name": "watermark", "type": "long", "doc": "Windows that end by then were told before, or with this one."},
        {"name": "panes_from", "type": "long", "doc": "From where on the panes topic has all open windows."},
        {"name": "panes_to", "type": "long", "doc": "Up to where it was read."},
        {"name": "told_at", "type": "long", "doc": "Milliseconds since 1970, by the worker's clock."},
        {"name": "worker", "type": "string"},
    ],
}
SCHEMA_TEXT = json.dumps(SCHEMA)
_PARSED = fastavro.parse_schema(json.loads(SCHEMA_TEXT))


def encode(judged: Judged, *, topology: str, model: str, worker: str, now_ms: int, schema_id: int) -> bytes:
    """A framed record."""
    out, window = io.BytesIO(), judged.window
    out.write(framing.header(schema_id))
    told = {
        "topology": topology,
        "model": model,
        "version": window.series.version,
        "reference": window.series.reference,
        "segment": window.series.segment,
        "start": window.start_ms,
        "end": window.end_ms,
        "revision": window.revision,
        "status": judged.verdict.value,
        "complete": window.complete,
        "rows": window.rows,
        "counted": window.counted,
        "late": window.late,
        "wild": window.wild,
        "shed": window.shed,
        "share_bp": list(window.sample_bp),
        "measures": [_measure(one) for one in judged.measures],
        "stable": judged.stable,
        "beside": [_measure(one) for one in judged.beside],
        "counts": runs(window.counts),
        "digest": window.digest,
        "watermark": window.watermark_ms,
        "panes_from": window.panes_from,
        "panes_to": window.panes_to,
        "told_at": now_ms,
        "worker": worker,
    }
    fastavro.schemaless_writer(out, _PARSED, told)
    return out.getvalue()


def _measure(one: Measured) -> dict[str, object]:
    found = one.found
    return {
        "measure": found.key,
        "n": found.n,
        "psi": _number(found.psi),
        "noise": _number(found.noise),
        "p": _number(found.p),
        "limit": _number(found.limit * found.unit),
        "distance": _number(found.distance),
        "status": one.status.value,
        "moved": [
            {"bin": bin_.bin, "before": bin_.before, "after": bin_.after, "contribution": bin_.contribution}
            for bin_ in found.moved
        ],
        "state": one.state.model_dump_json(),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def told_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record, counts spread out; what earlier releases did not write is empty.

    Raises:
        ValueError, KeyError, TypeError: it is no window.
    """
    return {"stable": "", "beside": [], **record, "counts": spread(record["counts"])}


def window_of(told: dict[str, Any]) -> Window:
    """The window of a record that `told_of` gave."""
    return Window(
        start_ms=told["start"],
        end_ms=told["end"],
        series=series_of(told),
        revision=told["revision"],
        rows=told["rows"],
        counted=told["counted"],
        counts=told["counts"],
        digest=told["digest"],
        late=told["late"],
        wild=told["wild"],
        shed=told["shed"],
        sample_bp=tuple(told["share_bp"]),
        complete=told["complete"],
        watermark_ms=told["watermark"],
        panes_from=told["panes_from"],
        panes_to=told["panes_to"],
    )


def states_of(told: Iterable[dict[str, Any]]) -> dict[tuple[Series, str], States]:
    """The states of alerts after the last of these records: of each series, and what it was held against.

    That is "" for the reference, else the version that was stable.
    """
    found: dict[tuple[Series, str], States] = {}
    for one in told:
        for against, measures in (("", one["measures"]), (one["stable"], one["beside"])):
            if measures:
                found[series_of(one), against] = {
                    each["measure"]: AlertState.model_validate_json(each["state"]) for each in measures
                }
    return found
