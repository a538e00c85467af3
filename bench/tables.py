"""Markdown tables of results: medians, with minimum and maximum where there are several rounds. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.contest import FLOOR, REST, STAGES, STREAMSERVE, SUM
from bench.schedule import NAMES, percentiles

Found = Mapping[str, Any]
Runs = Sequence[Found]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all but the first column are figures and stand to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ranged(values: Sequence[float], form: str) -> str:
    """The median, and what it lies between if rounds differ: 12.1 (11.8 to 12.5)."""
    low, middle, high = (format(one, form) for one in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def pick(runs: Runs, key: str) -> list[float]:
    """One figure of every round."""
    return [float(run[key]) for run in runs]


def median(runs: Runs, key: str) -> float:
    return statistics.median(pick(runs, key))


def of_part(name: str, found: Any) -> dict[str, str]:
    """Every table of a part, by the name that its place in the docs has."""
    return PARTS[name](found)


def contest(found: Found) -> dict[str, str]:
    return {"contest": contestants(found["runs"], FLOOR), "stages": stages(found)}


def uniform(found: Found) -> dict[str, str]:
    return {"uniform": contestants(found["runs"], FLOOR)}


def vectors(found: Found) -> dict[str, str]:
    tables = {}
    for kind, one in found.items():
        tables[f"vectors-{kind}"] = contestants(one["runs"], SUM)
        tables[f"vectors-{kind}-floor"] = floor_parts(one["parts"])
    return tables


def contestants(runs: Mapping[str, Runs], floor: str) -> str:
    """What each costs, and its ratio to the floor's CPU."""
    base = median(runs[floor], "us")
    head = (
        "contestant", "events/s", "CPU, us an event", "times the floor", "events/s per core",
        "RSS MiB: start, median, max",
    )  # fmt: skip
    rows = []
    for name, of_one in runs.items():
        us = median(of_one, "us")
        memory = [statistics.median(run["rss"][at] for run in of_one) for at in range(3)]
        rows.append(
            (
                name,
                ranged(pick(of_one, "rate"), ",.0f"),
                ranged(pick(of_one, "us"), ",.2f"),
                f"{us / base:.2f}",
                f"{1e6 / us:,.0f}",
                ", ".join(f"{one:.0f}" for one in memory),
            )
        )
    return table(head, rows)


def by_stage(found: Found) -> dict[str, float]:
    """CPU microseconds an event by stage, and what is left of the worker's total."""
    spent = {name: statistics.median(one.get(name, 0.0) for one in found["stages"]) for name in STAGES}
    return {**spent, REST: median(found["runs"][STREAMSERVE], "us") - sum(spent.values())}


def stages(found: Found) -> str:
    """Where streamserve's CPU goes."""
    spent = by_stage(found)
    total = sum(spent.values())
    rows = [(name, f"{us:.2f}", f"{us / total:.0%}") for name, us in spent.items()]
    return table(("stage", "CPU, us an event", "share"), [*rows, ("all", f"{total:.2f}", "100%")])


def floor_parts(rounds: Sequence[Mapping[str, Found]]) -> str:
    """Every candidate of every part; the cheapest of each is in the sum."""
    parts = {name: [float(one[name]["us"]) for one in rounds] for name in rounds[0]}
    best: dict[str, str] = {}
    for name, us in parts.items():
        part = name.partition(":")[0]
        if part not in best or statistics.median(us) < statistics.median(parts[best[part]]):
            best[part] = name
    rows = [(name, ranged(us, ",.2f"), "yes" if name in best.values() else "") for name, us in parts.items()]
    return table(("part, alone", "CPU, us an event", "in the sum"), rows)


def latency(found: Found) -> dict[str, str]:
    hurry = found["hurry"]
    return {
        "latency": latencies(found["rates"]),
        "latency-echo": latencies(found["echo"]),
        "latency-cost": latency_costs(found["rates"]),
        "latency-hurry": latencies(hurry["rates"]),
        "latency-hurry-echo": latencies(hurry["echo"]),
    }


def latencies(rates: Mapping[str, Runs]) -> str:
    """Percentiles by offered rate."""
    names = ("p50", "p90", "p99", "p99.9", "max")
    rows = [
        (
            f"{float(rate):,.0f}",
            f"{median(runs, 'answered'):,.0f}",
            *(ranged(pick(runs, name), ",.1f") for name in names),
        )
        for rate, runs in rates.items()
    ]
    return table(("events/s offered", "answered in time", *(f"{name}, ms" for name in names)), rows)


def latency_costs(rates: Mapping[str, Runs]) -> str:
    """What the worker did for it, and how good the measuring was."""
    head = (
        "events/s offered", "worker CPU, us an event", "rows a batch", "machine busy", "generator late, p99 ms",
        "generator CPU, us", "checker CPU, us", "missing",
    )  # fmt: skip
    rows = [
        (
            f"{float(rate):,.0f}",
            ranged(pick(runs, "worker_us"), ",.1f"),
            f"{median(runs, 'rows'):,.0f}",
            f"{median(runs, 'machine'):.0%}",
            f"{max(pick(runs, 'late_p99_ms')):.2f}",
            f"{median(runs, 'generator_us'):.1f}",
            f"{median(runs, 'checker_us'):.1f}",
            f"{sum(pick(runs, 'missing')):,.0f}",
        )
        for rate, runs in rates.items()
    ]
    return table(head, rows)


def growth(found: Found) -> dict[str, str]:
    rows = []
    for axis, points in found["axes"].items():
        for point in points:
            runs = point["runs"]
            us, rate = ranged(pick(runs, "us"), ",.1f"), ranged(pick(runs, "rate"), ",.0f")
            rows.append((f"{axis}: {point['value']:,}", f"{point['bytes']:,}", us, rate))
    return {"growth": table(("what grows", "bytes an event", "CPU, us an event", "events/s"), rows)}


def memory(found: Found) -> dict[str, str]:
    head = ("contestant", f"MiB after {found['events'] // 10:,}", f"MiB after {found['events']:,}", "change")
    rows = [
        (name, f"{one['tenth']:,.0f}", f"{one['whole']:,.0f}", f"{one['whole'] / one['tenth'] - 1:+.1%}")
        for name, one in found["runs"].items()
    ]
    return {"memory": table(head, rows)}


def restart(found: Found) -> dict[str, str]:
    head = (
        "two members, one restarted",
        "pause when it leaves, ms",
        "pause when it joins, ms",
        "lost",
        "repeated",
    )
    rows = [
        (
            name,
            ranged(pick(runs, "leave_ms"), ",.0f"),
            ranged(pick(runs, "join_ms"), ",.0f"),
            f"{sum(pick(runs, 'missing')):,.0f}",
            f"{sum(pick(runs, 'repeated')):,.0f}",
        )
        for name, runs in found["runs"].items()
    ]
    return {"restart": table(head, rows)}


def shadow(found: Found) -> dict[str, str]:
    drains, latency = found["drains"], found["latency"]
    head = ("contestant", "events/s", "CPU, us an event", "of two ONNX Runtime runs", "shed", "compared")
    two = 2 * median(drains[FLOOR], "us")
    rows = []
    for name, runs in drains.items():
        counts = [f"{sum(pick(runs, one)):,.0f}" if one in runs[0] else "" for one in ("shed", "compared")]
        us, rate = ranged(pick(runs, "us"), ",.1f"), ranged(pick(runs, "rate"), ",.0f")
        rows.append((name, rate, us, f"{median(runs, 'us') / two:.2f}", *counts))
    beside = [
        (
            name,
            ranged([pair["without"]["p99"] for pair in one["pairs"]], ",.0f"),
            ranged([pair["with"]["p99"] for pair in one["pairs"]], ",.0f"),
            f"{one['ratio']:.2f} ({one['low']:.2f} to {one['high']:.2f})",
            f"{sum(pair['with']['missing'] for pair in one['pairs']):,.0f}",
        )
        for name, one in latency.items()
    ]
    names = ("shadowing candidate", "p99 without, ms", "p99 with, ms", "ratio of pairs, 95% interval", "missing")
    return {"shadow": table(head, rows), "shadow-latency": table(names, beside)}


def commands(found: Found) -> dict[str, str]:
    effects = found["effects"]
    names = {"shift": "shift in force everywhere", "kill": "kill in force everywhere", "held": "a partition is held"}
    rows = [
        (
            said,
            f"{len(effects[name]):,}",
            *(f"{value:,.0f}" for value in percentiles(np.array(effects[name])).values()),
        )
        for name, said in names.items()
    ]
    switches = found["switches"]
    moved = [
        (
            said,
            ranged(pick(switches, name), ",.0f"),
            ranged([one[name] / one["rest"] for one in switches], ".2f"),
        )
        for name, said in (("rest", "at rest"), ("loading", "a version is loaded"), ("switch", "it takes over"))
    ]
    head = ("ten seconds around", "p99, ms", "to rest")
    return {"commands": table(("milliseconds", "times", *NAMES), rows), "switch": table(head, moved)}


def drift(found: Found) -> dict[str, str]:
    live, told = found["live"], found["live"]["told_s"]
    rows = [
        ("counts beside the events, bytes of keys and values", f"{live['share']:.2%}"),
        ("a window is told after its end, s: median, max", f"{statistics.median(told):.2f}, {max(told):.2f}"),
        (
            "after the chunk that moved the watermark past it",
            f"{statistics.median(live['after_watermark_s']):.2f}, {max(live['after_watermark_s']):.2f}",
        ),
        ("windows seen", str(len(told))),
    ]  # fmt: skip
    return {
        "drift": contestants(found["runs"], STREAMSERVE).replace("times the floor", "to without"),
        "drift-live": table(("at 10,000 events a second", ""), rows),
    }


def about(found: Found) -> str:
    """Machine and versions."""
    said = {**found["machine"], "rounds": str(found["rounds"])}
    if found["quick"]:
        said["scale"] = "quick: too short to quote"
    return table(("measured on", ""), list(said.items()))


PARTS: dict[str, Callable[[Any], dict[str, str]]] = {
    "contest": contest,
    "uniform": uniform,
    "vectors": vectors,
    "latency": latency,
    "growth": growth,
    "memory": memory,
    "restart": restart,
    "shadow": shadow,
    "commands": commands,
    "drift": drift,
}
