"""`streamserve control`: the control log itself, for commands that were written by hand or by a program."""

from __future__ import annotations

import json

import click

from streamserve.adapters.control_sender import ControlDesk
from streamserve.adapters.kafka import Clients
from streamserve.cli.common import out, quiet_pipe, settings, topology_argument
from streamserve.cli.rollout_show import described
from streamserve.cli.sending import signing_key
from streamserve.control.outcome import Outcome, audit
from streamserve.control.signature import Key
from streamserve.control.state import Signing, State
from streamserve.errors import ConfigError, ControlError
from streamserve.topology import Topology


@click.group()
def control() -> None:
    """Send, check and follow the commands of the control log."""


@control.command()
@topology_argument
@click.argument("file", type=click.File("rb"))
def validate(topology: Topology, file: click.utils.LazyFile) -> None:
    """Tell what would become of the command in FILE (- for standard input), and send nothing."""
    desk = ControlDesk(Clients(found := settings()), topology.name, signing_key(found))
    _, outcome = desk.foresee(file.read())
    desk.close()
    if outcome.accepted:
        out().print(f"it would be accepted, as generation {outcome.generation}", highlight=False)
        return
    why = outcome.rejection.value if outcome.rejection else "held" if outcome.held else "of another topology"
    raise ControlError(f"it would not be accepted: {why} {outcome.detail}", where=file.name)


@control.command()
@topology_argument
@click.argument("file", type=click.File("rb"))
@click.option("--anyway", is_flag=True, help="Even if nothing that is sent from here could undo it.")
def send(topology: Topology, file: click.utils.LazyFile, anyway: bool) -> None:
    """Write the command in FILE (- for standard input) as it is, signed if a key is set, and tell what became of it.

    One after which commands from here would not be taken any more is not sent, unless --anyway is given.
    """
    key = signing_key(found := settings())
    desk = ControlDesk(Clients(found), topology.name, key)
    value = file.read()
    if not value.strip():
        raise ConfigError("the file is empty", where=file.name)
    if not anyway:
        _refuse_what_shuts_out(*desk.foresee(value), key, file.name)
    outcome = desk.send_bytes(value)
    desk.close()
    out().print(f"accepted at offset {outcome.offset}, generation {outcome.generation}", highlight=False)


@control.command()
@topology_argument
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line, as in the audit.")
def tail(topology: Topology, follow: bool, as_json: bool) -> None:
    """Print every command of the topology and what became of it."""
    desk = ControlDesk.unread(Clients(settings()), topology.name)
    try:
        with quiet_pipe():
            for record, outcome in desk.judged():
                _print(record.offset, outcome, as_json)
            for record, outcome in desk.follow() if follow else ():
                _print(record.offset, outcome, as_json)
    finally:
        desk.close()


def _refuse_what_shuts_out(after: State, outcome: Outcome, key: Key | None, file: str) -> None:
    if outcome.held:
        raise ControlError(
            f"every reader of the log would hold at it for good: {outcome.detail}",
            where=file,
            mend="nothing was sent; install what it asks for everywhere first, then send it with --anyway",
        )
    if outcome.accepted and after.signing is Signing.REQUIRED and (key is None or key.id not in after.keys):
        mine = f"not by key {key.id!r}" if key else "and nothing that is sent from here is signed"
        raise ControlError(
            f"you would shut yourself out: commands would have to be signed by one of {sorted(after.keys)}, {mine}",
            where=file,
            mend="nothing was sent; name a listed key in STREAMSERVE_SIGN_WITH and its secret in "
            "STREAMSERVE_CONTROL_KEYS, or send it with --anyway",
        )


def _print(offset: int, outcome: Outcome, as_json: bool) -> None:
    if not (outcome.accepted or outcome.rejection or outcome.held):
        return  # another topology's
    if as_json:
        click.echo(json.dumps(audit(outcome)))
        return
    actor, what, why, became = described(outcome)
    out().print(offset, actor, what, why, became, highlight=False)
