"""Micro-batches wait only as long as it pays and the latency target allows."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.delivery.pacing import LONGEST_S, SHARE, BatchCost, Pace

A, B = 8e-6, 3e-3  # seconds a row and a batch: what was measured of the flights


@given(
    st.floats(1e-7, 1e-3), st.floats(1e-5, 0.05),
    st.lists(st.integers(1, 4000), min_size=40, max_size=80).filter(lambda rows: np.std(rows) > 0.2 * np.mean(rows)),
)  # fmt: skip
def test_a_cost_is_learned_from_batches_of_different_sizes(a, b, sizes):
    cost = BatchCost()
    for rows in sizes:
        cost.learn(rows, a * rows + b)
    assert cost.a == pytest.approx(a, rel=1e-3, abs=1e-9)
    assert cost.b == pytest.approx(b, rel=1e-3, abs=a * 1e-2 + 1e-8)


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1)), max_size=60))
def test_whatever_is_learned_no_cost_is_below_zero(batches):
    cost = BatchCost()
    for rows, seconds in batches:
        cost.learn(rows, seconds)
    assert cost.a >= 0
    assert cost.b >= -1e-12


def test_a_version_that_became_slower_is_learned_anew():
    cost = BatchCost()
    for scale in (1, 3):
        for rows in np.random.default_rng(1).integers(10, 3000, 200).tolist():
            cost.learn(rows, scale * (A * rows + B))
    assert cost.a == pytest.approx(3 * A, rel=0.05)
    assert cost.b == pytest.approx(3 * B, rel=0.1)


def told(target: float, rate: float, a: float = A, b: float = B, besides: float = 0.0, max_rows: int = 4000) -> Pace:
    """A pace that has seen some seconds of this."""
    pace, random = Pace(target, max_rows), np.random.default_rng(2)
    for at in np.arange(0, 5, 0.01).tolist():
        pace.arrived(int(rate * 0.01) or int(random.random() < rate * 0.01), at)
        rows = int(random.integers(10, 500))
        pace.sent("v1", rows, a * rows + b, a * rows + b + besides, 0.0)
    return pace


def test_where_next_to_nothing_comes_nothing_waits():
    assert told(0.02, 20).wait() == (1, 0.0)


def test_a_wait_keeps_the_first_event_within_the_target():
    rows, seconds = told(0.02, 10_000, besides=0.001).wait()
    assert 0.004 < seconds < 0.02
    assert seconds + A * 10_000 * seconds + B + 0.001 < 0.02
    assert rows == pytest.approx(10_000 * seconds, rel=0.01)


@given(st.floats(0.001, 2), st.floats(1, 1e6), st.floats(0, 1e-3), st.floats(0, 0.1), st.floats(0, 0.05))
def test_no_wait_is_longer_than_the_longest_nor_for_more_rows_than_fit(target, rate, a, b, besides):
    rows, seconds = told(target, rate, a, b, besides, max_rows=700).wait()
    assert 0 <= seconds <= LONGEST_S
    assert 1 <= rows <= 700
    assert (seconds == 0) == (rows == 1)


def test_where_the_target_leaves_no_room_batches_take_a_share_of_a_core_and_not_all_of_it():
    rows, seconds = told(0.006, 10_000).wait()
    assert B / seconds == pytest.approx(SHARE, rel=0.05)
    assert rows > 1


@given(st.floats(0.001, 0.2), st.floats(100, 1e5), st.floats(1e-3, 0.1))
def test_no_wait_is_longer_than_the_target_whatever_a_batch_costs(target, rate, b):
    assert told(target, rate, b=b).wait()[1] <= target


def test_a_version_that_was_not_seen_does_not_inherit_the_cost_of_another():
    pace = told(0.02, 10_000)
    pace.sent("v2", 100, 0.015, 0.015, 0.0)
    assert pace.costs["v1"].b == pytest.approx(B, rel=0.05)
    assert pace.costs["v2"].b > 3 * B


# ---- a worker in miniature: one reader, batches worked on one after the other


def serve(rate: float, target: float, *, paced: bool, seconds: float = 8.0) -> tuple[float, float]:
    """The 99th percentile of latency in seconds, and the share of a core that batches take.

    Events come at random times; a batch takes a*n + b and some noise; two may be in work at once and share one core.
    """
    random = np.random.default_rng(3)
    arrivals = np.cumsum(random.exponential(1 / rate, int(rate * seconds)))
    pace, latencies, busy, free, at = Pace(target, 4000), list[float](), 0.0, 0.0, 0
    done: list[float] = []
    now = 0.0
    while at < len(arrivals):
        while len(done) >= 2:
            now = max(now, heapq.heappop(done))
        now = max(now, arrivals[at])
        rows, wait = pace.wait() if paced else (1, 0.0)
        full = arrivals[at + rows - 1] if at + rows <= len(arrivals) else now + wait
        first, ready = now, max(now, min(now + wait, full))
        stop = min(int(np.searchsorted(arrivals, ready, side="right")), at + 4000)
        pace.arrived(stop - at, ready)
        work = (A * (stop - at) + B) * random.uniform(0.8, 1.6)
        start = max(ready, free)
        free = start + work
        heapq.heappush(done, free)
        pace.sent("v1", stop - at, work, free - first, ready - first)
        latencies += (free - arrivals[at:stop]).tolist()
        busy += work
        at, now = stop, ready
    return float(np.quantile(latencies[len(latencies) // 4 :], 0.99)), busy / arrivals[-1]


@pytest.mark.parametrize("rate", [1_000, 5_000, 10_000, 20_000, 30_000])
def test_a_paced_worker_holds_its_target_and_costs_less(rate):
    late, share = serve(rate, 0.025, paced=True)
    _, at_once = serve(rate, 0.025, paced=False)
    assert late <= 0.025
    assert share < at_once
    assert share < 0.75


def test_the_miniature_sees_a_pace_that_waits_too_long(monkeypatch):
    monkeypatch.setattr(Pace, "wait", lambda _: (4000, 0.06))
    assert serve(10_000, 0.025, paced=True)[0] > 0.025
