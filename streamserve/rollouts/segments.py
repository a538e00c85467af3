"""A divergence by parts of the stream: for each field its most frequent values, and which of them differ from the rest.

Many parts are looked at, and some would differ by chance: all tests of one report are corrected together by Holm's
method, so that a report in which nothing differs flags anything at all in at most 5% of cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from streamserve.records import Floats, Int64s
from streamserve.rollouts.pairs import Mask, Pairs, Rows, Words
from streamserve.rollouts.statistics import Psi, Share, fisher, holm, psi, share

MOST = 8  # values of a field that are told one by one; 7 and "other" are more of use than a longer list
LEVEL = 0.05
SHIFT = 0.1  # of the middle half of stable's scores: a median that is off by less is not flagged, however sure it is


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the stream. value: None is that of events without the field; folded: so many rarer values together.

    events: with two answers. agreement: of those that both decided. stable_rates, candidate_rates: of each label, of
    the same. median: of the difference of scores. agreement_p, shift_p: whether it is as in the rest (Fisher's exact
    test, of agreement, and of differences beyond the median: Mood 1954), corrected for all tests of the report. flags:
    what is beyond chance and of some size: `agreement` is below that of all events, which the segment's own interval
    does not hold; `scores` moved otherwise than in all events, by SHIFT at least.
    """

    value: str | None
    folded: int
    events: int
    agreement: Share
    stable_rates: dict[str, float]
    candidate_rates: dict[str, float]
    median: float
    psi: Psi | None
    agreement_p: float
    shift_p: float
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Field:
    """The segments of one field, the most frequent first, "other" and "none" last. values: how many there are."""

    name: str
    values: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class _Whole:
    """What segments are held against. scored: both have the score. below, above: its difference is on that side of the
    median, `middle`. size: what a shift has to be to be told.
    """

    pairs: Pairs
    one: Floats
    other: Floats
    difference: Floats
    scored: Mask
    compared: Mask
    decided: Mask
    agreed: Mask
    below: Mask
    above: Mask
    middle: float
    size: float

    @property
    def agreement(self) -> float:
        count = int(self.decided.sum())
        return int(self.agreed.sum()) / count if count else math.nan


def by_segment(pairs: Pairs, answered: Mask, about: str | None, fields: Sequence[str]) -> tuple[Field, ...]:
    """Each field's segments, of the events that both versions answered. about: the score, if there is one.

    Args:
        fields: a name that no event has is a field of one segment, "none".
    """
    whole = _whole(pairs, answered, about)
    found = [_field(whole, answered, name) for name in sorted(set(fields))]
    tests = [p for field in found for one in field.segments for p in (one.agreement_p, one.shift_p)]
    corrected = iter(holm(tests))
    return tuple(
        replace(field, segments=tuple(_flagged(one, next(corrected), next(corrected), whole) for one in field.segments))
        for field in found
    )


def _whole(pairs: Pairs, answered: Mask, about: str | None) -> _Whole:
    decided = answered & (pairs.stable_decisions.codes >= 0) & (pairs.candidate_decisions.codes >= 0)
    agreed = decided & (pairs.stable_decisions.codes == pairs.candidate_decisions.codes)
    one = other = np.full(len(pairs), math.nan)
    scored = np.zeros(len(pairs), bool)
    if about is not None:
        one, other = pairs.stable[about].values, pairs.candidate[about].values
        scored = answered & pairs.stable[about].there & pairs.candidate[about].there
    compared = scored & np.isfinite(one) & np.isfinite(other)
    difference = np.full(len(pairs), math.nan)
    difference[compared] = other[compared] - one[compared]
    middle = float(np.median(difference[compared])) if compared.any() else math.nan
    below, above = compared & (difference < middle), compared & (difference > middle)
    size = SHIFT * float(np.subtract(*np.percentile(one[compared], [75, 25]))) if compared.any() else math.nan
    return _Whole(pairs, one, other, difference, scored, compared, decided, agreed, below, above, middle, size)


def _field(whole: _Whole, answered: Mask, name: str) -> Field:
    words = whole.pairs.segments.get(name)
    if words is None:
        words = Words(np.full(len(whole.pairs), -1, np.int32), ())
    codes = words.codes
    counts = np.bincount(codes[answered & (codes >= 0)], minlength=len(words.values))
    there = np.flatnonzero(counts).tolist()
    ranked = sorted(there, key=lambda code: (-counts[code], words.values[code]))
    told = ranked if len(ranked) <= MOST else ranked[: MOST - 1]
    # One pass sorts the rows into segments: a mask for each would take as many passes
    group = np.full(len(words.values) + 1, len(told), np.int32)
    group[told] = np.arange(len(told))
    group[-1] = len(told) + 1
    rows = np.flatnonzero(answered)
    of_row = group[codes[rows]]
    ordered = rows[np.argsort(of_row, kind="stable")]
    ends = np.cumsum(np.bincount(of_row, minlength=len(told) + 2))
    parts = np.split(ordered, ends[:-1])
    folded = len(ranked) - len(told)
    named = [(words.values[code], 0) for code in told] + [("other", folded), (None, 0)]
    segments = [_segment(whole, rows, *which) for which, rows in zip(named, parts, strict=True) if len(rows)]
    return Field(name, len(ranked), tuple(segments))


def _segment(whole: _Whole, rows: Rows, value: str | None, folded: int) -> Segment:
    decided, compared = rows[whole.decided[rows]], rows[whole.compared[rows]]
    agreed = int(whole.agreed[decided].sum())
    all_decided, all_compared = int(whole.decided.sum()), int(whole.compared.sum())
    beyond = [
        fisher(int(side[compared].sum()), len(compared), int(side.sum()), all_compared)
        for side in (whole.below, whole.above)
    ]
    scored = rows[whole.scored[rows]]
    return Segment(
        value=value,
        folded=folded,
        events=len(rows),
        agreement=share(agreed, len(decided)),
        stable_rates=_rates(whole.pairs.stable_decisions, decided),
        candidate_rates=_rates(whole.pairs.candidate_decisions, decided),
        median=float(np.median(whole.difference[compared])) if len(compared) else math.nan,
        psi=psi(whole.one[scored], whole.other[scored]),
        agreement_p=fisher(agreed, len(decided), int(whole.agreed.sum()), all_decided),
        shift_p=min(1.0, 2 * min(beyond)) if not math.isnan(beyond[0]) else math.nan,
    )


def _rates(decisions: Words, rows: Rows) -> dict[str, float]:
    counts: Int64s = np.bincount(decisions.codes[rows], minlength=len(decisions.values))
    return {
        decisions.values[at]: counts[at] / len(rows)
        for at in sorted(np.flatnonzero(counts).tolist(), key=lambda at: decisions.values[at])
    }


def _flagged(one: Segment, agreement_p: float, shift_p: float, whole: _Whole) -> Segment:
    flags = []
    if agreement_p < LEVEL and one.agreement.high < whole.agreement:
        flags.append("agreement")
    if shift_p < LEVEL and abs(one.median - whole.middle) > whole.size:
        flags.append("scores")
    return replace(one, agreement_p=agreement_p, shift_p=shift_p, flags=tuple(flags))
