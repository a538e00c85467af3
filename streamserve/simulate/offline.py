"""The worker's own pipeline over recorded events, without a broker and without Redis.

Training matrices, golden sets, tests and `streamserve explain` go through here: what a model is trained on is what
it is served, by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from streamserve.features.catalogue import Catalogue
from streamserve.features.rows import Answer, FeatureStore
from streamserve.models.manifest import Input, Manifest
from streamserve.models.plan import FeaturePlan
from streamserve.models.session import Session
from streamserve.pipeline.decode import EventDecoder
from streamserve.pipeline.enrich import build_matrix, open_columns
from streamserve.pipeline.schemas import EventSchema, WriterSchemas
from streamserve.pipeline.score import Scorer
from streamserve.records import EventBatch, FeatureMatrix, RawBatch, Reject, Scores, binary

Array = NDArray[np.generic]


class MemoryStore:
    """A FeatureStore over a dict; remembers the rows that it was asked for."""

    def __init__(self, rows: Mapping[bytes, bytes]) -> None:
        self._rows = rows
        self.asked: dict[bytes, bytes] = {}

    def fetch(self, keys: Sequence[bytes]) -> Answer:
        found = [self._rows.get(key) for key in keys]
        self.asked.update({key: row for key, row in zip(keys, found, strict=True) if row is not None})
        return Answer(found)


def raw_batch(
    topic: str,
    values: Sequence[bytes | None],
    *,
    keys: Sequence[bytes | None] | None = None,
    timestamps: Sequence[int] | None = None,
    first_offset: int = 0,
    partition: int = 0,
) -> RawBatch:
    """Values as a batch of one partition, offsets counting up. timestamps: milliseconds since 1970."""
    count = len(values)
    return RawBatch(
        topic=topic,
        partitions=np.full(count, partition, np.int32),
        offsets=np.arange(first_offset, first_offset + count, dtype=np.int64),
        timestamps=np.array(timestamps if timestamps is not None else [0] * count, np.int64),
        timestamp_types=np.ones(count, np.uint8),
        keys=binary(keys if keys is not None else [None] * count),
        values=binary(values),
    )


class Offline:
    """A topology's decode and enrich over recorded events.

    Args:
        as_json: decode JSON events whatever the source's format is (golden sets are kept as JSON).
    """

    def __init__(
        self,
        catalogue: Catalogue,
        schema: EventSchema,
        store: FeatureStore,
        *,
        writers: WriterSchemas | None = None,
        as_json: bool = False,
    ) -> None:
        source = catalogue.topology.source
        self.catalogue, self.store = catalogue, store
        self._decoder = EventDecoder(
            schema,
            format="json" if as_json else source.format,
            paths=catalogue.paths(),
            event_time=source.event_time,
            writers=writers,
        )

    def decode(self, raw: RawBatch) -> EventBatch:
        return self._decoder.decode(raw)

    def matrix(self, raw: RawBatch, plan: FeaturePlan) -> tuple[EventBatch, FeatureMatrix]:
        events = self.decode(raw)
        columns = open_columns(self.catalogue, events, [plan], self.store)
        return events, build_matrix("offline", plan, columns, np.arange(len(events)))

    def score(
        self, raw: RawBatch, manifest: Manifest, session: Session
    ) -> tuple[EventBatch, FeatureMatrix, Scores, tuple[Reject, ...]]:
        plan = FeaturePlan.of(manifest, self.catalogue)
        events, matrix = self.matrix(raw, plan)
        scores = Scorer(manifest, session).score(matrix, events.rows)
        return events, matrix, scores, (*events.rejects, *matrix.rejects, *scores.rejects)


def training_plan(
    catalogue: Catalogue, vocabularies: Mapping[str, Sequence[str]], features: Sequence[str] | None = None
) -> FeaturePlan:
    """A plan of one float32 matrix "features", for training before there is a model."""
    names = tuple(features if features is not None else catalogue.atoms)
    width = sum(catalogue.pick(name).width for name in names)
    given = Input(name="features", dtype="float32", shape=(None, width), features=names)
    used = {view for name in names for view in catalogue.views_of(name)}
    views = tuple(view for view in catalogue.views.values() if view.name in used)
    return FeaturePlan((given,), {k: tuple(v) for k, v in vocabularies.items()}, views)
