"""`streamserve drift`: what windows of a stream are held against, and how far they are from it."""

from __future__ import annotations

import json
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamserve.cli.common import html_option, out, settings, topology_argument
from streamserve.cli.drift_reference import definitions, reference
from streamserve.cli.tailing import Row, Tail, tail_options
from streamserve.errors import ConfigError, StreamserveError
from streamserve.topology import Topology

if TYPE_CHECKING:
    from streamserve.cli.drift_report import DriftReport

_NO_WINDOW = (
    "give the topology drift=Drift(window=...), and its versions a reference: `streamserve drift reference`; the first "
    "window is told when event time has passed its end in every partition"
)


@click.group()
def drift() -> None:
    """Watch what a model is fed, and what it says, for drift."""


drift.add_command(reference)
drift.add_command(definitions)


@drift.command()
@topology_argument
@click.option("--version", help="Of this version; of the one that was told of last unless named.")
@click.option("--segment", metavar="VALUE", help="Of this value of the segment field; of all events unless named.")
@click.option("--last", type=click.IntRange(min=1), default=60, show_default=True, help="Windows at most.")
@click.option("--all", "everything", is_flag=True, help="The measures too that are as the reference.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all windows.")
@html_option
def report(
    topology: Topology,
    version: str | None,
    segment: str | None,
    last: int,
    everything: bool,
    as_json: bool,
    html: Path | None,
) -> None:
    """Tell how far windows of TOPOLOGY_FILE are from their reference, what moved, and since when.

    What each figure means stands in docs/drift.md.
    """
    from streamserve.cli.drift_report import headline, page, show

    told = _report(topology, version, segment, last)
    if html is not None:
        html.write_text(page(told), "utf-8")
        out().print(f"{headline(told)}; {html}", highlight=False)
    elif as_json:
        click.echo(json.dumps(told.plain(), ensure_ascii=False))
    else:
        show(out(), told, everything=everything)


def _report(topology: Topology, version: str | None, segment: str | None, last: int) -> DriftReport:
    from streamserve.adapters.drift_topics import read_windows
    from streamserve.adapters.kafka import Clients
    from streamserve.adapters.reading import Start
    from streamserve.cli.drift_report import DriftReport
    from streamserve.drift.history import history, series_in
    from streamserve.models.registry import Registry
    from streamserve.simulate.tallying import read_reference

    found, topic = settings(), topology.topic("drift")
    windows = read_windows(Clients(found), topic, Start("beginning"))
    told = series_in(windows)
    series = [one for one in told if version in (None, one.version) and one.segment == segment]
    if not series:
        there = "; ".join(dict.fromkeys(one.name for one in sorted(told, key=attrgetter("order"))))
        asked = " ".join(filter(None, (topology.name, version, segment)))
        raise ConfigError(
            f"there is no window of {asked}",
            where=topic,
            mend=f"there are windows of {there}" if there else _NO_WINDOW,
        )
    chosen = series[-1]
    try:
        reference = read_reference(Registry(found.registry), topology.model, chosen.version)
    except StreamserveError:  # the figures stand without it
        reference = None
    if reference is not None and reference.fingerprint != chosen.reference:
        reference = None
    parts = [one for one in told if segment is None and one.segment and replace(one, segment=None) == chosen]
    return DriftReport(
        topology.name,
        topology.model,
        history(windows, chosen, last),
        reference,
        tuple(history(windows, one, last) for one in sorted(parts, key=attrgetter("order"))),
    )


@drift.command()
@topology_argument
@tail_options
def watch(topology: Topology, tail: Tail) -> None:
    """Follow the windows of TOPOLOGY_FILE as they are told, a line each."""
    from streamserve.cli.drift_report import bare, moment
    from streamserve.drift.history import series_of

    def cells(row: Row) -> list[str]:
        over = [one for one in row["measures"] if one["status"] in ("ALERT", "WARN")]
        worst = sorted(over, key=lambda one: -one["psi"])[:3]
        told = ", ".join(f"{bare(one['measure'])} {one['psi']:.3f}" for one in worst)
        status = row["status"] + ("" if row["complete"] else ", incomplete")
        status += f", revision {row['revision']}" if row["revision"] else ""
        return [
            moment(row["start"]), moment(row["end"]), series_of(row).name, f"{row['rows']:,}",
            status, f"{len(over)} of {len(row['measures'])}", told,
        ]  # fmt: skip

    columns = ("from", "to (UTC)", "version", "events", "status", "over", "most")
    tail.show(topology.topic("drift"), lambda _: True, columns, cells)
