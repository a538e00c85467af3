"""A drift report as a table with sparklines, and as one page of HTML: nothing is fetched, nothing runs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from streamserve.cli.common import print_whole
from streamserve.cli.page import figure, findings, whole
from streamserve.cli.svg import heat_map, shares
from streamserve.drift.history import History, Track, excess
from streamserve.drift.reference import Reference
from streamserve.simulate.explain import iso

BARS = "▁▂▃▄▅▆▇█"
COLOURS = {"ALERT": "bold red", "WARN": "yellow", "OK": "green", "INSUFFICIENT": "dim", "NO_REFERENCE": "dim"}
QUIET = {"OK": "measures as the reference: {:,}", "INSUFFICIENT": "measures with too few events to tell: {:,}"}
SPARKS = 24  # windows of a sparkline
NUMBER = re.compile(r"-?\d[\d.]*(e[+-]?\d+)?")
PLOTS = 12  # measures whose distribution is drawn
MORE_STYLE = ".none { fill: var(--line); }\n" + "".join(
    f".f{tone} {{ fill: var(--flag); fill-opacity: {0.3 + 0.7 * tone / 6:.2f}; }}\n" for tone in range(1, 7)
)


@dataclass(frozen=True, slots=True)
class DriftReport:
    """reference: what the windows were held against; None: it is not to be had any more. parts: segments of them."""

    topology: str
    model: str
    history: History
    reference: Reference | None
    parts: tuple[History, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "topology": self.topology,
            "model": self.model,
            "version": self.history.series.version,
            "segment": self.history.series.segment,
            "reference": self.history.series.reference,
            "reference_rows": None if self.reference is None else self.reference.rows,
            "reference_source": None if self.reference is None else self.reference.source,
            "alerts": [{"measure": one, "since": since} for one, since in self.history.alerts.items()],
            "segments": {part.series.segment: {"alerts": list(part.alerts)} for part in self.parts},
            "windows": [{**one, "counts": [int(n) for n in one["counts"]]} for one in self.history.windows],
        }


def headline(report: DriftReport) -> str:
    of, last = report.history.series, report.history.windows[-1]
    about, alerts = f"{report.model} {of.name}", list(report.history.alerts)
    if last["status"] == "NO_REFERENCE":
        return f"{about} has no drift reference: its windows are not compared"
    if not report.history.told:
        return f"{about}: too few events in each of {len(report.history.windows)} windows to tell of drift"
    if not alerts:
        return f"{about}: no drift in {len(report.history.windows)} windows up to {moment(last['end'])}"
    many = f"{len(alerts)} of {len(report.history.tracks)} measures have drifted"
    return f"{about}: {many}, {bare(alerts[0])} most"


def sentences(report: DriftReport) -> list[tuple[str, bool]]:
    """What has drifted, and what else there is to know; and whether it is worth a look."""
    found = []
    for one in report.history.tracks:
        since, now = one.since(report.history.windows), one.latest
        if since is not None and now is not None:
            told = f"PSI {now['psi']:.3f} (noise {now['noise']:.3f}); {moved(now)}"
            found.append((f"{bare(one.measure)} since {moment(since)}: {told}", True))
    return found + remarks(report)


def remarks(report: DriftReport) -> list[tuple[str, bool]]:
    """What there is to know of the windows themselves."""
    windows, found = report.history.windows, list[tuple[str, bool]]()
    lacking = sum(1 for one in windows if not one["complete"])
    if lacking:
        found.append((f"{lacking} of {len(windows)} windows are incomplete: events of theirs were not counted", True))
    for name, told in (
        ("late", "events came after their window had closed, and are in none"),
        ("wild", "events had times that were not believed"),
        ("shed", "events were not counted"),
    ):
        if many := sum(one[name] for one in windows):
            found.append((f"{many:,} {told}", True))
    for part in report.parts:
        if part.alerts:
            many = f"{len(part.alerts)} of {len(part.tracks)} measures have drifted"
            found.append((f"{part.series.segment}: {many}, {bare(next(iter(part.alerts)))} most", True))
    for what, is_told in (("no drift in", True), ("too few events in windows of", False)):
        calm = [str(one.series.segment) for one in report.parts if not one.alerts and one.told is is_told]
        if calm:
            found.append((f"{what} {', '.join(calm)}", False))
    reference = report.reference
    if reference is not None:
        found.append((f"held against {reference.rows:,} events of {reference.source}", False))
    return found


def moved(one: Mapping[str, Any]) -> str:
    """What changed most, in words."""
    return ", ".join(
        f"{short(each['bin'])} {percent(each['before'])} -> {percent(each['after'])}" for each in one["moved"][:2]
    )


def short(bin_: str) -> str:
    """A bin with the digits that people look at."""
    return NUMBER.sub(lambda found: f"{float(found[0]):.4g}", bin_) if bin_.startswith("(") else bin_


def percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.0005 or not share else f"{100 * share:.2g}%"  # noqa: PLR2004


def bare(measure: str) -> str:
    """A feature goes by its name alone."""
    return measure.removeprefix("feature:")


def moment(ms: int) -> str:
    return iso(ms)[:16].replace("T", " ")


# ---- in the terminal


def show(console: Console, report: DriftReport, *, everything: bool) -> None:
    windows = report.history.windows
    console.print(f"[bold]{plain(headline(report))}[/]", highlight=False)
    for text, look in remarks(report):
        console.print(f"  {'[yellow]' if look else '[dim]'}{plain(text)}[/]", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, how in (("measure", "left"), ("", "left"), ("PSI", "right"), ("limit", "right"), ("p", "right")):
        table.add_column(name, justify="right" if how == "right" else "left", no_wrap=name != "measure")
    table.add_column("status")
    table.add_column("moved most")
    hidden = Counter[str]()
    for one in report.history.tracks:
        now = one.latest
        if now is None or (now["status"] in QUIET and not everything):
            hidden["INSUFFICIENT" if now is None else now["status"]] += 1
        else:
            table.add_row(*_cells(one, now))
    if table.row_count:
        print_whole(console, table)
    for status, many in sorted(hidden.items()):
        console.print(f"[dim]{QUIET[status].format(many)} (--all shows them)[/]", highlight=False)
    first, last = windows[0], windows[-1]
    rows = sum(one["rows"] for one in windows)
    console.print(
        f"[dim]{len(windows)} windows, {moment(first['start'])} to {moment(last['end'])} UTC of event time, "
        f"{rows:,} events[/]",
        highlight=False,
    )


def _cells(one: Track, now: Mapping[str, Any]) -> tuple[str, ...]:
    status = now["status"]
    return (
        plain(bare(one.measure)),
        sparkline(one),
        number(now["psi"]),
        number(now["limit"]),
        "" if now["p"] is None else f"{now['p']:.2g}",
        f"[{COLOURS[status]}]{status}[/]",
        plain(moved(now)),
    )


def sparkline(one: Track) -> str:
    """PSI in parts of its limit, by its logarithm: half of the height is the limit."""
    found = ""
    for value in one.of[-SPARKS:]:
        part = excess(value)
        if part is None:
            found += " "
            continue
        place = min(max(0.5 + math.log2(max(part, 1e-9)) / 8, 0.0), 0.999)
        found += f"[{'red' if part > 1 else 'green'}]{BARS[int(place * len(BARS))]}[/]"
    return found


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


# ---- as a page


def page(report: DriftReport) -> str:
    """The whole page."""
    title, windows = headline(report), report.history.windows
    about = (
        f"topology {report.topology}, {len(windows)} windows, {moment(windows[0]['start'])} to "
        f"{moment(windows[-1]['end'])} UTC of event time, {sum(one['rows'] for one in windows):,} events"
    )
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="dim">{escape(about)}</p>', findings(sentences(report))]
    rows = [(bare(one.measure), [excess(each) for each in one.of]) for one in report.history.tracks]
    if rows:
        moments = [(one["start"], one["end"]) for one in windows]
        parts.append("<h2>PSI in parts of its limit</h2>")
        parts.append(
            '<p class="dim">Blue is as the reference, darker nearer to the limit that chance alone hardly reaches. Red '
            "is beyond it, darker with each doubling.</p>"
        )
        parts.append(f'<div class="wide">{heat_map(rows, moments)}</div>')
    figures = _figures(report)
    if figures:
        parts.append(f"<h2>The reference, and the window from {escape(moment(windows[-1]['start']))}</h2>")
        parts.append(f'<div class="plots">{"".join(figures)}</div>')
    return whole(title, parts, MORE_STYLE)


def _figures(report: DriftReport) -> list[str]:
    reference, last = report.reference, report.history.windows[-1]
    if reference is None or len(last["counts"]) != reference.offsets[-1] or not last["counted"]:
        return []
    measures, _ = reference.of(report.history.series.segment)
    places = {one.key: number for number, one in enumerate(measures)}
    found = []
    for one in report.history.tracks[:PLOTS]:
        measure, first = measures[places[one.measure]], reference.offsets[places[one.measure]]
        counts = last["counts"][first : first + len(measure.bins)]
        rows, n = max(1, measure.rows), max(1, int(counts.sum()))
        bins = [
            (short(name), before / rows, int(after) / n)
            for name, before, after in zip(measure.bins, measure.counts, counts, strict=True)
            if before or after
        ]
        if bins:
            found.append(figure(bare(one.measure), shares(bins, ("reference", "window"))))
    return found
