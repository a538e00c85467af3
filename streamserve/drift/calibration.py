"""How high a PSI gets without drift, found by simulation when a reference is built, and kept in it. Pure.

For each measure and window size: the limit of Z = PSI / (1/n + 1/M), and its mean and variance. The plain chi-squared
law is poor where bins expect few rows, and windows share the error of their reference, so that one that exceeds is
likely followed by others. Hence truths are drawn first, and then windows of each:

1. `draws` times, what the shares may be in truth, given the reference: Dirichlet's law of its counts with half a row
   more in each bin (Jeffreys 1946), for what it did not see may come all the same. Then some windows of n rows. That
   the truth is uncertain, and not the reference, leaves the bins that it fills as they are, whose half rows are most
   of a small window's PSI.
2. Mean and variance of Z give a scaled chi-squared law (Satterthwaite 1946), and its form for windows that share a
   reference (`tails.false_alert`) a limit, so that the chance of `in_a_row` windows above it, in `per` windows of any
   measure, is alpha.
3. At a chance that so many draws can see, some ten times that, the limit of the law is held against that of the draws,
   estimated without bias (`tails.arrangements`). Where the draws say more, the limit is raised by the same ratio.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pydantic import BaseModel, ConfigDict

from streamserve.drift.measures import Measure
from streamserve.drift.policy import AlertSettings
from streamserve.drift.psi import HALF, contributions, unit
from streamserve.drift.tails import alert_limit, arrangements
from streamserve.records import Floats

SIZES = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
WINDOWS = 24, 6  # drawn of one truth: where windows differ most by themselves, and where by it (more rows than M)
WORK = 4_000_000  # bins drawn for each size: some 15 seconds in all, on one thread
DRAWS = 400, 4_000  # truths drawn for one measure, at least and at most; more where each has fewer windows
COARSE, SEEN = 10, 3  # times the level, and events of it among the draws: at least, where the law is held against them
SPREAD = 0.05, 1_000.0  # degrees of freedom of a law, at least and at most: outside there were too few draws
BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class NoDrift:
    """Of Z without drift: the limit of an alert, mean and variance."""

    limit: float
    mean: float
    variance: float


class Curve(BaseModel):
    """A measure's NoDrift at each size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limits: tuple[float, ...]
    means: tuple[float, ...]
    variances: tuple[float, ...]


class Calibration(BaseModel):
    """By size of a window, and by `Measure.key`. draws: truths that were drawn for each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sizes: tuple[int, ...]
    draws: int
    curves: Mapping[str, Curve]

    def at(self, key: str, n: int) -> NoDrift:
        """Linear in log n between sizes. Beyond both ends it is as at the end: settings allow no window below the
        first size, and from the last on the error of the reference is all there is.
        """
        curve, n = self.curves[key], min(max(n, self.sizes[0]), self.sizes[-1])
        above = max(bisect_left(self.sizes, n), 1)
        low, high = self.sizes[above - 1 : above + 1]
        part = math.log(n / low) / math.log(high / low)
        return NoDrift(*(
            y[above - 1] + part * (y[above] - y[above - 1]) for y in (curve.limits, curve.means, curve.variances)
        ))  # fmt: skip


def calibrate(measures: Sequence[Measure], settings: AlertSettings, among: int | None = None) -> Calibration:
    """Of all measures that have rows. Seeded by their counts and the settings: the same again gives the same bits.

    Measures with the same counts, in any order, share a simulation. among: how many share alpha; None: these.
    """
    structures = {one.key: tuple(sorted(one.counts, reverse=True)) for one in measures if one.rows}
    work = sum(len(counts) for counts in set(structures.values()))
    draws = min(max(WORK // (WINDOWS[0] * max(work, 1)), DRAWS[0]), DRAWS[1])
    level = -np.expm1(np.log1p(-settings.alpha) / max(among or len(structures), 1))  # of one measure of so many
    curves = {
        key: _curve(counts, draws, float(level), settings.in_a_row, settings.per) for key, counts in structures.items()
    }
    return Calibration(sizes=SIZES, draws=draws, curves=curves)


@lru_cache(maxsize=200)
def _curve(counts: tuple[int, ...], draws: int, level: float, in_a_row: int, per: int) -> Curve:
    seed = hashlib.sha256(json.dumps([counts, draws, level, in_a_row, per]).encode()).digest()
    rng = np.random.default_rng(list(seed))
    found = [no_drift(counts, n, draws, level, in_a_row, per, rng) for n in SIZES]
    return Curve(limits=_column(x.limit for x in found), means=_column(x.mean for x in found),
                 variances=_column(x.variance for x in found))  # fmt: skip


def _column(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{x:.6g}") for x in values)


def no_drift(
    counts: Sequence[int], n: int, draws: int, level: float, in_a_row: int, per: int, rng: np.random.Generator
) -> NoDrift:
    """Of windows of n rows, with these counts of the reference. level: the chance of a false alert in `per` windows."""
    m = sum(counts)
    windows = max(WINDOWS[n > m], in_a_row)
    draws = draws * WINDOWS[0] // windows
    z = drawn(counts, n, draws, windows, rng)
    mean, variance = float(z.mean()), float(z.var())
    if not variance > 0:  # nothing that was drawn differs: anything that does is beyond it
        return NoDrift(0.0, mean, 0.0)
    df = float(np.clip(2 * mean * mean / variance, *SPREAD))
    share = n / (n + m)
    coarse = min(max(COARSE * level, SEEN / draws), HALF)
    seen, expected = _limit_of(z, coarse, in_a_row), alert_limit(coarse, df, share, in_a_row, windows)
    law = alert_limit(level, df, share, in_a_row, per)
    if not expected > 0:  # of a law that hardly ever differs from 0
        return NoDrift(max(law * mean / df, seen), mean, variance)
    return NoDrift(law * max(seen / expected, mean / df), mean, variance)


def drawn(counts: Sequence[int], n: int, draws: int, windows: int, rng: np.random.Generator) -> Floats:
    """Z of each window: [draws, windows], a row for each truth that may be behind the reference."""
    reference = np.array(counts, np.int64)
    truths = rng.dirichlet(reference + HALF, size=draws)
    given = rng.multinomial(n, truths[:, None, :], size=(draws, windows))
    z: Floats = contributions(reference, given).sum(-1) / unit(n, int(reference.sum()))
    return z


def _limit_of(z: Floats, level: float, in_a_row: int) -> float:
    """Above which the chance of an alert in the windows of a truth, on average, is at most `level`."""
    chance = arrangements(in_a_row, z.shape[1])
    low, high = 0.0, float(z.max())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if chance[(z > middle).sum(1)].mean() > level else (low, middle)
    return high
