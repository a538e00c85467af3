"""Charts of results as SVG: mid-tones on nothing, so that they read on white and on dark pages alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.contest import FLOOR, REST, STREAMSERVE, TREES
from bench.tables import by_stage, median, pick

GREY = "#7d8590"
BLUE, GREEN, ORANGE, RED, PURPLE, PINK = "#388bfd", "#2da44e", "#d4762c", "#e5534b", "#a371f7", "#db61a2"
SHADES = {"decode": PURPLE, "route": RED, "enrich": GREEN, "score": BLUE, "emit": PINK, REST: ORANGE}
LINES = {"p50": GREEN, "p90": BLUE, "p99": ORANGE, "p99.9": RED}
BROKEN = 2.0  # a bar this many times longer than the one before it is cut, and says so
MEASURED, SHOWN = "DejaVu Sans", "Helvetica, Arial, sans-serif"  # matplotlib brings the first, readers have others
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "streamserve",  # the same figures give the same file
    "font.family": MEASURED,
    "font.size": 11,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def draw(name: str, found: Any, path: Path) -> None:
    """The chart of a part; some parts have none."""
    if name not in CHARTS:
        return
    with mpl.rc_context(STYLE):
        figure = CHARTS[name](found)
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": "streamserve bench"})
        plt.close(figure)
    text = path.read_text().replace(f"'{MEASURED}'", SHOWN)
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def contest(found: Mapping[str, Any]) -> Figure:
    """CPU an event, a bar for each contestant; streamserve's by stage. The longest is cut if it dwarfs the others."""
    runs = found["runs"]
    us = {name: median(of_one, "us") for name, of_one in runs.items()}
    ordered = sorted(us.values())
    end = ordered[-2] * 1.25 if ordered[-1] > BROKEN * ordered[-2] else ordered[-1] * 1.15
    figure, axes = plt.subplots(figsize=(8.6, 3.4), layout="constrained")
    for place, (name, value) in enumerate(us.items()):
        if name == STREAMSERVE:
            _stacked(axes, place, by_stage(found))
        else:
            axes.barh(place, min(value, end), 0.6, color=BLUE if name in {FLOOR, TREES} else GREY, alpha=0.75)
        cut = value > end
        axes.text(
            end * 0.985 if cut else value + end * 0.01, place, f"{value:,.0f} →" if cut else f"{value:.1f}",
            va="center", ha="right" if cut else "left", color="white" if cut else GREY,
        )  # fmt: skip
    axes.set_yticks(range(len(us)), list(us))
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, end)
    axes.set_xlabel("client CPU, microseconds an event")
    figure.legend(loc="outside upper center", ncols=len(SHADES), fontsize=9, handlelength=1.0, columnspacing=1.2)
    return figure


def _stacked(axes: Axes, place: int, spent: Mapping[str, float]) -> None:
    left = 0.0
    for name, value in spent.items():
        axes.barh(place, value, 0.6, left, color=SHADES[name], label=name)
        left += value


def latency(found: Mapping[str, Any]) -> Figure:
    """Percentiles against the offered rate, both axes by factors."""
    rates = {float(rate): runs for rate, runs in found["rates"].items()}
    figure, axes = plt.subplots(figsize=(8.6, 4.2), layout="constrained")
    for name, colour in LINES.items():
        values = [median(runs, name) for runs in rates.values()]
        axes.plot(list(rates), values, color=colour, marker="o", markersize=4, linewidth=1.8, label=name)
        for rate, runs in rates.items():
            axes.plot(
                [rate, rate], [min(pick(runs, name)), max(pick(runs, name))], color=colour, linewidth=5, alpha=0.3
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(rates), [f"{rate / 1000:g} k" for rate in rates])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 20000) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(axis="y")
    axes.set_xlabel("events offered a second")
    axes.set_ylabel("ms from intended sending to prediction")
    figure.legend(loc="outside upper center", ncols=len(LINES))
    return figure


TITLES = {
    "features": "features",
    "views": "views",
    "partitions": "partitions",
    "size": "bytes an event",
    "workers": "workers",
}


def growth(found: Mapping[str, Any]) -> Figure:
    """CPU an event along each axis, on one scale from zero."""
    axes_found = found["axes"]
    figure, places = plt.subplots(1, len(axes_found), figsize=(10, 2.9), layout="constrained", squeeze=False)
    for axes, (axis, points) in zip(places[0], axes_found.items(), strict=True):
        labels = [_short(point["bytes"] if axis == "size" else point["value"]) for point in points]
        values = [statistics.median(pick(point["runs"], "us")) for point in points]
        axes.plot(range(len(points)), values, color=BLUE, marker="o", markersize=5, linewidth=1.8)
        for at, value in enumerate(values):
            axes.annotate(f"{value:.1f}", (at, value), (-3, 6), textcoords="offset points", ha="right", fontsize=9)
        axes.set_xticks(range(len(points)), labels, fontsize=9)
        axes.set_xlim(-0.9, len(points) - 0.6)
        axes.set_ylim(0, max(values) * 1.25)
        axes.set_title(TITLES[axis], fontsize=11, color=GREY)
        axes.tick_params(axis="y", labelsize=9)
        axes.grid(axis="y")
    places[0][0].set_ylabel("client CPU, µs an event")
    return figure


def memory(found: Mapping[str, Any]) -> Figure:
    """Resident size against the events that have gone through, from zero."""
    figure, axes = plt.subplots(figsize=(8.6, 3.2), layout="constrained")
    for colour, (name, one) in zip((BLUE, GREEN), found["runs"].items(), strict=True):
        events, mib = zip(*one["samples"], strict=True)
        axes.plot([done / 1e6 for done in events], mib, color=colour, linewidth=1.8, label=name)
    axes.set_xlim(0, found["events"] / 1e6)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.set_xlabel("million events")
    axes.set_ylabel("resident, MiB")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _short(value: int) -> str:
    return f"{value / 1000:g} k" if value >= 1000 and value % 100 == 0 else f"{value:,}"


CHARTS: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
    "contest": contest,
    "latency": latency,
    "growth": growth,
    "memory": memory,
}
