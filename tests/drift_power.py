"""How often drift alerts are false, and how often a shift is found: `python tests/drift_power.py`, some 40 minutes.

All through the product's own code with its default settings: features are standard normal, a reference of 10,000 rows
is built of them, windows are counted, compared and stepped through alerts. Only where one reference stands for
thousands of days are counts drawn by the bins' true shares, which is the same law, and PSI taken for all windows at
once. `--quick` draws a tenth.
"""

from __future__ import annotations

import argparse
import datetime as dt
import math
from pathlib import Path

import click
import numpy as np

from streamserve.drift.alerts import AlertState, Status, step
from streamserve.drift.building import numeric
from streamserve.drift.distances import Comparison, compare
from streamserve.drift.measures import Measure, count
from streamserve.drift.policy import AlertSettings
from streamserve.drift.psi import contributions, unit
from streamserve.drift.reference import Reference, build

ROOT = Path(__file__).parent.parent
SIZES, FEATURES, WINDOWS, ROWS = (100, 300, 1_000, 10_000), 24, 24, 10_000
SETTINGS = AlertSettings()


def reference(measures: list[Measure]) -> Reference:
    return build(
        measures, model="m", version="1", manifest_sha256="0" * 64, rows=ROWS, source="drawn",
        created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    )  # fmt: skip


def drawn(rng) -> Reference:
    """Of FEATURES independent features."""
    return reference([numeric(f"x{i}", rng.standard_normal(ROWS, np.float32)) for i in range(FEATURES)])


def alone(rng) -> Reference:
    """Of one feature, calibrated as one of FEATURES: the others are copies that nobody looks at."""
    one = numeric("x0", rng.standard_normal(ROWS, np.float32))
    return reference([one.model_copy(update={"name": f"x{i}"}) for i in range(FEATURES)])


def fresh_day(n: int, rng) -> bool:
    """Whether any feature had an alert in a day without drift, with a reference of that day."""
    today = drawn(rng)
    for measure in today.measures:
        state = AlertState()
        for window in range(WINDOWS):
            counts = count(measure, rng.standard_normal(n, np.float32))
            state, status = step(state, window, compare(measure, counts, today.calibration), SETTINGS)
            if status is Status.ALERT:
                return True
    return False


def days_of(one: Reference, n: int, days: int, rng) -> int:
    """Of so many days without drift, all with one reference: those with an alert."""
    alerted: set[int] = set()
    for measure in one.measures:
        law, m = one.calibration.at(measure.key, n), measure.rows
        below = np.array([0.5 * math.erfc(-edge / math.sqrt(2)) for edge in measure.edges])
        shares = np.concatenate([[0, 0, 0], np.diff(below, prepend=0, append=1)])
        z = contributions(measure.reference, rng.multinomial(n, shares, size=days * WINDOWS)).sum(-1) / unit(n, m)
        excess = (z - law.mean) * unit(n, m)
        over = (z > law.limit) & (excess >= SETTINGS.threshold)
        if (over[1:] & over[:-1]).any():
            state = AlertState()
            for window in range(days * WINDOWS):
                given = Comparison(
                    measure.key, n, 0.0, 0.0, excess[window], 0.0, z[window], law.limit, 0.0, 0.0, ()
                )  # fmt: skip
                state, status = step(state, window, given, SETTINGS)
                if status is Status.ALERT:
                    alerted.add(window // WINDOWS)
    return len(alerted)


def found_after(n: int, shift: float, windows: int, rng) -> int:
    """The window, from 1 on, in which a feature that is shifted by so many sigmas has an alert; 0: none has."""
    one = alone(rng)
    measure, state = one.measures[0], AlertState()
    for window in range(1, windows + 1):
        counts = count(measure, rng.standard_normal(n, np.float32) + np.float32(shift))
        state, status = step(state, window, compare(measure, counts, one.calibration), SETTINGS)
        if status is Status.ALERT:
            return window
    return 0


def power(n: int, shift: float, windows: int, runs: int, rng) -> float:
    return float(np.mean([found_after(n, shift, windows, rng) > 0 for _ in range(runs)]))


def curves(runs: int, path: Path, rng) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shifts = {
        100: np.linspace(0, 1, 11),
        300: np.linspace(0, 0.6, 11),
        1_000: np.linspace(0, 0.35, 11),
        10_000: np.linspace(0, 0.15, 11),
    }
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=130)
    for (n, grid), colour in zip(shifts.items(), ("#7a5195", "#ef5675", "#ffa600", "#003f5c"), strict=True):
        found = [[found_after(n, shift, 10, rng) for _ in range(runs)] for shift in grid]
        for within, style in ((10, "-"), (3, "--")):
            chance = [np.mean([0 < at <= within for at in row]) for row in found]
            axes.plot(grid, chance, style, color=colour, label=f"{n:,} rows, within {within} windows")
    axes.axhline(0.9, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set(
        xlabel="shift of one feature, in sigma", ylabel="found in this share of runs", ylim=(-0.02, 1.02),
        xlim=(0, 0.9), title="Drift found, against a reference of 10,000 rows (24 features, default settings)",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True, parents=True)
    figure.savefig(path)


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told.add_argument("--quick", action="store_true")
    told.add_argument("--seed", type=int, default=1)
    told.add_argument("--only", choices=["power", "fresh", "one", "picture"])
    told.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "drift-power.png")
    given = told.parse_args()
    days, references, runs = (100, 10, 100) if given.quick else (1_000, 60, 1_000)
    rng = np.random.default_rng(given.seed)
    if given.only in {None, "power"}:
        for n, shift, within in ((1_000, 0.25, 3), (10_000, 0.1, 10)):
            share = power(n, shift, within, runs, rng)
            click.echo(f"shift of {shift} sigma found within {within} windows of {n:,}: {share:.1%} of {runs:,} runs")
    if given.only in {None, "picture"}:
        curves(max(runs // 5, 20), given.picture, rng)
    if given.only in {None, "one"}:
        for n in SIZES:
            found = np.array([days_of(drawn(rng), n, days, rng) for _ in range(references)])
            click.echo(
                f"one reference, {days:,} days of {WINDOWS} windows of {n:,}: at most 1% of days have an alert with "
                f"{np.mean(found <= days // 100):.0%} of {references} references, mean {found.mean() / days:.2%}"
            )
    if given.only in {None, "fresh"}:
        for n in SIZES:
            alerts = sum(fresh_day(n, rng) for _ in range(days))
            click.echo(f"a reference a day, {WINDOWS} windows of {n:,}: {alerts} of {days:,} days have an alert")


if __name__ == "__main__":
    main()
