"""`streamserve predictions verify`: who scored recorded events, why and how, worked out again and compared."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streamserve.cli.common import out, print_whole, settings, topology_argument
from streamserve.cli.progress import progress
from streamserve.errors import ConfigError
from streamserve.settings import instant_ms
from streamserve.simulate.verify import Report, Verdict
from streamserve.topology import Topology

if TYPE_CHECKING:
    from streamserve.adapters.verifying import Range

DIFFERS = 1
TOLD = {
    Verdict.AGREES: "agree, bit for bit",
    Verdict.FELL_BACK: "fell back, and are stable's answer (which ones, no log foretells)",
    Verdict.DEAD_LETTER: "are dead letters, and would be again",
    Verdict.WAITING: "are not answered yet",
    Verdict.CHANGED: "are routed alike, and their features have another status now: scores not compared",
    Verdict.MISSING: "are MISSING: neither a prediction nor a dead letter",
    Verdict.DIFFERS: "DIFFER",
}


@click.command()
@topology_argument
@click.option(
    "--from",
    "since",
    default="beginning",
    show_default=True,
    help="The first source events: beginning, -N (the last N of each partition) or an ISO time (UTC without a zone).",
)
@click.option("--until", help="Up to this ISO time of the source events, which is not among them.")
@click.option("--last", type=click.IntRange(min=1), help="The last N committed events of each partition.")
@click.option(
    "--batch-rows", type=click.IntRange(1, 100_000), help="Events scored together; those of the worker if not."
)
@click.option("--ignore-scores", is_flag=True, help="Compare who answers and why, not what is said.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def verify(
    topology: Topology,
    since: str,
    until: str | None,
    last: int | None,
    batch_rows: int | None,
    ignore_scores: bool,
    as_json: bool,
) -> None:
    """Score the events of TOPOLOGY_FILE again, and compare with the predictions that stand.

    From the topics alone: the source, both logs, the registry and the rows that Redis has now. No group is joined and
    nothing is written. Compared are version, variant, reason, rollout, control epoch, feature status, decision and the
    bits of the scores; of several records of an event the one of the highest control epoch. Exit code 1 if something
    differs or is missing, or if there was nothing to compare.
    """
    from streamserve.adapters.verifying import Verifying

    found = settings()
    verifying = Verifying(topology, found, _range(since, until, last), ignore_scores=ignore_scores)
    try:
        with progress(None, "records", "read") as tell:
            verifying.read(tell)
        with progress(verifying.count, "events", "compared") as tell:
            report = verifying.compare(batch_rows or found.batch_rows, tell)
    finally:
        verifying.close()
    if as_json:
        click.echo(json.dumps(report.plain(), ensure_ascii=False, indent=2))
    else:
        _show(out(), report)
    if not report.good:
        sys.stdout.flush()
        raise click.exceptions.Exit(DIFFERS)


def _range(since: str, until: str | None, last: int | None) -> Range:
    from streamserve.adapters.reading import Start
    from streamserve.adapters.verifying import Range

    start = Start.parse(since)
    if start.kind == "last":
        last, start = min(start.value, last or start.value), Start("beginning")
    try:
        return Range(start, None if until is None else instant_ms(until), last)
    except ValueError:
        raise ConfigError(f"--until {until!r} is no ISO time", mend="e.g. --until 2026-01-31T06:00:00Z") from None


def _show(console: Console, report: Report) -> None:
    console.print(f"[bold]{report.events:,} events[/] scored again, in {report.batches:,} batches", highlight=False)
    for verdict, told in TOLD.items():
        if count := report.verdicts[verdict]:
            style = "red" if verdict >= Verdict.MISSING else "yellow" if verdict == Verdict.CHANGED else "default"
            console.print(f"  [{style}]{count:>12,}[/]  {told}", highlight=False)
    for count, told in (
        (report.strays, "[red]predictions or dead letters of NO EVENT[/] that the source topic has"),
        (report.unreadable, "[red]records[/] of the predictions topic [red]that are no predictions[/]"),
        (report.repeated, "records stood there besides, of events that were answered again"),
    ):
        if count:
            console.print(f"  {count:>12,}  {told}", highlight=False)
    console.print(
        f"{len(report.epochs)} control epochs; {report.changes} changes of epoch inside a batch", highlight=False
    )
    for version, why in report.unloadable.items():
        console.print(f"[yellow]{escape(version)} can't be loaded any more:[/] {escape(why)}", highlight=False)
    if report.examples:
        print_whole(console, _examples(report))
    _explain(console, report)


def _examples(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("prediction", "field", "stands there", "said again"):
        table.add_column(column, overflow="fold")
    for one in report.examples:
        for name, (there, now) in one.fields.items():
            table.add_row(escape(one.prediction_id), name, escape(_text(there)), escape(_text(now)))
    return table


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _explain(console: Console, report: Report) -> None:
    if not report.events:
        console.print("[red]there was nothing to compare:[/] no event in this range is committed", highlight=False)
    if report.verdicts[Verdict.CHANGED] or report.scores_alone:
        console.print(
            "Redis keeps the latest rows only: where rows were written anew since, or Redis did not answer then, other "
            "features are scored now. --ignore-scores compares routing alone.",
            highlight=False,
        )
    if report.scores_alone:
        console.print(
            f"{report.scores_alone:,} of those that differ do so in score or decision alone, and read stored rows.",
            highlight=False,
        )
    if report.good:
        console.print("[green]nothing differs[/]", highlight=False)
