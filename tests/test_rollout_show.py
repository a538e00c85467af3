"""Promise: `rollout status` says in a screenful who answers for what, where a command has not taken hold, and why."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from streamserve.cli.rollout_show import spans, tree
from streamserve.cli.weights import segment, where
from streamserve.control.state import Phase, Rollout, State
from streamserve.records import RoutingEpoch, Rule
from streamserve.rollouts.heartbeat import Heartbeat, ShadowBeat

ROLLOUT = Rollout(
    "r1", "v2", "v1", 3, "salt",
    phase=Phase.CANARY, weight_bp=500, shifted=True, shadow_bp=10_000, shadow_where=(("origin", ("JFK",)),),
    rules=(Rule("big", (("carrier", ("UA", "AA")), ("seats", (5,))), candidate=False),),
)  # fmt: skip
STATE = State(
    "flights", model="m", generation=7, epochs=(RoutingEpoch(0, "v1"), RoutingEpoch(9, "v1", "v2")), stables=("v1",),
    rollout=ROLLOUT,
)  # fmt: skip
WELL = Heartbeat(
    topology="flights", worker="a-1", at=1, partitions=dict.fromkeys(range(100), 9), lag=1200, versions=("v1", "v2"),
    batch_ms={"v1": (3.1, 9.8)},
    shadow=ShadowBeat(rollout="r1", candidate="v2", running=True, compared=900, decided=800, agreed=796, shed=12),
)  # fmt: skip
ILL = Heartbeat(
    topology="flights", worker="b-2", at=1, ready=False, why="it loads v2", partitions={100: 0}, versions=("v1",),
    failed={"v2": "the file is gone"},
)  # fmt: skip


def drawn(state, living, *, whole=True, epochs=None):
    console = Console(file=io.StringIO(), width=110)
    console.print(tree(state, "in effect on all partitions", whole, epochs or {}, living))
    return console.file.getvalue()


def test_a_rollout_under_way_is_told_in_the_words_that_people_type():
    found = drawn(STATE, [WELL, ILL], whole=False, epochs={**dict.fromkeys(range(100), 9), 100: 0})
    for words in (
        "flights  model m  generation 7",
        "at epoch 0: partitions 100",
        "stable v1  answers for 95%",
        "rollout r1  CANARY, since offset 3",
        "candidate v2  answers for 5%",
        "shadows 100% of origin=JFK",
        "never carrier=UA,AA seats=5",
        "2 workers live",
        "a-1  partitions 0-99  lag 1,200",
        "shadow v2 scored 900, agrees in 99.50% of 800, 12 shed",
        "v1 ready  3.1 ms a batch, p99 9.8",
        "b-2  partitions 100  lag 0  it loads v2",
        "v2 the file is gone",
    ):
        assert words in found


@pytest.mark.parametrize(
    ("living", "words"), [([], "no worker lives"), ([WELL], "1 worker lives"), ([WELL, ILL], "2 workers live")]
)
def test_it_says_how_many_live(living, words):
    assert words in drawn(STATE, living)


def test_a_killed_candidate_answers_for_nothing_and_stable_for_all():
    found = drawn(replace(STATE, killed=frozenset({"v2"})), [])
    assert "stable v1  answers for 100%  killed: v2" in found
    assert "candidate v2  answers for 0%, it is killed" in found


def test_of_a_candidate_that_stable_fell_back_to_no_share_is_told():
    """v3 was made stable beside an open rollout of v2, and then killed."""
    found = drawn(replace(STATE, stables=("v2", "v3"), killed=frozenset({"v3"})), [])
    assert "stable v2  instead of v3, which is killed" in found
    assert "candidate v2  answers for 0%" in found


def test_without_a_rollout_stable_answers_for_everything():
    found = drawn(State("flights", epochs=(RoutingEpoch(0, "v1"),), stables=("v1",)), [])
    assert "stable v1\n" in found
    assert "no rollout is open" in found


def test_what_a_field_holds_is_shown_as_it_stands_and_no_markup():
    rule = Rule("r", (("tag", ("[red]x", "a,b", "5", " y")),), candidate=True)
    state = State("t", epochs=STATE.epochs, stables=("v1",), rollout=Rollout("r", "v2", "v1", 1, "s", rules=(rule,)))
    assert 'always tag=[red]x,"a,b","5"," y"' in drawn(state, [])


@pytest.mark.parametrize(
    ("numbers", "words"), [((), "none"), ((4,), "4"), ((2, 0, 1), "0-2"), ((0, 1, 3, 7, 8), "0-1, 3, 7-8")]
)
def test_partitions_are_told_as_runs(numbers, words):
    assert spans(numbers) == words


values = st.one_of(st.integers(), st.booleans(), st.text(st.characters(exclude_characters=","), min_size=1))


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(st.text("abc._", min_size=1), st.lists(values, min_size=1, max_size=4).map(tuple), max_size=3))
def test_a_segment_that_is_shown_can_be_typed(found):
    typed = [segment({path: given_}) for path, given_ in found.items()]
    assert where(typed) == found
