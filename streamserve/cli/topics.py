"""`streamserve topics`: the topics of a topology, as they must be and as they are."""

from __future__ import annotations

import click
from rich.table import Table

from streamserve.adapters.kafka import Clients
from streamserve.adapters.topics import Step, Topics, refuse
from streamserve.cli.common import out, settings, topology_argument
from streamserve.topology import Topology

STYLES = {"keep": "dim", "create": "green", "grow": "yellow", "set": "yellow", "refuse": "bold red"}


@click.group()
def topics() -> None:
    """Create and check the topics of a topology."""


@topics.command()
@topology_argument
def plan(topology: Topology) -> None:
    """Show what `apply` would do."""
    _show(Topics(Clients(settings())).plan(topology))


@topics.command()
@topology_argument
@click.option(
    "--replication",
    type=click.IntRange(-1, 32),
    default=-1,
    help="Replicas of new topics; -1: the broker's default.",
)
def apply(topology: Topology, replication: int) -> None:
    """Create what is missing and set what is wrong; refuse what would lose data."""
    found = Topics(Clients(settings()))
    steps = found.plan(topology)
    found.apply(steps, replication)
    _show(steps)


@topics.command()
@topology_argument
def check(topology: Topology) -> None:
    """Exit with an error unless every topic is as it must be."""
    steps = Topics(Clients(settings())).plan(topology)
    refuse(steps, unapplied=True)
    out().print(f"{len(steps)} topics of {topology.name} are as they must be")


def _show(steps: list[Step]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "topic", "holds", "detail"):
        table.add_column(column)
    for step in steps:
        table.add_row(f"[{STYLES[step.action]}]{step.action}[/]", step.topic.name, step.topic.role, step.detail)
    out().print(table)
