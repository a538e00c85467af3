"""Tally: what a batch adds to the drift counts of the version that answered, from the very inputs that it was fed.

Nothing that a prediction holds depends on it, and what fails in it is no event's fault: such a batch is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamserve.drift.binning import Block, Watched
from streamserve.drift.chunks import ALL_BP
from streamserve.drift.measures import DEFAULT, MISSING, Measure, Of, code_bins, label_bins
from streamserve.drift.reference import Reference
from streamserve.drift.tallies import BatchTallies, Groups, Tallied, group, with_whole
from streamserve.features.buffers import valid
from streamserve.features.catalogue import Catalogue
from streamserve.features.columns import FIRST_CODE, UNSEEN_CODE, BatchColumns
from streamserve.models.manifest import Input
from streamserve.models.plan import FeaturePlan
from streamserve.pipeline.prediction import FIRST_MS, LAST_MS
from streamserve.records import FeatureMatrix, FeatureStatus, Indices, Int32s, Int64s, Scores, Uint8s
from streamserve.rollouts.buckets import buckets
from streamserve.topology import View

SALT = "streamserve.drift"  # a share is of the keys of these buckets, whatever a rollout's salt


@dataclass(frozen=True, slots=True)
class Panes:
    """How events are told apart and how many are counted. share_bp: basis points of the keys. segment: a field."""

    pane_ms: int
    share_bp: int = ALL_BP
    segment: str | None = None


class Specials:
    """Which values are none: nulls of the event, and what a view's defaults stand in for."""

    def __init__(self, plan: FeaturePlan, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._views = [view.name for view in plan.views]
        self._replaced = [_replaced(view) for view in plan.views]
        self._paths: list[str] = []
        self._columns: tuple[list[str], list[int]] = ([], [])  # names of a batch's columns, and which of them ours are

    def row_of(self, name: str) -> int:
        """Which row of `of` tells of a feature; -1: none. Those of the views come first, then those of paths."""
        feature = self._catalogue.pick(name).feature
        if feature.kind == "stored":
            return self._views.index(feature.view.name)
        if feature.kind not in ("field", "parts"):
            return -1
        if feature.path not in self._paths:
            self._paths.append(feature.path)
        return len(self._views) + self._paths.index(feature.path)

    def of(self, columns: BatchColumns, status: Uint8s, rows: Indices) -> Uint8s | None:
        """Of these rows of the EventBatch, [rows of `row_of`, events]; None: nothing is special.

        status: [events, views].
        """
        told: dict[int, NDArray[np.generic]] = {}
        if status.any():
            for place, replaced in enumerate(self._replaced):
                told[place] = replaced[status[:, place]]
        batch = columns.events.columns
        names = batch.schema.names
        if names != self._columns[0]:  # by its place a column is had for a quarter of what its name costs
            self._columns = names, [names.index(path) for path in self._paths]
        for place, at in enumerate(self._columns[1], len(self._replaced)):
            there = valid(batch.column(at))
            if there is not None:
                told[place] = np.where(there[rows], 0, MISSING)
        if not told:
            return None
        found = np.zeros((len(self._replaced) + len(self._paths), len(rows)), np.uint8)
        for place, values in told.items():
            found[place] = values
        return found


class Tally:
    """Counts of one version. reference: None where it has none: events are told apart, and nothing of them is counted.

    names, labels: as its `Scores` have them.
    """

    def __init__(
        self,
        version: str,
        reference: Reference | None,
        plan: FeaturePlan,
        catalogue: Catalogue,
        names: Sequence[str],
        labels: Sequence[str],
        panes: Panes,
    ) -> None:
        self._version, self._panes, self._catalogue = version, panes, catalogue
        self._fingerprint = "" if reference is None else reference.fingerprint
        self._width = 0 if reference is None else reference.offsets[-1]
        self._measures: dict[str, tuple[Measure, int]] = {}
        self._values: tuple[str, ...] = ()
        if reference is not None:
            self._values = reference.values if reference.segment == panes.segment else ()
            for measure, first in zip(reference.measures, reference.offsets, strict=False):
                self._measures[measure.key] = measure, first
        self._specials = Specials(plan, catalogue)
        self._inputs = [(given.name, found) for given in plan.inputs if (found := self._input(given, plan))]
        self._texts = [(path, words, block) for given in plan.inputs for path, words, block in self._words(given)]
        self._scores = _block([self._number("score", name, at) for at, name in enumerate(names)], np.dtype(np.float64))
        self._decision = _block([self._decisions(labels)], np.dtype(np.int32))
        self._statuses = _block([self._status(view.name, at) for at, view in enumerate(plan.views)], np.dtype(np.uint8))

    # ---- once a version

    def _of(self, of: Of, name: str) -> tuple[Measure, int] | None:
        """A measure, and its place among all bins."""
        return self._measures.get(f"{of}:{name}")

    def _number(self, of: Of, name: str, column: int, special: int = -1) -> Watched | None:
        found = self._of(of, name)
        if found is None or found[0].edges is None:
            return None
        return Watched(column, *found, special=special)

    def _input(self, given: Input, plan: FeaturePlan) -> Block | None:
        if given.dtype == "string":
            return None
        found, column = [], 0
        for name in given.features:
            atom = self._catalogue.pick(name)
            if atom.width == 1:
                words = plan.vocabularies.get(name)
                special = self._specials.row_of(name)
                found.append(
                    self._number("feature", name, column, special)
                    if words is None
                    else self._category(name, words, column)
                )
            column += atom.width
        return _block(found, np.dtype(given.dtype))

    def _category(self, name: str, words: Sequence[str], column: int) -> Watched | None:
        found = self._of("feature", name)
        if found is None or found[0].kind != "category":
            return None
        return Watched(column, *found, code_bins(found[0], words))

    def _words(self, given: Input) -> list[tuple[str, tuple[str, ...], Block]]:
        """Texts, as the measure's own values code them: what has no bin of its own is in the rest, none is unseen."""
        texts = []
        for name in given.features if given.dtype == "string" else ():
            feature, found = self._catalogue.pick(name).feature, self._of("feature", name)
            if feature.kind in ("text", "category") and found is not None and found[0].values is not None:
                words = found[0].values
                codes = code_bins(found[0], words)
                codes[UNSEEN_CODE] = len(found[0].bins) - 1
                texts.append((feature.path, words, Block([Watched(0, *found, codes)], np.dtype(np.int32))))
        return texts

    def _decisions(self, labels: Sequence[str]) -> Watched | None:
        found = self._of("decision", "decision")
        return None if found is None else Watched(0, *found, label_bins(found[0], labels))

    def _status(self, view: str, place: int) -> Watched | None:
        found = self._of("view", view)
        return None if found is None else Watched(place, *found, np.arange(len(FeatureStatus)))

    # ---- once a batch

    def count(self, columns: BatchColumns, matrix: FeatureMatrix, said: Scores) -> Tallied:
        """What these answers add."""
        events, rows = columns.events, said.rows
        raw = events.raw.partitions[events.rows[rows]] if len(rows) else np.empty(0, np.int32)
        # A time at the end of time has no pane: its chunk would be refused, and its neighbours' counts lost with it
        times = np.clip(events.event_times[rows], FIRST_MS, LAST_MS)
        groups = group(raw, times, self._panes.pane_ms, self._segments(columns, rows))
        kept = self._sampled(columns, rows) if self._fingerprint else np.empty(0, np.intp)
        of, counted = (groups.of, groups.rows) if kept is None else _some(groups, kept)
        counts = np.zeros((len(groups), self._width), np.int32)
        if self._fingerprint and len(of):
            self._add(columns, matrix, said, kept, of, counts)
        found = Tallied(self._version, self._fingerprint, groups, (None, *self._values), counted, counts)
        return with_whole(found) if self._values else found

    def _segments(self, columns: BatchColumns, rows: Indices) -> Int32s | None:
        """Of each event 0, or which of the values it has, from 1 on."""
        path = self._panes.segment
        if not self._values or path is None or segment_texts(columns, path) is None:
            return None
        return np.maximum(columns.coded(path, self._values)[rows] - (FIRST_CODE - 1), 0)

    def _sampled(self, columns: BatchColumns, rows: Indices) -> Indices | None:
        """Which of the rows are counted; None: all."""
        if self._panes.share_bp >= ALL_BP:
            return None
        events = columns.events
        found = buckets(events.raw.keys, SALT, events.rows[rows])
        return np.flatnonzero(found < self._panes.share_bp)

    def _add(
        self,
        columns: BatchColumns,
        matrix: FeatureMatrix,
        said: Scores,
        kept: Indices | None,
        of: Int32s,
        counts: NDArray[np.int32],
    ) -> None:
        rows = said.rows if kept is None else said.rows[kept]
        whole = len(rows) == len(matrix.rows)
        at = slice(None) if whole else np.searchsorted(matrix.rows, rows)
        status = matrix.status[at]
        specials = self._specials.of(columns, status, rows)
        for name, block in self._inputs:
            values = matrix.inputs[name]
            block.count(values.reshape(len(values), -1)[at], of, counts, specials)
        for path, words, block in self._texts:
            block.count(columns.coded(path, words)[rows][:, None], of, counts)
        chosen = slice(None) if kept is None else kept
        for found, values in ((self._scores, said.values), (self._decision, said.decisions[:, None])):
            if found is not None:
                found.count(values[chosen], of, counts)
        if self._statuses is not None:
            self._statuses.count(status, of, counts)


class Tallying(Protocol):
    """The tallies of versions."""

    def of(self, version: str) -> Tally | None:
        """Of this version; None: it can't be counted yet."""
        ...

    def failed(self, version: str, error: Exception) -> None:
        """Told of what could not be counted."""
        ...


def tally(tallying: Tallying, columns: BatchColumns, answers: Sequence[tuple[FeatureMatrix, Scores]]) -> BatchTallies:
    """What a batch adds, by all that answered for some of it; raises nothing."""
    found, raw, shed = [], columns.events.raw, dict[int, int]()
    for matrix, said in answers:
        one = tallying.of(said.version)
        try:
            if one is not None:
                found.append(one.count(columns, matrix, said))
                continue
        except Exception as error:  # noqa: BLE001  (whatever it is, the predictions stand; it is told, and counted)
            tallying.failed(said.version, error)
        of = np.bincount(raw.partitions[columns.events.rows[said.rows]])
        for partition in np.flatnonzero(of).tolist():
            shed[partition] = shed.get(partition, 0) + int(of[partition])
    return BatchTallies(tuple(found), shed)


def segment_texts(columns: BatchColumns, path: str) -> pa.Array | None:
    """The field that tells segments apart; None: there is none, or it is no text, number or flag."""
    place = columns.events.columns.schema.get_field_index(path)
    if place < 0:
        return None
    column = columns.events.columns.column(place)
    return None if pa.types.is_binary(column.type) or pa.types.is_nested(column.type) else column


def _some(groups: Groups, kept: Indices) -> tuple[Int32s, Int64s]:
    """The group of some events, and how many of them each has."""
    of = groups.of[kept]
    return of, np.bincount(of, minlength=len(groups))


def _block(watched: Sequence[Watched | None], dtype: np.dtype[np.generic]) -> Block | None:
    found = [one for one in watched if one is not None]
    return Block(found, dtype) if found else None


def _replaced(view: View) -> Uint8s:
    """What each status makes of a row's values."""
    found = np.zeros(len(FeatureStatus), np.uint8)
    found[[FeatureStatus.MISSING, FeatureStatus.TIMEOUT, FeatureStatus.DEFAULTED]] = DEFAULT
    found[FeatureStatus.STALE] = DEFAULT * (view.stale == "default")
    found[FeatureStatus.FUTURE] = DEFAULT * (view.future == "default")
    return found
