"""Shadow decisions as anybody writes them: by fastavro, from the published schema."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import fastavro
import numpy as np
from conftest import ROOT

from streamserve.adapters.schema_ids import PinnedIndex
from streamserve.pipeline.shadow_pairs import Gathered, ShadowPairs
from streamserve.pipeline.shadow_reading import ShadowReader

PARSED = fastavro.parse_schema(json.loads((ROOT / "schemas" / "streamserve.shadow-decision.avsc").read_text()))
SCHEMA_ID = 900_002
AT = 1_760_000_000_000
Decision = Mapping[str, Any]


def decision(number: int, stable: float, candidate: float, **more: Any) -> dict[str, Any]:
    """One event's; both decide by 0.5. more: fields that are otherwise."""
    says = ["yes" if score >= 0.5 else "no" for score in (stable, candidate)]
    return {
        "prediction_id": f"pay-events-{number % 4}-{number}",
        "topology": "pay",
        "event_id": f"e{number}",
        "event_time": AT + number,
        "source_timestamp": AT + number,
        "compared_at": AT + 1000 + number * 10,
        "model": "pay",
        "rollout_id": "r1",
        "control_epoch": 4,
        "stable_version": "v1",
        "candidate_version": "v2",
        "stable_scores": {"risk": stable},
        "candidate_scores": {"risk": candidate},
        "stable_decision": says[0],
        "candidate_decision": says[1],
        "agreement": says[0] == says[1],
        "difference": abs(candidate - stable),
        "error": None,
        "segments": {},
        **more,
    }


def failed(number: int, stable: float, error: str = "DeadlineError", **more: Any) -> dict[str, Any]:
    """One event in which the candidate gave no answer."""
    nothing = {"candidate_scores": {}, "candidate_decision": None, "agreement": None, "difference": None}
    return decision(number, stable, stable, **nothing, error=error, **more)


def framed(one: Decision, schema_id: int = SCHEMA_ID) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, PARSED, one)
    return b"\0" + schema_id.to_bytes(4, "big") + out.getvalue()


def scores(count: int, seed: int = 0, noise: float = 0.03) -> tuple[np.ndarray, np.ndarray]:
    """Of two versions that mostly agree, between 0 and 1."""
    rng = np.random.default_rng(seed)
    stable = rng.beta(2, 5, count)
    return stable, np.clip(stable + rng.normal(0, noise, count), 0, 1)


def gather(values: Iterable[bytes | None], cut: int = 1000) -> Gathered:
    """The pairs of the latest rollout, read in batches of so many."""
    reader, pairs, values = ShadowReader(PinnedIndex(ROOT / "schemas")), ShadowPairs(), list(values)
    for start in range(0, len(values), cut):
        for batch in reader.read(values[start : start + cut]):
            pairs.add(batch)
    return pairs.pairs(pairs.compared()[-1])
