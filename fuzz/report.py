"""What a run says: progress as it goes, the stages that inputs reached, and findings."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

STAGES = ("decode", "enrich", "score", "emit", "")
NAMES = ("decode", "enrich", "score", "emit", "predicted")
LEAST_SCORED = 0.20  # of all inputs: below it the mutations are too rough to try more than the decoders
EVERY_S = 10.0


class Report:
    def __init__(self, wanted: int, say: Callable[[str], None]) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.rss: dict[int, float] = {}
        self.peak = 0.0
        self.slowest = 0.0, "-"
        self._wanted, self._say = wanted, say
        self._started = self._last = time.monotonic()

    @property
    def done(self) -> int:
        return sum(sum(one.values()) for one in self.counts.values())

    @property
    def scored(self) -> float:
        """The share of inputs that reached a model."""
        reached = sum(one[""] + one["score"] + one["emit"] for one in self.counts.values())
        return reached / max(self.done, 1)

    def take(self, message: dict[str, Any]) -> None:
        """A batch that held."""
        self.counts[message["stream"]].update(message["counts"])
        self.rss[message.get("lane", 0)] = message["rss"]
        self.peak = max(self.peak, message["rss"])
        self.slowest = max(self.slowest, (message["seconds"], f"{message['number']} ({message['stream']})"))
        now = time.monotonic()
        if now - self._last >= EVERY_S:
            self._last = now
            memory = ", ".join(f"{one:.0f}" for one in self.rss.values())
            self._say(f"{self.done:,} of {self._wanted:,} inputs, {self._rate():,.0f} a second; RSS {memory} MiB")

    def _rate(self) -> float:
        return self.done / max(time.monotonic() - self._started, 1e-9)

    def table(self) -> None:
        self._say("")
        self._say(f"{'stream':14}{'inputs':>10}" + "".join(f"{name:>11}" for name in NAMES))
        rows = {**dict(sorted(self.counts.items())), "all": sum(self.counts.values(), Counter())}
        for name, one in rows.items():
            total = max(sum(one.values()), 1)
            self._say(f"{name:14}{total:>10,}" + "".join(f"{one[stage] / total:>11.2%}" for stage in STAGES))
        seconds = time.monotonic() - self._started
        self._say(
            f"{self.done:,} inputs in {seconds:.0f} s, {self._rate():,.0f} a second; "
            f"{self.scored:.1%} reached a model; RSS at most {self.peak:.0f} MiB a process; "
            f"{self.slowest[0]:.1f} s for the slowest batch, {self.slowest[1]}"
        )


def finding(message: dict[str, Any], seed: int, format: str) -> str:
    """Everything that it takes to see it again."""
    lines = [
        f"FOUND: {message['promise']}",
        f"  {message['what']}",
        f"  seed {seed}, topology {message['stream'] or '-'}, batch {message['number']}, input {message['row']} of it",
    ]
    if message.get("file"):
        rows = f" ({message['rows']} of {message['of']} inputs)" if "rows" in message else ""
        lines += [f"  batch{rows}: {message['file']}", f"  again: make fuzz ARGS='--replay {message['file']}'"]
    if message["number"] >= 0:
        lines.append(
            f"  the whole batch again: make fuzz SEED={seed} FORMAT={format} ARGS='--batch {message['number']}'"
        )
    return "\n".join(lines)
