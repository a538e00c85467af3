"""What commands that are sent share: their options, the desk that they are sent from, and what is printed of them."""

from __future__ import annotations

import getpass
import json
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

from streamserve.adapters.control_sender import ControlDesk, Effect, Effects, Readiness, wait_until_ready
from streamserve.adapters.kafka import Clients
from streamserve.cli.common import out, settings, topology_argument
from streamserve.control.commands import AnyCommand
from streamserve.control.outcome import Outcome
from streamserve.control.signature import Key
from streamserve.control.state import Rollout
from streamserve.errors import ControlError, SettingsError
from streamserve.rollouts.heartbeat import Heartbeat
from streamserve.settings import Settings
from streamserve.topology import Topology

_Function = TypeVar("_Function", bound=Callable[..., Any])


def said(command: _Function) -> _Function:
    """Options of every command that is sent."""
    options = (
        click.option("--reason", default="", help="Why; kept in the log."),
        click.option("--actor", default=getpass.getuser, help="Who; your user name unless told."),
        click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for the workers; 0: don't."),
    )
    for option in options:
        command = option(command)
    return topology_argument(command)


class Session:
    """One command of this file: its desk, and what it prints."""

    def __init__(self, topology: Topology, actor: str, reason: str, timeout: float) -> None:
        self.topology, self.timeout = topology, timeout
        self.settings = settings()
        self.clients = Clients(self.settings)
        self.desk = ControlDesk(self.clients, topology.name, signing_key(self.settings))
        self._label = {"actor": actor, "reason": reason}
        if not self.desk.state.initialised:
            raise ControlError(
                f"no version of {topology.name} is in force",
                where="topic streamserve.control",
                mend="`streamserve topology init <topology file> --version <version>`",
            )

    def common(self) -> dict[str, Any]:
        """What every command of a topology carries."""
        return {
            "command_id": str(uuid.uuid4()),
            "topology": self.topology.name,
            "expected_generation": self.desk.state.generation,
            **self._label,
        }

    def of_rollout(self) -> dict[str, Any]:
        return {**self.common(), "rollout_id": self.open().id}

    def open(self) -> Rollout:
        """The open rollout.

        Raises:
            ControlError: there is none.
        """
        found = self.desk.state.rollout
        if found is None:
            raise ControlError(f"no rollout of {self.topology.name} is open", mend="`streamserve rollout start`")
        return found

    def send(self, command: AnyCommand) -> Outcome:
        """Send, print what was sent, and wait until it is in force everywhere.

        Raises:
            ControlError: it was rejected, or is not in force everywhere in time.
        """
        outcome = self.desk.send(command)
        text = json.dumps(command.model_dump(mode="json", exclude_none=True))
        out().print(f"sent, offset {outcome.offset}: {text}", highlight=False, markup=False, soft_wrap=True)
        if outcome.epoch is not None and self.timeout:
            self._wait()
        return outcome

    def _wait(self) -> None:
        effects = Effects(self.clients, self.topology.name, self.topology.source.topic)
        try:
            found = effects.wait(self.desk.state, self.timeout, _tell)
        finally:
            effects.close()
        if not found.whole:
            raise ControlError(
                f"epoch {found.epoch} is {found}; it is not on {list(found.behind)} after {self.timeout:g} s",
                where=f"topic streamserve.progress, topology {self.topology.name}",
                mend="it will be once somebody owns these partitions: `streamserve rollout status` shows who lives",
            )

    def wait_until_ready(self, version: str) -> Readiness:
        """Until every worker that lives has loaded a version; the last look, if that takes longer."""
        return self._wait_until(partial(Readiness.of, version), f"{version} is ready")

    def wait_until_shadowed(self, rollout: str, share: int) -> Readiness:
        """Until the candidate runs as a shadow on every worker that lives; the last look, if that takes longer."""
        return self._wait_until(partial(Readiness.to_shadow, rollout, share), "shadow runs")

    def _wait_until(self, judge: Callable[[tuple[Heartbeat, ...]], Readiness], what: str) -> Readiness:
        return wait_until_ready(self.clients, self.topology.name, judge, self.timeout, _told(what))


def signing_key(settings: Settings) -> Key | None:
    """What commands are signed by from here; None: by nothing.

    Raises:
        SettingsError: the key that is named has no secret.
    """
    name = settings.sign_with
    if name is None:
        return None
    secret = settings.control_secrets.get(name)
    if secret is None:
        raise SettingsError(
            f"commands are to be signed by key {name!r}, whose secret is not known",
            where="STREAMSERVE_SIGN_WITH",
            mend="STREAMSERVE_CONTROL_KEYS names a file with a line `id=secret` for it",
        )
    return Key(name, secret)


def _tell(effect: Effect) -> None:
    out().print(f"  {effect}", highlight=False)


def _told(what: str) -> Callable[[Readiness], None]:
    def tell(found: Readiness) -> None:
        if not found.ready and not found.missing:
            out().print("  no worker lives", highlight=False)
            return
        total = len(found.ready) + len(found.missing)
        out().print(f"  {what} on {len(found.ready)} of {total} workers", highlight=False)
        for worker, why in found.missing.items():
            out().print(f"    {worker}: {why}", highlight=False, markup=False)

    return tell
