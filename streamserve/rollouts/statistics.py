"""Formulas for two versions that scored the same events: intervals, tests, PSI. Pure; numbers in, numbers out.

Each names its source. What is compared, and what the figures mean for a rollout, is told in `divergence`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from streamserve.drift.edges import quantile_edges as psi_edges
from streamserve.drift.psi import psi as psi_of_counts
from streamserve.drift.psi import unit
from streamserve.drift.tails import chi2_beyond
from streamserve.records import Floats, Int64s

Z_95 = 1.959963984540054
EXACT = 1000  # discordant pairs up to which McNemar's test is the exact one: sums of whole numbers, some 0.2 ms
BINS = 10  # of a PSI
EVENTS_A_BIN = 20  # a PSI has fewer bins, or is none, where there are fewer events for each


@dataclass(frozen=True, slots=True)
class Share:
    """count of `of`, and the interval of 95% in which the true share lies; NaN without any."""

    count: int
    of: int
    value: float
    low: float
    high: float


def share(count: int, of: int) -> Share:
    """With Wilson's score interval: Wilson 1927; its coverage near 0 and 1: Brown, Cai, DasGupta 2001.

    It takes events as independent of each other. Those of one entity are not: then it is too narrow.
    """
    if not of:
        return Share(0, 0, math.nan, math.nan, math.nan)
    p, z2 = count / of, Z_95**2
    middle = (p + z2 / (2 * of)) / (1 + z2 / of)
    half = Z_95 / (1 + z2 / of) * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of))
    low, high = (0.0 if count == 0 else middle - half), (1.0 if count == of else middle + half)
    return Share(count, of, p, max(0.0, low), min(1.0, high))


@dataclass(frozen=True, slots=True)
class Tested:
    """name: which one. statistic: NaN for an exact one. df: of chi-squared; 0: an exact one."""

    name: str
    statistic: float
    df: int
    p: float


def mcnemar(one: int, other: int) -> Tested:
    """Do two versions give a label equally often? one, other: events that only the first, only the second gives it.

    McNemar 1947, without continuity correction; up to EXACT such events the exact binomial form, two-sided by doubling.
    It tests whether the share of the label changed, not which version is right.
    """
    n = one + other
    if n <= EXACT:
        tail = sum(math.comb(n, k) for k in range(min(one, other) + 1))
        return Tested("McNemar, exact", math.nan, 0, min(1.0, 2 * tail / 2**n))
    statistic = (one - other) ** 2 / n
    return Tested("McNemar", statistic, 1, chi2_beyond(statistic, 1))


def stuart_maxwell(table: Int64s) -> Tested:
    """Do two versions give all labels equally often? table: events, stable's label by candidate's.

    Stuart 1955, Maxwell 1970. For two labels it is McNemar's, for more its generalisation; an approximation, which
    needs some 25 events off the diagonal.
    """
    counts = table.astype(np.float64)
    d = counts.sum(1) - counts.sum(0)
    off = -(counts + counts.T)
    np.fill_diagonal(off, 0)
    np.fill_diagonal(off, -off.sum(1))  # rows + columns - twice the diagonal
    df = int(np.linalg.matrix_rank(off, hermitian=True)) if len(off) else 0
    # Labels that are never confused with each other make it singular: d lies in its range all the same
    statistic = float(d @ np.linalg.pinv(off, hermitian=True) @ d) if df else 0.0
    return Tested("Stuart-Maxwell", statistic, df, chi2_beyond(statistic, df))


def holm(p: Sequence[float]) -> list[float]:
    """The p values that may be held against one level together: Holm 1979. NaN stays, and is not counted."""
    known = sorted((value, at) for at, value in enumerate(p) if not math.isnan(value))
    found, highest = [math.nan] * len(p), 0.0
    for rank, (value, at) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - rank)))
        found[at] = highest
    return found


@lru_cache(maxsize=1)
def _log_factorials(most: int) -> Floats:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1, dtype=np.float64)))])


def fisher(marked: int, drawn: int, all_marked: int, total: int) -> float:
    """Has a part another share of marked events than the rest? The p value of its having the same.

    marked of the `drawn`, all_marked of the `total`. Fisher's exact test (Fisher 1922), two-sided by doubling the
    smaller tail. NaN where there is no rest, or no part.
    """
    if drawn in (0, total):
        return math.nan
    least, most = max(0, drawn + all_marked - total), min(drawn, all_marked)
    log = _log_factorials(total)
    k = np.arange(least, most + 1)
    of_marked = log[all_marked] - log[k] - log[all_marked - k]
    rest = total - all_marked
    of_rest = log[rest] - log[drawn - k] - log[rest - drawn + k]
    likely = np.exp(of_marked + of_rest - (log[total] - log[drawn] - log[total - drawn]))
    at = marked - least
    return min(1.0, 2 * min(float(likely[: at + 1].sum()), float(likely[at:].sum())))


# ---- PSI


@dataclass(frozen=True, slots=True)
class Psi:
    """value: the index. noise: what it is on average where nothing changed. p: that it is as large, or larger, then.

    n: events of each side. bins: those that hold any.
    """

    value: float
    noise: float
    p: float
    bins: int
    n: int


def psi(reference: Floats, other: Floats, bins: int = BINS) -> Psi | None:
    """The population stability index of `other` against `reference`, in bins of the reference's quantiles.

    Its formula, and what it is where nothing changed, are in `drift.psi`. That is for samples of different events;
    scores of the same events differ less, so the noise told here is rather too high than too low.

    NaN is a bin of its own; the infinities are in the outermost. None: fewer than two bins of EVENTS_A_BIN events.
    """
    bins = min(bins, min(len(reference), len(other)) // EVENTS_A_BIN)
    if bins < 2:  # noqa: PLR2004
        return None
    edges = psi_edges(reference, bins)
    one, two = _counts(reference, edges), _counts(other, edges)
    width = int(((one > 0) | (two > 0)).sum())
    value, once = psi_of_counts(one, two), unit(len(reference), len(other))
    return Psi(value, (width - 1) * once, chi2_beyond(value / once, width - 1), width, len(reference))


def _counts(values: Floats, edges: Floats) -> Int64s:
    """Events a bin; the last is that of NaN."""
    missing = np.isnan(values)
    at = np.searchsorted(edges, values[~missing], "left")
    return np.append(np.bincount(at, minlength=len(edges) + 1), missing.sum())
