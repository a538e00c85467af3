"""What commands do to a rollout: opened by `prepare`, moved by `shift`, ended by `promote` or `rollback`.

A rollout's candidate, salt and rules never change. Whether a change of it becomes a routing epoch is not decided here
but seen from the state that comes of it (`State.routing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import assert_never

from streamserve.control.commands import (
    Approve,
    Pause,
    Prepare,
    Promote,
    Resume,
    Rollback,
    RolloutAction,
    Segment,
    Shadow,
    Shift,
)
from streamserve.control.outcome import Refused, Rejection
from streamserve.control.state import Phase, Rollout, State, Where
from streamserve.records import Rule, Scalar


def prepare(state: State, offset: int, command: Prepare) -> State | Refused:
    """Open a rollout. Nothing is routed to its candidate yet, nor shadowed."""
    rules = state.rules if command.rules is None else rules_of(command.rules)
    refused = _unfit(state, command) or unknown_field(state.segments, (rule.where for rule in rules))
    if refused:
        return refused
    opened = Rollout(
        id=command.rollout_id,
        candidate=command.candidate,
        stable=state.stable,
        opened_at=offset,
        # Of the rollout, lest the same keys be the first to try each candidate; and of the topology
        salt=command.salt or f"{state.salt}/{command.rollout_id}",
        rules=rules,
    )
    pinned = {**dict(state.manifests), command.candidate: command.manifest}
    return replace(state, rollout=opened, manifests=tuple(pinned.items()))


def _unfit(state: State, command: Prepare) -> Refused | None:
    candidate, pinned = command.candidate, state.manifest(command.candidate)
    if state.rollout is not None:
        return Refused(Rejection.BUSY, f"rollout {state.rollout.id} is open")
    if command.rollout_id in state.closed:
        return Refused(Rejection.ROLLOUT_USED, f"rollout {command.rollout_id} has ended: take another id")
    if candidate == state.stable:
        return Refused(Rejection.ALREADY_STABLE, f"version {candidate} is stable")
    if candidate in state.killed:
        return Refused(Rejection.KILLED, f"version {candidate} is killed: revive it first")
    if pinned and pinned != command.manifest:
        what = f"version {candidate} was named with manifest {pinned[:12]}..., not {command.manifest[:12]}..."
        return Refused(Rejection.MANIFEST_DIFFERS, what)
    return None


def act(state: State, command: RolloutAction) -> State | Refused:
    """Change the open rollout, or end it."""
    rollout = state.rollout
    if rollout is None or rollout.id != command.rollout_id:
        which = "none is" if rollout is None else f"{rollout.id} is"
        return Refused(Rejection.NO_ROLLOUT, f"rollout {command.rollout_id} is not open, {which}")
    if isinstance(command, (Promote, Rollback)):
        return _end(state, rollout, command)
    moved = _move(state, rollout, command)
    return moved if isinstance(moved, Refused) else replace(state, rollout=moved)


def _end(state: State, rollout: Rollout, command: Promote | Rollback) -> State | Refused:
    if isinstance(command, Promote) and (refused := _killed(rollout) or _paused(rollout)):
        return refused
    stables = (*state.stables, rollout.candidate) if isinstance(command, Promote) else state.stables
    return replace(state, rollout=None, closed=state.closed | {rollout.id}, stables=stables)


def _move(state: State, rollout: Rollout, command: Shadow | Shift | Pause | Resume | Approve) -> Rollout | Refused:
    match command:
        case Shadow():
            return _shadow(state, rollout, command)
        case Shift():
            return _killed(rollout) or _needless(state, rollout) or _paused(rollout) or _shift(rollout, command)
        case Pause():
            return _killed(rollout) or _pause(rollout)
        case Resume():
            return _killed(rollout) or _resume(rollout)
        case Approve():
            return _killed(rollout) or _approve(rollout, command)
        case _:
            assert_never(command)


def _killed(rollout: Rollout) -> Refused | None:
    if rollout.phase is not Phase.KILLED:
        return None
    return Refused(Rejection.KILLED, f"version {rollout.candidate} is killed: roll back, or revive it")


def _paused(rollout: Rollout) -> Refused | None:
    if rollout.phase is not Phase.PAUSED:
        return None
    return Refused(Rejection.PAUSED, f"rollout {rollout.id} is paused: resume it first")


def _shadow(state: State, rollout: Rollout, command: Shadow) -> Rollout | Refused:
    if command.percent_bp and (refused := _killed(rollout)):
        return refused
    where = where_of(command.where) if command.where and command.percent_bp else None
    if where and (refused := unknown_field(state.segments, [where])):
        return refused
    # 1 == True in Python, and not in an event
    if (command.percent_bp, repr(where)) == (rollout.shadow_bp, repr(rollout.shadow_where)):
        return Refused(Rejection.NOTHING_CHANGES, f"shadow is at {command.percent_bp} bp of this already")
    return replace(rollout, shadow_bp=command.percent_bp, shadow_where=where)


def _needless(state: State, rollout: Rollout) -> Refused | None:
    if rollout.candidate != state.stable:
        return None
    return Refused(Rejection.ALREADY_STABLE, f"version {rollout.candidate} answers for everything as it is")


def _shift(rollout: Rollout, command: Shift) -> Rollout | Refused:
    first = not rollout.shifted and bool(rollout.rules)  # at weight 0 too, its rules come into force
    if command.weight_bp == rollout.weight_bp and not first:
        return Refused(Rejection.NOTHING_CHANGES, f"the weight is {command.weight_bp} bp already")
    return replace(rollout, weight_bp=command.weight_bp, shifted=True, phase=Phase.CANARY)


def _pause(rollout: Rollout) -> Rollout | Refused:
    if rollout.phase is Phase.PAUSED:
        return Refused(Rejection.NOTHING_CHANGES, f"rollout {rollout.id} is paused already")
    return replace(rollout, phase=Phase.PAUSED)


def _resume(rollout: Rollout) -> Rollout | Refused:
    if rollout.phase is not Phase.PAUSED:
        return Refused(Rejection.NOTHING_CHANGES, f"rollout {rollout.id} is not paused")
    return replace(rollout, phase=Phase.CANARY if rollout.shifted else Phase.PREPARED)


def _approve(rollout: Rollout, command: Approve) -> Rollout | Refused:
    if command.step in rollout.approvals:
        return Refused(Rejection.NOTHING_CHANGES, f"step {command.step} is approved already")
    return replace(rollout, approvals=(*rollout.approvals, command.step))


# ---- rules, from the published form to that of routing


def where_of(where: Mapping[str, tuple[Scalar, ...]]) -> Where:
    return tuple(sorted(where.items()))


def rules_of(segments: Iterable[Segment]) -> tuple[Rule, ...]:
    return tuple(Rule(one.name, where_of(one.where), candidate=one.answer == "candidate") for one in segments)


def unknown_field(segments: tuple[str, ...], wheres: Iterable[Where]) -> Refused | None:
    """Workers decode the fields that init lists: of another, one would know the value and its neighbour would not."""
    outside = sorted({path for where in wheres for path, _ in where} - set(segments))
    if not outside:
        return None
    return Refused(Rejection.UNKNOWN_FIELD, f"{outside[0]}: init allows for rules {', '.join(segments) or 'no field'}")
