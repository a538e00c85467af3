"""Which versions may answer: the first one, the kill that latches, and its end.

The stable version in force is not kept but follows: the last one that was made stable and is not killed. So a kill
falls back, and a revival undoes it, whatever happened in between.
"""

from __future__ import annotations

from dataclasses import replace

from streamserve.control.commands import Init, Kill, Revive
from streamserve.control.outcome import Refused, Rejection
from streamserve.control.rollout import rules_of, unknown_field
from streamserve.control.state import Phase, State


def init(state: State, command: Init) -> State | Refused:
    rules = rules_of(command.rules)
    return unknown_field(command.segments, (rule.where for rule in rules)) or replace(
        state,
        model=command.model,
        fingerprint=command.fingerprint,
        salt=command.salt,
        segments=command.segments,
        rules=rules,
        stables=(command.stable,),
        manifests=((command.stable, command.manifest),),
    )


def kill(state: State, command: Kill) -> State | Refused:
    """The version answers for nothing and is run for nobody. A candidate keeps its weight: stable answers for it."""
    version, killed = command.version, state.killed | {command.version}
    if state.manifest(version) is None:
        return Refused(Rejection.UNKNOWN_VERSION, f"no command ever named version {version}")
    if version in state.killed:
        return Refused(Rejection.ALREADY_KILLED, f"version {version} is killed already")
    if killed.issuperset(state.stables):
        return Refused(Rejection.NO_FALLBACK, f"no stable version but {version} is left to answer")
    rollout = state.rollout
    if rollout is not None and rollout.candidate == version:
        rollout = replace(rollout, phase=Phase.KILLED, shadow_bp=0, shadow_where=None)
    return _settled(state, replace(state, killed=killed, rollout=rollout))


def revive(state: State, command: Revive) -> State | Refused:
    """The version may answer again. A candidate starts anew: paused, at weight 0, its rules not in force."""
    version, rollout = command.version, state.rollout
    if state.manifest(version) is None:
        return Refused(Rejection.UNKNOWN_VERSION, f"no command ever named version {version}")
    if version not in state.killed:
        return Refused(Rejection.NOT_KILLED, f"version {version} is not killed")
    if rollout is not None and rollout.candidate == version:
        rollout = replace(rollout, phase=Phase.PAUSED, weight_bp=0, shifted=False)
    return _settled(state, replace(state, killed=state.killed - {version}, rollout=rollout))


def _settled(before: State, after: State) -> State:
    """A rollout is paused where the stable version changed under it: what it was compared with is another one now."""
    rollout = after.rollout
    if rollout is None or rollout.phase is Phase.KILLED or before.stable == after.stable:
        return after
    return replace(after, rollout=replace(rollout, phase=Phase.PAUSED))
