"""Scoring of flights by hand: decoding, features and encoding, each an event at a time, done with care.

No streamserve code: this is what a good engineer writes by hand around confluent-kafka, fastavro, Redis and ONNX
Runtime. Everything that can be looked up ahead of time is.
"""

from __future__ import annotations

import io
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import fastavro
import numpy as np
import onnxruntime as ort
import redis

NEW_YORK = ZoneInfo("America/New_York")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WEATHER = ("temp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")
NAN = float("nan")
OUTPUT = fastavro.parse_schema(
    {
        "type": "record",
        "name": "Scored",
        "fields": [
            {"name": "prediction_id", "type": "string"},
            {"name": "event_id", "type": "string"},
            {"name": "late", "type": "float"},
            {"name": "decision", "type": "string"},
            {"name": "model_version", "type": "string"},
        ],
    }
)


class Scorer:
    """Scores batches of (partition, offset, value). BENCH_ABOUT names a file of paths, keys and defaults."""

    def __init__(self) -> None:
        about = json.loads(Path(os.environ["BENCH_ABOUT"]).read_text())
        self.prefixes = about["prefixes"]  # view: key prefix
        self.views = about["views"]  # view: (key fields, number of fields, max age in ms, defaults)
        self.codes = {name: {v: i + 2 for i, v in enumerate(values)} for name, values in about["vocabularies"].items()}
        self.schema = fastavro.parse_schema(json.loads(Path(about["schema"]).read_text()))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(about["model"], options, providers=["CPUExecutionProvider"])
        self.redis = redis.Redis.from_url(os.environ["BENCH_REDIS"])
        self.rows = {
            name: np.dtype([("time", "<i8"), ("values", "<f4", (count,))])
            for name, (_, count, _, _) in self.views.items()
        }

    def score(self, topic: str, records: list[tuple[int, int, bytes]]) -> list[bytes]:
        """One encoded prediction a record, in order."""
        events = [fastavro.schemaless_reader(io.BytesIO(value[5:]), self.schema) for _, _, value in records]
        matrix = np.empty((len(events), 15 + sum(v[1] for v in self.views.values())), np.float32)
        matrix[:, :15] = [self._plain(event) for event in events]
        self._stored(events, matrix)
        probabilities = self.session.run(["probabilities"], {"features": matrix})[0][:, 1].tolist()
        return [
            self._encode(f"{topic}-{partition}-{offset}", event["flight_id"], late)
            for (partition, offset, _), event, late in zip(records, events, probabilities, strict=True)
        ]

    def _plain(self, event: dict) -> list[float]:
        weather = event["weather"]
        local = event["scheduled_departure"].astimezone(NEW_YORK)
        codes = self.codes
        values = [weather[name] for name in WEATHER] if weather else [NAN] * len(WEATHER)
        return [
            event["distance"],
            codes["origin"].get(event["origin"], 1),
            codes["carrier"].get(event["carrier"], 1),
            codes["dest"].get(event["dest"], 1),
            *(NAN if v is None else v for v in values),
            local.hour,
            local.minute,
            local.weekday(),
            local.hour < 6 or local.hour >= 22,
        ]

    def _stored(self, events: list[dict], matrix: np.ndarray) -> None:
        """One MGET for all views, each distinct key asked once."""
        wanted: dict[str, int] = {}
        places = []
        for name, (fields, _, _, _) in self.views.items():
            prefix = self.prefixes[name]
            for event in events:
                parts = [event[field] for field in fields]
                key = None if None in parts else prefix + "\x1f".join(parts)
                places.append(-1 if key is None else wanted.setdefault(key, len(wanted)))
        answers = self.redis.mget(list(wanted)) if wanted else []
        times = [(event["scheduled_departure"] - EPOCH) // timedelta(milliseconds=1) for event in events]
        start, at = 15, 0
        for name, (_, count, max_age, defaults) in self.views.items():
            dtype = self.rows[name]
            for row, time in enumerate(times):
                answer = answers[places[at]] if places[at] >= 0 else None
                at += 1
                target = matrix[row, start : start + count]
                if answer is None:
                    target[:] = defaults
                    continue
                found = np.frombuffer(answer, dtype)[0]
                target[:] = defaults if time - found["time"] > max_age else found["values"]
            start += count

    @staticmethod
    def _encode(prediction_id: str, event_id: str, late: float) -> bytes:
        out = io.BytesIO()
        out.write(b"\x00\x00\x00\x00\x01")
        fastavro.schemaless_writer(
            out,
            OUTPUT,
            {
                "prediction_id": prediction_id,
                "event_id": event_id,
                "late": late,
                "decision": "late" if late >= 0.4 else "on_time",
                "model_version": "v1",
            },
        )
        return out.getvalue()
