"""Promise: whatever a candidate does, stable's predictions are the same bytes, and nobody's event is lost."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline import NOW, ONE, THREE, event, pipeline, raw, read, version

from streamserve.agents.trials import BusyError, Guard, LateError
from streamserve.errors import SignatureError
from streamserve.pipeline.candidates import attempt
from streamserve.records import ControlView, RoutingEpoch
from streamserve.testing import StubModel

pure = settings(deadline=None, derandomize=True, max_examples=60)
HALF = ControlView("t", (RoutingEpoch(3, "v1", "v3", 5000, "salt", "r1"),))
ALL = ControlView("t", (RoutingEpoch(3, "v1", "v3", 10_000, "salt", "r1"),))
ALONE = ControlView("t", (RoutingEpoch(3, "v1"),))


class Failing:
    """A trial. begins, ends: what is raised at either end of the scoring; None: nothing is."""

    def __init__(self, begins=None, ends=None, plan=THREE.plan):
        self.begins, self.ends, self.plan = begins, ends, plan

    def begin(self, matrix, raw_rows):
        if self.begins is not None:
            raise self.begins

        def finish():
            if self.ends is not None:
                raise self.ends
            return THREE.scorer.score(matrix, raw_rows)

        return finish


class BadPlan:
    views = ()

    def fill(self, columns):
        raise KeyError("no such column")


def said(trial, values, view=HALF):
    """By row: what was predicted; and the batch."""
    made = pipeline({"v1": ONE, "v3": THREE})
    made._versions.trial = lambda name: trial
    batch = made.process(raw(values), view, NOW)
    return {
        row: read(v)
        for row, v in zip(batch.outgoing[0].rows.tolist(), batch.outgoing[0].values.to_pylist(), strict=True)
    }, batch


def plain(one):
    """A prediction without what tells of the rollout."""
    return {name: value for name, value in one.items() if name not in ("rollout_id", "reason", "scored_at")}


WAYS = {
    "NotLoaded": None,
    "ValueError": Failing(begins=ValueError("no")),
    "LateError": Failing(ends=LateError("late")),
    "SignatureError": Failing(ends=SignatureError("not what its manifest says")),
    "KeyError": Failing(plan=BadPlan()),
}


@pytest.mark.parametrize("why", WAYS)
def test_stable_answers_for_a_candidate_that_does_not_and_says_so(why):
    values = [event(i) for i in range(40)]
    found, batch = said(WAYS[why], values, ALL)
    alone, _ = said(None, values, ALONE)
    assert {row: plain(one) for row, one in found.items()} == {row: plain(one) for row, one in alone.items()}
    keyed = {row for row in found if row % 3 != 2}
    assert {row for row, one in found.items() if one["reason"] == "FALLBACK"} == keyed
    assert all((one["variant"], one["rollout_id"]) == ("STABLE", "r1") for one in found.values())
    assert batch.fallbacks == {("v3", why): len([row for row in range(40) if row % 3 != 2])}


@pure
@given(st.lists(st.integers(0, 30), max_size=20), st.sampled_from(list(WAYS)))
def test_stables_own_events_are_the_same_whatever_the_candidate_does(numbers, why):
    values = [event(i) for i in numbers]
    well, _ = said(Failing(), values)
    ill, batch = said(WAYS[why], values)
    assert well.keys() <= ill.keys() | {reject.row for reject in batch.rejects}
    for row, one in well.items():
        if one["variant"] == "STABLE":
            assert ill[row] == one


def test_a_row_that_the_candidate_refuses_is_no_dead_letter():
    """v1 can't do 13 and 14: as a candidate it leaves them to stable, which can."""
    made = pipeline({"v1": ONE, "v3": THREE})
    view = ControlView("t", (RoutingEpoch(3, "v3", "v1", 10_000, "salt", "r1"),))
    batch = made.process(raw([event(i) for i in range(12, 18)]), view, NOW)
    found = [read(value) for value in batch.outgoing[0].values.to_pylist()]
    assert [(one["model_version"], one["reason"]) for one in found] == [
        ("v1", "SPLIT"), ("v3", "FALLBACK"), ("v3", "SPLIT"), ("v1", "SPLIT"), ("v1", "SPLIT"), ("v3", "SPLIT"),
    ]  # fmt: skip
    assert len(batch.outgoing) == 1
    assert batch.fallbacks == {("v1", "RuntimeError"): 1}


def test_an_attempt_that_was_not_begun_has_fallen_with_all_its_rows():
    one = attempt("v9", None, None, np.arange(3))
    one.conclude()
    assert (one.why, one.fallen.tolist()) == ("NotLoaded", [0, 1, 2])


# ---- under guard


class Gated:
    """A version whose scoring waits for a gate."""

    def __init__(self):
        self.gate, self.calls = threading.Event(), 0
        made = version("v7", ("x",), StubModel({"in": 1}, {"y": 1}, self._run))
        self.plan, self.scorer = made.plan, made.scorer

    def _run(self, x):
        self.calls += 1
        assert self.gate.wait(20)
        return x.sum(axis=1)


def matrix():
    made = pipeline({"v1": ONE, "v3": THREE})
    result = made.run(raw([event(1)]), ALONE)
    return result.matrices[0]


def test_a_late_candidate_is_not_waited_for_and_a_hung_one_is_not_asked_again():
    gated = Gated()
    guard = Guard(gated, deadline=0.05, threads=2)
    one = matrix()
    for _ in range(2):
        with pytest.raises(LateError):
            guard.begin(one, np.arange(1))()
    with pytest.raises(BusyError):
        guard.begin(one, np.arange(1))
    gated.gate.set()
    while True:  # its threads come back
        try:
            finish = guard.begin(one, np.arange(1))
            break
        except BusyError:
            continue
    assert finish().version == "v1"
    guard.close()


def test_a_candidate_that_never_comes_back_does_not_keep_the_process_from_ending():
    code = (
        "import threading, types, numpy as np\n"
        "from streamserve.agents.trials import Guard, LateError\n"
        "hang = lambda *_: threading.Event().wait()\n"
        "scorer = types.SimpleNamespace(score=hang, manifest=types.SimpleNamespace(version='v'))\n"
        "guard = Guard(types.SimpleNamespace(plan=None, scorer=scorer), deadline=0.01, threads=1)\n"
        "try: guard.begin(None, np.arange(1))()\n"
        "except LateError: print('late')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "late\n"
