"""PSI as others define it, so that a team can move its thresholds over. Nothing in the product decides by these. Pure.

The same data give figures that differ by a factor of ten: a threshold belongs to its definition. Each here is a rule
for where bins end, and one for shares of zero; the sum is always that of (q - p) ln(q / p), with natural logarithms.
The named libraries were read in their sources, in the versions that docs/drift.md tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from streamserve.drift.edges import quantile_edges
from streamserve.drift.psi import psi
from streamserve.errors import DriftError
from streamserve.records import Floats, Int64s

Binning = Literal["halfway", "quantiles", "equal width", "sturges of both"]
Zeros = Literal["half a row", "none", "floor", "raise", "floor or millionth"]


@dataclass(frozen=True, slots=True)
class Definition:
    """How one PSI is defined.

    binning: of numbers. "halfway": `edges.quantile_edges`. "quantiles": of the reference, linear between its values,
        equal ones merged, ends open, x on an edge in the lower bin. "equal width": between the reference's smallest
        and largest value, ends open, x on an edge in the lower bin. "sturges of both": equal widths between the
        smallest and largest value of both samples, ceil(log2(rows) + 1) of them, x on an edge in the upper bin.
    zeros: "half a row": `psi.contributions`. "none": shares as they are; infinite where one side alone is empty.
        "floor": a share of 0 becomes `floor`. "raise": every share below `floor` becomes `floor`. "floor or millionth":
        a share of 0 becomes `floor`, or where that side's smallest other share is at most `floor`, a millionth of that.
        Shares are not scaled to sum to 1 again.
    """

    binning: Binning
    zeros: Zeros
    bins: int = 10
    floor: float = 1e-4


DEFINITIONS: Mapping[str, Definition] = {
    "streamserve": Definition("halfway", "half a row"),
    "quantiles": Definition("quantiles", "none"),
    "quantiles-floor": Definition("quantiles", "floor"),  # feature-engine, equal_frequency
    "equal-width": Definition("equal width", "none"),
    "equal-width-floor": Definition("equal width", "floor"),  # feature-engine, equal_width
    "sturges-floor": Definition("sturges of both", "floor or millionth"),  # evidently
    "raised": Definition("quantiles", "raise", floor=0.01),  # deepchecks, which has it of categories alone
}


def definition(name: str) -> Definition:
    """Raises DriftError where there is none of that name."""
    if name not in DEFINITIONS:
        raise DriftError(f"no definition of PSI is called {name!r}", mend=f"one of {', '.join(DEFINITIONS)}")
    return DEFINITIONS[name]


def psi_of_samples(how: Definition, reference: Floats, other: Floats) -> float:
    """Of numbers; those that are not finite have no part in it. NaN where a side has none."""
    reference, other = (side[np.isfinite(side)].astype(np.float64) for side in (reference, other))
    if not len(reference) or not len(other):
        return math.nan
    edges = _edges(how, reference, other)
    side: Literal["left", "right"] = "right" if how.binning == "sturges of both" else "left"
    counts = [
        np.bincount(np.searchsorted(edges, x, side), minlength=len(edges) + 1).astype(np.int64)
        for x in (reference, other)
    ]
    return psi_of_counts(how, *counts)


def psi_of_counts(how: Definition, reference: Int64s, other: Int64s) -> float:
    """Of counts in bins that are there already, as those of categories. Bins that neither side fills do not count.

    NaN where a side has no rows.
    """
    if not reference.any() or not other.any():
        return math.nan
    if how.zeros == "half a row":
        return psi(reference, other)
    filled = (reference > 0) | (other > 0)
    p, q = _shares(how, reference[filled]), _shares(how, other[filled])
    with np.errstate(divide="ignore"):
        return math.fsum(((q - p) * (np.log(q) - np.log(p))).tolist())


def _shares(how: Definition, counts: Int64s) -> Floats:
    shares: Floats = counts / counts.sum()
    if how.zeros == "raise":
        return np.maximum(shares, how.floor)
    smallest = float(shares[shares > 0].min())
    floor = {"none": 0.0, "floor": how.floor}.get(how.zeros, smallest / 1e6 if smallest <= how.floor else how.floor)
    return np.where(shares == 0, floor, shares)


def _edges(how: Definition, reference: Floats, other: Floats) -> Floats:
    """Inner ends of bins: the outermost bins are open."""
    if how.binning == "halfway":
        return quantile_edges(reference, how.bins)
    if how.binning == "quantiles":
        return np.unique(np.quantile(reference, np.linspace(0, 1, how.bins + 1)))[1:-1]
    if how.binning == "equal width":
        low, high = float(reference.min()), float(reference.max())
        if low == high:  # a thousandth to both sides, as pandas.cut does
            low, high = low - (abs(low) or 1) / 1000, high + (abs(high) or 1) / 1000
        return np.linspace(low, high, how.bins + 1)[1:-1]
    both = np.concatenate([reference, other])
    return np.linspace(both.min(), both.max(), math.ceil(math.log2(len(both)) + 1) + 1)[1:-1]
