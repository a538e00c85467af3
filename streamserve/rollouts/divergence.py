"""How far a candidate's answers are from stable's on the same events: agreement, decisions, scores. Pure.

There are no outcomes here: all that can be told is that two versions differ, and where, never which of them is right.
How parts of the stream differ from each other is in `segments`, the formulas are in `statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from streamserve.records import Floats, Int64s
from streamserve.rollouts.pairs import Mask, Pairs, Rows, Score, Words
from streamserve.rollouts.segments import Field, by_segment
from streamserve.rollouts.statistics import Psi, Share, Tested, holm, mcnemar, psi, share, stuart_maxwell

QUANTILES = (1, 5, 25, 50, 75, 95, 99)
LARGEST = 10  # differences that are told one by one
TWO = 2


@dataclass(frozen=True, slots=True)
class Label:
    """How often each version gave one decision. test: whether equally often; p_holm: held against the other labels'."""

    label: str
    stable: Share
    candidate: Share
    test: Tested
    p_holm: float


@dataclass(frozen=True, slots=True)
class Decisions:
    """Of the events that both decided. table: events, stable's label by candidate's, in the order of `labels`.

    undecided: events that only stable, only the candidate, and neither of them decided.
    """

    agreement: Share
    labels: tuple[Label, ...]
    table: tuple[tuple[int, ...], ...]
    test: Tested
    stable_undecided: int
    candidate_undecided: int
    both_undecided: int


@dataclass(frozen=True, slots=True)
class Outlier:
    prediction_id: str
    stable: float
    candidate: float
    difference: float


@dataclass(frozen=True, slots=True)
class ScoreDivergence:
    """One score of both versions, candidate - stable where both are finite numbers (`n` events).

    equal: how many of these are the same number. stable_lacks, candidate_lacks: events in which only the other has it.
    """

    name: str
    n: int
    equal: int
    stable_lacks: int
    candidate_lacks: int
    stable_nan: int
    candidate_nan: int
    infinite: int
    quantiles: Mapping[str, float]
    mean: float
    mean_absolute: float
    correlation: float | None
    psi: Psi | None
    largest: tuple[Outlier, ...]


@dataclass(frozen=True, slots=True)
class Divergence:
    """events: all that were compared. failed: those in which the candidate failed; the rest has two answers each.

    only_stable, only_candidate: names of scores that the other never gives. about: the score that segments are told by.
    """

    events: int
    failed: Share
    failures: Mapping[str, int]
    decisions: Decisions | None
    scores: tuple[ScoreDivergence, ...]
    only_stable: tuple[str, ...]
    only_candidate: tuple[str, ...]
    about: str | None
    fields: tuple[Field, ...]


@np.errstate(over="ignore", invalid="ignore")  # scores near the ends of a double: their sums are infinite, or NaN
def diverge(pairs: Pairs, *, about: str | None = None, fields: Iterable[str] | None = None) -> Divergence:
    """The whole report. fields: segments to tell of; None: all. about: a score's name; the first one unless told."""
    answered = pairs.failures.codes < 0
    failures = np.bincount(pairs.failures.codes[~answered], minlength=len(pairs.failures.values))
    named = {pairs.failures.values[at]: int(failures[at]) for at in np.flatnonzero(failures).tolist()}
    stable, candidate = (_given(side, answered) for side in (pairs.stable, pairs.candidate))
    common = [name for name in stable if name in candidate]
    about = about if about in common else next(iter(common), None)
    return Divergence(
        events=len(pairs),
        failed=share(len(pairs) - int(answered.sum()), len(pairs)),
        failures=dict(sorted(named.items(), key=lambda one: (-one[1], one[0]))),
        decisions=_decisions(pairs.stable_decisions.take(answered), pairs.candidate_decisions.take(answered)),
        scores=tuple(_score(pairs, name, answered) for name in common),
        only_stable=tuple(name for name in stable if name not in candidate) if answered.any() else (),
        only_candidate=tuple(name for name in candidate if name not in stable),
        about=about,
        fields=by_segment(pairs, answered, about, list(pairs.segments) if fields is None else list(fields)),
    )


def _given(side: Mapping[str, Score], answered: Mask) -> list[str]:
    return sorted(name for name, score in side.items() if score.there[answered].any())


# ---- decisions


def _decisions(stable: Words, candidate: Words) -> Decisions | None:
    """None: neither version decides anything."""
    by_stable, by_candidate = stable.codes >= 0, candidate.codes >= 0
    both = by_stable & by_candidate
    if not (by_stable.any() or by_candidate.any()):
        return None
    names = _used(stable, candidate)
    place = np.zeros(max(len(stable.values), 1), np.intp)
    place[[stable.values.index(name) for name in names]] = np.arange(len(names))
    size = len(names)
    cell = place[stable.codes[both]] * size + place[candidate.codes[both]]
    table = np.bincount(cell, minlength=size * size).reshape(size, size)
    return Decisions(
        agreement=share(int(np.trace(table)), int(both.sum())),
        labels=_labels(names, table),
        table=tuple(tuple(row) for row in table.tolist()),
        test=_changed(table),
        stable_undecided=int((by_candidate & ~by_stable).sum()),
        candidate_undecided=int((by_stable & ~by_candidate).sum()),
        both_undecided=int((~by_stable & ~by_candidate).sum()),
    )


def _used(stable: Words, candidate: Words) -> list[str]:
    codes = {*np.unique(stable.codes).tolist(), *np.unique(candidate.codes).tolist()} - {-1}
    return sorted(stable.values[code] for code in codes)


def _discordant(table: Int64s, at: int) -> tuple[int, int]:
    """Events that only stable, and only the candidate gives this label."""
    same = int(table[at, at])
    return int(table[at].sum()) - same, int(table[:, at].sum()) - same


def _labels(names: list[str], table: Int64s) -> tuple[Label, ...]:
    total = int(table.sum())
    tests = [mcnemar(*_discordant(table, at)) for at in range(len(names))]
    # With two labels both tests are one and the same
    corrected = holm([test.p for test in tests]) if len(names) > TWO else [test.p for test in tests]
    rows, columns = table.sum(1).tolist(), table.sum(0).tolist()
    return tuple(
        Label(name, share(rows[at], total), share(columns[at], total), tests[at], corrected[at])
        for at, name in enumerate(names)
    )


def _changed(table: Int64s) -> Tested:
    return stuart_maxwell(table) if len(table) > TWO else mcnemar(*_discordant(table, 0))


# ---- scores


def _score(pairs: Pairs, name: str, answered: Mask) -> ScoreDivergence:
    stable, candidate = pairs.stable[name], pairs.candidate[name]
    both = answered & stable.there & candidate.there
    rows = np.flatnonzero(both)
    one, other = stable.values[rows], candidate.values[rows]
    finite = np.isfinite(one) & np.isfinite(other)
    difference = other[finite] - one[finite]
    return ScoreDivergence(
        name=name,
        n=len(difference),
        equal=int((difference == 0).sum()),
        stable_lacks=int((answered & ~stable.there & candidate.there).sum()),
        candidate_lacks=int((answered & stable.there & ~candidate.there).sum()),
        stable_nan=int(np.isnan(one).sum()),
        candidate_nan=int(np.isnan(other).sum()),
        infinite=int((np.isinf(one) | np.isinf(other)).sum()),
        quantiles=_quantiles(difference),
        mean=_mean(difference),
        mean_absolute=_mean(np.abs(difference)),
        correlation=_correlation(one[finite], other[finite]),
        psi=psi(one, other),
        largest=_largest(pairs, rows[finite], difference, name),
    )


def _quantiles(difference: Floats) -> dict[str, float]:
    if not len(difference):
        return {}
    inner = np.percentile(difference, QUANTILES).tolist()
    named = {f"{percent}%": value for percent, value in zip(QUANTILES, inner, strict=True)}
    return {"min": float(difference.min()), **named, "max": float(difference.max())}


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _correlation(one: Floats, other: Floats) -> float | None:
    """Pearson's; None where one of them is constant."""
    if len(one) < TWO or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    x, y = one - one.mean(), other - other.mean()
    # By their largest, so that squares of very small or large scores stay numbers
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    found = float((x * y).sum() / math.sqrt(float((x * x).sum() * (y * y).sum())))
    return max(-1.0, min(1.0, found)) if math.isfinite(found) else None


def _largest(pairs: Pairs, rows: Rows, difference: Floats, name: str) -> tuple[Outlier, ...]:
    size = np.abs(difference)
    count = min(LARGEST, int((size > 0).sum()))
    if not count:
        return ()
    bar = np.partition(size, len(size) - count)[len(size) - count]
    near = np.flatnonzero(size >= bar)
    chosen = near[np.argsort(-size[near], kind="stable")][:count]  # of equals the first
    stable, candidate = pairs.stable[name].values, pairs.candidate[name].values
    return tuple(
        Outlier(str(pairs.ids[row]), float(stable[row]), float(candidate[row]), float(difference[at]))
        for at, row in zip(chosen.tolist(), rows[chosen].tolist(), strict=True)
    )
