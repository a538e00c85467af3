"""Tails of the laws that no-drift indices follow: chi-squared, alone and for windows that share one reference. Pure.

A window's Z = PSI / (1/n + 1/M) is about |sqrt(1 - s) U + sqrt(s) V|^2 in `df` dimensions: U is the window's own error,
V that of its reference, each standard normal, and s = n / (n + M) is the reference's share. V is the same in all
windows, so they are no independent draws: an unlucky reference is exceeded again and again.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from streamserve.records import Floats

NODES = 120  # of the reference's error: 60 and 240 give limits that differ by less than 1 in 1,000
STEPS = 200  # terms of a continued fraction, or of a series; it ends by itself far earlier
EPSILON = 1e-15
SMALLEST = 1e-300
BISECTIONS = 60
PRECISION = 1e-4  # of a limit, relative


def chi2_beyond(x: float, df: float) -> float:
    """The probability that a chi-squared variable of `df` degrees of freedom, whole or not, is above x.

    The incomplete gamma function by its series, and above its mean by Legendre's continued fraction: Abramowitz and
    Stegun 1964, 6.5.29 and 6.5.31, the latter evaluated by Lentz's method (1976).
    """
    a, h = df / 2, x / 2
    if not a > 0 or not h > 0:
        return 1.0
    front = math.exp(a * math.log(h) - h - math.lgamma(a)) if h < 1 / SMALLEST else 0.0
    return 1.0 - front * _series(a, h) if h < a + 1 else front * _fraction(a, h)


def _series(a: float, h: float) -> float:
    term = total = 1 / a
    step = a
    while abs(term) > EPSILON * total:
        step += 1
        term *= h / step
        total += term
    return total


def _fraction(a: float, h: float) -> float:
    b = h + 1 - a
    c, d = 1 / SMALLEST, 1 / b
    found = d
    for i in range(1, STEPS):
        top = -i * (i - a)
        b += 2
        d = 1 / _not_zero(top * d + b)
        c = _not_zero(b + top / c)
        found *= c * d
        if abs(c * d - 1) < EPSILON:
            break
    return found


def _not_zero(x: float) -> float:
    return x if abs(x) > SMALLEST else SMALLEST


@lru_cache(maxsize=1000)
def chi2_limit(p: float, df: float) -> float:
    """What a chi-squared variable is above with probability p, in (0, 1): by bisection."""
    low, high = 0.0, df + 10.0
    while chi2_beyond(high, df) > p:
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if chi2_beyond(middle, df) > p else (low, middle)
    return high


def run_chance(p: Floats, k: int, windows: int) -> Floats:
    """The probability that, of so many independent windows, k in a row exceed, each with probability p.

    A Markov chain of how many in a row it is by now; k of them are for ever.
    """
    chain = np.zeros((*p.shape, k + 1, k + 1))
    for at in range(k):
        chain[..., at, 0], chain[..., at, at + 1] = 1 - p, p
    chain[..., k, k] = 1
    return np.asarray(np.linalg.matrix_power(chain, windows)[..., 0, k])


@lru_cache(maxsize=1000)
def arrangements(k: int, windows: int) -> Floats:
    """For each number of windows that exceed, 0 to all: the share of their orders in which k in a row do.

    With x zeros and ones in g = windows - x + 1 gaps, those without such a run are counted by inclusion and exclusion
    over gaps that hold k or more. Averaged over samples, it estimates `run_chance` without bias, whatever p is, since
    windows of one reference may stand in any order: E[p^k] by falling factorials is its first term.
    """
    found = []
    for ones in range(windows + 1):
        gaps = windows - ones + 1
        without = sum(
            (-1) ** j * math.comb(gaps, j) * math.comb(windows - j * k, windows - ones)
            for j in range(min(gaps, ones // k) + 1)
        )
        found.append(1 - without / math.comb(windows, ones))
    return np.array(found)


def false_alert(z: float, df: float, share: float, k: int, windows: int) -> float:
    """The chance that Z is above z for k windows in a row, somewhere in so many, with one reference behind all.

    share: of the reference's error in Z, 0 to below 1.
    """
    errors, weights = _reference_errors(df)
    if share <= 0:
        return float(run_chance(np.array([chi2_beyond(z, df)]), k, windows)[0])
    p = _noncentral_beyond(z / (1 - share), df, errors * (share / (1 - share)))
    return float(weights @ run_chance(p, k, windows))


def alert_limit(level: float, df: float, share: float, k: int, windows: int) -> float:
    """The z of which `false_alert` is `level`, in (0, 1)."""
    low, high = 0.0, df + 10.0
    while false_alert(high, df, share, k, windows) > level:
        low, high = high, 2 * high
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if false_alert(middle, df, share, k, windows) > level else (low, middle)
    return high


@lru_cache(maxsize=200)
def _reference_errors(df: float) -> tuple[Floats, Floats]:
    """Nodes and weights for a chi-squared variable: even steps of its logarithm, far into both tails."""
    log = np.linspace(math.log(1e-10), math.log(df + 12 * math.sqrt(2 * df) + 60), NODES)
    value = np.exp(log)
    weight = np.exp(log * df / 2 - value / 2 - math.lgamma(df / 2) - (df / 2) * math.log(2))
    return value, weight / weight.sum()


def _noncentral_beyond(x: float, df: float, shift: NDArray[np.float64]) -> Floats:
    """The tail of a noncentral chi-squared variable: Sankaran 1959, a normal law for one of its powers."""
    total = df + shift
    h = 1 - (2 / 3) * total * (df + 3 * shift) / (df + 2 * shift) ** 2
    p = (df + 2 * shift) / total**2
    m = (h - 1) * (1 - 3 * h)
    middle = 1 + h * p * (h - 1 - (1 - h / 2) * m * p)
    spread = h * np.sqrt(2 * p) * (1 + m * p / 2)
    normal = ((x / total) ** h - middle) / spread
    return np.array([math.erfc(one / math.sqrt(2)) / 2 for one in normal.tolist()])
