"""The terms on which commands are read: who may sign them, and the highest form that is taken.

They are state, changed by command, so that no two readers of one log go by different ones.
"""

from __future__ import annotations

from dataclasses import replace

from streamserve.control.commands import SCHEMA_VERSION, Keys, Upgrade
from streamserve.control.outcome import Hold, Refused, Rejection
from streamserve.control.state import Signing, State


def keys(state: State, command: Keys) -> State | Refused:
    if missing := sorted(set(command.remove) - state.keys):
        return Refused(Rejection.KEY_NOT_LISTED, f"key {missing[0]} is not listed, and can't be removed")
    mode, listed = Signing(command.mode), (state.keys | set(command.add)) - set(command.remove)
    if mode is Signing.REQUIRED and not listed:
        return Refused(Rejection.NO_KEY_LEFT, "signing is required, and no key would be listed")
    if (mode, listed) == (state.signing, state.keys):
        return Refused(Rejection.NOTHING_CHANGES, f"signing is {mode.value}, and these keys are as they were")
    return replace(state, signing=mode, keys=listed)


def upgrade(state: State, command: Upgrade) -> State | Refused | Hold:
    if command.accepts <= state.accepts:
        what = f"schema_version {state.accepts} is taken already, and it is never lowered"
        return Refused(Rejection.NOTHING_CHANGES, what)
    if command.accepts > SCHEMA_VERSION:
        return Hold(
            f"the log was upgraded to schema_version {command.accepts}, this release can do {SCHEMA_VERSION}: "
            "install a newer one"
        )
    return replace(state, accepts=command.accepts)
