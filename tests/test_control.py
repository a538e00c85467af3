"""Promise: every reader of the control log comes to the same state, whatever anybody wrote into it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.control.commands import KINDS, Init
from streamserve.control.fold import Rejection, State, step
from streamserve.records import ControlView, Cutover, RoutingEpoch

pure = settings(deadline=None, derandomize=True, max_examples=200)


def init(**more):
    body = {
        "kind": "init", "command_id": "c1", "topology": "t", "expected_generation": 0, "model": "m", "stable": "v1",
        "salt": "s", "fingerprint": "f", "actor": "ann", "reason": "first",
    }  # fmt: skip
    return {**body, **more}


def encoded(body):
    return json.dumps(body).encode()


def fold(values, state=None, first=0):
    state, said = state or State("t"), []
    for offset, value in enumerate(values, first):
        state, outcome = step(state, offset, value)
        assert outcome.offset == offset
        assert not (outcome.accepted and outcome.rejection)
        said.append(outcome)
    return state, said


def one(value, state=None):
    return fold([value if isinstance(value, bytes) or value is None else encoded(value)], state)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
near_misses = st.fixed_dictionaries(
    {},
    optional={
        name: trees | st.sampled_from(["init", "shift", "t", "u", "c1", "c2", 0, 1, "", True, 1.0])
        for name in ("kind", "command_id", "topology", "expected_generation", "model", "stable", "schema_version", "x")
    },
).map(lambda changes: encoded(init(**changes)))
commands = st.builds(
    init,
    command_id=st.sampled_from(["c1", "c2"]),
    topology=st.sampled_from(["t", "u"]),
    expected_generation=st.integers(0, 2),
    stable=st.sampled_from(["v1", "v2"]),
).map(encoded)
records = st.none() | st.binary(max_size=30) | trees.map(encoded) | near_misses | commands


@pure
@given(st.lists(records, max_size=12))
def test_any_log_gives_a_state_and_an_answer_to_each_record(log):
    state, said = fold(log)
    assert state.generation == len(state.epochs) == len(state.command_ids) == sum(o.accepted for o in said) <= 1
    for before, outcome in zip(log, said, strict=True):
        if outcome.accepted:
            assert outcome.command.topology == "t"
            assert json.loads(before)["stable"] == state.epochs[0].stable
            assert state.epochs[0].number == outcome.offset
        else:
            assert outcome.detail
            assert len(outcome.detail) <= 300
            outcome.detail.encode()  # it goes into logs and onto an audit topic


@pure
@given(st.lists(records, max_size=12), st.integers(0, 12))
def test_a_log_that_is_read_in_two_goes_gives_the_state_of_one(log, at):
    whole, said = fold(log)
    first, low = fold(log[:at])
    both, high = fold(log[at:], first, first=len(log[:at]))
    assert (both, low + high) == (whole, said)


@pure
@given(st.lists(records, max_size=10))
def test_the_same_log_again_changes_nothing(log):
    state, _ = fold(log)
    again, said = fold(log, state, first=len(log))
    assert again == state
    assert not any(outcome.accepted for outcome in said)


def test_an_init_is_in_force_from_its_own_offset_in_the_log():
    state, (_, said) = fold([b"noise", encoded(init())])
    assert said.accepted
    assert isinstance(said.command, Init)
    assert state.epochs == (RoutingEpoch(number=1, stable="v1", salt="s"),)
    assert (state.model, state.fingerprint, state.generation, state.initialised) == ("m", "f", 1, True)
    view = state.view()
    assert (view.topology, view.epochs, view.generation) == ("t", state.epochs, 1)
    assert view.epochs_at("events", np.int32([0, 7]), np.int64([0, 2**62])).tolist() == [0, 0]


def test_a_topology_is_initialised_once():
    state, _ = one(init())
    for body, rejection in (
        (init(), Rejection.REPLAYED),
        (init(stable="v2"), Rejection.REPLAYED),
        (init(command_id="c2", stable="v2"), Rejection.ALREADY_INITIALISED),
        (init(command_id="c2", expected_generation=1), Rejection.ALREADY_INITIALISED),
    ):
        after, (said,) = one(body, state)
        assert after == state
        assert said.rejection == rejection


def test_a_command_that_has_not_seen_the_state_is_stale():
    state, (said,) = one(init(expected_generation=1))
    assert (state, said.rejection) == (State("t"), Rejection.STALE)
    assert "it is 0" in said.detail


def test_a_command_of_another_topology_is_nothing_to_this_one():
    state, (said,) = one(init(topology="u"))
    assert state == State("t")
    assert (said.accepted, said.rejection) == (False, None)


@pytest.mark.parametrize("kind", [*KINDS[1:], "explode", None, 1, ["init"], {}])
def test_a_kind_that_is_not_carried_out_is_rejected(kind):
    state, (said,) = one(init(kind=kind))
    assert (state, said.rejection) == (State("t"), Rejection.UNKNOWN_KIND)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"expected_generation": "0"}, "expected_generation"),
        ({"expected_generation": 0.0}, "expected_generation"),
        ({"expected_generation": True}, "expected_generation"),
        ({"expected_generation": -1}, "expected_generation"),
        ({"schema_version": 2}, "schema_version"),
        ({"schema_version": True}, "schema_version"),
        ({"schema_version": 1.0}, "schema_version"),
        ({"stable": ""}, "stable"),
        ({"stable": 1}, "stable"),
        ({"stable": None}, "stable"),
        ({"command_id": ""}, "command_id"),
        ({"command_id": "c" * 201}, "command_id"),
        ({"weight_bp": 10}, "weight_bp"),
        ({"salt": "\ud800"}, "salt"),
    ],
)
def test_a_command_of_another_form_is_malformed_and_the_field_is_named(changes, place):
    state, (said,) = one(init(**changes))
    assert (state, said.rejection) == (State("t"), Rejection.MALFORMED)
    assert said.detail.startswith(place)


@pytest.mark.parametrize("missing", ["command_id", "topology", "expected_generation", "model", "stable"])
def test_what_is_missing_is_named(missing):
    body = init()
    del body[missing]
    assert one(body)[1][0].detail == f"{missing}: Field required"


def deep(depth, opening=b"[", closing=b"]"):
    return opening * depth + closing * depth


GOOD = encoded(init())[1:]


@pytest.mark.parametrize("depth", [50, 300, 900, 960, 980, 990, 995, 1000, 5000, 200_000])
@pytest.mark.parametrize("key", [b"kind", b"x", b"stable", b"reason"])
def test_a_deep_nest_is_rejected_wherever_it_stands(key, depth):
    before, after = (
        b'{"' + key + b'": ' + deep(depth) + b", " + GOOD,
        b"{" + GOOD[:-1] + b', "x": ' + deep(depth) + b"}",
    )
    objects = b'{"x": ' + deep(depth, b'{"a":', b"}").replace(b":}", b":0}") + b"," + GOOD
    for value in (before, after, objects, deep(depth)):
        state, (said,) = one(value)
        assert state == State("t")
        assert said.rejection in (Rejection.MALFORMED, Rejection.UNKNOWN_KIND)


@pytest.mark.parametrize("digits", [400, 4300, 4301, 100_000])
def test_a_huge_number_is_rejected(digits):
    value = encoded(init(expected_generation=7)).replace(b"7", b"7" * digits)
    state, (said,) = one(value)
    assert state == State("t")
    assert said.rejection in (Rejection.MALFORMED, Rejection.STALE)


@pytest.mark.parametrize(
    "extra", [b'"stable": "v2"', b'"command_id": "c1"', b'"kind": "init"', b'"reason": {"a":1,"a":1}']
)
def test_a_key_that_is_there_twice_is_malformed(extra):
    """Of two values one reader takes the first and another the last: they would not agree."""
    for value in (b"{" + extra + b", " + GOOD, b"{" + GOOD[:-1] + b", " + extra + b"}"):
        state, (said,) = one(value)
        assert (state, said.rejection) == (State("t"), Rejection.MALFORMED)


@pytest.mark.parametrize("value", [b"", b"null", b"[]", b'"init"', b"NaN", b"1e999", b"\xff\xfe", b"{]", b"\x00", None])
def test_what_is_no_object_is_malformed(value):
    assert one(value)[1][0].rejection == Rejection.MALFORMED


# ---- which epoch is in force where


@st.composite
def views(draw):
    """A view as the fold of both logs would give it, and some records."""
    count = draw(st.integers(1, 5))
    cutovers = {}
    for topic in ("events", "other"):
        for partition in range(3):
            indices = draw(st.lists(st.integers(1, count), unique=True, max_size=count).map(sorted))
            offsets = draw(st.lists(st.integers(0, 12), min_size=len(indices), max_size=len(indices)).map(sorted))
            cutovers[topic, partition] = tuple(map(Cutover, [10 * i for i in indices], offsets))
    epochs = tuple(RoutingEpoch(10 * i, f"v{i}") for i in range(count + 1))
    return ControlView("t", epochs, cutovers)


@pure
@given(views(), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 14)), max_size=20))
def test_the_epoch_in_force_is_the_largest_whose_cutover_is_at_or_below_the_record(view, places):
    def naive(partition, offset):
        cuts = view.cutovers.get(("events", partition), ())
        return max([cut.epoch // 10 for cut in cuts if cut.offset <= offset], default=0)

    found = view.epochs_at("events", np.int32([p for p, _ in places]), np.int64([o for _, o in places]))
    assert found.tolist() == [naive(*place) for place in places]


def test_without_a_cutover_the_first_epoch_answers():
    view = ControlView("t", (RoutingEpoch(3, "v1"), RoutingEpoch(4, "v2")))
    assert view.epochs_at("events", np.int32([0, 1]), np.int64([0, 2**62])).tolist() == [0, 0]


def test_the_published_schema_of_commands_is_that_of_the_code():
    published = Path(__file__).parent.parent / "schemas" / "streamserve.command.json"
    assert json.loads(published.read_text()) == Init.model_json_schema()


def test_a_manifest_that_the_log_pins_is_in_the_state():
    state, said = one(init(manifest="ab" * 32))
    assert said[0].accepted
    assert dict(state.manifests) == {"v1": "ab" * 32}
    assert one(init(manifest="../x"))[1][0].rejection is Rejection.MALFORMED
