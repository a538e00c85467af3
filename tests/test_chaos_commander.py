"""Whoever sends commands in `make chaos` always knows one, and both folds of the log agree about it."""

from __future__ import annotations

import random
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))  # chaos is a part of the checkout, not of the package

from chaos.commander import Commander
from chaos.law import Desk
from streamserve.control import fold
from streamserve.control.commands import Init
from streamserve.control.state import State

MANIFESTS = {version: f"{number:064x}" for number, version in enumerate(("v1", "v2", "v3"))}


@pytest.mark.parametrize("seed", range(5))
def test_every_command_that_fits_is_accepted_by_both(seed):
    commander = object.__new__(Commander)  # without the client of the real one
    commander._desk, commander._dice = Desk("chaos"), random.Random(seed)
    commander._topology, commander._manifests, commander._rollouts = "chaos", MANIFESTS, 0
    state = State("chaos")
    first = Init(command_id="0", topology="chaos", expected_generation=0, model="m", stable="v1", salt="s")
    values = [first.model_dump_json().encode()]
    kinds = set()
    for offset in range(1500):
        commander._desk.read([(offset, values[-1])])
        state, outcome = fold.step(state, offset, values[-1], (), {})
        assert outcome.accepted, (outcome.rejection, outcome.detail)
        assert commander._desk.accepted == state.generation == offset + 1
        kind, value = commander._right()
        kinds.add(kind)
        values.append(value)
    assert kinds >= {"prepare", "shadow", "shift", "promote", "rollback", "kill", "revive", "pause", "resume"}
    assert len(commander._desk.epochs) == len(state.epochs) > 100
    law = [(one.number, one.stable, one.candidate, one.weight) for one in commander._desk.epochs]
    assert law == [(one.number, one.stable, one.candidate, one.weight_bp) for one in state.epochs]
