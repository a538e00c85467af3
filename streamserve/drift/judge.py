"""What is said of a window: each measure's distance from the reference, and what that means for alerts. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from streamserve.drift.alerts import AlertState, Status, step
from streamserve.drift.distances import Comparison, between
from streamserve.drift.measures import Measure
from streamserve.drift.policy import AlertSettings
from streamserve.drift.reference import Reference
from streamserve.drift.windows import Window

States = Mapping[str, AlertState]  # by key of a measure


class Verdict(enum.StrEnum):
    """Of a window: that of its worst measure, or why none was compared."""

    OK = "OK"
    WARN = "WARN"
    ALERT = "ALERT"
    INSUFFICIENT = "INSUFFICIENT"
    NO_REFERENCE = "NO_REFERENCE"


@dataclass(frozen=True, slots=True)
class Measured:
    """One measure of a window. state: of its alert, after this window. alerting: there is one, by that."""

    found: Comparison
    status: Status
    state: AlertState
    alerting: bool


@dataclass(frozen=True, slots=True)
class Change:
    """An alert began, or ended. against: "" for the reference, else the version that is stable."""

    measured: Measured
    alert: bool
    against: str


@dataclass(frozen=True, slots=True)
class Beside:
    """Stable's events of the same window. reference: what its bins mean. whole: these are all of them."""

    window: Window
    reference: Reference
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Judged:
    """beside: the measures that a candidate and stable count in the same bins, held against stable's events.

    stable: whose these are; "": this is stable itself, or nothing can be compared.
    """

    window: Window
    measures: tuple[Measured, ...]
    changes: tuple[Change, ...] = ()
    stable: str = ""
    beside: tuple[Measured, ...] = ()

    @property
    def verdict(self) -> Verdict:
        if not self.measures:
            return Verdict.NO_REFERENCE
        told = {one.status for one in self.measures}
        return Verdict(next(one for one in (Status.ALERT, Status.WARN, Status.OK, Status.INSUFFICIENT) if one in told))


def judge(
    window: Window,
    reference: Reference | None,
    states: States,
    stable: Beside | None = None,
    states_beside: States = MappingProxyType({}),
) -> Judged:
    """Compare a window of a version with its reference, and a candidate's with stable's events of the same time.

    reference: of its fingerprint; None: it is not to be had. states, states_beside: before this window.
    """
    if reference is None or reference.fingerprint != window.series.reference:
        return Judged(window, ())
    whole = window.complete and not window.shed
    measures = _stepped(
        reference.compare(window.counts, window.series.segment), states, window, reference.alerts, whole=whole
    )
    if stable is None:
        return Judged(window, measures, _changes(measures, states, reference.alerts))
    whole = whole and stable.whole and stable.window.complete and not stable.window.shed
    found = list(_compared(window, reference, stable))
    beside = _stepped(found, states_beside, window, reference.alerts, whole=whole)
    version = stable.window.series.version
    changes = *_changes(measures, states, reference.alerts), *_changes(beside, states_beside, reference.alerts, version)
    return Judged(window, measures, changes, version, beside)


def _stepped(
    found: Iterable[Comparison], states: States, window: Window, settings: AlertSettings, *, whole: bool
) -> tuple[Measured, ...]:
    told = []
    for one in found:
        state, status = step(states.get(one.key, AlertState()), window.end_ms, one, settings, complete=whole)
        told.append(Measured(one, status, state, state.alerting(settings)))
    return tuple(told)


def _changes(
    measures: Iterable[Measured], states: States, settings: AlertSettings, against: str = ""
) -> tuple[Change, ...]:
    return tuple(
        Change(one, one.alerting, against)
        for one in measures
        if one.alerting != states.get(one.found.key, AlertState()).alerting(settings)
    )


def _compared(window: Window, reference: Reference, stable: Beside) -> Iterator[Comparison]:
    """What both count in the same bins. The views' statuses are of the events, and say nothing of a version."""
    others = {one.key: (one, first) for one, first in _places(stable.reference)}
    shared = [
        (measure, first, others[measure.key][1])
        for measure, first in _places(reference)
        if measure.key in others and measure.bins == others[measure.key][0].bins and measure.of != "view"
    ]
    for measure, here, there in shared:
        many = len(measure.bins)
        ours, theirs = window.counts[here : here + many], stable.window.counts[there : there + many]
        among = len(shared) * (1 + len(reference.segments))
        yield between(measure, theirs, ours, reference.alerts, measures=among)


def _places(reference: Reference) -> Iterator[tuple[Measure, int]]:
    return zip(reference.measures, reference.offsets[:-1], strict=True)
