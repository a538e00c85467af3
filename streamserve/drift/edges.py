"""Where the bins of a numeric quantity end: at quantiles that are frozen once. Pure."""

from __future__ import annotations

from typing import Literal

import numpy as np

from streamserve.records import Floats

Dtype = Literal["float32", "float64"]
NEAR, NEAR_ZERO = 1e-6, 1e-12  # values that near to one that is the outermost are its equals, relative and at 0


def quantile_edges(values: Floats, bins: int, dtype: Dtype = "float64") -> Floats:
    """Where the bins end: at the quantiles, halfway to the next value, so that rounding moves no value to another bin.

    A value that spans several quantiles (few distinct values, a constant one) is a bin of its own. A value x is in the
    bin numbered by how many edges are below x. NaN has no part in it.

    dtype: what values will be compared as. Edges are finite numbers of that type, as doubles: between the values that
        they part, or equal to the lower one. None where there are no values.
    """
    kind = np.dtype(dtype).type
    with np.errstate(over="ignore", invalid="ignore"):  # doubles that are infinite as floats; infinite neighbours
        ordered = np.sort(values[~np.isnan(values)].astype(kind)).astype(np.float64)
        if not len(ordered):
            return np.zeros(0)
        at = np.ceil(len(ordered) * np.arange(1, bins) / bins).astype(np.intp) - 1
        parts, times = np.unique(ordered[at], return_counts=True)
        first, after = np.searchsorted(ordered, parts, "left"), np.searchsorted(ordered, parts, "right")
        inside = after < len(ordered)
        below = np.where(first > 0, ordered[first - 1], _near(parts, -1, kind))
        above = np.where(inside, ordered[np.minimum(after, len(ordered) - 1)], _near(parts, 1, kind))
        heavy = times > 1
        ends = [_between(below, parts, kind)[heavy], _between(parts, above, kind)[heavy | inside]]
    edges: Floats = np.unique(np.concatenate(ends))
    return edges[np.isfinite(edges)]


def _near(values: Floats, side: int, kind: type[np.floating]) -> Floats:
    """In place of a neighbour of an outermost value: the nearest that is not its equal; of an infinity, 0."""
    far = values + side * 2 * np.where(values == 0, NEAR_ZERO, np.abs(values) * NEAR)
    next_to = np.nextafter(values.astype(kind), kind(side * np.inf)).astype(np.float64)
    other = np.maximum(far, next_to) if side > 0 else np.minimum(far, next_to)
    return np.where(np.isinf(values), 0.0, other)


def _between(low: Floats, high: Floats, kind: type[np.floating]) -> Floats:
    """Numbers of a type from low up to, but not including, high: near the middle."""
    largest = float(np.finfo(kind).max)
    middle = np.nan_to_num(low / 2 + high / 2, nan=0.0, posinf=largest, neginf=-largest)  # NaN: of both infinities
    under = np.nextafter(high.astype(kind), kind(-np.inf))
    inside = np.minimum(np.clip(middle, -largest, largest).astype(kind), under)
    return np.maximum(inside, low.astype(kind)).astype(np.float64)
