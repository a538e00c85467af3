"""Promise: a rollout goes by the commands of the log and nothing else, and the ways out of it are always open."""

from __future__ import annotations

from dataclasses import replace

import pytest
from control_desk import CANARY, CANDIDATE_RULE, RULES, SHA, Desk

from streamserve.control.commands import (
    Approve,
    Init,
    Keys,
    Kill,
    Pause,
    Prepare,
    Promote,
    Resume,
    Rollback,
    Shadow,
    Shift,
    Upgrade,
)
from streamserve.control.fold import Rejection, step
from streamserve.control.sending import encode
from streamserve.control.state import Phase
from streamserve.records import Cutover, RoutingEpoch


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def canary():
    return Desk.at_canary()


# ---- the way through


def test_a_rollout_from_its_first_step_to_its_last(desk):
    assert desk.prepare() is None
    assert desk.said.epoch is None, "to prepare is to route nothing"
    rollout = desk.state.rollout
    assert (rollout.id, rollout.candidate, rollout.stable, rollout.opened_at) == ("r1", "v2", "v1", 1)
    assert (rollout.phase, rollout.weight_bp, rollout.shadow_bp) == (Phase.PREPARED, 0, 0)
    desk.ok(Shadow, percent_bp=2500, where={"country": ["de"]})
    assert desk.said.epoch is None
    assert (desk.state.rollout.shadow_bp, desk.state.rollout.shadow_where) == (2500, (("country", ("de",)),))
    desk.ok(Approve, step=1)
    assert desk.state.rollout.approvals == (1,)
    desk.ok(Shift, weight_bp=500, ready=["w1", "w2"], override="w3 is being replaced")
    assert desk.said.epoch == desk.epoch == RoutingEpoch(4, "v1", "v2", 500, "s/r1", "r1")
    assert desk.state.rollout.phase is Phase.CANARY
    desk.ok(Promote)
    assert desk.epoch == RoutingEpoch(5, "v2", salt="s")
    assert (desk.state.rollout, desk.state.closed, desk.state.stables) == (None, {"r1"}, ("v1", "v2"))
    assert desk.state.generation == 6


def test_the_view_has_all_epochs_and_the_cutovers_that_are_handed_in(canary):
    cutovers = {("events", 0): (Cutover(1, 4),)}
    view = canary.state.view(cutovers)
    assert (view.topology, view.generation, view.cutovers) == ("t", 3, cutovers)
    assert view.epochs == canary.state.epochs
    assert canary.state.view().cutovers == {}


def test_rules_come_into_force_with_the_first_shift_and_at_weight_0_too(desk):
    desk.prepare(rules=[CANDIDATE_RULE])
    assert desk.epoch.rules == ()
    desk.ok(Shift, weight_bp=0)
    assert (desk.epoch.candidate, desk.epoch.weight_bp, desk.epoch.rules) == ("v2", 0, RULES[:1])
    assert desk.send(Shift, weight_bp=0) is Rejection.NOTHING_CHANGES


def test_a_first_shift_to_nothing_is_no_epoch_where_there_are_no_rules(desk):
    desk.prepare()
    assert desk.send(Shift, weight_bp=0) is Rejection.NOTHING_CHANGES


def test_the_rules_of_init_are_those_of_rollouts_that_bring_none():
    desk = Desk(init=False)
    desk.ok(Init, model="m", stable="v1", segments=["country", "plan.tier"], rules=[CANDIDATE_RULE])
    desk.prepare()
    assert desk.state.rollout.rules == RULES[:1]
    desk.ok(Rollback)
    desk.prepare(rollout_id="r2", rules=[])
    assert desk.state.rollout.rules == ()


def test_salts_differ_by_rollout_and_topology_unless_one_is_given(desk):
    desk.prepare()
    assert desk.state.rollout.salt == "s/r1"
    desk.ok(Rollback)
    desk.prepare(rollout_id="r2", salt="as before")
    assert desk.state.rollout.salt == "as before"


def test_a_shift_names_a_weight_not_a_step(canary):
    canary.ok(Shift, weight_bp=10_000)
    assert canary.epoch == replace(CANARY, number=3, weight_bp=10_000)
    canary.ok(Shift, weight_bp=0)
    assert (canary.epoch.candidate, canary.epoch.weight_bp, canary.epoch.rules) == ("v2", 0, RULES)
    assert canary.state.rollout.phase is Phase.CANARY


def test_a_promotion_needs_no_shift(desk):
    desk.prepare()
    desk.ok(Promote)
    assert desk.epoch == RoutingEpoch(2, "v2", salt="s")


# ---- the ways out


def test_a_rollback_is_an_epoch_where_the_rollout_was_in_force(canary):
    canary.ok(Rollback)
    assert canary.epoch == RoutingEpoch(3, "v1", salt="s")
    assert canary.state.closed == {"r1"}


def test_a_rollback_of_what_was_never_shifted_moves_no_event(desk):
    desk.prepare()
    desk.ok(Rollback)
    assert (desk.said.epoch, len(desk.state.epochs)) == (None, 1)


def test_a_rollback_at_weight_0_ends_what_a_shift_began(desk):
    desk.prepare()
    desk.ok(Shift, weight_bp=1)
    desk.ok(Shift, weight_bp=0)
    desk.ok(Rollback)
    assert desk.epoch == RoutingEpoch(4, "v1", salt="s"), "its id must leave the predictions"


@pytest.mark.parametrize("form", [Shift, Promote])
def test_what_is_paused_moves_no_further(canary, form):
    canary.ok(Pause, reason="a holiday")
    assert (canary.said.epoch, canary.epoch) == (None, CANARY)
    more = {"weight_bp": 600} if form is Shift else {}
    assert canary.send(form, **more) is Rejection.PAUSED
    canary.ok(Resume)
    canary.ok(form, **more)


def test_what_is_paused_can_be_shadowed_approved_killed_and_rolled_back(canary):
    canary.ok(Pause)
    canary.ok(Shadow, percent_bp=10_000)
    canary.ok(Approve, step=2)
    canary.ok(Kill, version="v2")
    canary.ok(Rollback)


def test_what_is_resumed_is_what_it_was(desk):
    desk.prepare()
    desk.ok(Pause)
    desk.ok(Resume)
    assert desk.state.rollout.phase is Phase.PREPARED
    desk.ok(Shift, weight_bp=1)
    desk.ok(Pause)
    desk.ok(Resume)
    assert desk.state.rollout.phase is Phase.CANARY


# ---- what is not taken


def test_one_rollout_at_a_time_and_each_id_once(canary):
    assert canary.prepare("v3", rollout_id="r2") is Rejection.BUSY
    assert canary.send(Rollback, rollout_id="r2") is Rejection.NO_ROLLOUT
    canary.ok(Rollback)
    assert canary.send(Rollback) is Rejection.NO_ROLLOUT
    assert canary.prepare("v3") is Rejection.ROLLOUT_USED


def test_a_version_is_what_its_manifest_says_for_ever(canary):
    canary.ok(Rollback)
    assert canary.prepare("v1", rollout_id="r2") is Rejection.ALREADY_STABLE
    assert canary.prepare("v2", rollout_id="r2", manifest="f" * 64) is Rejection.MANIFEST_DIFFERS
    assert canary.prepare("v2", rollout_id="r2") is None


def test_an_init_without_a_manifest_leaves_it_to_a_later_prepare():
    desk = Desk(init=False)
    desk.ok(Init, model="m", stable="v1")
    assert desk.state.manifests == (("v1", ""),)
    desk.prepare("v2")
    desk.ok(Promote)
    desk.prepare("v1", rollout_id="r2")
    assert dict(desk.state.manifests) == {"v1": SHA["v1"], "v2": SHA["v2"]}


@pytest.mark.parametrize("place", ["rules", "where"])
def test_a_field_that_init_does_not_list_is_no_rule(desk, place):
    """Of a worker with another topology file it would not be known."""
    if place == "rules":
        rule = {"name": "x", "where": {"country": ["de"], "email": ["a"]}, "answer": "stable"}
        assert desk.prepare(rules=[rule]) is Rejection.UNKNOWN_FIELD
    else:
        desk.prepare()
        assert desk.send(Shadow, percent_bp=1, where={"email": ["a"]}) is Rejection.UNKNOWN_FIELD
    assert desk.said.detail.startswith("email: ")


def test_what_changes_nothing_is_told(canary):
    canary.ok(Shadow, percent_bp=5, where={"age": [1]})
    canary.ok(Approve, step=0)
    for form, more in (
        (Shift, {"weight_bp": 500}),
        (Shadow, {"percent_bp": 5, "where": {"age": [1]}}),
        (Resume, {}),
        (Approve, {"step": 0}),
        (Keys, {"mode": "off"}),
        (Upgrade, {"accepts": 1}),
    ):
        assert canary.send(form, **more) is Rejection.NOTHING_CHANGES
    canary.ok(Shadow, percent_bp=5, where={"age": [True]})
    canary.ok(Shadow, percent_bp=0, where={"age": [1]})
    assert (canary.state.rollout.shadow_bp, canary.state.rollout.shadow_where) == (0, None)
    canary.ok(Pause)
    assert canary.send(Pause) is Rejection.NOTHING_CHANGES


def test_what_was_rejected_may_be_sent_again():
    desk = Desk()
    command = Prepare(
        command_id="again", topology="t", expected_generation=2, rollout_id="r1", candidate="v2", manifest=SHA["v2"]
    )
    _, early = step(desk.state, 1, *encode(command))
    assert early.rejection is Rejection.STALE
    desk.ok(Keys, mode="off", add=["k1"])
    after, said = step(desk.state, 2, *encode(command))
    assert said.accepted
    assert step(after, 3, *encode(command))[1].rejection is Rejection.REPLAYED


def test_versions_are_those_that_something_still_names(canary):
    assert canary.state.versions() == {"v1": SHA["v1"], "v2": SHA["v2"]}
    canary.ok(Rollback)
    assert canary.state.versions() == {"v1": SHA["v1"], "v2": SHA["v2"]}, "an epoch does: a replay needs it"
    canary.prepare("v3", rollout_id="r2")
    assert set(canary.state.versions()) == {"v1", "v2", "v3"}
    canary.ok(Rollback, rollout_id="r2")
    assert set(canary.state.versions()) == {"v1", "v2"}, "v3 never answered"
    assert dict(canary.state.manifests)["v3"] == SHA["v3"], "and is pinned all the same"
