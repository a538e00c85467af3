"""How far a window is from its reference, or a candidate's from stable's in the same window. Pure.

All figures come from whole counts alone, by exactly rounded sums: the same counts give the same figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from streamserve.drift.calibration import Calibration, NoDrift
from streamserve.drift.measures import Measure
from streamserve.drift.policy import AlertSettings
from streamserve.drift.psi import contributions, total, unit
from streamserve.drift.tails import alert_limit, chi2_beyond
from streamserve.records import Floats, Int64s

MOVED = 3


@dataclass(frozen=True, slots=True)
class Moved:
    """One bin: its share of rows on either side, and what it adds to the PSI."""

    bin: str
    before: float
    after: float
    contribution: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of one window. Where a side has no rows all figures but n are NaN, and nothing moved.

    key: `Measure.key`. n: rows of the window. psi: see `psi`. noise: the PSI without drift, on average. excess: psi -
        noise. p: that without drift it is as large, by the scaled chi-squared law of this measure and size.
    z: psi in units of (1/n + 1/M). limit: what z is above in a window that may count for an alert.
    unit: 1/n + 1/M, in which z and limit are.
    distance: Kolmogorov-Smirnov's of numbers, else Jensen-Shannon's (`kolmogorov_smirnov`, `jensen_shannon`).
    moved: the bins that add most, the most first.
    """

    key: str
    n: int
    psi: float
    noise: float
    excess: float
    p: float
    z: float
    limit: float
    unit: float
    distance: float
    moved: tuple[Moved, ...]


def compare(measure: Measure, window: Int64s, calibration: Calibration) -> Comparison:
    """A window against the reference. window: counts, in the order of the measure's bins."""
    n = int(window.sum())
    if not n or not measure.rows:
        return _nothing(measure, n)
    return _compared(measure, measure.reference, window, calibration.at(measure.key, n))


def between(
    measure: Measure, stable: Int64s, candidate: Int64s, settings: AlertSettings, *, measures: int
) -> Comparison:
    """A candidate against stable in the same window, bin by bin of the measure; the reference has no part in it.

    Both sides are drawn anew in each window, so what exceeds in one says nothing of the next: the limit is of
    independent windows, by the chi-squared law. measures: how many share alpha.
    """
    n, m = int(candidate.sum()), int(stable.sum())
    if not n or not m:
        return _nothing(measure, n)
    df = max(int(((stable > 0) | (candidate > 0)).sum()) - 1, 1)
    level = -math.expm1(math.log1p(-settings.alpha) / max(measures, 1))
    limit = alert_limit(level, df, 0.0, settings.in_a_row, settings.per)
    return _compared(measure, stable, candidate, NoDrift(limit, df, 2 * df))


def _nothing(measure: Measure, n: int) -> Comparison:
    nan = math.nan
    return Comparison(measure.key, n, nan, nan, nan, nan, nan, nan, nan, nan, ())


def _compared(measure: Measure, before: Int64s, after: Int64s, law: NoDrift) -> Comparison:
    n, m = int(after.sum()), int(before.sum())
    adds = contributions(before, after)
    value = total(adds)
    z, noise = value / unit(n, m), law.mean * unit(n, m)
    if measure.kind == "numeric":
        distance = kolmogorov_smirnov(before[measure.first_value :], after[measure.first_value :])
    else:
        distance = jensen_shannon(before, after)
    return Comparison(
        measure.key, n, value, noise, value - noise, p_value(z, law), z, law.limit, unit(n, m), distance,
        _moved(measure, before / m, after / n, adds),
    )  # fmt: skip


def p_value(z: float, law: NoDrift) -> float:
    """By the scaled chi-squared law with the mean and variance of Z: Satterthwaite 1946."""
    if not law.variance > 0:
        return 1.0 if z <= law.mean else 0.0
    return chi2_beyond(2 * z * law.mean / law.variance, 2 * law.mean**2 / law.variance)


def kolmogorov_smirnov(before: Int64s, after: Int64s) -> float:
    """The largest difference of the two cumulative shares, at the ends of bins: at most that of the values themselves.

    Counts of bins that have an order: of rows that have a value. NaN where a side has none.
    """
    if not before.any() or not after.any():
        return math.nan
    return float(np.abs(before.cumsum() / before.sum() - after.cumsum() / after.sum()).max())


def jensen_shannon(before: Int64s, after: Int64s) -> float:
    """The root of the divergence in bits (Lin 1991), which is a metric (Endres and Schindelin 2003): 0 to 1.

    NaN where a side has no rows.
    """
    if not before.any() or not after.any():
        return math.nan
    p, q = before / before.sum(), after / after.sum()
    middle = (p + q) / 2
    terms = [_information(share, middle) for share in (p, q)]
    return math.sqrt(min(1.0, max(0.0, math.fsum(np.concatenate(terms).tolist()) / 2)))


def _information(share: Floats, middle: Floats) -> Floats:
    there = share > 0
    found: Floats = share[there] * (np.log2(share[there]) - np.log2(middle[there]))
    return found


def _moved(measure: Measure, before: Floats, after: Floats, adds: Floats) -> tuple[Moved, ...]:
    largest = np.argsort(-adds, kind="stable")[:MOVED]
    return tuple(
        Moved(measure.bins[at], float(before[at]), float(after[at]), float(adds[at]))
        for at in largest.tolist()
        if adds[at] > 0
    )
