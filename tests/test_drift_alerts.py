"""Promise: an alert takes size and significance in a row, ends slowly, and no lack of data ends or hides one."""

from __future__ import annotations

import numpy as np
import pytest
from drift_power import SETTINGS, alone, days_of, drawn, power
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamserve.drift.alerts import RECENT, AlertState, Status, exceeds, step
from streamserve.drift.distances import Comparison
from streamserve.drift.policy import AlertSettings

pure = settings(deadline=None, derandomize=True, max_examples=200)
OVER, UNDER, FEW, NAN = "over", "under", "few", "nan"
KINDS = st.sampled_from([OVER, UNDER, FEW, NAN])


def seen(kind: str, **more) -> Comparison:
    n = {FEW: 5, NAN: 0}.get(kind, 1_000)
    excess, z = {OVER: (0.05, 60.0), UNDER: (0.0, 9.0), FEW: (0.5, 99.0), NAN: (np.nan, np.nan)}[kind]
    given = {"n": n, "excess": excess, "z": z, "limit": 28.0, **more}
    return Comparison(key="feature:x", psi=0.06, noise=0.01, p=0.5, unit=0.01, distance=0.1, moved=(), **given)


def walk(kinds, given: AlertSettings = SETTINGS, state: AlertState | None = None) -> list[Status]:
    """The status of windows 1, 2, ...; "over?" is one that is incomplete."""
    state, found = state or AlertState(), []
    for window, kind in enumerate(kinds, 1):
        state, told = step(state, window, seen(kind.rstrip("?")), given, complete=not kind.endswith("?"))
        found.append(told)
    return found


OK, WARN, ALERT, INSUFFICIENT = Status.OK, Status.WARN, Status.ALERT, Status.INSUFFICIENT


class TestSteps:
    def test_it_takes_size_and_significance(self):
        assert exceeds(seen(OVER), SETTINGS)
        assert not exceeds(seen(OVER, excess=0.004), SETTINGS)
        assert not exceeds(seen(OVER, z=27.0), SETTINGS)
        assert not exceeds(seen(OVER, n=99), SETTINGS)
        assert not exceeds(seen(NAN), SETTINGS)

    def test_one_window_warns_and_two_in_a_row_alert(self):
        assert walk([UNDER, OVER, UNDER, OVER, OVER, OVER]) == [OK, WARN, OK, WARN, ALERT, ALERT]

    def test_three_windows_in_a_row_that_do_not_exceed_end_it(self):
        assert walk([OVER, OVER, UNDER, UNDER, OVER, UNDER, UNDER, UNDER, UNDER]) == [
            WARN, ALERT, ALERT, ALERT, ALERT, ALERT, ALERT, OK, OK,
        ]  # fmt: skip

    def test_after_it_the_count_begins_anew(self):
        assert walk([OVER, OVER, UNDER, UNDER, UNDER, OVER, OVER]) == [WARN, ALERT, ALERT, ALERT, OK, WARN, ALERT]

    def test_too_few_rows_hold_what_was_and_never_clear(self):
        assert walk([OVER, FEW, OVER, FEW, NAN, FEW, FEW, UNDER]) == [
            WARN, INSUFFICIENT, ALERT, INSUFFICIENT, INSUFFICIENT, INSUFFICIENT, INSUFFICIENT, ALERT,
        ]  # fmt: skip

    def test_an_incomplete_window_may_raise_and_never_clears(self):
        assert walk(["over?", "over?", "under?", "under?", "under?", "under?"]) == [WARN, *[ALERT] * 5]
        assert walk([OVER, "under?", OVER]) == [WARN, OK, ALERT]

    @pure
    @given(st.lists(KINDS, max_size=40), st.integers(0, 40), st.sampled_from([FEW, NAN, "under?"]))
    def test_no_lack_of_data_changes_what_is_told_of_other_windows(self, kinds, at, lack):
        with_it = [*kinds[:at], lack, *kinds[at:]]
        told = walk(with_it)
        del told[min(at, len(kinds))]
        assert told == walk(kinds)

    @pure
    @given(st.lists(KINDS, max_size=60), st.integers(1, 4), st.integers(1, 4))
    def test_it_is_what_its_description_says(self, kinds, in_a_row, clear):
        """Against the plainest reading of it, over all windows at once."""
        given = AlertSettings(in_a_row=in_a_row, clear=clear)
        alert, told, ones = False, [], []
        for kind in kinds:
            if kind in (FEW, NAN):
                told.append(INSUFFICIENT)
                continue
            ones.append(kind)
            wanted, needed = (UNDER, clear) if alert else (OVER, in_a_row)
            if ones[-needed:] == [wanted] * needed:
                alert, ones = not alert, []
            told.append(ALERT if alert else WARN if kind == OVER else OK)
        assert walk(kinds, given) == told


class TestRevisions:
    @pure
    @given(st.lists(KINDS, min_size=1, max_size=30), st.data())
    def test_a_window_that_comes_again_counts_once(self, kinds, data):
        state = AlertState()
        for window, kind in enumerate(kinds, 1):
            state, _ = step(state, window, seen(kind), SETTINGS)
            again = data.draw(st.integers(1, window))
            state, _ = step(state, again, seen(kinds[again - 1]), SETTINGS)
        plain = AlertState()
        for window, kind in enumerate(kinds, 1):
            plain, _ = step(plain, window, seen(kind), SETTINGS)
        assert state == plain

    def test_what_a_revision_changes_is_as_if_it_had_been_so_at_once(self):
        state = AlertState()
        for window, kind in enumerate([OVER, UNDER, OVER], 1):
            state, told = step(state, window, seen(kind), SETTINGS)
        assert told is WARN
        state, told = step(state, 2, seen(OVER), SETTINGS)
        assert told is ALERT
        assert state.alerting(SETTINGS)
        state, told = step(state, 2, seen(UNDER), SETTINGS)
        assert (told, state.alerting(SETTINGS)) == (OK, False)

    def test_a_revision_that_is_incomplete_takes_nothing_back(self):
        state, _ = step(AlertState(), 1, seen(OVER), SETTINGS)
        state, _ = step(state, 1, seen(UNDER), SETTINGS, complete=False)
        state, _ = step(state, 1, seen(FEW), SETTINGS)
        assert step(state, 2, seen(OVER), SETTINGS)[1] is ALERT

    def test_what_is_settled_is_not_revised(self):
        state = AlertState()
        for window in range(1, RECENT + 10):
            state, _ = step(state, window, seen(UNDER), SETTINGS)
        assert len(state.recent) == RECENT
        after, told = step(state, 2, seen(OVER), SETTINGS)
        assert after == state
        assert told is WARN

    @pure
    @given(st.lists(KINDS, max_size=40))
    def test_it_goes_through_json(self, kinds):
        state = AlertState()
        for window, kind in enumerate(kinds, 1):
            state, _ = step(state, window, seen(kind), SETTINGS)
            assert AlertState.model_validate_json(state.model_dump_json()) == state
            assert len(state.model_dump_json()) < 500

    @pytest.mark.parametrize(
        "broken",
        [{"alpha": 0}, {"alpha": 1}, {"threshold": -1}, {"min_rows": 49}, {"per": 1}, {"in_a_row": 0}, {"x": 1}],
    )
    def test_settings_that_mean_nothing_are_refused(self, broken):
        with pytest.raises(ValidationError):
            AlertSettings(**broken)


class TestDefaults:
    """A small part of what `python tests/drift_power.py` measures."""

    def test_a_day_without_drift_is_quiet(self):
        rng = np.random.default_rng(1)
        for n in (100, 1_000, 10_000):
            assert days_of(drawn(rng), n, 40, rng) <= 2

    def test_limits_below_the_calibrated_ones_would_not_be(self):
        """Planted: a limit that each 100th window of one feature exceeds."""
        rng = np.random.default_rng(1)
        one = drawn(rng)
        curves = {
            key: c.model_copy(update={"limits": (21.7,) * len(c.limits)}) for key, c in one.calibration.curves.items()
        }
        broken = one.model_copy(update={"calibration": one.calibration.model_copy(update={"curves": curves})})
        assert days_of(broken, 100, 200, rng) > 3

    def test_a_shift_is_found(self):
        rng = np.random.default_rng(1)
        assert alone(rng).measures[1].name == "x1"
        assert power(1_000, 0.25, 3, 40, rng) >= 0.9
        assert power(10_000, 0.1, 10, 20, rng) >= 0.9
