"""Promise: what is killed answers for nothing, at once and until it is revived, and something else always does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from control_desk import CANARY, Desk

from streamserve.control.commands import (
    Approve,
    Kill,
    Pause,
    Promote,
    Resume,
    Revive,
    Rollback,
    Shadow,
    Shift,
)
from streamserve.control.fold import Rejection
from streamserve.control.state import Phase
from streamserve.records import RoutingEpoch


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def canary():
    return Desk.at_canary()


# ---- kills


def test_a_kill_of_the_candidate_leaves_its_weight_and_stable_answers(canary):
    canary.ok(Shadow, percent_bp=100)
    canary.ok(Kill, version="v2", reason="it approves everything")
    assert canary.epoch == replace(CANARY, number=4, killed=frozenset({"v2"}))
    rollout = canary.state.rollout
    assert (rollout.phase, rollout.weight_bp, rollout.shadow_bp) == (Phase.KILLED, 500, 0)


@pytest.mark.parametrize(
    ("form", "more"),
    [
        (Shift, {"weight_bp": 0}),
        (Promote, {}),
        (Pause, {}),
        (Resume, {}),
        (Approve, {"step": 1}),
        (Shadow, {"percent_bp": 1}),
    ],
)
def test_a_rollout_whose_candidate_is_killed_only_ends(canary, form, more):
    canary.ok(Kill, version="v2")
    assert canary.send(form, **more) is Rejection.KILLED
    canary.ok(Rollback)
    assert canary.epoch == RoutingEpoch(5, "v1", salt="s", killed=frozenset({"v2"}))
    assert canary.prepare(rollout_id="r2") is Rejection.KILLED, "it is latched"


def test_a_revived_candidate_gets_no_event_until_somebody_shifts(canary):
    canary.ok(Kill, version="v2")
    canary.ok(Revive, version="v2")
    assert canary.epoch == RoutingEpoch(4, "v1", salt="s")
    assert (canary.state.rollout.phase, canary.state.rollout.weight_bp) == (Phase.PAUSED, 0)
    canary.ok(Resume)
    assert (canary.said.epoch, canary.state.rollout.phase) == (None, Phase.PREPARED)
    canary.ok(Shift, weight_bp=500)
    assert canary.epoch == replace(CANARY, number=6)


def promoted(*versions):
    desk = Desk()
    for number, version in enumerate(versions, 1):
        desk.prepare(version, rollout_id=f"r{number}")
        desk.ok(Promote, rollout_id=f"r{number}")
    return desk


def test_a_kill_of_stable_falls_back_to_the_last_that_was_not_killed():
    desk = promoted("v2", "v3")
    desk.ok(Kill, version="v2")
    assert (desk.epoch.stable, desk.epoch.instead_of) == ("v3", None)
    desk.ok(Kill, version="v3")
    assert (desk.epoch.stable, desk.epoch.instead_of) == ("v1", "v3")
    assert desk.send(Kill, version="v1") is Rejection.NO_FALLBACK
    desk.ok(Revive, version="v2")
    assert (desk.epoch.stable, desk.epoch.instead_of, desk.epoch.killed) == ("v2", "v3", {"v3"})
    desk.ok(Revive, version="v3")
    assert (desk.epoch.stable, desk.epoch.instead_of) == ("v3", None)


def test_a_lone_version_can_not_be_killed(desk):
    assert desk.send(Kill, version="v1") is Rejection.NO_FALLBACK
    desk.prepare()
    assert desk.send(Kill, version="v1") is Rejection.NO_FALLBACK, "a candidate is no fallback"


def test_a_kill_asks_for_no_generation_and_minds_none(canary):
    canary.ok(Kill, version="v2", expected_generation=99)
    canary.ok(Revive, version="v2")
    canary.ok(Kill, version="v2")
    assert canary.send(Kill, version="v2") is Rejection.ALREADY_KILLED
    assert canary.send(Kill, version="v9") is Rejection.UNKNOWN_VERSION
    assert canary.send(Revive, version="v9") is Rejection.UNKNOWN_VERSION
    assert canary.send(Revive, version="v1") is Rejection.NOT_KILLED


def test_a_rollout_is_paused_when_stable_changes_under_it():
    desk = promoted("v2")
    desk.prepare("v3", rollout_id="r9")
    desk.ok(Shift, rollout_id="r9", weight_bp=500)
    desk.ok(Kill, version="v2")
    assert (desk.epoch.stable, desk.epoch.instead_of, desk.epoch.candidate, desk.epoch.weight_bp) == (
        "v1",
        "v2",
        "v3",
        500,
    )
    assert desk.state.rollout.phase is Phase.PAUSED
    desk.ok(Resume, rollout_id="r9")
    desk.ok(Revive, version="v2")
    assert desk.state.rollout.phase is Phase.PAUSED, "what it was compared with is another one again"
    desk.ok(Resume, rollout_id="r9")
    desk.ok(Promote, rollout_id="r9")
    assert (desk.epoch.stable, desk.state.stables) == ("v3", ("v1", "v2", "v3"))


def test_a_kill_of_what_is_neither_stable_nor_candidate_pauses_nothing():
    desk = promoted("v2")
    desk.prepare("v3", rollout_id="r9")
    desk.ok(Shift, rollout_id="r9", weight_bp=500)
    desk.ok(Kill, version="v1")
    assert desk.state.rollout.phase is Phase.CANARY
    assert desk.epoch.killed == {"v1"}


def test_a_candidate_that_stable_falls_back_to_competes_with_nobody():
    desk = promoted("v2")
    desk.prepare("v1", rollout_id="r9")
    desk.ok(Shift, rollout_id="r9", weight_bp=500)
    desk.ok(Kill, version="v2")
    assert desk.epoch == RoutingEpoch(5, "v1", salt="s", killed=frozenset({"v2"}), instead_of="v2")
    desk.ok(Resume, rollout_id="r9")
    assert desk.send(Shift, rollout_id="r9", weight_bp=600) is Rejection.ALREADY_STABLE
    desk.ok(Promote, rollout_id="r9")
    assert desk.epoch == RoutingEpoch(8, "v1", salt="s", killed=frozenset({"v2"})), "no stand-in any more"
