"""What the demo shows while it runs: counts, rate, latency, decisions and feature statuses of the predictions."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc

from streamserve.adapters.follow import Follower
from streamserve.adapters.kafka import Clients
from streamserve.adapters.schema_ids import SchemaIds
from streamserve.headers import unpack
from streamserve.pipeline.emit import HEADER
from streamserve.pipeline.prediction import SCHEMA_TEXT, decode
from streamserve.records import RawBatch
from streamserve.topology import Topology

RECENT_S = 2.0
STAMP = HEADER + "source.timestamp"


@dataclass
class Totals:
    """Everything seen so far. latencies: milliseconds from a record's timestamp to its prediction's arrival.

    versions: of each, predictions by second.
    """

    predictions: int = 0
    dead_letters: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    scores: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = field(default_factory=list)
    event_ids: list[str] = field(default_factory=list)
    latencies: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = field(default_factory=list)
    versions: dict[str, list[int]] = field(default_factory=dict)
    last_id: str = ""
    first_at: float | None = None

    def percentiles(self, batches: int | None = None) -> tuple[float, float]:
        """p50 and p99 in milliseconds, of the last batches or of all."""
        chosen = self.latencies if batches is None else self.latencies[-batches:]
        if not chosen:
            return float("nan"), float("nan")
        p50, p99 = np.percentile(np.concatenate(chosen), (50, 99))
        return float(p50), float(p99)


class Watch:
    """Follows predictions and dead letters from a thread of its own until `close`."""

    def __init__(self, clients: Clients, topology: Topology, ids: SchemaIds) -> None:
        self.totals = Totals()
        self._score = next(iter(topology.outputs))
        self._dead_letters = topology.topic("dead-letters")
        self._follower = Follower(clients, [topology.topic("predictions"), self._dead_letters])
        self._schema_id = ids.id_of(f"{topology.topic('predictions')}-value", SCHEMA_TEXT)
        self._since_ms = int(time.time() * 1000)  # what an earlier run left behind is not of this demo
        self._closing = threading.Event()
        self._recent: deque[tuple[float, int]] = deque()
        self._thread = threading.Thread(target=self._main, name="watch", daemon=True)
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5)
        self._follower.close()

    @property
    def rate(self) -> float:
        """Predictions a second over the last two."""
        now = time.monotonic()
        while self._recent and self._recent[0][0] < now - RECENT_S:
            self._recent.popleft()
        return sum(count for _, count in list(self._recent)) / RECENT_S

    def _main(self) -> None:
        try:
            while not self._closing.is_set():
                for batch in self._follower.poll(0.1):
                    self._take(batch)
        except BaseException as error:  # noqa: BLE001  (shown by the demo, which ends with it)
            self.failure = error

    def _take(self, batch: RawBatch) -> None:
        totals = self.totals
        if batch.topic == self._dead_letters:
            letters = [] if batch.headers is None else batch.headers.to_pylist()
            stamps = [int(dict(unpack(packed))[STAMP] or b"0") for packed in letters]
            totals.dead_letters += sum(stamp >= self._since_ms for stamp in stamps)
            return
        arrived = time.time() * 1000
        columns = decode(batch.values, self._schema_id)
        ours = pc.greater_equal(columns.column("source_timestamp").cast("int64"), self._since_ms)
        columns = columns.filter(ours)
        if not len(columns):
            return
        if totals.first_at is None:
            totals.first_at = time.monotonic()
        stamps = columns.column("source_timestamp").cast("int64").to_numpy(zero_copy_only=False)
        totals.latencies.append(arrived - stamps)
        totals.event_ids.extend(columns.column("event_id").to_pylist())
        scores = columns.column("scores")
        totals.scores.append(pc.map_lookup(scores, self._score, "first").to_numpy(zero_copy_only=False))
        totals.decisions.update(_counts(columns.column("decision")))
        statuses = columns.column("feature_status")
        pairs = pc.binary_join_element_wise(statuses.keys, statuses.items, " ")
        for text, count in _counts(pairs).items():
            view, _, status = text.partition(" ")
            totals.statuses[view, status] += count
        self._note_versions(_counts(columns.column("model_version")))
        totals.last_id = columns.column("prediction_id")[len(columns) - 1].as_py()
        totals.predictions += len(columns)
        self._recent.append((time.monotonic(), len(columns)))

    @property
    def seconds(self) -> float:
        """Since the first prediction."""
        return 0.0 if self.totals.first_at is None else time.monotonic() - self.totals.first_at

    def _note_versions(self, counts: dict[str, int]) -> None:
        second, found = int(self.seconds), self.totals.versions
        for name in counts:
            found.setdefault(name, [])
        for name, of in found.items():
            of.extend([0] * (second + 1 - len(of)))
            of[second] += counts.get(name, 0)


def _counts(column: object) -> dict[str, int]:
    return {str(pair["values"]): pair["counts"] for pair in pc.value_counts(column).to_pylist()}
