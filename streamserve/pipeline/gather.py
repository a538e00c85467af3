"""Gathering what a version was fed and said of many events, to build its drift reference from.

It reads the very inputs that `tally` counts, so that a reference and what is held against it mean the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamserve.drift.building import BINS, category, decision, numeric, status
from streamserve.drift.edges import Dtype
from streamserve.drift.measures import DEFAULT, MISSING, NONE, Measure, code_bins, count
from streamserve.features.buffers import as_text
from streamserve.features.catalogue import Catalogue
from streamserve.features.columns import BatchColumns
from streamserve.models.manifest import Input
from streamserve.models.plan import FeaturePlan
from streamserve.pipeline.tally import Specials
from streamserve.records import FeatureMatrix, Int64s, Scores, Uint8s

Array = NDArray[np.generic]


class Gathered:
    """Inputs, scores, decisions and statuses of one version, batch by batch. names, labels: as in its `Scores`."""

    def __init__(self, plan: FeaturePlan, catalogue: Catalogue, names: Sequence[str], labels: Sequence[str]) -> None:
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
    counts = count(known, values, special, codes=codes)
    return known.model_copy(update={"counts": tuple(counts.tolist())})
