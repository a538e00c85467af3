"""Measures of a reference's rows: bins are chosen here, once, and the rows are counted into them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from streamserve.drift.edges import Dtype, quantile_edges
from streamserve.drift.measures import DEFAULT, MISSING, NONE, Measure, Of, code_bins, count, encoded, label_bins
from streamserve.features.columns import FIRST_CODE
from streamserve.records import FeatureStatus, Uint8s

Mask = NDArray[np.bool_]
BINS = 10  # of a numeric quantity, between quantiles
VALUES = 20  # of a category, that have a bin of their own


def numeric(
    name: str,
    values: ArrayLike,
    *,
    missing: Mask | None = None,
    default: Mask | None = None,
    bins: int = BINS,
    dtype: Dtype = "float32",
    of: Of = "feature",
) -> Measure:
    """Of numbers, in bins between quantiles of those that are neither missing nor a default nor NaN.

    Bins that would be equal are one; a value that spans quantiles has its own.
    """
    given = np.asarray(values)
    special = _special(len(given), missing, default)
    real = given if special is None else given[special == NONE]
    edges = tuple(quantile_edges(real.astype(np.float64), bins, dtype).tolist())
    empty = Measure(kind="numeric", name=name, of=of, edges=edges, dtype=dtype, counts=(0,) * (len(edges) + 4))
    return empty.with_counts(count(empty, given, special))


def category(
    name: str,
    values: ArrayLike | pa.Array,
    *,
    vocabulary: Sequence[str] | None = None,
    missing: Mask | None = None,
    default: Mask | None = None,
    most: int = VALUES,
) -> Measure:
    """Of codes, where there is a vocabulary, or of texts. The `most` frequent values, of equals the first by name."""
    if vocabulary is None:
        values = encoded(values)
        words, codes = values.dictionary.to_pylist(), values.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        first = 0
    else:
        words, codes, first = list(vocabulary), np.asarray(values), FIRST_CODE
    special = _special(len(codes), missing, default)
    at = codes.astype(np.int64) - first
    real = at[(at >= 0) & (at < len(words)) & (special is None or special == NONE)]
    times = np.bincount(real, minlength=len(words)).tolist()
    ranked = sorted((-many, word) for many, word in zip(times, words, strict=True) if many)[:most]
    own = tuple(word for _, word in ranked)
    empty = Measure(kind="category", name=name, of="feature", values=own, counts=(0,) * (len(own) + 4))
    table = None if vocabulary is None else code_bins(empty, vocabulary)
    return empty.with_counts(count(empty, values if vocabulary is None else codes, special, codes=table))


def decision(labels: Sequence[str], decisions: ArrayLike, *, name: str = "decision") -> Measure:
    """Of decisions, each an index into `labels`, or below 0 for none."""
    empty = Measure(kind="decision", name=name, of="decision", values=tuple(labels), counts=(0,) * (len(labels) + 2))
    return empty.with_counts(count(empty, decisions, codes=label_bins(empty, labels)))


def status(view: str, statuses: ArrayLike) -> Measure:
    """Of what a view had for each row: FeatureStatus."""
    names = tuple(one.name for one in FeatureStatus)
    empty = Measure(kind="status", name=view, of="view", values=names, counts=(0,) * len(names))
    return empty.with_counts(count(empty, statuses))


def _special(rows: int, missing: Mask | None, default: Mask | None) -> Uint8s | None:
    if missing is None and default is None:
        return None
    found = np.zeros(rows, np.uint8)
    if default is not None:
        found[default] = DEFAULT
    if missing is not None:
        found[missing] = MISSING
    return found
