"""The fold of the control log: commands in, state out, with a reason for each that is not accepted.

Pure and total: any bytes at any offset give a state, so that every worker that reads the same log agrees, and none
is stopped by what somebody wrote. It looks at no clock and no acknowledgement. `docs/control.md` lists what holds of
it, and `tests/fold_laws.py` checks that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NoReturn

from pydantic import ValidationError

from streamserve.control import rollout, terms, versions
from streamserve.control.commands import FORMS, AnyCommand, Init, Keys, Kill, Prepare, Revive, Upgrade
from streamserve.control.outcome import Hold, Label, Outcome, Refused, Rejection, clean
from streamserve.control.signature import NO_SECRETS, signer
from streamserve.control.state import State
from streamserve.headers import Header

__all__ = ["Outcome", "Rejection", "State", "step"]

DIGITS = 20  # a number's, its sign included: how many Python itself would read is a setting of the process
Body = dict[str, object]


def step(
    state: State,
    offset: int,
    value: bytes | None,
    headers: Sequence[Header] = (),
    secrets: Mapping[str, bytes] = NO_SECRETS,
) -> tuple[State, Outcome]:
    """The state after one more record of the log, and what became of the record.

    secrets: by key id, those that this reader has. Without that of a listed key it holds at the first command that is
    signed by it: `held` is set then, and no later record changes anything.
    """
    if state.held:
        return state, Outcome(offset, accepted=False, generation=state.generation, detail=state.held, held=True)
    body = _object(value)
    if isinstance(body, Refused):
        return state, Outcome(
            offset, accepted=False, generation=state.generation, rejection=body.why, detail=clean(body.detail)
        )
    if body["topology"] != state.topology:
        return state, Outcome(offset, accepted=False, generation=state.generation, detail="of another topology")
    return _conclude(state, offset, Label.of(body), *_judge(state, offset, value or b"", body, headers, secrets))


def _judge(
    state: State, offset: int, value: bytes, body: Body, headers: Sequence[Header], secrets: Mapping[str, bytes]
) -> tuple[State | Refused | Hold, AnyCommand | None, str | None]:
    """What a record that names this topology comes to, the command that it is, and who signed it."""
    signed = signer(state, offset, value, headers, secrets)
    if isinstance(signed, (Refused, Hold)):
        return signed, None, None
    command = _command(state, body)
    if isinstance(command, Refused):
        return command, None, signed
    after = _untimely(state, command) or _carry_out(state, offset, command)
    return _counted(state, after, offset, command) if isinstance(after, State) else after, command, signed


def _conclude(
    before: State,
    offset: int,
    label: Label,
    after: State | Refused | Hold,
    command: AnyCommand | None,
    signed: str | None,
) -> tuple[State, Outcome]:
    """The state that counts from here on, and what is said of the record."""
    said = partial(Outcome, offset, command=command, label=label, signed_by=signed)
    if isinstance(after, Refused):
        refused, detail = after.why, clean(after.detail)
        return before, said(accepted=False, generation=before.generation, rejection=refused, detail=detail)
    if isinstance(after, Hold):
        held = clean(after.detail)
        return replace(before, held=held), said(accepted=False, generation=before.generation, detail=held, held=True)
    made = after.epochs[-1] if len(after.epochs) > len(before.epochs) else None
    return after, said(accepted=True, generation=after.generation, epoch=made)


# ---- from bytes to a command


def _once(pairs: list[tuple[str, object]]) -> Body:
    """An object, each key once: of two values one reader might take the first, and another the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_int=_whole, parse_constant=_no_number)


_NO_OBJECT = Refused(Rejection.MALFORMED, "no JSON object")


def _object(value: bytes | None) -> Body | Refused:
    """A JSON object that names a topology."""
    if value is None or value.lstrip(b" \t\n\r")[:1] != b"{":
        return _NO_OBJECT
    try:
        body: Body = _DECODER.decode(value.decode())
    except (ValueError, RecursionError) as error:
        return Refused(Rejection.MALFORMED, f"no JSON: {error}")
    if not isinstance(body.get("topology"), str):
        why = "Input should be a valid string" if "topology" in body else "Field required"
        return Refused(Rejection.MALFORMED, f"topology: {why}")
    return body


def _command(state: State, body: Body) -> AnyCommand | Refused:
    version = body.get("schema_version", 1)
    if type(version) is not int or version < 1:
        return Refused(Rejection.MALFORMED, "schema_version: a whole number from 1 on is wanted")
    if version > state.accepts:
        return Refused(Rejection.UNSUPPORTED_VERSION, f"schema_version {version}, {state.accepts} is taken at most")
    kind = body.get("kind")
    form = FORMS.get(version, {}).get(kind) if isinstance(kind, str) else None
    if form is None:
        return Refused(Rejection.UNKNOWN_KIND, f"kind is {kind[:60]!r}" if isinstance(kind, str) else "kind is no text")
    try:
        return form.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return Refused(Rejection.MALFORMED, f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}")


# ---- from a command to a state


def _untimely(state: State, command: AnyCommand) -> Refused | None:
    """What is wrong with any command, whatever it asks for."""
    if command.command_id in state.command_ids:
        return Refused(Rejection.REPLAYED, f"command {command.command_id} was accepted before")
    if not state.initialised and not isinstance(command, Init):
        return Refused(Rejection.NOT_INITIALISED, f"topology {state.topology} has no init yet")
    if state.initialised and isinstance(command, Init):
        return Refused(Rejection.ALREADY_INITIALISED, f"version {state.epochs[0].stable} was put in force by init")
    if not isinstance(command, Kill) and command.expected_generation != state.generation:
        what = f"expected generation {command.expected_generation}, it is {state.generation}"
        return Refused(Rejection.STALE, what)
    return None


def _carry_out(state: State, offset: int, command: AnyCommand) -> State | Refused | Hold:  # noqa: PLR0911  (one a kind)
    match command:
        case Init():
            return versions.init(state, command)
        case Prepare():
            return rollout.prepare(state, offset, command)
        case Kill():
            return versions.kill(state, command)
        case Revive():
            return versions.revive(state, command)
        case Keys():
            return terms.keys(state, command)
        case Upgrade():
            return terms.upgrade(state, command)
        case _:
            return rollout.act(state, command)


def _counted(before: State, after: State, offset: int, command: AnyCommand) -> State:
    """With the command on record, and an epoch if the events go another way by it."""
    epoch, epochs = after.routing(offset), before.epochs
    if not epochs or epoch != replace(epochs[-1], number=offset):
        epochs += (epoch,)  # a third of the time that (*epochs, epoch) takes
    ids = before.command_ids.with_one(command.command_id)
    return replace(after, generation=before.generation + 1, command_ids=ids, epochs=epochs)
