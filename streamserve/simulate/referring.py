"""Building the drift reference of a version: recorded events through the worker's own features and model."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamserve.drift.measures import Measure
from streamserve.drift.policy import AlertSettings
from streamserve.drift.reference import Reference, build
from streamserve.errors import DriftError
from streamserve.features.catalogue import Catalogue
from streamserve.features.rows import FeatureStore
from streamserve.models.manifest import Manifest
from streamserve.models.plan import FeaturePlan
from streamserve.models.session import Session
from streamserve.pipeline.decode import EventDecoder
from streamserve.pipeline.enrich import build_matrix, open_columns
from streamserve.pipeline.gather import Gathered
from streamserve.pipeline.score import Scorer
from streamserve.records import RawBatch
from streamserve.topology import Drift

FEWEST = 1_000  # rows of a reference, or a segment of it: its own error would hide what is to be found
MOST_SEGMENTS = 8  # each is counted, calibrated and told as the whole stream is


def alert_settings(drift: Drift) -> AlertSettings:
    """What a topology says of alerts, as drift's own rooms take it."""
    return AlertSettings(**{name: getattr(drift, name) for name in AlertSettings.model_fields})


@dataclass(frozen=True, slots=True)
class Scoring:
    """A version as a worker has it, without a worker."""

    catalogue: Catalogue
    decoder: EventDecoder
    manifest: Manifest
    manifest_sha256: str
    session: Session
    store: FeatureStore

    def gather(self, events: Iterable[RawBatch], source: str, tell: Callable[[int], None]) -> Gathered:
        """What it is fed and says of these events. source: where they are from. tell: told how many were read.

        Raises:
            DriftError: too few of them can be scored.
            StoreError: the store of views does not answer.
        """
        manifest, catalogue = self.manifest, self.catalogue
        plan, scorer = FeaturePlan.of(manifest, catalogue), Scorer(manifest, self.session)
        drift = catalogue.topology.drift or Drift()
        gathered, read = Gathered(plan, catalogue, scorer.names, scorer.labels, drift.segment), 0
        for raw in events:
            decoded = self.decoder.decode(raw)
            columns = open_columns(catalogue, decoded, [plan], self.store)
            matrix = build_matrix(manifest.version, plan, columns, np.arange(len(decoded)))
            gathered.add(columns, matrix, scorer.score(matrix, decoded.rows))
            read += len(raw)
            tell(read)
        if gathered.rows < FEWEST:
            raise DriftError(
                f"{gathered.rows} of {read} events could be scored, and a reference takes {FEWEST} at least",
                where=source,
                mend="name more events: some 10,000 are a good beginning, and what they can't tell no window can",
            )
        return gathered


@dataclass(frozen=True, slots=True)
class Counted:
    """The events of a reference in its bins. segments: those of each value that has windows of its own."""

    rows: int
    measures: Sequence[Measure]
    segments: Mapping[str, Sequence[Measure]]

    @classmethod
    def of(cls, gathered: Gathered, bins: int, like: Iterable[Measure]) -> Counted:
        """like: measures of another version, whose bins are taken."""
        measures = gathered.measures(bins, like)
        return cls(gathered.rows, measures, gathered.segments(measures, FEWEST, MOST_SEGMENTS))

    @property
    def many(self) -> int:
        """So many measures are to be calibrated."""
        return len(self.measures) * (1 + len(self.segments))


def build_reference(
    scoring: Scoring, counted: Counted, *, source: str, created: dt.datetime, tell: Callable[[int], None]
) -> Reference:
    """The reference of these events. tell: told how many measures are calibrated."""
    manifest, drift = scoring.manifest, scoring.catalogue.topology.drift or Drift()
    return build(
        counted.measures,
        model=manifest.model,
        version=manifest.version,
        manifest_sha256=scoring.manifest_sha256,
        rows=counted.rows,
        source=source,
        created=created,
        alerts=alert_settings(drift),
        segment=drift.segment,
        segments=counted.segments,
        tell=tell,
    )
