"""Gathering what a version was fed and said of many events, to build its drift reference from.

It reads the very inputs that `tally` counts, so that a reference and what is held against it mean the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamserve.drift.building import BINS, category, decision, numeric, status
from streamserve.drift.edges import Dtype
from streamserve.drift.measures import DEFAULT, MISSING, NONE, Measure, code_bins, count
from streamserve.features.buffers import as_text
from streamserve.features.catalogue import Catalogue
from streamserve.features.columns import BatchColumns
from streamserve.models.manifest import Input
from streamserve.models.plan import FeaturePlan
from streamserve.pipeline.tally import Specials, segment_texts
from streamserve.records import FeatureMatrix, Int64s, Scores, Uint8s

Array = NDArray[Any]
Mask = NDArray[np.bool_]
LONGEST = 200  # characters of a value that has windows of its own


class Gathered:
    """Inputs, scores, decisions and statuses of one version, batch by batch. names, labels: as in its `Scores`.

    segment: an event field, of which the values are kept.
    """

    def __init__(
        self,
        plan: FeaturePlan,
        catalogue: Catalogue,
        names: Sequence[str],
        labels: Sequence[str],
        segment: str | None = None,
    ) -> None:
        self._segment = segment
        self._values: list[pa.Array] = []  # of the segment field
        self._plan, self._catalogue, self._names, self._labels = plan, catalogue, names, labels
        self._specials = Specials(plan, catalogue)
        self._rows_of = {name: self._specials.row_of(name) for given in plan.inputs for name in given.features}
        self._inputs: dict[str, list[Array]] = {given.name: [] for given in plan.inputs if given.dtype != "string"}
        self._texts: dict[str, list[pa.Array]] = {path: [] for path in self._paths().values()}
        self._told: list[Uint8s | int] = []  # what is special of each batch, or how many events have nothing
        self._status: list[Uint8s] = []
        self._scores: list[Array] = []
        self._decisions: list[Array] = []
        self.rows = 0
        self._like: dict[str, Measure] = {}

    def _paths(self) -> dict[str, str]:
        """Of features that are fed as text, where the event has them."""
        named = {
            name: self._catalogue.pick(name).feature
            for given in self._plan.inputs
            if given.dtype == "string"
            for name in given.features
        }
        return {name: one.path for name, one in named.items() if one.kind in ("text", "category")}

    def add(self, columns: BatchColumns, matrix: FeatureMatrix, said: Scores) -> None:
        rows = said.rows
        if not len(rows):
            return
        at = np.searchsorted(matrix.rows, rows)
        for name, kept in self._inputs.items():
            values = matrix.inputs[name]
            kept.append(values.reshape(len(values), -1)[at])
        for path, texts in self._texts.items():
            texts.append(as_text(columns.events.columns.column(path)).take(pa.array(rows)))
        status_ = matrix.status[at]
        specials = self._specials.of(columns, status_, rows)
        if self._segment is not None:
            texts_ = segment_texts(columns, self._segment)
            nulls = pa.nulls(len(rows), pa.string())
            self._values.append(nulls if texts_ is None else as_text(texts_).take(pa.array(rows)))
        self._told.append(len(rows) if specials is None else specials)
        self._status.append(status_)
        self._scores.append(said.values)
        self._decisions.append(said.decisions)
        self.rows += len(rows)

    def measures(self, bins: int = BINS, like: Iterable[Measure] = ()) -> list[Measure]:
        """Of all that was added: features in the model's order, then scores, the decision, the views.

        like: measures of another version, whose bins are taken where both have them.
        """
        self._like = {one.key: one for one in like}
        scores, statuses = np.concatenate(self._scores), np.concatenate(self._status)
        found = [one for given in self._plan.inputs for one in self._features(given, bins)]
        found += [
            self._as_known(numeric(name, scores[:, at], of="score", dtype="float64", bins=bins), scores[:, at])
            for at, name in enumerate(self._names)
        ]
        if self._labels:
            found.append(decision(tuple(dict.fromkeys(self._labels)), self._decided()))
        return found + [status(view.name, statuses[:, at]) for at, view in enumerate(self._plan.views)]

    def segments(self, measures: Iterable[Measure], fewest: int, most: int) -> dict[str, list[Measure]]:
        """By value of the segment field, the measures with the counts of its rows.

        The `most` frequent values that `fewest` rows have, of equals the first by name; longer ones than LONGEST are
        left out.
        """
        if not self._values:
            return {}
        values, like = pa.chunked_array(self._values, pa.string()).combine_chunks(), list(measures)
        counted = ((one["values"], one["counts"]) for one in values.drop_null().value_counts().to_pylist())
        ranked = sorted((-n, value) for value, n in counted if n >= fewest and 0 < len(value) <= LONGEST)[:most]
        found = {}
        for _, value in ranked:
            chosen = pc.equal(values, value).fill_null(False).to_numpy(zero_copy_only=False)
            found[value] = self._only(chosen).measures(like=like)
        return found

    def _only(self, chosen: Mask) -> Gathered:
        """With these rows alone."""
        found = Gathered(self._plan, self._catalogue, self._names, self._labels)
        ends = np.cumsum([len(one) for one in self._scores])[:-1]
        masks = np.split(chosen, ends)

        def kept(parts: Iterable[Array]) -> list[Array]:
            return [part[mask] for part, mask in zip(parts, masks, strict=True)]

        found._inputs = {name: kept(parts) for name, parts in self._inputs.items()}
        found._texts = {
            path: [part.filter(pa.array(mask)) for part, mask in zip(parts, masks, strict=True)]
            for path, parts in self._texts.items()
        }
        found._told = [
            int(mask.sum()) if isinstance(told, int) else told[:, mask]
            for told, mask in zip(self._told, masks, strict=True)
        ]
        found._status = kept(self._status)
        found._scores, found._decisions = kept(self._scores), kept(self._decisions)
        found.rows = int(chosen.sum())
        return found

    def samples(self) -> dict[str, Array]:
        """The values of each number, by the key of its measure; those that are missing or a default left out."""
        scores = np.concatenate(self._scores)
        found: dict[str, Array] = {}
        for given in self._plan.inputs:
            column = 0
            for name in given.features if given.dtype != "string" else ():
                width = self._catalogue.pick(name).width
                if width == 1 and name not in self._plan.vocabularies:
                    values = np.concatenate([part[:, column] for part in self._inputs[given.name]])
                    found[f"feature:{name}"] = values[self._special(self._rows_of[name]) == NONE]
                column += width
        return {**found, **{f"score:{name}": scores[:, at] for at, name in enumerate(self._names)}}

    def _decided(self) -> Array:
        """Each decision by the first label of its text."""
        distinct = list(dict.fromkeys(self._labels))
        table = np.array([*(distinct.index(label) for label in self._labels), -1], np.int64)
        found: Array = table[np.concatenate(self._decisions)]
        return found

    def _features(self, given: Input, bins: int) -> list[Measure]:
        if given.dtype == "string":
            paths = self._paths()
            return [self._text(name, self._texts[paths[name]]) for name in given.features if name in paths]
        values, found, column = np.concatenate(self._inputs[given.name]), [], 0
        for name in given.features:
            width = self._catalogue.pick(name).width
            if width == 1:  # each number of a vector alone says little
                found.append(self._feature(name, given, values[:, column], bins))
            column += width
        return found

    def _text(self, name: str, parts: Sequence[pa.Array]) -> Measure:
        texts = pa.chunked_array(parts).combine_chunks()
        made = category(name, texts)
        known = self._known(made)
        return made if known is None else recounted(known, texts)

    def _feature(self, name: str, given: Input, values: Array, bins: int) -> Measure:
        words = self._plan.vocabularies.get(name)
        if words is not None:
            made = category(name, values, vocabulary=words)
            known = self._known(made)
            return made if known is None else recounted(known, values, codes=code_bins(known, words))
        told = self._special(self._rows_of[name])
        dtype: Dtype = "float32" if given.dtype in ("float32", "float16") else "float64"
        made = numeric(name, values, missing=told == MISSING, default=told == DEFAULT, bins=bins, dtype=dtype)
        return self._as_known(made, values, told)

    def _known(self, made: Measure) -> Measure | None:
        known = self._like.get(made.key)
        return known if known is not None and (known.kind, known.dtype) == (made.kind, made.dtype) else None

    def _as_known(self, made: Measure, values: Array, special: Uint8s | None = None) -> Measure:
        known = self._known(made)
        return made if known is None else recounted(known, values, special)

    def _special(self, row: int) -> Uint8s:
        if row < 0:
            return np.zeros(self.rows, np.uint8)
        return np.concatenate([np.zeros(told, np.uint8) if isinstance(told, int) else told[row] for told in self._told])


def recounted(
    known: Measure, values: Array | pa.Array, special: Uint8s | None = None, *, codes: Int64s | None = None
) -> Measure:
    """These values in the bins of a measure. codes: the bin of each code of a category."""
    return known.with_counts(count(known, values, special, codes=codes))
