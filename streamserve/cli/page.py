"""One page of HTML: nothing is fetched, nothing runs, light and dark. What is text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

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


def whole(title: str, parts: Sequence[str], more_style: str = "") -> str:
    """The page. parts: elements, one after the other."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{more_style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def findings(told: Iterable[tuple[str, bool]]) -> str:
    """Sentences, and whether each is worth a look."""
    items = (f'<li class="look">{escape(text)}</li>' if look else f"<li>{escape(text)}</li>" for text, look in told)
    return f'<ul class="findings">{"".join(items)}</ul>'


def figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"
