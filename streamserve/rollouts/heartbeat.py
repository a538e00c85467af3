"""Heartbeats: what each worker says of itself once a second in `streamserve.status`, and who of them lives. Pure.

Nothing that is decided about an event depends on them. They tell a sender of commands which workers there are, and
people how a command takes hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

INTERVAL_MS = 1000
SILENT_MS = 5000  # who was not heard for so long is gone, or cut off; four beats may be late
SCHEMA_VERSION = 1


Count = Annotated[int, Field(ge=0)]


class ShadowBeat(BaseModel):
    """What became of the events that a worker has shadowed, since the rollout's shadow began there."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rollout: str
    candidate: str
    share: Annotated[Count, Field(description="Basis points of the stream.")] = 0
    running: Annotated[bool, Field(description="Its process is there.")] = False
    why: Annotated[str, Field(max_length=2000, description="Its last trouble.")] = ""
    compared: Annotated[Count, Field(description="Scored by both versions.")] = 0
    decided: Annotated[Count, Field(description="Of these, where both decided.")] = 0
    agreed: Annotated[Count, Field(description="Of these, where they decided alike.")] = 0
    failed: Annotated[Count, Field(description="The candidate gave an error.")] = 0
    unanswered: Annotated[Count, Field(description="It hung, died, or could not run.")] = 0
    shed: Annotated[Count, Field(description="It was too slow for them.")] = 0
    lost: Annotated[Count, Field(description="Records that did not reach their topic, since the worker's start.")] = 0


class Heartbeat(BaseModel):
    """The published form (`schemas/streamserve.status.json`). Fields that are not known yet are let be."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = Field(default=SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    topology: Annotated[str, Field(min_length=1, max_length=200)]
    worker: Annotated[str, Field(min_length=1, max_length=300, description="Host and process.")]
    release: Annotated[str, Field(max_length=100)] = ""
    at: Annotated[int, Field(ge=0, description="Its clock, milliseconds since 1970.")]
    ready: bool = True
    why: Annotated[str, Field(max_length=2000, description="Why it is not ready.")] = ""
    leaving: Annotated[bool, Field(description="Its last word.")] = False
    control: Annotated[int, Field(ge=-1, description="The last routing epoch that it has read.")] = -1
    partitions: Annotated[dict[int, int], Field(description="Those that it owns, and the epoch at their end.")] = {}
    lag: Annotated[int, Field(ge=0, description="Records of its partitions that it has not read.")] = 0
    versions: Annotated[tuple[str, ...], Field(description="Loaded and warm.")] = ()
    failed: Annotated[dict[str, str], Field(description="Versions that it can't load, and why.")] = {}
    shadow: ShadowBeat | None = None
    batch_ms: Annotated[
        dict[str, tuple[float, float]],
        Field(description="By version, what it took for each of its last batches: p50 and p99, milliseconds."),
    ] = {}

    def encode(self) -> bytes:
        return self.model_dump_json(exclude_defaults=False).encode()


def read(value: bytes | None, topology: str) -> Heartbeat | None:
    """A topology's heartbeat; None: the record is none, or of another."""
    try:
        found = json.loads(value or b"")
        if not isinstance(found, dict) or found.get("topology") != topology:
            return None
        return Heartbeat.model_validate(found)
    except (ValueError, RecursionError, ValidationError):
        return None


def living(heard: Iterable[Heartbeat], now_ms: int) -> tuple[Heartbeat, ...]:
    """The last word of each worker that was heard a moment ago and has not said that it leaves, by name."""
    last: dict[str, Heartbeat] = {}
    for one in heard:
        known = last.get(one.worker)
        if known is None or one.at >= known.at:
            last[one.worker] = one
    return tuple(one for _, one in sorted(last.items()) if not one.leaving and now_ms - one.at <= SILENT_MS)
