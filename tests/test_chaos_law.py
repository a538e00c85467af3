"""Promise: the law of the chaos runs, written for them alone, reads any sequence of commands as the product does."""

from __future__ import annotations

import json
import random
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))  # a part of the checkout, not of the package

from chaos.commander import Commander
from chaos.law import Desk
from streamserve.control import fold

HASH = "a" * 64
WRONG = ("sent again", "stale", "malformed")  # kinds of commands that everybody must reject
INIT = {
    "kind": "init", "command_id": "first", "topology": "t", "expected_generation": 0, "actor": "a", "stable": "v1",
    "manifest": HASH, "model": "m", "fingerprint": "f", "salt": "s",
}  # fmt: skip


def of_law(one):
    return one.number, one.stable, one.candidate, one.weight, one.salt, one.rollout, one.killed, one.instead_of


def of_fold(one):
    return one.number, one.stable, one.candidate, one.weight_bp, one.salt, one.rollout_id, one.killed, one.instead_of


@pytest.mark.parametrize("shadows", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_both_accept_the_same_commands_and_make_the_same_epochs_of_them(seed, shadows):
    dice = random.Random(seed)
    manifests = dict.fromkeys(("v1", "v2", "v3"), HASH)
    commander = Commander("127.0.0.1:1", "t", manifests, dice, shadows=shadows)
    commander.read([(0, json.dumps(INIT).encode())])
    state, _ = fold.step(fold.State("t"), 0, json.dumps(INIT).encode(), (), {})
    kinds = set()
    for offset in range(1, 400):
        kind, value = commander.choose()
        kinds.add(kind)
        before = commander.desk.accepted
        commander.read([(offset, value)])
        state, outcome = fold.step(state, offset, value, (), {})
        assert outcome.accepted == (commander.desk.accepted > before), (offset, kind, outcome)
        assert outcome.accepted or kind in WRONG, (offset, kind, outcome)
        assert state.stable == commander.desk.stable, (offset, kind)
    assert [of_law(one) for one in commander.desk.epochs] == [of_fold(one) for one in state.epochs]
    assert kinds >= {"prepare", "shift", "promote", "rollback", "kill", "revive", "pause", "resume", *WRONG}
    assert ("shadow" in kinds) == shadows
    assert len(state.epochs) > 30
    assert commander.desk.rejected > 10


def test_a_revival_that_changes_stable_pauses_what_was_opened_under_the_other():
    desk = Desk("t")

    def send(kind, **more):
        command = {
            **INIT,
            "kind": kind,
            "command_id": str(desk.accepted),
            "expected_generation": desk.generation,
            **more,
        }
        desk.read([(desk.accepted, json.dumps(command).encode())])

    send("init")
    for rollout, version in (("r1", "v2"), ("r2", "v3")):
        send("prepare", rollout_id=rollout, candidate=version)
        if rollout == "r1":
            send("promote", rollout_id=rollout)
            send("kill", version="v2")
    send("revive", version="v2")
    assert (desk.stable, desk.rollout["paused"]) == ("v2", True)
