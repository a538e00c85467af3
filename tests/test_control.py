"""Promise: every reader of the control log comes to the same state, whatever anybody wrote into it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from streamserve.control.commands import FORMS, KINDS, Init, Published
from streamserve.control.fold import Rejection, State, step
from streamserve.control.names import NO_NAMES
from streamserve.control.signature import HEADER
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


@pytest.mark.parametrize("kind", ["explode", "Init", "", "\ud800", None, 1, ["init"], {}])
def test_a_kind_that_is_not_known_is_rejected(kind):
    state, (said,) = one(init(kind=kind))
    assert (state, said.rejection) == (State("t"), Rejection.UNKNOWN_KIND)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"expected_generation": "0"}, "expected_generation"),
        ({"expected_generation": 0.0}, "expected_generation"),
        ({"expected_generation": True}, "expected_generation"),
        ({"expected_generation": -1}, "expected_generation"),
        ({"schema_version": True}, "schema_version"),
        ({"schema_version": 1.0}, "schema_version"),
        ({"stable": ""}, "stable"),
        ({"stable": 1}, "stable"),
        ({"stable": None}, "stable"),
        ({"command_id": ""}, "command_id"),
        ({"command_id": "c" * 201}, "command_id"),
        ({"weight_bp": 10}, "weight_bp"),
        ({"salt": "\ud800"}, "salt"),
        ({"\ud800": 1}, ""),
        ({"expected_generation": 2**63}, "expected_generation"),
        ({"segments": "country"}, "segments"),
        ({"segments": ["country", "no path"]}, "segments.1"),
        ({"rules": [{"name": "a", "where": {}, "answer": "stable"}]}, "rules.0.where"),
        ({"rules": [{"name": "a", "where": {"x": []}, "answer": "stable"}]}, "rules.0.where.x"),
        ({"rules": [{"name": "a", "where": {"x": [1.0]}, "answer": "stable"}]}, "rules.0.where.x.0"),
        ({"rules": [{"name": "a", "where": {"x": [None]}, "answer": "stable"}]}, "rules.0.where.x.0"),
        ({"rules": [{"name": "a", "where": {"x": [1]}, "answer": "both"}]}, "rules.0.answer"),
        ({"rules": [{"name": "a", "where": {"x": [1]}, "answer": "stable"}] * 2}, "rules"),
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


# ---- any command at all

BODIES = {
    "init": init(segments=["a.b"], rules=[{"name": "r", "where": {"a.b": ["x", 1, True]}, "answer": "stable"}]),
    "prepare": {"candidate": "v2", "manifest": "2" * 64},
    "shadow": {"percent_bp": 100, "where": {"a.b": ["x"]}},
    "shift": {"weight_bp": 100, "ready": ["w1"], "override": "why"},
    **{kind: {} for kind in ("promote", "rollback", "pause", "resume")},
    "approve": {"step": 1},
    "kill": {"version": "v1"},
    "revive": {"version": "v1"},
    "keys": {"mode": "off", "add": ["k1"], "remove": []},
    "upgrade": {"accepts": 1},
}


def body(kind, **more):
    common = {"kind": kind, "command_id": "c1", "topology": "t", "expected_generation": 0}
    rollout = {"rollout_id": "r1"} if "rollout_id" in FORMS[1][kind].model_fields else {}
    return {**common, **rollout, **BODIES[kind], **more}


odd_headers = st.lists(
    st.tuples(st.sampled_from([HEADER, "other", ""]), st.none() | st.binary(max_size=8) | st.just(b"k1:" + b"0" * 64)),
    max_size=3,
)
bent = st.sampled_from(KINDS).flatmap(
    lambda kind: st.dictionaries(
        st.sampled_from(sorted(body(kind))), trees | st.sampled_from(["t", "r1", "v1", "v2", 0, 1, 2]), max_size=2
    ).map(lambda changes: encoded({**body(kind), **changes}))
)


@pure
@given(st.lists(st.tuples(st.none() | st.binary(max_size=20) | bent, odd_headers), max_size=8))
def test_no_command_however_bent_stops_a_reader(log):
    """What holds besides is in test_control_laws.py, for commands that are nearer to what people mean."""
    state, _ = one(init(segments=["a.b"]))
    state, _ = one(body("keys", command_id="k", expected_generation=1), state)
    for offset, (value, headers) in enumerate(log, 2):
        after, said = step(state, offset, value, headers, {"k1": b"secret"})
        assert said.accepted or after == state
        state = after


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_in_its_published_form_is_read(kind):
    assert set(KINDS) == set(BODIES)
    _, (said,) = one(body(kind))
    assert said.rejection in (None, Rejection.NOT_INITIALISED)
    assert said.command.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_form_does_not_know_it_does_not_take(kind):
    _, (said,) = one(body(kind, weight="10%"))
    assert (said.rejection, said.detail) == (Rejection.MALFORMED, "weight: Extra inputs are not permitted")


@pytest.mark.parametrize(
    ("kind", "changes", "place"),
    [
        ("shift", {"weight_bp": 10_001}, "weight_bp"),
        ("shift", {"weight_bp": -1}, "weight_bp"),
        ("shift", {"weight_bp": 0.5}, "weight_bp"),
        ("shift", {"ready": "w1"}, "ready"),
        ("shadow", {"percent_bp": True}, "percent_bp"),
        ("shadow", {"where": {}}, "where"),
        ("prepare", {"manifest": ""}, "manifest"),
        ("prepare", {"manifest": "2" * 63 + "G"}, "manifest"),
        ("prepare", {"manifest": "2" * 64 + "\n"}, "manifest"),
        ("prepare", {"salt": ""}, "salt"),
        ("approve", {"step": -1}, "step"),
        ("kill", {"expected_generation": -1}, "expected_generation"),
        ("keys", {"mode": "on"}, "mode"),
        ("keys", {"add": ["a:b"]}, "add.0"),
        ("upgrade", {"accepts": 0}, "accepts"),
    ],
)
def test_each_form_names_the_field_that_is_wrong(kind, changes, place):
    _, (said,) = one(body(kind, **changes))
    assert said.rejection is Rejection.MALFORMED
    assert said.detail.startswith(place)


def test_a_text_that_is_not_utf_8_is_no_json():
    text = json.dumps(init())
    for value in (text.encode("utf-16"), text.encode("utf-8-sig"), text.encode("latin-1").replace(b"ann", b"\xe4nn")):
        assert one(value)[1][0].rejection is Rejection.MALFORMED


def test_what_is_no_number_of_json_is_no_json():
    for number in (b"NaN", b"Infinity", b"-Infinity", b"9" * 21):
        value = encoded(init(expected_generation=7)).replace(b"7", number)
        assert one(value)[1][0].detail.startswith("no JSON: ")


def test_names_are_a_set_that_grows():
    names, seen = NO_NAMES, []
    for number in range(300):
        seen.append(str(number))
        before, names = names, names.with_one(str(number))
        assert len(names) == len(before) + 1
        assert str(number) in names
        assert str(number) not in before
        assert names == set(seen) == set(names)
    assert len(names.parts) < 10
    assert "300" not in names


def test_the_published_schema_of_commands_is_that_of_the_code():
    published = Path(__file__).parent.parent / "schemas" / "streamserve.command.json"
    assert json.loads(published.read_text()) == TypeAdapter(Published).json_schema()


def test_a_manifest_that_the_log_pins_is_in_the_state():
    state, said = one(init(manifest="ab" * 32))
    assert said[0].accepted
    assert dict(state.manifests) == {"v1": "ab" * 32}
    assert one(init(manifest="../x"))[1][0].rejection is Rejection.MALFORMED
