"""Promise: the figures of a divergence report are those of their sources, find what differs, and cry no wolf."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from shadow_records import AT, decision, failed, framed, gather, scores

from streamserve.rollouts.divergence import Divergence, diverge
from streamserve.rollouts.pairs import Pairs, Score, Words
from streamserve.rollouts.pictures import picture
from streamserve.rollouts.statistics import (
    EXACT,
    chi2_beyond,
    fisher,
    holm,
    mcnemar,
    psi,
    psi_edges,
    share,
    stuart_maxwell,
)

COUNTS = st.integers(0, 300)
pure = settings(deadline=None, derandomize=True, max_examples=100)
NAN, INF = math.nan, math.inf


def words(texts) -> Words:
    values = sorted({text for text in texts if text is not None})
    codes = [-1 if text is None else values.index(text) for text in texts]
    return Words(np.array(codes, np.int32), values)


def both(stable, candidate) -> tuple[Words, Words]:
    together = words([*stable, *candidate])
    half = len(stable)
    return Words(together.codes[:half], together.values), Words(together.codes[half:], together.values)


def pairs(stable, candidate, *, at: float | None = 0.5, segments=None, decisions=None) -> Pairs:
    """Of one score; who is at or above `at` is "yes"."""
    stable, candidate = np.asarray(stable, float), np.asarray(candidate, float)
    there = np.ones(len(stable), bool)
    if decisions is None:
        told = [
            [None if at is None or np.isnan(v) else "yes" if v >= at else "no" for v in s] for s in (stable, candidate)
        ]
        decisions = both(*told)
    return Pairs(
        ids=[f"e-0-{i}" for i in range(len(stable))],
        times=AT + np.arange(len(stable), dtype=np.int64),
        failures=words([None] * len(stable)),
        stable={"risk": Score(stable, there)},
        candidate={"risk": Score(candidate, there)},
        stable_decisions=decisions[0],
        candidate_decisions=decisions[1],
        segments={name: words(texts) for name, texts in (segments or {}).items()},
    )


def flags(found: Divergence) -> dict[str, tuple[str, ...]]:
    return {f"{f.name}={s.value}": s.flags for f in found.fields for s in f.segments if s.flags}


class TestFormulas:
    @pure
    @given(st.integers(0, 5000), st.integers(1, 5000))
    def test_an_interval_is_wilson_s(self, count, of):
        count = min(count, of)
        known = stats.binomtest(count, of).proportion_ci(method="wilson")
        found = share(count, of)
        assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-12)
        assert found.low <= found.value <= found.high

    @pure
    @given(st.floats(0, 2000), st.integers(1, 40))
    def test_the_tail_of_chi_squared(self, x, df):
        assert chi2_beyond(x, df) == pytest.approx(stats.chi2.sf(x, df), rel=1e-9, abs=1e-300)

    @pure
    @given(COUNTS, COUNTS)
    def test_mcnemar_is_the_exact_binomial_test_while_discordant_events_are_few(self, one, other):
        known = stats.binomtest(one, one + other).pvalue if one + other else 1.0
        assert mcnemar(one, other).p == pytest.approx(known, rel=1e-9)

    @pure
    @given(st.integers(EXACT, 10**6), st.integers(EXACT, 10**6))
    def test_and_chi_squared_where_they_are_many(self, one, other):
        found = mcnemar(one, other)
        assert found.p == pytest.approx(stats.chi2.sf((one - other) ** 2 / (one + other), 1), rel=1e-9, abs=1e-300)
        assert found.df == 1

    def test_both_forms_meet(self):
        exact, near = mcnemar(EXACT // 2 - 40, EXACT // 2 + 40), mcnemar(EXACT // 2 - 40, EXACT // 2 + 41)
        assert (exact.df, near.df) == (0, 1)
        assert exact.p == pytest.approx(near.p, rel=0.25)

    def test_stuart_maxwell_of_two_labels_is_mcnemar_s(self):
        found, known = stuart_maxwell(np.array([[9000, 1200], [1000, 500]])), mcnemar(1200, 1000)
        assert (found.statistic, found.p) == pytest.approx((known.statistic, known.p))

    def test_stuart_maxwell_of_three_labels_is_the_published_example_s(self):
        # Stuart 1955, the grades of unaided vision of 7,477 women's right and left eyes
        table = np.array([[1520, 266, 124, 66], [234, 1512, 432, 78], [117, 362, 1772, 205], [36, 82, 179, 492]])
        found = stuart_maxwell(table)
        assert found.df == 3
        assert found.statistic == pytest.approx(11.957, abs=0.001)

    def test_labels_that_are_never_confused_cost_no_degree_of_freedom(self):
        parts = np.zeros((4, 4), np.int64)
        parts[:2, :2], parts[2:, 2:] = [[50, 30], [10, 50]], [[50, 5], [9, 50]]
        assert stuart_maxwell(parts).df == 2
        assert stuart_maxwell(parts).statistic == pytest.approx(20**2 / 40 + 4**2 / 14)
        assert stuart_maxwell(np.diag([5, 0, 7])).p == 1

    @pure
    @given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 60), st.integers(0, 60))
    def test_fisher_doubles_the_smaller_tail_of_the_hypergeometric(self, part, rest, marked, others):
        marked, others = min(marked, part), min(others, rest)
        known = stats.hypergeom(part + rest, marked + others, part)
        doubled = min(1.0, 2 * min(known.cdf(marked), known.sf(marked - 1)))
        assert fisher(marked, part, marked + others, part + rest) == pytest.approx(doubled, rel=1e-8)

    @pure
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
    def test_holm_is_never_bolder_than_bonferroni_allows_and_keeps_the_order(self, p):
        found = holm(p)
        assert all(one <= other <= min(1, one * len(p)) for one, other in zip(p, found, strict=True))
        ranked = sorted(range(len(p)), key=lambda at: p[at])
        assert [found[at] for at in ranked] == sorted(found)
        assert found[ranked[0]] == pytest.approx(min(1, p[ranked[0]] * len(p)))

    def test_holm_of_a_known_example(self):
        assert holm([0.01, 0.04, 0.03, 0.005, NAN]) == pytest.approx([0.03, 0.06, 0.06, 0.02, NAN], nan_ok=True)


class TestPsi:
    def test_it_is_the_sum_of_its_definition(self):
        reference = np.repeat([1.0, 2, 3, 4], [100, 300, 400, 200])
        other = np.repeat([1.0, 2, 3, 4], [200, 300, 300, 200])
        p, q = (np.array([c + 0.5 for c in counts]) / 1002 for counts in ((100, 300, 400, 200), (200, 300, 300, 200)))
        assert psi(reference, other).value == pytest.approx(((q - p) * np.log(q / p)).sum())

    @pytest.mark.parametrize("count", [60, 200, 1000])
    def test_where_nothing_changed_it_is_its_noise_and_p_is_uniform(self, count):
        rng = np.random.default_rng(count)
        found = [psi(rng.beta(2, 5, count), rng.beta(2, 5, count)) for _ in range(500)]
        assert np.mean([one.value for one in found]) == pytest.approx(found[0].noise, rel=0.15)
        assert np.mean([one.p < 0.05 for one in found]) == pytest.approx(0.05, abs=0.035)
        assert np.mean([one.p < 0.01 for one in found]) < 0.03

    def test_a_sample_that_is_too_small_has_none(self):
        assert psi(np.arange(39.0), np.arange(39.0)) is None
        assert psi(np.arange(40.0), np.arange(40.0)).bins == 2
        assert psi(np.zeros(0), np.zeros(0)) is None

    @pure
    @given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=40, max_size=120))
    def test_the_same_scores_have_none_whatever_they_are(self, values):
        found = psi(np.array(values), np.array(values))
        assert (found.value, found.p) == (0, 1)

    def test_rounding_moves_no_score_to_another_bin(self):
        for levels in (1, 2, 5, 300):  # a constant, few scores, many
            reference = np.random.default_rng(levels).integers(0, levels, 5000) / 7 + 0.1
            found = psi(reference, reference.astype(np.float32).astype(float))
            assert found.value == 0

    def test_a_constant_has_a_bin_of_its_own(self):
        assert len(psi_edges(np.full(100, 0.3), 10)) == 2
        for other in (0.2, 0.4):
            found = psi(np.full(100, 0.3), np.full(100, other))
            assert found.value > 1
            assert found.p < 1e-6

    def test_nan_and_the_infinities_count(self):
        reference = np.random.default_rng(0).random(1000)
        for bad in (NAN, INF, -INF):
            other = reference.copy()
            other[:300] = bad
            assert psi(reference, other).p < 1e-6
        assert psi(np.full(100, NAN), reference[:100]).p < 1e-6


class TestDivergence:
    def test_what_is_told_of_a_few_events(self):
        found = diverge(pairs([0.1, 0.2, 0.6, 0.9], [0.1, 0.7, 0.3, 0.8]))
        assert (found.events, found.failed.count) == (4, 0)
        assert found.decisions.table == ((1, 1), (1, 1))
        assert (found.decisions.agreement.count, found.decisions.agreement.of) == (2, 4)
        assert [label.label for label in found.decisions.labels] == ["no", "yes"]
        (score,) = found.scores
        assert [(one.prediction_id, round(one.difference, 9)) for one in score.largest] == [
            ("e-0-1", 0.5),
            ("e-0-2", -0.3),
            ("e-0-3", -0.1),
        ]
        assert (score.n, score.equal) == (4, 1)
        assert score.mean == pytest.approx(0.025)
        assert score.mean_absolute == pytest.approx(0.225)

    @pure
    @given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=3, max_size=60))
    def test_quantiles_and_correlation_are_those_of_an_independent_source(self, values):
        one, other = map(np.array, zip(*values, strict=True))
        (score,) = diverge(pairs(one, other)).scores
        known = stats.scoreatpercentile(other - one, [0, 1, 5, 25, 50, 75, 95, 99, 100])
        assert list(score.quantiles.values()) == pytest.approx(known.tolist(), rel=1e-9, abs=1e-6)
        if score.correlation is None:
            assert np.ptp(one) == 0 or np.ptp(other) == 0
        elif np.ptp(one) > 1e-3 and np.ptp(other) > 1e-3:
            assert score.correlation == pytest.approx(stats.pearsonr(one, other).statistic, abs=1e-6)

    @pure
    @given(st.lists(st.floats(), min_size=1, max_size=200), st.data())
    def test_identical_versions_do_not_differ(self, values, data):
        parts = data.draw(st.lists(st.sampled_from(["a", "b", None]), min_size=len(values), max_size=len(values)))
        found = diverge(pairs(values, values, segments={"part": parts}))
        (score,) = found.scores
        assert score.equal == score.n == int(np.isfinite(values).sum())
        assert set(score.quantiles.values()) <= {0}
        assert score.largest == ()
        assert score.psi is None or score.psi.value == 0
        assert not flags(found)
        if found.decisions is not None:
            assert found.decisions.agreement.value == found.decisions.agreement.high == 1
            assert found.decisions.test.p == 1
        picture(pairs(values, values), found.about)

    def test_two_features_that_were_swapped_are_found(self):
        rng = np.random.default_rng(3)
        x = rng.normal([0, 1], 1, (5000, 2))
        weights = np.array([1.2, -0.8])
        one, other = (1 / (1 + np.exp(-(some @ weights))) for some in (x, x[:, ::-1]))
        found = diverge(pairs(one, other))
        assert found.decisions.agreement.high < 0.9
        assert found.decisions.test.p < 1e-6
        assert found.scores[0].correlation < 0.5
        assert found.scores[0].psi.value > 0.25
        assert found.scores[0].psi.p < 1e-6

    def test_a_segment_that_differs_is_found_and_no_other(self):
        one, other = scores(20_000)
        part = np.random.default_rng(1).choice(["a", "b", "c", "d"], 20_000)
        other = np.where(part == "c", np.clip(other + 0.1, 0, 1), other)
        found = diverge(pairs(one, other, segments={"part": part.tolist()}))
        assert flags(found) == {"part=c": ("agreement", "scores")}

    def test_segments_of_one_kind_are_rarely_flagged(self):
        """At most in 5% of reports, however many segments they look at."""
        wolves = 0
        for seed in range(100):
            one, other = scores(400, seed)
            rng = np.random.default_rng(seed)
            segments = {name: rng.choice(list("abcdef"), 400).tolist() for name in ("x", "y", "z")}
            wolves += bool(flags(diverge(pairs(one, other, segments=segments))))
        assert wolves <= 10  # of a binomial of 5% with a probability of 0.99; it keeps well below

    @pytest.mark.parametrize("count", [30, 100, 400])
    def test_small_samples_do_not_cry_wolf(self, count):
        """Both versions are noisy copies of one truth: no decision and no score is more frequent in either."""
        decisions = index = 0
        for seed in range(400):
            rng = np.random.default_rng(seed)
            one, other = (np.clip(scores(count, seed)[0] + rng.normal(0, 0.1, count), 0, 1) for _ in range(2))
            found = diverge(pairs(one, other))
            decisions += found.decisions.test.p < 0.05
            index += found.scores[0].psi is not None and found.scores[0].psi.p < 0.01
        assert decisions <= 30  # of 400: 5% and three standard deviations
        assert index <= 10

    def test_more_than_two_decisions_are_tested_together_and_one_by_one(self):
        rng = np.random.default_rng(0)
        one = rng.choice(list("abc"), 3000)
        other = np.where((one == "a") & (rng.random(3000) < 0.2), "b", one)
        found = diverge(pairs(np.zeros(3000), np.zeros(3000), decisions=both(one.tolist(), other.tolist()))).decisions
        assert (found.test.name, found.test.df) == ("Stuart-Maxwell", 1)
        assert found.test.p < 1e-6
        assert [label.p_holm < 0.001 for label in found.labels] == [True, True, False]
        assert np.array(found.table).sum() == 3000

    def test_who_did_not_decide_is_counted_and_not_taken_for_disagreement(self):
        found = diverge(pairs([0.1, NAN, 0.9, NAN], [0.2, 0.3, NAN, NAN])).decisions
        assert (found.agreement.count, found.agreement.of) == (1, 1)
        assert (found.stable_undecided, found.candidate_undecided, found.both_undecided) == (1, 1, 1)

    def test_without_decisions_there_is_no_agreement(self):
        found = diverge(pairs(np.arange(100), np.arange(100) + 1.0, at=None))
        assert found.decisions is None
        assert found.scores[0].quantiles["50%"] == 1

    def test_scores_that_are_no_numbers_are_counted_and_have_no_difference(self):
        (score,) = diverge(pairs([NAN, 1, INF, 2, -INF], [1, NAN, INF, 3, 0])).scores
        assert (score.n, score.stable_nan, score.candidate_nan, score.infinite) == (1, 1, 1, 2)
        assert score.quantiles["max"] == 1

    def test_scores_near_the_ends_of_a_double_are_told_without_a_warning(self):
        values = np.array([1e308, -1e308, 5e-324, 0.0] * 30)
        found = diverge(pairs(values, -values, segments={"part": ["a", "b"] * 60}))
        picture(pairs(values, -values), found.about)
        assert found.scores[0].n + found.scores[0].infinite == 120

    def test_no_event_at_all_is_a_report_of_nothing(self):
        found = diverge(pairs([], [], segments={"part": []}))
        assert (found.events, found.decisions, found.scores) == (0, None, ())
        assert picture(pairs([], []), found.about).moments == ()

    def test_the_most_frequent_values_are_told_and_the_rest_is_folded(self):
        part = [f"v{min(i, 20):02}" for i in range(21) for _ in range(30 - i)]
        one, other = scores(len(part))
        (field,) = diverge(pairs(one, other, segments={"part": part})).fields
        assert [s.value for s in field.segments] == [*(f"v{i:02}" for i in range(7)), "other"]
        assert (field.values, field.segments[-1].folded) == (21, 14)
        assert sum(s.events for s in field.segments) == len(part)
        (none,) = diverge(pairs(one, other), fields=["unheard"]).fields
        assert [(s.value, s.events) for s in none.segments] == [(None, len(part))]


class TestPictures:
    def test_every_event_is_in_a_bar_or_said_to_be_outside(self):
        one, other = scores(5000)
        other[:3] = 1e9
        found = picture(pairs(one, other), "risk")
        for bars in (found.stable, found.candidate, found.difference):
            assert sum(bars.counts) + bars.outside == 5000
            assert len(bars.edges) == len(bars.counts) + 1
        assert found.candidate.outside >= 3
        assert sum(map(sum, found.density.counts)) <= 5000

    def test_times_follow_each_other_and_hold_all_decided_events(self):
        one, other = scores(1000)
        moments = picture(pairs(one, other), "risk").moments
        assert sum(moment.agreement.of for moment in moments) == 1000
        assert all(a.end <= b.start for a, b in pairwise(moments))


# ---- records to columns


EVENT = st.tuples(st.integers(0, 30), st.floats(width=32), st.floats(width=32), st.sampled_from(["a", "b", None]))


def record(number, stable, candidate, part, *, broken):
    made = {"segments": {} if part is None else {"part": part}}
    return failed(number, stable, **made) if broken else decision(number, stable, candidate, **made)


@pure
@given(st.lists(st.tuples(EVENT, st.booleans()), min_size=1, max_size=60, unique_by=lambda e: e[0][0]), st.data())
def test_neither_order_nor_cuts_nor_repetition_changes_anything(events, data):
    values = [framed(record(*event, broken=broken)) for event, broken in events]
    again = data.draw(st.permutations(values + data.draw(st.lists(st.sampled_from(values), max_size=20))))
    first, second = gather(values), gather(again, data.draw(st.integers(1, 40)))
    assert second.repeated == len(again) - len(values)
    # As text: NaN is not equal to itself
    assert repr(diverge(first.pairs)) == repr(diverge(second.pairs))
    assert repr(picture(first.pairs, None)) == repr(picture(second.pairs, None))


def test_of_an_event_compared_twice_the_later_routing_epoch_counts_then_the_later_time():
    twice = [
        decision(1, 0.1, 0.9, control_epoch=4, compared_at=AT + 50),
        decision(1, 0.1, 0.2, control_epoch=9, compared_at=AT + 10),
        decision(1, 0.1, 0.3, control_epoch=9, compared_at=AT + 20),
    ]
    for values in (twice, twice[::-1]):
        found = gather(map(framed, values))
        assert found.repeated == 2
        assert found.pairs.candidate["risk"].values.tolist() == [0.3]
