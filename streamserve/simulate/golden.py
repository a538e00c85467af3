"""Making a golden set from recorded events, and checking that a loaded version still answers as it did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamserve.errors import SignatureError
from streamserve.features.catalogue import Catalogue
from streamserve.features.rows import Answer, FeatureStore
from streamserve.models.golden import GoldenSet, encode_rows
from streamserve.models.manifest import Manifest
from streamserve.models.session import Session
from streamserve.pipeline.schemas import EventSchema
from streamserve.records import RawBatch, Scores
from streamserve.simulate.offline import MemoryStore, Offline, raw_batch


def make_golden(
    catalogue: Catalogue,
    schema: EventSchema,
    manifest: Manifest,
    session: Session,
    events: RawBatch,
    store: FeatureStore,
) -> GoldenSet:
    """A golden set of these events (JSON), with the stored rows as they are now.

    Raises:
        SignatureError: one of the events can't be scored.
    """
    keeping = _Recorder(store)
    _, _, scores, rejects = Offline(catalogue, schema, keeping, as_json=True).score(events, manifest, session)
    if rejects:
        first = rejects[0]
        raise SignatureError(
            f"event {first.row} of the golden set can't be scored: {first.stage}: {first.error}: {first.message}",
            mend="choose golden events that the model can score",
        )
    return GoldenSet(
        events=tuple((value or b"").decode() for value in events.values.to_pylist()),
        timestamps=tuple(int(t) for t in events.timestamps),
        rows=encode_rows(keeping.asked),
        names=scores.names,
        scores=tuple(tuple(row) for row in scores.values.tolist()),
        decisions=_decisions(scores),
    )


def check_golden(
    catalogue: Catalogue, schema: EventSchema, manifest: Manifest, session: Session, golden: GoldenSet
) -> float:
    """The largest difference from the golden scores.

    Raises:
        SignatureError: an event is not scored, a score differs by more than the tolerance, or the same score leads
            to another decision.
    """
    raw = raw_batch("golden", [e.encode() for e in golden.events], timestamps=golden.timestamps)
    offline = Offline(catalogue, schema, MemoryStore(golden.stored()), as_json=True)
    _, _, scores, rejects = offline.score(raw, manifest, session)
    what = f"{manifest.model} {manifest.version}"
    mend = "serve it with the release and the topology file that it was added with, or add it anew"
    if rejects or scores.names != golden.names:
        why = f"{rejects[0].error}: {rejects[0].message}" if rejects else f"it scores {scores.names}"
        raise SignatureError(f"the golden set of {what} can't be scored: {why}", mend=mend)
    expected = np.array(golden.scores)
    same = (scores.values == expected) | (np.isnan(scores.values) & np.isnan(expected))
    difference = np.where(same, 0.0, np.abs(scores.values - expected))
    if not (difference <= golden.tolerance).all():
        row, column = np.unravel_index(np.argmax(np.nan_to_num(difference, nan=np.inf)), difference.shape)
        raise SignatureError(
            f"{what} answers other than its golden set: event {row}: {scores.names[column]} is "
            f"{scores.values[row, column]:.9g}, expected {expected[row, column]:.9g} +- {golden.tolerance:g}",
            mend=mend,
        )
    # Where the bits differ, a score may lie on the other side of a threshold for good reason
    decided = _decisions(scores)
    for event in np.flatnonzero((difference == 0).all(axis=1)).tolist():
        if decided[event] != golden.decisions[event]:
            raise SignatureError(
                f"{what} decides other than its golden set: event {event} is {decided[event]!r}, "
                f"expected {golden.decisions[event]!r}",
                mend=mend,
            )
    return float(difference.max(initial=0.0))


class _Recorder(MemoryStore):
    """Passes questions on to another store and keeps the answers."""

    def __init__(self, store: FeatureStore) -> None:
        super().__init__({})
        self._store = store

    def fetch(self, keys: Sequence[bytes]) -> Answer:
        answer = self._store.fetch(keys)
        for key, row in zip(keys, answer.values or (), strict=False):
            if row is not None:
                self.asked[key] = row
        return answer


def _decisions(scores: Scores) -> tuple[str | None, ...]:
    return tuple(None if d < 0 else scores.labels[d] for d in scores.decisions.tolist())
