"""Promise: who may command, and in which form, is the same for every reader; one that can't tell holds and says so."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest
from control_desk import able

from streamserve.control.commands import Init, Keys, Kill, Pause, Prepare, Rollback, Shift, Upgrade
from streamserve.control.fold import Rejection, State, step
from streamserve.control.outcome import audit
from streamserve.control.sending import encode
from streamserve.control.signature import HEADER, Key, sign

ANN, BOB = Key("ann", b"the secret of ann"), Key("bob", b"the secret of bob")
SECRETS = {key.id: key.secret for key in (ANN, BOB)}
EARLY = Init(command_id="c0", topology="t", expected_generation=0, model="m", stable="v1")


def at_once(state, command, key=None, secrets=SECRETS, offset=9):
    return step(state, offset, *encode(command, key), secrets)


def keys(state, mode="off", number=0, **more):
    return Keys(
        command_id=f"k{state.generation}-{number}",
        topology="t",
        expected_generation=state.generation,
        mode=mode,
        **more,
    )


@pytest.fixture
def listed():
    """Ann's key is listed, signing is off."""
    state, _ = at_once(State("t"), EARLY)
    return at_once(state, keys(state, add=["ann"]))[0]


@pytest.fixture
def required(listed):
    return at_once(listed, keys(listed, mode="required"), ANN)[0]


def prepare(state, **more):
    body = {"command_id": "p", "topology": "t", "expected_generation": state.generation}
    return Prepare(**{**body, "rollout_id": "r1", "candidate": "v2", "manifest": "2" * 64, **more})


# ---- signatures


def test_a_signature_is_the_published_one():
    value, headers = encode(EARLY, ANN)
    digest = hmac.new(b"the secret of ann", value, hashlib.sha256).hexdigest()
    assert headers == [("streamserve.signature", b"ann:" + digest.encode())]
    assert encode(EARLY) == (value, [])


def test_where_signing_is_required_a_listed_key_commands(required):
    after, said = at_once(required, prepare(required), ANN)
    assert said.accepted
    assert said.signed_by == "ann"
    assert after.rollout.candidate == "v2"


@pytest.mark.parametrize("command", [prepare, keys, lambda _: Kill(command_id="x", topology="t", version="v2")])
def test_and_nobody_else_not_even_to_kill(required, command):
    sent = command(required)
    value, headers = encode(sent, ANN)
    digest = headers[0][1].partition(b":")[2]
    for signature, reason in (
        ([], Rejection.UNSIGNED),
        ([("streamserve.Signature", headers[0][1])], Rejection.UNSIGNED),
        ([(HEADER, sign(value, BOB))], Rejection.UNKNOWN_KEY),
        ([(HEADER, b":" + digest)], Rejection.UNKNOWN_KEY),
        ([(HEADER, sign(value, Key("ann", b"guessed")))], Rejection.BAD_SIGNATURE),
        ([(HEADER, sign(value + b" ", ANN))], Rejection.BAD_SIGNATURE),
        ([(HEADER, b"ann:" + digest.upper())], Rejection.BAD_SIGNATURE),
        ([(HEADER, b"ann:" + digest[:-1])], Rejection.BAD_SIGNATURE),
        ([(HEADER, b"ann:\xff")], Rejection.BAD_SIGNATURE),
        ([(HEADER, digest)], Rejection.BAD_SIGNATURE),
        ([(HEADER, None)], Rejection.BAD_SIGNATURE),
        (headers * 2, Rejection.BAD_SIGNATURE),
    ):
        after, said = step(required, 9, value, signature, SECRETS)
        assert (after, said.rejection) == (required, reason), signature


def test_the_bytes_are_signed_not_what_they_mean(required):
    value, headers = encode(prepare(required), ANN)
    spaced = json.dumps(json.loads(value), indent=1).encode()
    assert step(required, 9, value, headers, SECRETS)[1].accepted
    assert step(required, 9, spaced, headers, SECRETS)[1].rejection is Rejection.BAD_SIGNATURE


def test_where_signing_is_off_the_signatures_of_listed_keys_are_tried_out(listed):
    value, _ = encode(prepare(listed))
    for signature, reason, by in (
        ([], None, None),
        ([(HEADER, sign(value, ANN))], None, "ann"),
        ([(HEADER, sign(value, BOB))], None, None),
        ([(HEADER, b"what")], None, None),
        ([(HEADER, sign(value, Key("ann", b"guessed")))], Rejection.BAD_SIGNATURE, None),
    ):
        _, said = step(listed, 9, value, signature, SECRETS)
        assert (said.rejection, said.signed_by) == (reason, by)


def test_keys_are_listed_and_removed_by_command(required):
    after, said = at_once(required, keys(required, mode="required", add=["bob"], remove=["ann"]), ANN)
    assert said.accepted
    assert after.keys == {"bob"}
    assert at_once(after, prepare(after), ANN)[1].rejection is Rejection.UNKNOWN_KEY
    assert at_once(after, prepare(after), BOB)[1].accepted
    off, said = at_once(after, keys(after, mode="off"), BOB)
    assert said.accepted
    assert at_once(off, prepare(off))[1].accepted


def test_signing_is_not_required_of_nobody(listed, required):
    assert at_once(listed, keys(listed, mode="required", remove=["ann"]))[1].rejection is Rejection.NO_KEY_LEFT
    last = at_once(required, keys(required, mode="required", remove=["ann"]), ANN)[1]
    assert last.rejection is Rejection.NO_KEY_LEFT
    assert at_once(listed, keys(listed, remove=["bob"]))[1].rejection is Rejection.KEY_NOT_LISTED
    both = {**json.loads(encode(keys(listed))[0]), "add": ["x"], "remove": ["x"]}
    assert step(listed, 9, json.dumps(both).encode())[1].detail.endswith("key x is added and removed")


# ---- holding


@pytest.mark.parametrize("mode", ["listed", "required"])
def test_a_reader_without_the_secret_holds_and_says_what_it_needs(mode, request):
    state = request.getfixturevalue(mode)
    held, said = at_once(state, prepare(state), ANN, secrets={"bob": BOB.secret})
    assert (said.accepted, said.rejection, said.held) == (False, None, True)
    assert "offset 9" in held.held
    assert "key ann" in held.held
    assert said.detail == held.held
    for command, key in (
        (prepare(state), ANN),
        (prepare(state), None),
        (Kill(command_id="x", topology="t", version="v1"), ANN),
    ):
        after, said = at_once(held, command, key)
        assert after is held
        assert (said.accepted, said.rejection, said.held) == (False, None, True)


def test_a_reader_without_the_secret_goes_on_until_it_is_used(required):
    _, said = at_once(required, prepare(required), secrets={})
    assert said.rejection is Rejection.UNSIGNED
    assert at_once(required, prepare(required, topology="u"), ANN, secrets={})[1].detail == "of another topology"
    assert step(required, 9, b"noise", [(HEADER, b"ann:00")])[1].rejection is Rejection.MALFORMED


def test_an_upgrade_that_this_release_can_not_do_holds(listed):
    upgrade = Upgrade(command_id="u", topology="t", expected_generation=2, accepts=2)
    held, said = at_once(listed, upgrade)
    assert (said.accepted, said.held) == (False, True)
    assert "schema_version 2" in held.held
    with able(2):
        after, said = at_once(listed, upgrade)
        assert said.accepted
        assert after.accepts == 2


def test_a_form_is_taken_from_the_upgrade_on_by_all_alike(listed):
    later = encode(prepare(listed, schema_version=2))[0]
    unknown = later.replace(b'"prepare"', b'"freeze"')
    for ability in (1, 2, 3):
        with able(ability):
            for value in (later, unknown):
                assert step(listed, 9, value)[1].rejection is Rejection.UNSUPPORTED_VERSION
    with able(2):
        after, _ = at_once(listed, Upgrade(command_id="u", topology="t", expected_generation=2, accepts=2))
        assert step(after, 9, encode(prepare(after, schema_version=2))[0])[1].accepted
        assert step(after, 9, encode(prepare(after, schema_version=3))[0])[1].rejection is Rejection.UNSUPPORTED_VERSION
        lower = Upgrade(command_id="l", topology="t", expected_generation=3, accepts=1)
        assert at_once(after, lower)[1].rejection is Rejection.NOTHING_CHANGES


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None, [], 10**18])
def test_a_version_that_is_none_is_malformed_whatever_is_taken(listed, version):
    value = json.dumps({**json.loads(encode(prepare(listed))[0]), "schema_version": version}).encode()
    reason = Rejection.UNSUPPORTED_VERSION if version == 10**18 else Rejection.MALFORMED
    assert step(listed, 9, value)[1].rejection is reason


# ---- the audit


def test_the_audit_says_who_what_why_and_what_came_of_it(required):
    rule = {"name": "staff", "where": {"plan": ["staff", 1, True]}, "answer": "candidate"}
    state, _ = at_once(State("t"), EARLY.model_copy(update={"segments": ("plan",), "salt": "s"}), offset=0)
    state, _ = at_once(state, prepare(state, rules=[rule]), offset=1)
    shift = Shift(
        command_id="s", topology="t", expected_generation=2, rollout_id="r1", weight_bp=500, ready=["w1"],
        override="w2 is down", actor="ann", reason="a first look",
    )  # fmt: skip
    _, said = at_once(state, shift, offset=2)
    written = json.loads(json.dumps(audit(said)))
    assert {name: written[name] for name in ("offset", "accepted", "kind", "command_id", "topology", "rollout_id")} == {
        "offset": 2, "accepted": True, "kind": "shift", "command_id": "s", "topology": "t", "rollout_id": "r1",
    }  # fmt: skip
    assert {name: written[name] for name in ("actor", "reason", "rejection", "detail", "generation", "signed_by")} == {
        "actor": "ann", "reason": "a first look", "rejection": None, "detail": "", "generation": 3, "signed_by": None,
    }  # fmt: skip
    assert written["epoch"] == {
        "number": 2, "stable": "v1", "candidate": "v2", "weight_bp": 500, "salt": "s/r1", "rollout_id": "r1",
        "rules": [rule], "killed": [], "instead_of": None,
    }  # fmt: skip
    assert written["command"]["ready"] == ["w1"]
    assert written["command"]["override"] == "w2 is down"


def test_the_audit_of_what_was_refused_says_what_could_be_read(required):
    value = b'{"topology": "t", "kind": "shift", "command_id": "\\ud800", "actor": 7, "reason": "' + b"r" * 5000 + b'"}'
    _, said = step(required, 9, value, (), SECRETS)
    written = audit(said)
    assert (written["rejection"], written["kind"], written["command_id"]) == ("UNSIGNED", "shift", "\\ud800")
    assert (written["actor"], len(written["reason"]), written["command"]) == (None, 2000, None)
    json.dumps(written, ensure_ascii=False).encode()
    assert audit(step(required, 9, b"\xff")[1])["rejection"] == "MALFORMED"
    assert audit(at_once(required, prepare(required), ANN, secrets={})[1])["held"]


def test_no_secret_is_shown(required):
    forged = at_once(required, prepare(required), Key("ann", b"guessed"))[1]
    after, said = at_once(required, prepare(required), ANN)
    shown = f"{ANN!r} {ANN} {forged!r} {audit(forged)} {after!r} {said!r} {audit(said)}"
    assert "secret" not in shown
    assert "guessed" not in shown
    right = encode(prepare(required), ANN)[1][0][1].partition(b":")[2].decode()
    assert right not in shown, "a detail that told the right signature would be a way to forge"


@pytest.mark.parametrize(
    "command",
    [
        EARLY,
        Kill(command_id="k", topology="t", version="v1"),
        Pause(command_id="p", topology="t", expected_generation=0, rollout_id="r"),
        Rollback(command_id="p", topology="t", expected_generation=0, rollout_id="r", reason="naïve größer"),
        Prepare(
            command_id="p", topology="t", expected_generation=0, rollout_id="r", candidate="v2", manifest="a" * 64,
            rules=[{"name": "n", "where": {"a.b": ["x", 1, True, -(2**63)]}, "answer": "stable"}],
        ),
    ],
)  # fmt: skip
def test_what_is_encoded_is_read_as_it_was(command):
    value, _ = encode(command, ANN)
    _, said = step(State("t"), 0, value)
    assert said.rejection in (None, Rejection.NOT_INITIALISED)
    assert said.command == command
    assert repr(said.command) == repr(command)
