"""The fold of the control log: commands in, state out, with a reason for each that is not accepted.

Pure and total: any bytes at any offset give a state, so that every worker that reads the same log agrees, and none
is stopped by what somebody wrote. It looks at no clock and no acknowledgement.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, replace

from pydantic import ValidationError

from streamserve.control.commands import KINDS, AnyCommand, Init
from streamserve.records import ControlView, RoutingEpoch


class Rejection(enum.StrEnum):
    MALFORMED = "MALFORMED"  # no JSON object, or not the published form
    UNKNOWN_KIND = "UNKNOWN_KIND"
    REPLAYED = "REPLAYED"  # the command_id was accepted before: a no-op
    STALE = "STALE"  # expected_generation is not the topology's
    NOT_INITIALISED = "NOT_INITIALISED"
    ALREADY_INITIALISED = "ALREADY_INITIALISED"


@dataclass(frozen=True, slots=True)
class State:
    """One topology, after the commands up to an offset.

    generation: how many commands were accepted. epochs: the routing epochs, in order.
    """

    topology: str
    model: str = ""
    fingerprint: str = ""
    generation: int = 0
    epochs: tuple[RoutingEpoch, ...] = ()
    command_ids: frozenset[str] = frozenset()
    manifests: tuple[tuple[str, str], ...] = ()  # (version, sha256 of its manifest), as the commands pinned them

    @property
    def initialised(self) -> bool:
        return bool(self.epochs)

    def view(self) -> ControlView:
        return ControlView(self.topology, self.epochs, generation=self.generation)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record of the log. `detail` is for people."""

    offset: int
    accepted: bool
    command: AnyCommand | None = None
    rejection: Rejection | None = None
    detail: str = ""


def step(state: State, offset: int, value: bytes | None) -> tuple[State, Outcome]:
    """The state after one more record of the log, and what became of the record."""
    command, refused = _parse(offset, value)
    if command is None:
        return state, refused
    if command.topology != state.topology:
        return state, Outcome(offset, accepted=False, command=command, detail="of another topology")
    rejection, detail = _judge(state, command)
    if rejection is not None:
        return state, Outcome(offset, accepted=False, command=command, rejection=rejection, detail=detail)
    return _apply(state, offset, command), Outcome(offset, accepted=True, command=command)


def _parse(offset: int, value: bytes | None) -> tuple[AnyCommand | None, Outcome]:
    def refuse(why: Rejection, detail: str) -> tuple[None, Outcome]:
        return None, Outcome(offset, accepted=False, rejection=why, detail=detail[:300])

    try:
        body = json.loads(value or b"", object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        return refuse(Rejection.MALFORMED, f"no JSON: {error}")
    if not isinstance(body, dict):
        return refuse(Rejection.MALFORMED, "no JSON object")
    kind = body.get("kind")
    if kind != "init":
        known = isinstance(kind, str) and kind in KINDS
        detail = f"this release does not carry out {kind!r}" if known else f"kind is {str(kind)[:60]!r}"
        return refuse(Rejection.UNKNOWN_KIND, detail)
    try:
        return Init.model_validate(body, strict=True), Outcome(offset, accepted=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return refuse(Rejection.MALFORMED, f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object, each key once: of two values one reader might take the first, and another the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _judge(state: State, command: AnyCommand) -> tuple[Rejection | None, str]:
    if command.command_id in state.command_ids:
        return Rejection.REPLAYED, f"command {command.command_id} was accepted before"
    if state.initialised:
        return Rejection.ALREADY_INITIALISED, f"version {state.epochs[0].stable} was put in force by init"
    if command.expected_generation != state.generation:
        return Rejection.STALE, f"expected generation {command.expected_generation}, it is {state.generation}"
    return None, ""


def _apply(state: State, offset: int, command: AnyCommand) -> State:
    return replace(
        state,
        model=command.model,
        fingerprint=command.fingerprint,
        generation=state.generation + 1,
        epochs=(*state.epochs, RoutingEpoch(number=offset, stable=command.stable, salt=command.salt)),
        command_ids=state.command_ids | {command.command_id},
        manifests=(*state.manifests, (command.stable, command.manifest)) if command.manifest else state.manifests,
    )
