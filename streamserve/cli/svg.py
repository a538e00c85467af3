"""Small plots as inline SVG: bars, a density, intervals and a line over time. Numbers in, one element out.

Written by hand: seven plots of some hundred marks need no library, and a page without scripts can be mailed. Colours
are classes that the page gives, so that light and dark need no second plot. What is text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from streamserve.rollouts.pictures import Bars, Density, Moment
from streamserve.rollouts.statistics import Share
from streamserve.simulate.explain import iso

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
TICKS = 5
CHARACTER = 6.4  # about the width of one
ROW = 22  # of the intervals
NAME_CHARACTERS = 22
COUNTS = 76  # room for the events of each
TONES = 8  # of a density
CELL = 15  # a row of a heat map
FLAGGED_TONES = 6
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class _Axis:
    """From numbers to places between two ends."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        if self.high <= self.low:
            return (self.start + self.end) / 2
        part = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Round numbers within."""
        span = self.high - self.low
        if not span > 0:
            return [self.low]
        step = 10.0 ** math.floor(math.log10(span / TICKS))
        step *= next(many for many in (1, 2, 5, 10) if span / (step * many) <= TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def histogram(series: Sequence[tuple[str, Bars]], label: str) -> str:
    """Bars of the same edges over each other. series: name and bars, in classes a, b."""
    edges = series[0][1].edges
    most = max(max(bars.counts) for _, bars in series) or 1
    x, y = (
        _Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT),
        _Axis(0, most, HEIGHT - BOTTOM, TOP + 18 * (len(series) > 1)),
    )
    parts = _grid(x, y, label, "events")
    for number, (_, bars) in enumerate(series):
        parts.append(f'<path class="{"ab"[number]}" d="{_outline(bars, x, y)}"/>')
    if len(series) > 1:
        parts += _legend([name for name, _ in series])
    elif edges[0] < 0 < edges[-1]:
        parts.append(f'<line class="zero" x1="{x.at(0):.1f}" x2="{x.at(0):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    return _svg(parts, HEIGHT, f"histogram of {label}")


def _outline(bars: Bars, x: _Axis, y: _Axis) -> str:
    floor = y.at(0)
    path = [f"M{x.at(bars.edges[0]):.1f} {floor:.1f}"]
    for count, left, right in zip(bars.counts, bars.edges, bars.edges[1:], strict=False):
        path.append(f"L{x.at(left):.1f} {y.at(count):.1f}L{x.at(right):.1f} {y.at(count):.1f}")
    return "".join(path) + f"L{x.at(bars.edges[-1]):.1f} {floor:.1f}Z"


def density(found: Density, stable: str, candidate: str) -> str:
    """Events by both scores: darker where there are more, by their logarithm; on the line both are equal."""
    x = _Axis(found.low, found.high, LEFT, WIDTH - RIGHT)
    height = TOP + (WIDTH - LEFT - RIGHT) + BOTTOM
    y = _Axis(found.low, found.high, height - BOTTOM, TOP)
    parts = _grid(x, y, stable, candidate)
    side = (WIDTH - LEFT - RIGHT) / len(found.counts)
    most = math.log1p(max(map(max, found.counts)))
    for column, cells in enumerate(found.counts):
        for row, count in enumerate(cells):
            if count:
                tone = max(1, math.ceil(TONES * math.log1p(count) / most))
                place = f'x="{LEFT + column * side:.1f}" y="{height - BOTTOM - (row + 1) * side:.1f}"'
                parts.append(
                    f'<rect class="t{tone}" {place} width="{side:.1f}" height="{side:.1f}">'
                    f"<title>{count:,} events</title></rect>"
                )
    ends = f'x1="{LEFT}" y1="{height - BOTTOM}" x2="{WIDTH - RIGHT}" y2="{TOP}"'
    parts.append(f'<line class="equal" {ends}/>')
    return _svg(parts, height, f"{candidate} by {stable}")


def forest(rows: Sequence[tuple[str, Share, bool]], whole: Share) -> str:
    """Agreement of parts with its interval, a row each; the line is that of all events. rows: name, share, flagged."""
    left = 14 + CHARACTER * min(NAME_CHARACTERS, max(len(name) for name, _, _ in rows))
    low = min(whole.low, *(share.low for _, share, _ in rows))
    high = max(whole.high, *(share.high for _, share, _ in rows))
    room = 0.05 * (high - low) or 0.01
    x = _Axis(max(0.0, low - room), min(1.0, high + room), left, WIDTH - COUNTS)
    height = TOP + ROW * len(rows) + BOTTOM
    parts = [*_x_ticks(x, height - BOTTOM, percents=True), _label(x, height, "agreement")]
    at = x.at(whole.value)
    parts.append(f'<line class="zero" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
    for number, (name, share, flagged) in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        kind = "flag" if flagged else "a"
        short = _shortened(name, NAME_CHARACTERS)
        ends = f'x1="{x.at(share.low):.1f}" x2="{x.at(share.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"'
        parts.append(_text(left - 8, y + 4, short, "flagged" if flagged else "", "end", title=name))
        parts.append(f'<line class="i-{kind}" {ends}/>')
        parts.append(f'<circle class="p-{kind}" cx="{x.at(share.value):.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(_text(WIDTH - RIGHT, y + 4, f"{share.of:,}", "dim", "end"))
    parts.append(_text(WIDTH - RIGHT, height - BOTTOM + 16, "events", "dim", "end"))
    return _svg(parts, height, "agreement by segment")


def timeline(moments: Sequence[Moment]) -> str:
    """Agreement over time with its interval; a gap is a time without events."""
    width, first, last = 2 * WIDTH, moments[0].start, moments[-1].end
    x = _Axis(first, last, LEFT, width - RIGHT)
    low, high = min(one.agreement.low for one in moments), max(one.agreement.high for one in moments)
    y = _Axis(low, high if high > low else low + 0.01, HEIGHT - BOTTOM, TOP)
    parts = _y_ticks(y, width, percents=True)
    for tick in _times(first, last):
        at = x.at(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(_text(at, HEIGHT - BOTTOM + 16, _clock(tick, first, last)))
    parts.append(_label(x, HEIGHT, "compared at (UTC)"))
    for one in moments:
        left, right = x.at(one.start), x.at(one.end)
        top, bottom = y.at(one.agreement.high), y.at(one.agreement.low)
        title = f"{iso(one.start)}: {100 * one.agreement.value:.2f}% of {one.agreement.of:,} events"
        parts.append(
            f'<rect class="band" x="{left:.1f}" y="{top:.1f}" width="{max(1.0, right - left):.1f}" '
            f'height="{max(1.0, bottom - top):.1f}"><title>{title}</title></rect>'
        )
        middle = y.at(one.agreement.value)
        parts.append(f'<line class="i-a" x1="{left:.1f}" x2="{right:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>')
    return _svg(parts, HEIGHT, "agreement over time", width)


def heat_map(rows: Sequence[tuple[str, Sequence[float | None]]], moments: Sequence[tuple[int, int]]) -> str:
    """Parts of a limit, a row each and a column a span of time: darker is nearer to it, and flagged what is above it.

    rows: name and a part a moment, None where there is none. moments: from, until.
    """
    left = 14 + CHARACTER * min(2 * NAME_CHARACTERS, max(len(name) for name, _ in rows))
    width, first, last = 2 * WIDTH, moments[0][0], max(end for _, end in moments)
    x, height = _Axis(first, last, left, width - RIGHT), TOP + CELL * len(rows) + BOTTOM
    parts = []
    for number, (name, values) in enumerate(rows):
        y = TOP + CELL * number
        parts.append(_text(left - 8, y + CELL - 4, _shortened(name, 2 * NAME_CHARACTERS), "", "end", title=name))
        for (start, end), value in zip(moments, values, strict=True):
            at, wide = x.at(start), max(1.0, x.at(end) - x.at(start) - 0.5)
            kind = "none" if value is None else _tone(value)
            said = "nothing" if value is None else f"{value:.2f} of its limit"
            parts.append(
                f'<rect class="{kind}" x="{at:.1f}" y="{y}" width="{wide:.1f}" height="{CELL - 1}">'
                f"<title>{escape(name)}, {iso(start)[:16]}: {said}</title></rect>"
            )
    parts += [_text(x.at(tick), height - BOTTOM + 16, _clock(tick, first, last)) for tick in _times(first, last)]
    parts.append(_label(x, height, "event time (UTC)"))
    return _svg(parts, height, "PSI over time by measure", width)


def _tone(part: float) -> str:
    """Up to the limit tones of one colour; beyond it tones of the other, by doublings."""
    if part <= 1:
        return f"t{max(1, math.ceil(part * TONES / 2))}"
    return f"f{min(FLAGGED_TONES, 1 + int(math.log2(part)))}"


def shares(bins: Sequence[tuple[str, float, float]], names: tuple[str, str]) -> str:
    """Two distributions over the same bins, side by side. bins: what it is called, its share before and after."""
    left = 14 + CHARACTER * min(NAME_CHARACTERS, max(len(name) for name, _, _ in bins))
    most = max(max(before, after) for _, before, after in bins) or 1.0
    x, height = _Axis(0, most, left, WIDTH - RIGHT), TOP + 22 + ROW * len(bins) + BOTTOM
    top = TOP + 22
    parts = [*_x_ticks(x, height - BOTTOM, percents=True), *_legend(names), _label(x, height, "share of events")]
    for number, (name, before, after) in enumerate(bins):
        y = top + ROW * number
        parts.append(_text(left - 8, y + 14, _shortened(name, NAME_CHARACTERS), "", "end", title=name))
        for kind, share, at in (("a", before, y + 2), ("b", after, y + 11)):
            parts.append(
                f'<rect class="{kind}" x="{left:.1f}" y="{at}" width="{x.at(share) - left:.1f}" height="8">'
                f"<title>{escape(name)}: {100 * share:.2f}%</title></rect>"
            )
    return _svg(parts, height, f"{names[0]} and {names[1]}")


def _shortened(name: str, most: int) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]  # its end tells it apart


# ---- what they share


def _svg(parts: Sequence[str], height: float, title: str, width: float = WIDTH) -> str:
    inner = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="{escape(title)}">{inner}</svg>'
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "middle", *, title: str = "") -> str:
    told = f"<title>{escape(title)}</title>" if title else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}{told}</text>'


def _grid(x: _Axis, y: _Axis, label: str, side: str) -> list[str]:
    bottom, middle = max(y.start, y.end), (y.start + y.end) / 2
    turned = f'transform="translate(12 {middle:.1f}) rotate(-90)"'
    return [
        *_y_ticks(y, x.end + RIGHT),
        *_x_ticks(x, bottom),
        _label(x, bottom + BOTTOM, label),
        f'<text class="label" {turned} text-anchor="middle">{escape(side)}</text>',
    ]


def _label(x: _Axis, height: float, text: str) -> str:
    return _text((x.start + x.end) / 2, height - 6, text, "label")


def _x_ticks(x: _Axis, bottom: float, *, percents: bool = False) -> list[str]:
    parts = [f'<line class="axis" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{bottom}" y2="{bottom}"/>']
    for tick, text in _spelled(x.ticks, percents=percents):
        at = x.at(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(_text(at, bottom + 16, text))
    return parts


def _y_ticks(y: _Axis, width: float, *, percents: bool = False) -> list[str]:
    parts = []
    for tick, text in _spelled(y.ticks, percents=percents):
        at = y.at(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(LEFT - 6, at + 4, text, anchor="end"))
    return parts


def _spelled(ticks: Sequence[float], *, percents: bool) -> list[tuple[float, str]]:
    if percents:
        step = min((b - a for a, b in pairwise(ticks)), default=0.1)
        digits = max(0, -math.floor(math.log10(100 * step) + 1e-9))
        return [(tick, f"{100 * tick:.{digits}f}%") for tick in ticks]
    return [(tick, _short(tick)) for tick in ticks]


def _short(value: float) -> str:
    for many, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= many:
            return f"{value / (1e3 if letter == 'k' else many):.4g}{letter}"
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"  # noqa: PLR2004


def _legend(names: Sequence[str]) -> list[str]:
    parts, at = [], LEFT + 8.0
    for number, name in enumerate(names):
        parts.append(f'<rect class="{"ab"[number]}" x="{at:.1f}" y="{TOP - 6}" width="12" height="12"/>')
        parts.append(_text(at + 17, TOP + 4, name, anchor="start"))
        at += 17 + CHARACTER * len(name) + 18
    return parts


def _times(first: int, last: int) -> list[int]:
    """Round times within, milliseconds since 1970."""
    steps = [many * 1000 for many in (1, 2, 5, 10, 15, 30)]
    steps += [many * 60_000 for many in (1, 2, 5, 10, 15, 30)] + [many * 3_600_000 for many in (1, 2, 3, 6, 12)]
    steps += [many * DAY_MS for many in (1, 2, 5, 10, 30, 100, 365)]
    step = next((step for step in steps if (last - first) / step <= 2 * TICKS), steps[-1])
    return list(range(-(-first // step) * step, last + 1, step))


def _clock(moment: int, first: int, last: int) -> str:
    text = iso(moment)
    if last - first > 3 * DAY_MS:
        return text[:10]
    return (
        text[11:19]
        if last - first < 10 * 60_000
        else text[11:16]
        if last - first < DAY_MS
        else text[5:16].replace("T", " ")
    )
