"""Emit: what a batch caused, as records for the output topics. Nothing is sent here.

A prediction carries its event's key, headers and record timestamp, the timestamp clamped to what the broker takes:
one record stamped too far ahead fails its whole produce batch. A dead letter carries key, value and headers
untouched, its grounds in added headers, and the present time, so that retention counts from now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streamserve.headers import pack
from streamserve.records import Int64s, Outgoing, RawBatch, Reject

HEADER = "streamserve."
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class TimestampLimits:
    """How far a record's timestamp may lie from the broker's clock, in milliseconds; read from the topic."""

    before_ms: int = 2**62
    after_ms: int = HOUR_MS
    slack_ms: int = 60_000  # what clocks may differ by, and a record may wait for in the client

    def clamp(self, timestamps: Int64s, now_ms: int) -> Int64s:
        """Into what the broker takes; records without a timestamp get the present."""
        earliest = max(0, now_ms - self.before_ms + self.slack_ms)
        latest = now_ms + self.after_ms - self.slack_ms
        stamped = np.where(timestamps < 0, now_ms, timestamps)
        return np.clip(stamped, earliest, max(earliest, latest))


def predictions(
    raw: RawBatch, rows: Int64s, values: pa.BinaryArray, topic: str, limits: TimestampLimits, now_ms: int
) -> Outgoing:
    """rows: of the RawBatch, ascending, one for each value."""
    keys, headers = raw.keys, raw.headers
    if len(rows) < len(raw):
        at = pa.array(rows)
        keys, headers = keys.take(at), None if headers is None else headers.take(at)
    return Outgoing(topic, rows, keys, values, headers, limits.clamp(raw.timestamps[rows], now_ms))


def dead_letters(raw: RawBatch, rejects: Sequence[Reject], topic: str, release: str) -> Outgoing:
    """The rejected events as they came, with the grounds in headers named `streamserve.*`."""
    ordered = sorted(rejects, key=lambda reject: reject.row)
    rows = np.array([reject.row for reject in ordered], np.int64)
    at = pa.array(rows)
    own = [b""] * len(rows) if raw.headers is None else raw.headers.take(at).fill_null(b"").to_pylist()
    headers = [kept + pack(_grounds(raw, reject, release)) for kept, reject in zip(own, ordered, strict=True)]
    return Outgoing(
        topic=topic,
        rows=rows,
        keys=raw.keys.take(at),
        values=raw.values.take(at),
        headers=pa.array(headers, pa.binary()),
        timestamps=np.zeros(len(rows), np.int64),
    )


def _grounds(raw: RawBatch, reject: Reject, release: str) -> list[tuple[str, bytes]]:
    about = {
        "stage": reject.stage.value,
        "error": reject.error,
        "message": reject.message,
        "source.topic": raw.topic,
        "source.partition": str(raw.partitions[reject.row]),
        "source.offset": str(raw.offsets[reject.row]),
        "source.timestamp": str(raw.timestamps[reject.row]),
        "release": release,
    }
    # backslashreplace: the message may be that of any exception, lone surrogates and all
    return [(HEADER + name, text.encode(errors="backslashreplace")) for name, text in about.items()]
