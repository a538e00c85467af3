"""The population stability index of counts: the one definition of the project. Pure.

The sum over bins of (q - p) ln(q / p): Siddiqi, Credit Risk Scorecards, 2006; it is Jeffreys' divergence (Kullback and
Leibler 1951). Half an event is added to each bin that either side fills, before shares are taken: a bin that one side
leaves empty would make it infinite. Bins that neither side fills do not exist. It is the same both ways round.
"""

from __future__ import annotations

import math

import numpy as np

from streamserve.records import Floats, Int64s

HALF = 0.5


def contributions(reference: Floats | Int64s, other: Floats | Int64s) -> Floats:
    """What each bin adds to the index. Counts [..., bins] of both, which broadcast; none is below 0."""
    filled = (reference > 0) | (other > 0)
    more = HALF * filled.sum(-1, keepdims=True)
    p = (reference + HALF) / np.maximum(reference.sum(-1, keepdims=True) + more, HALF)  # no rows on either side: 0
    q = (other + HALF) / np.maximum(other.sum(-1, keepdims=True) + more, HALF)
    # A difference of logarithms and not the logarithm of a ratio: so both ways round give the same bits
    return np.where(filled, (q - p) * (np.log(q) - np.log(p)), 0.0)


def psi(reference: Floats | Int64s, other: Floats | Int64s) -> float:
    """The index of one row of counts."""
    return total(contributions(reference, other))


def total(adds: Floats) -> float:
    """What contributions come to. Exactly rounded, so the order of the bins makes no difference to any bit."""
    return max(0.0, math.fsum(adds.tolist()))


def unit(n: int, m: int) -> float:
    """1/n + 1/m. Over it, the index of two samples of one distribution is about chi-squared (Yurdakul, Naranjo 2020).

    It has one degree of freedom less than there are bins, so the index is (bins - 1) units on average.
    """
    return 1 / n + 1 / m
