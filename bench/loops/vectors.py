"""Scoring of vectors by hand: fastavro, or pydantic's JSON parser (faster than Python's), and one run a batch."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import fastavro
import numpy as np
import onnxruntime as ort
from pydantic_core import from_json

LABEL = {"name": "label", "type": "string"}
SCORES = {"name": "probability", "type": {"type": "array", "items": "float"}}
OUTPUT = fastavro.parse_schema(
    {"type": "record", "name": "Scored", "fields": [{"name": "prediction_id", "type": "string"}, LABEL, SCORES]}
)


class Scorer:
    """Scores batches of (partition, offset, value). Paths and format come from the environment."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
        self.schema = fastavro.parse_schema(json.loads(Path(os.environ["BENCH_SCHEMA"]).read_text()))
        self.json = os.environ["BENCH_FORMAT"] == "json"

    def score(self, topic: str, records: list[tuple[int, int, bytes]]) -> list[bytes]:
        """One encoded prediction a record, in order."""
        matrix = np.empty((len(records), 784), np.float32)
        for at, (_, _, value) in enumerate(records):  # all lists together would leave the processor's caches
            matrix[at] = self._decode(value)["pixels"]
        scores = self.session.run(["probabilities"], {"pixels": matrix})[0]
        labels = scores.argmax(axis=1).tolist()
        return [
            self._encode(f"{topic}-{partition}-{offset}", str(label), row)
            for (partition, offset, _), label, row in zip(records, labels, scores.tolist(), strict=True)
        ]

    def _decode(self, value: bytes) -> dict:
        if self.json:
            return from_json(value, cache_strings="keys")
        return fastavro.schemaless_reader(io.BytesIO(value[5:]), self.schema)

    @staticmethod
    def _encode(prediction_id: str, label: str, row: list[float]) -> bytes:
        out = io.BytesIO()
        out.write(b"\x00\x00\x00\x00\x01")
        said = {"prediction_id": prediction_id, "label": label, "probability": row}
        fastavro.schemaless_writer(out, OUTPUT, said)
        return out.getvalue()
