"""What a run says: a line a fault, a table of recovery and repetition by kind, and the same as JSON."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from chaos.schedule import SESSION_S, Fault, Kind

if TYPE_CHECKING:
    from chaos.run import Lived, Result

GOAL_S = 9.0  # from a worker's SIGKILL until its partitions are answered elsewhere


def kind_of(fault: Fault) -> str:
    """What is counted together. Short stops end before anybody notices them."""
    said: str = fault.kind.value
    if fault.kind is Kind.STOP:
        said += ", shorter than its session" if fault.seconds < SESSION_S else ", longer than its session"
    if fault.kind is Kind.KILL and fault.point is not None:
        said += f" {fault.point}"
    return said


def line(one: Lived, count: int) -> str:
    """A fault that is over."""
    minutes, seconds = divmod(int(one.at), 60)
    answered = "not answered"
    if one.recovery is not None:
        answered = f"answered after {one.recovery:.1f} s"
        if one.recovery > one.struck.over_s >= 1:
            answered += f" ({one.recovery - one.struck.over_s:.1f} s after its end)"
    said = f"[{one.number:3}/{count} {minutes:02}:{seconds:02}] {one.fault}: {one.in_flight:,} in flight, {answered}"
    return f"{said}, well after {one.settled:.1f} s" + (f"; {one.struck.note}" if one.struck.note else "")


def text(result: Result) -> str:
    """The summary."""
    verdict, options = result.verdict, result.options
    told, many = f"{options.delivery}, seed {options.seed}", len(result.lived)
    parts = [
        f"\n{told}: {many} of {options.faults} faults in {result.seconds:.0f} s",
        f"inputs {verdict.inputs:,}, {result.malformed:,} of them malformed",
        f"predictions {verdict.predictions:,}, dead letters {verdict.dead_letters:,}",
        f"repeated {sum(verdict.repeated.values()):,}",
    ]
    desk = result.desk
    if desk.epochs:
        parts.append(
            f"commands {desk.accepted} accepted, {desk.rejected} rejected, {len(desk.epochs)} routing epochs; "
            f"stable answered for a candidate {verdict.fallbacks:,} times"
        )
    if result.lived:
        parts += [f"fewest events in flight at a fault: {min(one.in_flight for one in result.lived):,}", _table(result)]
    killed = _recoveries([one for one in result.lived if one.fault.kind is Kind.KILL])
    if killed:
        met = "reached" if max(killed) <= GOAL_S else "MISSED"
        parts.append(
            f"a killed worker's partitions are answered elsewhere after {statistics.median(killed):.1f} s (median), "
            f"{max(killed):.1f} s (max); {GOAL_S:.0f} s is {met}"
        )
    parts += [f"{one.name} ended by itself with {one.code} in fault {one.fault}" for one in result.ended]
    parts += [f"{name} left with {code}" for name, code in result.leavers.items() if code]
    parts += [f"VIOLATION  {one}" for one in verdict.violations]
    if verdict.violations:
        parts.append(f"logs and columns: {options.folder}; run it again with SEED={options.seed}")
    else:
        parts.append("every promise was kept")
    return "\n".join(parts)


def _table(result: Result) -> str:
    kinds: dict[str, list[Lived]] = defaultdict(list)
    for one in result.lived:
        kinds[kind_of(one.fault)].append(one)
    rows = [("fault", "n", "recovery, s", "max", "well again, s", "max", "repeated", "max", "of in flight")]
    for kind, lived in sorted(kinds.items()):
        recoveries, settled = _recoveries(lived), [one.settled for one in lived]
        repeated = [one.repeated for one in lived]
        rows.append(
            (
                kind,
                str(len(lived)),
                f"{statistics.median(recoveries):.1f}" if recoveries else "-",
                f"{max(recoveries):.1f}" if recoveries else "-",
                f"{statistics.median(settled):.1f}",
                f"{max(settled):.1f}",
                f"{statistics.median(repeated):,.0f}",
                f"{max(repeated):,}",
                f"{max(one.window.events for one in lived):,}",
            )
        )
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Aligned: the first column to the left, figures to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _recoveries(lived: Sequence[Lived]) -> list[float]:
    return [one.recovery for one in lived if one.recovery is not None]


def as_dict(result: Result) -> dict[str, object]:
    """For the JSON file."""
    verdict, options = result.verdict, result.options
    return {
        "delivery": options.delivery,
        "seed": options.seed,
        "settings": dict(options.settings or {}),
        "seconds": result.seconds,
        "inputs": verdict.inputs,
        "malformed": result.malformed,
        "predictions": verdict.predictions,
        "dead_letters": verdict.dead_letters,
        "commands": {"accepted": result.desk.accepted, "rejected": result.desk.rejected},
        "routing_epochs": len(result.desk.epochs),
        "fallbacks": verdict.fallbacks,
        "violations": [asdict(one) for one in verdict.violations],
        "faults": [_fault(one) for one in result.lived],
        "ended": [asdict(one) for one in result.ended],
        "leavers": result.leavers,
    }


def _fault(one: Lived) -> dict[str, object]:
    return {
        "number": one.number,
        **one.fault.as_dict(),
        "at": one.at,
        "at_ns": one.struck.at_ns,
        "partitions": sorted(one.struck.partitions),
        "note": one.struck.note,
        "in_flight": one.in_flight,
        "window": one.window.events,
        "over": one.struck.over_s,
        "recovery": one.recovery,
        "settled": one.settled,
        "repeated": one.repeated,
    }
