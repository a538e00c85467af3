"""The counts behind the plots of a divergence report: how scores lie and differ, and agreement over time. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from streamserve.records import Floats
from streamserve.rollouts.pairs import Pairs
from streamserve.rollouts.statistics import Share, share

BARS = 40
CELLS = 36  # of each side of the density
STEPS = 48  # of time
OUTERMOST = 0.001  # of the scores at each end may lie outside of a plot, where they would blow it up
WIDEST = 4e307  # a quarter of a double's range: the width of a plot must be a number
ROOM = 1.5  # how much wider than the rest the whole may be before its ends are cut off


@dataclass(frozen=True, slots=True)
class Bars:
    """edges: one more than there are bars. outside: events beyond them."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    outside: int


@dataclass(frozen=True, slots=True)
class Density:
    """Events by stable's score (first index) and candidate's, in cells of one width between low and high."""

    low: float
    high: float
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """Agreement from start to end, milliseconds since 1970."""

    start: int
    end: int
    agreement: Share


@dataclass(frozen=True, slots=True)
class Pictures:
    """None: there is nothing to show. name: the score's."""

    name: str | None
    stable: Bars | None
    candidate: Bars | None
    difference: Bars | None
    density: Density | None
    moments: tuple[Moment, ...]


@np.errstate(over="ignore", invalid="ignore")
def picture(pairs: Pairs, about: str | None) -> Pictures:
    """Of one score; None: of agreement alone."""
    answered = pairs.failures.codes < 0
    moments = _moments(pairs)
    if about is None:
        return Pictures(None, None, None, None, None, moments)
    one, other = pairs.stable[about].values, pairs.candidate[about].values
    rows = answered & np.isfinite(one) & np.isfinite(other)
    one, other = one[rows], other[rows]
    if not len(one):
        return Pictures(about, None, None, None, None, moments)
    edges = _edges(np.concatenate([one, other]))
    difference = other - one
    difference = difference[np.isfinite(difference)]
    return Pictures(
        name=about,
        stable=_bars(one, edges),
        candidate=_bars(other, edges),
        difference=_bars(difference, _edges(difference)) if len(difference) else None,
        density=_density(one, other, edges),
        moments=moments,
    )


def _edges(values: Floats, bars: int = BARS) -> Floats:
    low, high = float(values.min()), float(values.max())
    inner_low, inner_high = np.quantile(values, [OUTERMOST, 1 - OUTERMOST]).tolist()
    if inner_high > inner_low and (high - low) > ROOM * (inner_high - inner_low):
        low, high = inner_low, inner_high
    low, high = max(low, -WIDEST), min(high, WIDEST)
    width = (high - low) / bars
    if not (width > 0 and math.isfinite(width) and low + width > low and high - width < high):
        middle, half = (low + high) / 2, max(abs(low), abs(high), 1.0) / 2  # a constant, or next to one
        low, high = middle - half, middle + half
    return np.linspace(low, high, bars + 1)


def _bars(values: Floats, edges: Floats) -> Bars:
    counts, _ = np.histogram(values, edges)
    return Bars(tuple(edges.tolist()), tuple(counts.tolist()), len(values) - int(counts.sum()))


def _density(one: Floats, other: Floats, edges: Floats) -> Density:
    span = np.linspace(edges[0], edges[-1], CELLS + 1)
    counts, _, _ = np.histogram2d(one, other, [span, span])
    rows = counts.astype(np.int64).tolist()
    return Density(float(edges[0]), float(edges[-1]), tuple(tuple(row) for row in rows))


def _moments(pairs: Pairs) -> tuple[Moment, ...]:
    """Of equal length; those without a decision are left out."""
    stable, candidate = pairs.stable_decisions.codes, pairs.candidate_decisions.codes
    rows = (pairs.failures.codes < 0) & (stable >= 0) & (candidate >= 0)
    times, agreed = pairs.times[rows], (stable == candidate)[rows]
    if not len(times):
        return ()
    first, last = int(times.min()), int(times.max())
    length = max(1, -(-(last + 1 - first) // STEPS))
    at = (times - first) // length
    counts = np.bincount(at)
    of_these = np.bincount(at, agreed).astype(np.int64)
    return tuple(
        Moment(first + step * length, first + (step + 1) * length, share(int(of_these[step]), int(counts[step])))
        for step in np.flatnonzero(counts).tolist()
    )
