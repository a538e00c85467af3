"""A divergence report for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamserve.cli.common import print_whole
from streamserve.cli.letters import harmless
from streamserve.cli.shadow_tables import Grid, grids
from streamserve.cli.shadow_words import Report, headline, others, period, sentences, what_it_is_not

LOOK = "yellow"


def show(console: Console, report: Report) -> None:
    """Findings that are worth a look begin with an exclamation mark."""
    one = report.compared
    _line(console, headline(report), "bold")
    _line(console, f"topology {report.topology}  rollout {one.rollout_id}  {period(one)}", "dim")
    console.print()
    for sentence in sentences(report):
        look = sentence.worth_a_look
        _line(console, f"{'!' if look else ' '} {sentence.text}", LOOK if look else "")
    for grid in grids(report):
        console.print()
        _line(console, grid.title, "bold")
        print_whole(console, _table(grid))
    console.print()
    _line(console, what_it_is_not(report), "dim")
    if report.others:
        _line(console, others(report.others), "dim")


def _line(console: Console, text: str, style: str) -> None:
    console.print(Text(harmless(text), style=style))


def _table(grid: Grid) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, name in enumerate(grid.head):
        table.add_column(Text(harmless(name)), justify="right" if number else "left", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(harmless(cell)) for cell in row.cells), style=LOOK if row.worth_a_look else None)
    return table
