"""Which version answered when: stacked shares over time, for a terminal and as a picture. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from rich.table import Table
from rich.text import Text

Shares = Mapping[str, Sequence[int]]  # by version, predictions of each second
ROWS, BAR = 24, 48
STYLES = ("cyan", "green", "red", "yellow")
COLOURS = ("#4c78a8", "#54a24b", "#e45756", "#f2b701")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 860, 300, 56, 70, 34


def table(counts: Shares, notes: Sequence[tuple[float, str]]) -> Table:
    """Shares of the versions, from top to bottom in time, and what was done when. notes: (second, words)."""
    seconds = max(map(len, counts.values()), default=0)
    step = max(1, -(-seconds // ROWS))
    found = Table(title="who answered", box=None, title_justify="left", padding=(0, 2))
    for name in ("second", "", "what was done"):
        found.add_column(name, header_style="dim", justify="right" if name == "second" else "left")
    for start in range(0, seconds, step):
        sums = [sum(of[start : start + step]) for of in counts.values()]
        said = "; ".join(words for second, words in notes if start <= second < start + step)
        found.add_row(str(start), _bar(sums), said)
    found.add_row("", Text("  ").join(Text(f"█ {name}", style=style) for name, style in zip(counts, STYLES)))  # noqa: B905
    return found


def _bar(sums: Sequence[int]) -> Text:
    bar, total, done, drawn = Text(), max(sum(sums), 1), 0, 0
    for count, style in zip(sums, STYLES, strict=False):
        done += count
        until = round(done / total * BAR)
        if count and until == drawn and drawn < BAR:
            until = drawn + 1  # a few keys are to be seen
        bar.append("█" * (until - drawn), style=style)
        drawn = until
    return bar


def svg(counts: Shares, notes: Sequence[tuple[float, str]]) -> str:
    """The same as a picture: seconds to the right, shares up, the moments as lines."""
    seconds = max(map(len, counts.values()), default=0)
    if seconds < 2:  # noqa: PLR2004
        return ""
    across, up = (WIDTH - LEFT - 20) / (seconds - 1), HEIGHT - TOP - BOTTOM
    totals = [max(sum(of[s] for of in counts.values()), 1) for s in range(seconds)]
    floor = [0.0] * seconds
    parts = []
    for (name, of), colour in zip(counts.items(), COLOURS, strict=False):
        roof = [below + n / total for below, n, total in zip(floor, of, totals, strict=True)]
        points = [(s, share) for s, share in enumerate(roof)] + [(s, floor[s]) for s in reversed(range(seconds))]
        drawn = " ".join(f"{LEFT + s * across:.1f},{TOP + (1 - share) * up:.1f}" for s, share in points)
        parts.append(f'<polygon points="{drawn}" fill="{colour}"><title>{escape(name)}</title></polygon>')
        floor = roof
    return _page([*parts, *_axes(seconds, across, up), *_notes(notes, across, up), *_legend(counts)])


def _axes(seconds: int, across: float, up: float) -> list[str]:
    found = [_text(LEFT - 8, TOP + (1 - share / 100) * up + 4, f"{share}%", "end") for share in (0, 50, 100)]
    every = max(10, round(seconds / 8 / 10) * 10)
    found += [_text(LEFT + s * across, HEIGHT - 14, f"{s} s", "middle") for s in range(0, seconds, every)]
    return found


def _notes(notes: Sequence[tuple[float, str]], across: float, up: float) -> list[str]:
    """Lines with words at their tops, on two levels, so that neighbours do not cover each other."""
    found = []
    for place, (second, words) in enumerate(notes):
        x, y = LEFT + second * across, TOP - 8 - 14 * (place % 3)
        found.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y + 2:.1f}" y2="{TOP + up}" stroke="#888" stroke-dasharray="2 3"/>'
        )
        found.append(_text(x + 3, y, words, "start"))
    return found


def _legend(counts: Shares) -> list[str]:
    found = []
    for place, (name, colour) in enumerate(zip(counts, COLOURS, strict=False)):
        x = LEFT + place * 70
        found.append(f'<rect x="{x}" y="6" width="12" height="12" fill="{colour}"/>')
        found.append(_text(x + 17, 16, name, "start"))
    return found


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _page(parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="11" fill="#666">\n' + "\n".join(parts) + "\n</svg>\n"
    )
