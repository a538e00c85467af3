"""Promise: what may have to answer is loaded ahead, what can't any more is freed, and who serves is not disturbed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamserve.agents.preparing import AGAIN_S, Preparing, wanted
from streamserve.control.state import Phase, Rollout, State
from streamserve.errors import ModelMissingError
from streamserve.records import Cutover, RoutingEpoch, Rule

P, Q = ("a", 0), ("a", 1)


def state(*stables, candidate=None, killed=(), epochs=()):
    rollout = None
    if candidate:
        rollout = Rollout("r", candidate, stables[-1], 1, "salt", phase=Phase.PREPARED)
    return State(
        "t",
        model="m",
        stables=stables,
        killed=frozenset(killed),
        rollout=rollout,
        epochs=epochs or (RoutingEpoch(0, stables[-1]),),
    )


def names(found, cutovers=(), committed=()):
    return wanted(found, found.view(dict(cutovers)), dict(committed))


def test_stable_what_it_falls_back_to_and_the_candidate_are_wanted_in_this_order():
    assert names(state("v1")) == ("v1",)
    assert names(state("v1", "v2", "v3")) == ("v3", "v2")
    assert names(state("v1", "v2", candidate="v9")) == ("v2", "v1", "v9")


def test_what_is_killed_is_not_wanted():
    assert names(state("v1", "v2", killed=["v2"], epochs=(RoutingEpoch(0, "v1"),))) == ("v1",)
    assert names(state("v1", candidate="v2", killed=["v2"])) == ("v1",)


HISTORY = (RoutingEpoch(0, "v1"), RoutingEpoch(4, "v1", "v2", 500), RoutingEpoch(7, "v3"), RoutingEpoch(9, "v5"))
CUTS = {P: (Cutover(4, 100), Cutover(7, 200), Cutover(9, 300)), Q: (Cutover(9, 50),)}


@pytest.mark.parametrize(
    ("committed", "more"),
    [
        ({P: 300, Q: 50}, ()),
        ({P: 299, Q: 50}, ("v3",)),
        ({P: 150, Q: 50}, ("v1", "v2", "v3")),
        ({P: 300, Q: 0}, ("v1",)),
    ],
)
def test_versions_of_past_epochs_are_kept_while_an_event_of_theirs_may_be_read_again(committed, more):
    found = state("v4", "v5", epochs=HISTORY)
    assert names(found, CUTS, committed) == ("v5", "v4", *more)


class Shelf:
    def __init__(self):
        self.there, self.broken, self.asked = set(), {}, []

    def get(self, version):
        self.asked.append(version)
        if version in self.broken:
            raise self.broken[version]
        self.there.add(version)

    def loaded(self):
        return frozenset(self.there)

    def keep(self, versions):
        gone = self.there - set(versions)
        self.there &= set(versions)
        return frozenset(gone)


class Bench:
    def __init__(self, found):
        self.state, self.now, self.shelf = found, 0.0, Shelf()
        self.said: list[tuple[str, str]] = []
        self.preparing = Preparing(
            self.shelf,
            lambda: (self.state, self.state.view(), {}),
            lambda version, why, _: self.said.append((version, why)),
            lambda: self.now,
        )

    def settle(self):
        while self.preparing.turn():
            pass


def test_a_candidate_is_loaded_told_of_and_freed_when_the_rollout_is_over():
    bench = Bench(state("v1", candidate="v2"))
    bench.settle()
    assert bench.shelf.there == {"v1", "v2"}
    assert bench.said == [("v1", ""), ("v2", "")]
    bench.state = replace(bench.state, rollout=None)
    bench.settle()
    assert bench.shelf.there == {"v1"}


@pytest.mark.parametrize(
    ("epoch", "loaded"),
    [
        (RoutingEpoch(4, "v1"), {"v1"}),
        (RoutingEpoch(4, "v1", "v2"), {"v1"}),
        (RoutingEpoch(4, "v1", "v2", 1), {"v1", "v2"}),
        (RoutingEpoch(4, "v1", "v2", rules=(Rule("r", (("origin", ("JFK",)),), candidate=True),)), {"v1", "v2"}),
        (RoutingEpoch(4, "v1", "v2", 1, killed=frozenset({"v2"})), {"v1"}),
    ],
)
def test_who_joins_waits_for_what_may_answer_and_for_nothing_else(epoch, loaded):
    bench = Bench(state("v0", "v1", candidate="v2", epochs=(epoch,)))
    bench.shelf.broken["v0"] = RuntimeError("nobody is to ask")
    bench.preparing.serve()
    assert bench.shelf.there == loaded
    assert bench.shelf.asked == sorted(loaded)


def test_who_joins_does_not_wait_for_ever_for_what_fails():
    bench = Bench(state("v1", candidate="v2", epochs=(RoutingEpoch(4, "v1", "v2", 1),)))
    bench.shelf.broken["v2"] = RuntimeError("no")
    bench.preparing.serve()
    assert (bench.shelf.there, set(bench.preparing.failed)) == ({"v1"}, {"v2"})


@pytest.mark.parametrize("error", [ModelMissingError("no such file"), MemoryError(), RuntimeError("a bug of its own")])
def test_one_that_can_not_be_loaded_is_told_of_and_tried_again_later(error):
    bench = Bench(state("v1", candidate="v2"))
    bench.shelf.broken["v2"] = error
    bench.settle()
    bench.settle()
    assert bench.shelf.asked == ["v1", "v2"], "not over and over"
    assert "v2" in bench.preparing.failed
    assert bench.said[-1][1]
    bench.now, bench.shelf.broken = AGAIN_S, {}
    bench.settle()
    assert bench.shelf.there == {"v1", "v2"}
    assert not bench.preparing.failed
