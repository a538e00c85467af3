"""The demo's screen: a live panel on a terminal, a line every two seconds elsewhere."""

from __future__ import annotations

import math
import time
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamserve.demo.watch import Watch
from streamserve.records import FeatureStatus

LINE_EVERY_S = 2.0
RECENT_BATCHES = 40
BAR = 32
STYLES = {
    FeatureStatus.PRESENT.name: "green",
    FeatureStatus.STALE.name: "yellow",
    FeatureStatus.FUTURE.name: "magenta",
    FeatureStatus.MISSING.name: "red",
    FeatureStatus.TIMEOUT.name: "bright_red",
    FeatureStatus.DEFAULTED.name: "bright_red",
}


class Screen:
    """`update` draws the present; call it as often as you like."""

    def __init__(self, console: Console, watch: Watch, total: int) -> None:
        self._console, self._watch, self._total = console, watch, total
        self._live = Live(console=console, refresh_per_second=8) if console.is_terminal else None
        self._next_line = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, sent: int) -> None:
        if self._live is not None:
            self._live.update(self.panel(sent))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            self._console.print(self.line(sent))

    def line(self, sent: int) -> str:
        totals = self._watch.totals
        p50, p99 = totals.percentiles(RECENT_BATCHES)
        decided = ", ".join(f"{n} {c:,}" for n, c in totals.decisions.most_common(3))
        return (
            f"sent {sent:>8,}  predicted {totals.predictions:>8,}  {self._watch.rate:>7,.0f}/s  "
            f"p50 {_ms(p50)}  p99 {_ms(p99)}  {decided}  dead letters {totals.dead_letters}"
        )

    def panel(self, sent: int) -> Panel:
        totals = self._watch.totals
        p50, p99 = totals.percentiles(RECENT_BATCHES)
        numbers = Table.grid(padding=(0, 3))
        numbers.add_row(
            _figure("events sent", f"{sent:,}"),
            _figure("predictions", f"{totals.predictions:,}"),
            _figure("a second", f"{self._watch.rate:,.0f}"),
            _figure("p50", _ms(p50)),
            _figure("p99", _ms(p99)),
            _figure("dead letters", f"{totals.dead_letters}"),
        )
        progress = ProgressBar(total=max(self._total, 1), completed=totals.predictions, width=72)
        return Panel(
            Group(numbers, Text(), progress, Text(), self._decisions(), Text(), self._views()),
            title="streamserve: flights from New York, scored as they come",
            subtitle="decisions and feature views so far",
        )

    def _decisions(self) -> Table:
        table = Table.grid(padding=(0, 2))
        totals = self._watch.totals
        for label, count in sorted(totals.decisions.items()):
            share = count / max(totals.predictions, 1)
            table.add_row(label, Text("█" * round(share * BAR), style="cyan"), f"{share:.1%}")
        return table

    def _views(self) -> Table:
        table = Table.grid(padding=(0, 2))
        statuses = dict(self._watch.totals.statuses)
        for view in sorted({view for view, _ in statuses}):
            counts = {s.name: statuses.get((view, s.name), 0) for s in FeatureStatus}
            total = max(sum(counts.values()), 1)
            bar = Text()
            for name, count in counts.items():
                bar.append("█" * round(count / total * BAR), style=STYLES[name])
            shares = ", ".join(f"{name} {count / total:.1%}" for name, count in counts.items() if count)
            table.add_row(f"view {view}", bar, shares)
        return table


def _ms(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f} ms"


def _figure(label: str, value: str) -> Text:
    return Text.assemble((f"{value}\n", "bold"), (label, "dim"))
