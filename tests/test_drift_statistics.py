"""Promise: a drift figure is that of its source, the same from the same counts, and as noisy as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from streamserve.drift import calibration
from streamserve.drift.building import decision, numeric
from streamserve.drift.calibration import SIZES, NoDrift, calibrate, drawn, no_drift
from streamserve.drift.definitions import DEFINITIONS, Definition, definition, psi_of_counts, psi_of_samples
from streamserve.drift.distances import between, compare, jensen_shannon, kolmogorov_smirnov, p_value
from streamserve.drift.measures import Measure
from streamserve.drift.policy import AlertSettings
from streamserve.drift.psi import contributions, psi, unit
from streamserve.drift.tails import alert_limit, arrangements, chi2_beyond, chi2_limit, false_alert, run_chance
from streamserve.errors import DriftError
from streamserve.rollouts import statistics

pure = settings(deadline=None, derandomize=True, max_examples=100)
COUNTS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=12)
SIDES = st.lists(st.integers(0, 500), min_size=2, max_size=12).filter(any)
TENTHS = (1_000,) * 10
LEVEL = 0.002 / 24


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(calibration, "DRAWS", (200, 200))


def sides(pairs):
    one, other = np.array(pairs, np.int64).T
    return one, other


def numbers(rows: int = 10_000) -> Measure:
    return numeric("x", np.random.default_rng(0).standard_normal(rows))


class TestPsi:
    def test_it_is_the_sum_of_its_definition(self):
        p, q = (np.array(counts) / 1002 for counts in ([100.5, 300.5, 400.5, 200.5], [200.5, 300.5, 300.5, 200.5]))
        found = psi(np.array([100, 300, 400, 200, 0]), np.array([200, 300, 300, 200, 0]))
        assert found == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-12)

    @pure
    @given(COUNTS)
    def test_it_is_symmetric_to_the_bit_and_never_negative(self, pairs):
        one, other = sides(pairs)
        assert psi(one, other) == psi(other, one) >= 0
        assert psi(one, one) == 0

    @pure
    @given(COUNTS, st.randoms(use_true_random=False))
    def test_the_order_of_bins_and_empty_ones_make_no_difference_to_any_bit(self, pairs, random):
        shuffled = [*pairs, (0, 0), (0, 0)]
        random.shuffle(shuffled)
        assert psi(*sides(shuffled)) == psi(*sides(pairs))

    @pure
    @given(COUNTS)
    def test_a_row_more_in_a_bin_that_is_behind_brings_both_nearer(self, pairs):
        one, other = sides(pairs)
        both = np.minimum(one, other).sum() > 0 and one.sum() == other.sum()
        if both and (behind := np.flatnonzero(other < one)).size and (ahead := np.flatnonzero(other > one)).size:
            nearer = other.copy()
            nearer[behind[0]] += 1
            nearer[ahead[0]] -= 1
            if nearer[ahead[0]]:  # a bin that is emptied is no bin of that side any more
                assert psi(one, nearer) <= psi(one, other)

    def test_ten_times_the_rows_of_the_same_shares_come_to_the_index_of_the_shares(self):
        p, q = np.array([3, 5, 2]), np.array([2, 5, 3])
        found = [psi(p * scale, q * scale) for scale in (1, 10, 1_000, 100_000)]
        assert found == sorted(found)
        assert found[-1] == pytest.approx(0.2 * math.log(1.5), rel=1e-4)

    def test_the_report_of_a_shadow_has_the_same_index(self):
        rng = np.random.default_rng(5)
        one, other = rng.standard_normal(2_000), rng.standard_normal(2_000) + 0.2
        measure = numeric("x", one, dtype="float64")
        counted = [np.histogram(x, [-np.inf, *measure.edges, np.inf])[0] for x in (one, other)]
        assert statistics.psi(one, other).value == psi(*counted)

    @pytest.mark.parametrize("other", [[0, 1000, 500], [1000, 0, 500]])
    def test_a_zero_rule_that_drops_bins_would_be_noticed(self, other):
        """Planted: bins that one side leaves empty are left out, as some tools do; then all rows may move unseen."""
        reference, other = np.array([1000, 0, 500]), np.array(other)
        both = (reference > 0) & (other > 0)
        broken = float(contributions(reference[both], other[both]).sum())
        assert (psi(reference, other) > 1) is bool((reference != other).any())
        assert broken < 0.01


class TestDistances:
    @pure
    @given(COUNTS)
    def test_jensen_shannon_is_that_of_scipy(self, pairs):
        one, other = sides(pairs)
        if one.any() and other.any():
            assert jensen_shannon(one, other) == pytest.approx(jensenshannon(one, other, base=2), abs=1e-7)

    def test_jensen_shannon_of_disjoint_sides_is_one(self):
        assert jensen_shannon(np.array([5, 0]), np.array([0, 9])) == 1
        assert math.isnan(jensen_shannon(np.array([0, 0]), np.array([0, 9])))

    def test_kolmogorov_smirnov_is_that_of_the_bins_numbers(self):
        rng = np.random.default_rng(2)
        one, other = rng.integers(0, 8, 900), rng.integers(1, 9, 700)
        known = stats.ks_2samp(one, other).statistic
        assert kolmogorov_smirnov(np.bincount(one, minlength=9), np.bincount(other, minlength=9)) == pytest.approx(
            known
        )

    def test_missing_rows_are_no_matter_of_the_order_of_values(self):
        measure = numbers()
        window = measure.reference // 10
        window[0] = 500
        law = calibrate([measure], AlertSettings())
        found = compare(measure, window, law)
        assert found.distance == 0
        assert found.psi > 1
        assert (found.moved[0].bin, found.moved[0].before) == ("missing", 0)

    def test_the_bins_that_moved_most_are_told_first(self):
        measure = decision(["no", "yes"], np.array([0] * 900 + [1] * 100))
        found = compare(measure, np.array([0, 50, 50, 0]), calibrate([measure], AlertSettings()))
        assert [(one.bin, one.before, one.after) for one in found.moved] == [("yes", 0.1, 0.5), ("no", 0.9, 0.5)]
        assert sum(one.contribution for one in found.moved) == pytest.approx(found.psi)
        assert found.excess == pytest.approx(found.psi - found.noise)

    def test_a_side_without_rows_has_no_figures(self):
        measure, nothing = numbers(), np.zeros(13, np.int64)
        for found in (
            compare(measure, nothing, calibrate([measure], AlertSettings())),
            between(measure, nothing, measure.reference, AlertSettings(), measures=1),
            between(measure, measure.reference, nothing, AlertSettings(), measures=1),
            compare(numeric("x", np.zeros(0)), np.ones(4, np.int64), calibrate([], AlertSettings())),
        ):
            assert math.isnan(found.psi)
            assert math.isnan(found.p)
            assert found.moved == ()

    def test_the_same_counts_give_the_same_bits(self):
        measure = numbers()
        law = calibrate([measure], AlertSettings())
        window = np.random.default_rng(3).integers(0, 90, 13)
        assert repr(compare(measure, window, law)) == repr(compare(measure, window.copy(), law))


class TestLaws:
    @pure
    @given(st.floats(0, 2000), st.floats(0.05, 60))
    def test_the_tail_of_chi_squared_of_any_degrees_of_freedom(self, x, df):
        assert chi2_beyond(x, df) == pytest.approx(stats.chi2.sf(x, df), rel=1e-9, abs=1e-300)

    @pure
    @given(st.floats(1e-9, 0.9), st.floats(0.5, 40))
    def test_a_limit_is_what_its_tail_says(self, p, df):
        assert chi2_beyond(chi2_limit(p, df), df) == pytest.approx(p, rel=1e-6)

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_the_chance_of_a_run_is_that_of_all_sequences(self, k):
        windows, p = 7, 0.3
        known = 0.0
        for word in range(2**windows):
            bits = f"{word:0{windows}b}"
            if "1" * k in bits:
                known += p ** bits.count("1") * (1 - p) ** bits.count("0")
        assert run_chance(np.array([p]), k, windows)[0] == pytest.approx(known)

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_arrangements_are_the_average_over_all_orders(self, k):
        windows = 8
        for ones in range(windows + 1):
            words = [f"{word:0{windows}b}" for word in range(2**windows)]
            of = [word for word in words if word.count("1") == ones]
            known = np.mean(["1" * k in word for word in of])
            assert arrangements(k, windows)[ones] == pytest.approx(known)

    def test_arrangements_estimate_the_chance_of_a_run_without_bias(self):
        for p in (0.003, 0.1, 0.6):
            ones = stats.binom(24, p).pmf(np.arange(25))
            assert ones @ arrangements(2, 24) == pytest.approx(run_chance(np.array([p]), 2, 24)[0], rel=1e-9)

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
    def test_windows_that_share_a_reference_follow_their_law(self, share):
        rng, df, k, windows = np.random.default_rng(7), 9, 2, 24
        z = alert_limit(0.02, df, share, k, windows)
        v = rng.standard_normal((20_000, 1, df)) * math.sqrt(share)
        over = (((rng.standard_normal((20_000, windows, df)) * math.sqrt(1 - share) + v) ** 2).sum(-1)) > z
        assert (over[:, 1:] & over[:, :-1]).any(1).mean() == pytest.approx(0.02, rel=0.25)
        assert false_alert(z, df, share, k, windows) == pytest.approx(0.02, rel=0.01)

    @pytest.mark.parametrize(("n", "m"), [(300, 10_000), (1_000, 1_000), (50_000, 2_000)])
    def test_without_drift_the_index_is_about_chi_squared(self, n, m):
        rng = np.random.default_rng(n)
        shares = np.full(10, 0.1)
        one, other = rng.multinomial(m, shares, 4_000), rng.multinomial(n, shares, 4_000)
        z = contributions(one, other).sum(-1) / unit(n, m)
        assert stats.kstest(z, stats.chi2(9).cdf).statistic < 0.03
        assert z.mean() == pytest.approx(9, rel=0.03)


class TestCalibration:
    @pytest.mark.parametrize("counts", [TENTHS, (9_900, 100, 0), (6_000, 3_000, 900, 90, 10)])
    @pytest.mark.parametrize("n", [100, 1_000])
    def test_without_drift_a_p_is_rarely_small_and_the_noise_is_the_mean(self, counts, n):
        law = no_drift(counts, n, 400, LEVEL, 2, 24, np.random.default_rng(1))
        z = drawn(counts, n, 400, 24, np.random.default_rng(2)).ravel()
        assert z.mean() == pytest.approx(law.mean, rel=0.1)
        p = np.array([p_value(one, law) for one in z])
        for level in (0.01, 0.05, 0.2):
            assert np.mean(p < level) < 2 * level  # counts are few and whole: so are the values of p
        if counts == TENTHS:
            assert np.mean(p < 0.05) > 0.03

    def test_the_plain_law_would_be_wrong_in_small_windows(self):
        """Planted: one degree of freedom less than bins that anyone fills, as the formula has it for large samples."""
        counts, n = (5_000, 4_000, *(20,) * 50), 50
        z = drawn(counts, n, 400, 24, np.random.default_rng(2)).ravel()
        plain, own = NoDrift(0, 51, 102), no_drift(counts, n, 400, LEVEL, 2, 24, np.random.default_rng(1))
        assert z.mean() == pytest.approx(own.mean, rel=0.05)
        assert abs(plain.mean - z.mean()) > 5

    @pytest.mark.parametrize("n", [100, 1_000, 10_000, 100_000])
    def test_the_chance_of_a_false_alert_is_about_what_was_asked_for(self, n):
        level, rng = 0.02, np.random.default_rng(n)
        law = no_drift(TENTHS, n, 1_500, level, 2, 24, rng)
        over = drawn(TENTHS, n, 4_000, 24, rng) > law.limit
        assert 0.4 * level < (over[:, 1:] & over[:, :-1]).any(1).mean() < 1.5 * level

    def test_a_limit_that_ignores_the_error_that_windows_share_is_caught(self):
        """Planted: the same with independent windows, in the test above."""
        level, rng, n = 0.02, np.random.default_rng(1), 10_000
        broken = alert_limit(level, 9, 0.0, 2, 24)
        over = drawn(TENTHS, n, 4_000, 24, rng) > broken
        assert (over[:, 1:] & over[:, :-1]).any(1).mean() > 2 * level

    def test_it_is_the_same_again_whatever_stands_beside(self):
        one, two = numbers(), decision(["no", "yes"], np.array([0] * 900 + [1] * 100))
        _curve = calibration._curve

        first = calibrate([one, two], AlertSettings())
        _curve.cache_clear()
        assert calibrate([two, one], AlertSettings()) == first

    def test_between_sizes_it_is_linear_in_the_logarithm_and_beyond_them_as_at_the_ends(self):
        measure = numbers()
        found = calibrate([measure], AlertSettings())
        curve = found.curves[measure.key]
        for size, limit in zip(SIZES, curve.limits, strict=True):
            assert found.at(measure.key, size).limit == pytest.approx(limit, rel=1e-12)
        assert found.at(measure.key, 1).limit == curve.limits[0]
        assert found.at(measure.key, 10**9).limit == curve.limits[-1]
        between = found.at(measure.key, math.isqrt(1_000 * 2_000)).limit
        at = SIZES.index(1_000)
        assert between == pytest.approx((curve.limits[at] + curve.limits[at + 1]) / 2, rel=0.001)

    def test_a_constant_has_a_limit_that_one_odd_row_does_not_reach(self):
        measure = numeric("x", np.full(10_000, 3.0))
        found = calibrate([measure], AlertSettings())
        window = np.zeros(6, np.int64)
        window[4] = 200
        assert compare(measure, window, found).psi < 1e-9
        window[5] = 1
        assert compare(measure, window, found).z < compare(measure, window, found).limit
        window[5] = 20
        assert compare(measure, window, found).z > compare(measure, window, found).limit


class TestCandidateAgainstStable:
    @pytest.mark.parametrize("n", [300, 3_000])
    def test_without_a_difference_it_rarely_exceeds(self, n):
        measure, rng, settings = numbers(), np.random.default_rng(n), AlertSettings(alpha=0.5)
        shares = measure.reference / measure.rows
        days = 0
        for _ in range(60):
            stable, candidate = rng.multinomial(9 * n, shares, 24), rng.multinomial(n, shares, 24)
            found = [between(measure, *pair, settings, measures=1) for pair in zip(stable, candidate, strict=True)]
            over = np.array([one.z > one.limit for one in found])
            days += (over[1:] & over[:-1]).any()
        assert 15 < days < 45

    def test_which_side_is_which_only_matters_to_what_moved(self):
        measure = numbers()
        other = measure.reference[::-1].copy()
        there, back = (
            between(measure, a, b, AlertSettings(), measures=3)
            for a, b in ((measure.reference, other), (other, measure.reference))
        )
        assert (there.psi, there.p, there.distance) == (back.psi, back.p, back.distance)
        assert there.p < 1e-9


class TestDefinitions:
    P, Q = np.array([50, 30, 20, 0]), np.array([40, 30, 20, 10])

    def test_zeros_by_their_formulas(self):
        move = -0.1 * math.log(0.4 / 0.5)
        known = {
            "none": math.inf,
            "floor": move + (0.1 - 1e-4) * math.log(0.1 / 1e-4),
            "raise": move + (0.1 - 1e-4) * math.log(0.1 / 1e-4),
            "floor or millionth": move + (0.1 - 1e-4) * math.log(0.1 / 1e-4),
            "half a row": psi(self.P, self.Q),
        }
        for zeros, value in known.items():
            assert psi_of_counts(Definition("halfway", zeros), self.P, self.Q) == pytest.approx(value, rel=1e-12)

    def test_they_differ_where_a_share_is_small_and_not_zero(self):
        rare, none = np.array([99_995, 5]), np.array([100_000, 0])
        millionth = 5e-5 * math.log(5e-5 / 1e-4) - 5e-5 * math.log(0.99995)
        assert psi_of_counts(Definition("halfway", "floor"), none, rare) == pytest.approx(
            (5e-5 - 1e-4) * math.log(0.5) + (0.99995 - 1) * math.log(0.99995)
        )
        assert millionth != psi_of_counts(Definition("halfway", "floor"), none, rare)
        both = np.array([99_990, 5, 5]), np.array([99_995, 5, 0])
        assert psi_of_counts(Definition("halfway", "floor or millionth"), *both) == pytest.approx(
            5e-5 * math.log(0.99995 / 0.9999) + (5e-5 - 5e-11) * math.log(1e6), rel=1e-6
        )
        raised = psi_of_counts(DEFINITIONS["raised"], np.array([999, 1]), np.array([991, 9]))
        assert raised == pytest.approx((0.999 - 0.991) * math.log(0.999 / 0.991))

    def test_equal_widths_go_from_the_smallest_to_the_largest_of_the_reference(self):
        reference = np.concatenate([np.arange(0, 10, 0.1), [10.0]])
        other = np.concatenate([np.full(50, 0.5), np.full(50, 99.0), np.full(2, -7.0)])
        p = np.array([11, *[10] * 8, 10]) / 101  # x on an edge is in the lower bin: 0 to 1.0 are eleven
        q = np.array([52, *[0] * 8, 50]) / 102
        q[q == 0] = 1e-4
        known = ((q - p) * np.log(q / p)).sum()
        assert psi_of_samples(definition("equal-width-floor"), reference, other) == pytest.approx(known, rel=1e-9)
        assert psi_of_samples(definition("equal-width"), reference, other) == math.inf

    def test_quantiles_are_linear_between_values(self):
        reference, other = np.arange(1.0, 101), np.array([10.9, 10.95, *np.arange(11.0, 101)])
        p, q = np.full(10, 0.1), np.array([2 - 1 + 0, *[10] * 9]) / 92.0
        q[0], q[1] = 1 / 92, 11 / 92  # the first edge is 10.9
        known = ((q - p) * np.log(q / p)).sum()
        assert psi_of_samples(definition("quantiles"), reference, other) == pytest.approx(known)

    def test_sturges_bins_span_both_samples(self):
        rng = np.random.default_rng(4)
        one, other = rng.standard_normal(700), rng.standard_normal(300) + 1
        edges = np.histogram_bin_edges(np.concatenate([one, other]), "sturges")
        assert len(edges) - 1 == math.ceil(math.log2(1000) + 1)
        shares = [np.histogram(x, edges)[0] / len(x) for x in (one, other)]
        p, q = (np.where(x == 0, 1e-4, x) for x in shares)
        keep = (shares[0] > 0) | (shares[1] > 0)
        known = ((q - p) * np.log(q / p))[keep].sum()
        assert psi_of_samples(definition("sturges-floor"), one, other) == pytest.approx(known)

    def test_the_same_data_differ_by_a_multiple_so_thresholds_do_not_transfer(self):
        rng = np.random.default_rng(4)
        one, other = rng.lognormal(0, 1.5, 2_000), rng.lognormal(0, 1.5, 60)
        found = [psi_of_samples(how, one, other) for how in DEFINITIONS.values()]
        finite = [value for value in found if math.isfinite(value)]
        assert max(finite) > 3 * min(finite)

    @pure
    @given(st.lists(st.floats(), max_size=40), st.lists(st.floats(), max_size=40), st.sampled_from(list(DEFINITIONS)))
    def test_no_numbers_break_one(self, one, other, name):
        found = psi_of_samples(definition(name), np.array(one, float), np.array(other, float))
        assert math.isnan(found) or found >= -1e-9

    def test_the_projects_own_is_the_projects_psi(self):
        rng = np.random.default_rng(6)
        one, other = rng.standard_normal(2_000), rng.standard_normal(2_000) + 0.2
        assert psi_of_samples(definition("streamserve"), one, other) == statistics.psi(one, other).value

    def test_an_unknown_one_is_refused_with_the_known_ones(self):
        with pytest.raises(DriftError, match="equal-width-floor"):
            definition("psi")
        assert definition("raised").floor == 0.01
