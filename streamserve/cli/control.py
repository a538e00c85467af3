"""`streamserve control`: the control log itself, for commands that were written by hand or by a program."""

from __future__ import annotations

import json

import click

from streamserve.adapters.control_sender import ControlDesk
from streamserve.adapters.kafka import Clients
from streamserve.cli.common import out, quiet_pipe, settings, topology_argument
from streamserve.cli.rollout_show import described
from streamserve.cli.sending import signing_key
from streamserve.control import fold
from streamserve.control.outcome import audit
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
    value = file.read()
    headers = desk.headers_for(value)
    _, outcome = fold.step(desk.state, desk.end, value, headers, found.control_secrets)
    desk.close()
    if outcome.accepted:
        out().print(f"it would be accepted, as generation {outcome.generation}", highlight=False)
        return
    why = outcome.rejection.value if outcome.rejection else "held" if outcome.held else "of another topology"
    raise ControlError(f"it would not be accepted: {why} {outcome.detail}", where=file.name)


@control.command()
@topology_argument
@click.argument("file", type=click.File("rb"))
def send(topology: Topology, file: click.utils.LazyFile) -> None:
    """Write the command in FILE (- for standard input) as it is, signed if a key is set, and tell what became of it."""
    desk = ControlDesk(Clients(found := settings()), topology.name, signing_key(found))
    value = file.read()
    if not value.strip():
        raise ConfigError("the file is empty", where=file.name)
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


def _print(offset: int, outcome: fold.Outcome, as_json: bool) -> None:
    if not (outcome.accepted or outcome.rejection or outcome.held):
        return  # another topology's
    if as_json:
        click.echo(json.dumps(audit(outcome)))
        return
    actor, what, why, became = described(outcome)
    out().print(offset, actor, what, why, became, highlight=False)
