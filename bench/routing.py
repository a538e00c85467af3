"""What routing costs: CPU microseconds an event, by what the control view holds; no broker, no model.

    python -m bench.routing [ROWS]

Prints JSON: medians of many batches, by the thread's CPU time, with the compiled part and without it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from streamserve.pipeline.route import route
from streamserve.records import ControlView, Cutover, EventBatch, RawBatch, RoutingEpoch, Rule, binary
from streamserve.rollouts import buckets

TOPIC, PARTITIONS, EPOCHS = "flights", 100, 1000
RUNS = 400
RULE = Rule("own", (("carrier", ("WN", "XX")),), candidate=True)
STABLE = RoutingEpoch(0, "v1", salt="flights-2026-11")
CANARY = RoutingEpoch(1, "v1", "v2", 500, "flights-2026-11", "r1")
RULED = RoutingEpoch(1, "v1", "v2", 500, "flights-2026-11", "r1", (RULE,))


def events(rows: int, partitions: int, first: int) -> EventBatch:
    """Flights of many planes: keys of 6 bytes, 16 carriers, partitions mixed."""
    at = np.arange(rows)
    raw = RawBatch(
        topic=TOPIC,
        partitions=(at % partitions).astype(np.int32),
        offsets=(first + at // partitions).astype(np.int64),
        timestamps=np.zeros(rows, np.int64),
        timestamp_types=np.ones(rows, np.uint8),
        keys=binary([f"N{i:05d}".encode() for i in (at * 7919 % 100_000).tolist()]),
        values=binary([b""] * rows),
    )
    columns = pa.RecordBatch.from_pydict({"carrier": pa.array([("WN", "AA", "DL", "UA")[i % 4] for i in at.tolist()])})
    return EventBatch(raw, at.astype(np.int64), columns, raw.timestamps)


def one(*epochs: RoutingEpoch) -> ControlView:
    return ControlView("t", epochs, {(TOPIC, 0): (Cutover(1, 0),)} if len(epochs) > 1 else {})


def long_history() -> ControlView:
    """Each epoch a step of some ramp; epoch e came into force at offset 100 e, on some partitions a little later."""
    epochs = tuple(RoutingEpoch(e, "v1", "v2", e % 10_000, "s", f"r{e // 10}", (RULE,)) for e in range(EPOCHS))
    cuts = {(TOPIC, p): tuple(Cutover(e, 100 * e + p % 7) for e in range(1, EPOCHS)) for p in range(PARTITIONS)}
    return ControlView("t", epochs, cuts)


def cost(batch: EventBatch, view: ControlView) -> float:
    spent = []
    for _ in range(RUNS):
        started = time.thread_time_ns()
        route(batch, view)
        spent.append(time.thread_time_ns() - started)
    return round(statistics.median(spent) / 1000 / len(batch), 4)


def main(rows: int) -> dict[str, dict[str, float]]:
    near, far, history = events(rows, 1, 0), events(rows, PARTITIONS, 100 * EPOCHS), long_history()
    cases = {
        "one epoch, no rollout": (near, one(STABLE)),
        "5% rollout": (near, one(STABLE, CANARY)),
        "5% rollout, one rule": (near, one(STABLE, RULED)),
        f"{EPOCHS} epochs, {PARTITIONS} partitions, live": (far, history),
        f"{EPOCHS} epochs, {PARTITIONS} partitions, replayed": (events(rows, PARTITIONS, 100 * EPOCHS // 2), history),
    }
    compiled = {name: cost(*case) for name, case in cases.items()}
    with patch.object(buckets, "library", lambda: None):
        return {"compiled": compiled, "numpy": {name: cost(*case) for name, case in cases.items()}}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000), indent=2))
