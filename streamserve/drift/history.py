"""Windows of one version one after the other, for people: what moved, since when, and how far. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamserve.drift.alerts import Status
from streamserve.drift.chunks import Series

Told = Mapping[str, Any]  # a window, as `pipeline.drift_window.told_of` gives it
RANKS = {Status.ALERT: 0, Status.WARN: 1, Status.OK: 2, Status.INSUFFICIENT: 3}


@dataclass(frozen=True, slots=True)
class Track:
    """One measure over the windows. of: its record in each; None: it was not compared there."""

    measure: str
    of: tuple[Mapping[str, Any] | None, ...]

    @property
    def latest(self) -> Mapping[str, Any] | None:
        return next((one for one in reversed(self.of) if one is not None), None)

    @property
    def rank(self) -> tuple[int, float]:
        """The worst first: by status now, then by how far it ever was above its limit."""
        now = self.latest
        return (RANKS[Status(now["status"])] if now else len(RANKS), -max(self.ratios, default=0.0))

    @property
    def ratios(self) -> list[float]:
        """PSI in parts of its limit, where there is one."""
        return [ratio for one in self.of if (ratio := excess(one)) is not None]

    def since(self, windows: Sequence[Told]) -> int | None:
        """Where the first window of the alert that holds now begins; None: there is none."""
        begun = None
        for window, one in zip(windows, self.of, strict=True):
            if one is not None and one["status"] == Status.ALERT:
                begun = window["start"] if begun is None else begun
            elif one is not None and one["status"] != Status.INSUFFICIENT:
                begun = None
        return begun


def excess(one: Mapping[str, Any] | None) -> float | None:
    """PSI in parts of the limit: above 1 a window may count for an alert. None: nothing was compared."""
    if one is None or one["psi"] is None or not one["limit"]:
        return None
    ratio: float = one["psi"] / one["limit"]
    return ratio if math.isfinite(ratio) else None


@dataclass(frozen=True, slots=True)
class History:
    """Windows of one series in the order of their time, of each its last revision; tracks: the worst first."""

    series: Series
    windows: tuple[Told, ...]
    tracks: tuple[Track, ...]

    @property
    def told(self) -> bool:
        """One of the windows had events enough to be compared."""
        found = (one for track in self.tracks for one in track.of if one is not None)
        return any(one["status"] != Status.INSUFFICIENT for one in found)

    @property
    def alerts(self) -> dict[str, int]:
        """The measures that have an alert now, the worst first, and where the first window of it begins."""
        found = ((one.measure, one.since(self.windows)) for one in self.tracks)
        return {measure: since for measure, since in found if since is not None}


def series_in(told: Iterable[Told]) -> list[Series]:
    """What there are windows of, the latest said last."""
    return list(reversed(dict.fromkeys(series_of(one) for one in reversed(list(told)))))


def history(told: Iterable[Told], series: Series, last: int | None = None) -> History:
    """Of one series, the last windows. What was late or wild is told once, not with every revision: added up."""
    latest: dict[int, Told] = {}
    for one in told:
        if series_of(one) != series:
            continue
        known = latest.get(one["start"], {"revision": -1, "late": 0, "wild": 0})
        kept = one if known["revision"] <= one["revision"] else known
        latest[one["start"]] = {**kept, **{name: known[name] + one[name] for name in ("late", "wild")}}
    windows = tuple(latest[start] for start in sorted(latest))[-last if last else 0 :]
    of = [{each["measure"]: each for each in one["measures"]} for one in windows]
    names = dict.fromkeys(name for measures in of for name in measures)
    tracks = [Track(name, tuple(measures.get(name) for measures in of)) for name in names]
    return History(series, windows, tuple(sorted(tracks, key=lambda one: one.rank)))


def series_of(one: Told) -> Series:
    """Whose window it is."""
    return Series(one["version"], one["reference"], one["segment"])
