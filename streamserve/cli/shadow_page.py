"""A divergence report as one page of HTML: nothing is fetched, nothing runs. What came from records is escaped."""

from __future__ import annotations

from html import escape

from streamserve.cli.page import figure, findings, whole
from streamserve.cli.shadow_tables import Grid, grids
from streamserve.cli.shadow_words import Report, headline, others, period, segment_name, sentences, what_it_is_not
from streamserve.cli.svg import density, forest, histogram, timeline


def page(report: Report) -> str:
    """The whole page."""
    one = report.compared
    title = headline(report)
    about = f"topology {report.topology}, rollout {one.rollout_id}, {period(one)}, {report.records:,} records read"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">{escape(about)}</p>',
        findings((one.text, one.worth_a_look) for one in sentences(report)),
    ]
    parts += _plots(report)
    for grid in grids(report):
        parts += [f"<h2>{escape(grid.title)}</h2>", _table(grid)]
    parts.append(f"<h2>What this can not tell</h2><p>{escape(what_it_is_not(report))}</p>")
    if report.others:
        parts.append(f'<p class="dim">{escape(others(report.others))}</p>')
    return whole(title, parts)


# ---- plots


def _plots(report: Report) -> list[str]:
    one, found, shown = report.compared, report.divergence, report.pictures
    figures = []
    if shown.stable is not None and shown.candidate is not None:
        outside = max(shown.stable.outside, shown.candidate.outside)
        series = ((one.stable, shown.stable), (one.candidate, shown.candidate))
        figures.append(figure("The scores" + _outside(outside), histogram(series, shown.name or "")))
    if shown.difference is not None:
        bars = histogram((("", shown.difference),), f"{one.candidate} - {one.stable}")
        figures.append(figure("Their differences" + _outside(shown.difference.outside), bars))
    if shown.density is not None:
        figures.append(figure("Event by event", density(shown.density, one.stable, one.candidate)))
    rows = [
        (f"{field.name}={segment_name(segment)}", segment.agreement, "agreement" in segment.flags)
        for field in found.fields
        for segment in field.segments
        if segment.agreement.of
    ]
    if rows and found.decisions is not None:
        figures.append(figure("Agreement by segment", forest(rows, found.decisions.agreement)))
    if len(shown.moments) > 1:
        figures.append(figure("Agreement over time", timeline(shown.moments)))
    return [f'<div class="plots">{"".join(figures)}</div>'] if figures else []


def _outside(count: int) -> str:
    return f" ({count:,} events lie outside)" if count else ""


def _table(grid: Grid) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in grid.head)
    lines = []
    for row in grid.rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
        lines.append(f'<tr class="look">{cells}</tr>' if row.worth_a_look else f"<tr>{cells}</tr>")
    body = "".join(lines)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
