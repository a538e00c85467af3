"""A divergence report as one page of HTML: nothing is fetched, nothing runs. What came from records is escaped."""

from __future__ import annotations

from html import escape

from streamserve.cli.shadow_tables import Grid, grids
from streamserve.cli.shadow_words import Report, headline, others, period, segment_name, sentences, what_it_is_not
from streamserve.cli.svg import density, forest, histogram, timeline

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --ink: #1c2430; --dim: #667082; --line: #dfe3ea; --card: #f5f7fa;
  --a: #3668c9; --b: #d9822b; --flag: #c2303a; --mark: #fdeeee; }
@media (prefers-color-scheme: dark) { :root { --back: #14181f; --ink: #e4e8ef; --dim: #98a2b3; --line: #303845;
  --card: #1b212b; --a: #7ba4f4; --b: #f0a35a; --flag: #ff7b84; --mark: #3a2125; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 3rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; } .dim { color: var(--dim); fill: var(--dim); }
ul.findings { list-style: none; margin: 1.2rem 0; padding: 0; }
ul.findings li { padding: .35rem .8rem; border-left: 3px solid var(--line); margin: .3rem 0; background: var(--card);
  overflow-wrap: anywhere; }
ul.findings li.look { border-color: var(--flag); background: var(--mark); }
.plots { display: flex; flex-wrap: wrap; gap: 1.2rem; } figure { margin: 0; max-width: 100%; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
svg { max-width: 100%; height: auto; font: 11px system-ui, "Segoe UI", Arial, sans-serif; fill: var(--ink); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table { font-size: 13px; }
th, td { padding: .25rem .7rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
th { font-weight: 600; } tr.look td { color: var(--flag); }
.grid { stroke: var(--line); stroke-width: 1; } .axis { stroke: var(--dim); stroke-width: 1; }
.label { fill: var(--dim); } .zero { stroke: var(--dim); stroke-width: 1; stroke-dasharray: 4 3; }
.equal { stroke: var(--flag); stroke-width: 1; stroke-dasharray: 4 3; }
.a { fill: var(--a); fill-opacity: .35; stroke: var(--a); } .b { fill: var(--b); fill-opacity: .35; stroke: var(--b); }
.i-a { stroke: var(--a); stroke-width: 2; } .p-a { fill: var(--a); } .band { fill: var(--a); fill-opacity: .22; }
.i-flag { stroke: var(--flag); stroke-width: 2; } .p-flag, .flagged { fill: var(--flag); }
@media print { :root { color-scheme: light; --back: #ffffff; --ink: #000000; --dim: #555555; --line: #cccccc;
  --card: #ffffff; --a: #3668c9; --b: #d9822b; --flag: #c2303a; --mark: #fdeeee; }
  figure, tr, li { break-inside: avoid; } h2 { break-after: avoid; } body { padding: 0; }
  .plots { display: block; } figure { margin-bottom: 1rem; } .wide { overflow-x: visible; } table { font-size: 9.5px; }
  th, td { padding-right: .4rem; } }
""" + "".join(f".t{tone} {{ fill: var(--a); fill-opacity: {tone / 8:.2f}; }}\n" for tone in range(1, 9))


def page(report: Report) -> str:
    """The whole page."""
    one = report.compared
    title = headline(report)
    about = f"topology {report.topology}, rollout {one.rollout_id}, {period(one)}, {report.records:,} records read"
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="dim">{escape(about)}</p>', _findings(report), *_plots(report)]
    for grid in grids(report):
        parts += [f"<h2>{escape(grid.title)}</h2>", _table(grid)]
    parts.append(f"<h2>What this can not tell</h2><p>{escape(what_it_is_not(report))}</p>")
    if report.others:
        parts.append(f'<p class="dim">{escape(others(report.others))}</p>')
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _findings(report: Report) -> str:
    items = "".join(
        f'<li class="look">{escape(one.text)}</li>' if one.worth_a_look else f"<li>{escape(one.text)}</li>"
        for one in sentences(report)
    )
    return f'<ul class="findings">{items}</ul>'


# ---- plots


def _plots(report: Report) -> list[str]:
    one, found, shown = report.compared, report.divergence, report.pictures
    figures = []
    if shown.stable is not None and shown.candidate is not None:
        outside = max(shown.stable.outside, shown.candidate.outside)
        series = ((one.stable, shown.stable), (one.candidate, shown.candidate))
        figures.append(_figure("The scores" + _outside(outside), histogram(series, shown.name or "")))
    if shown.difference is not None:
        bars = histogram((("", shown.difference),), f"{one.candidate} - {one.stable}")
        figures.append(_figure("Their differences" + _outside(shown.difference.outside), bars))
    if shown.density is not None:
        figures.append(_figure("Event by event", density(shown.density, one.stable, one.candidate)))
    rows = [
        (f"{field.name}={segment_name(segment)}", segment.agreement, "agreement" in segment.flags)
        for field in found.fields
        for segment in field.segments
        if segment.agreement.of
    ]
    if rows and found.decisions is not None:
        figures.append(_figure("Agreement by segment", forest(rows, found.decisions.agreement)))
    if len(shown.moments) > 1:
        figures.append(_figure("Agreement over time", timeline(shown.moments)))
    return [f'<div class="plots">{"".join(figures)}</div>'] if figures else []


def _outside(count: int) -> str:
    return f" ({count:,} events lie outside)" if count else ""


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def _table(grid: Grid) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in grid.head)
    lines = []
    for row in grid.rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
        lines.append(f'<tr class="look">{cells}</tr>' if row.worth_a_look else f"<tr>{cells}</tr>")
    body = "".join(lines)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
