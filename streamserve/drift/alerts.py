"""When a measure has drifted: size and significance, for windows in a row, with hysteresis. Pure.

A window *exceeds* when its PSI is `threshold` or more above its noise and Z is above the calibrated limit. `in_a_row`
windows that exceed raise an ALERT; `clear` windows that do not end it. A window with fewer than `min_rows` changes
nothing, and one that is incomplete may raise, never clear: no data is never good news.

Windows are those that don't overlap: of sliding windows take each length's own.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from streamserve.drift.distances import Comparison
from streamserve.drift.policy import AlertSettings

RECENT = 16  # windows that a revision may still change: more than any run that counts


class Status(enum.StrEnum):
    OK = "OK"
    WARN = "WARN"  # this window exceeds, and not enough in a row do
    ALERT = "ALERT"
    INSUFFICIENT = "INSUFFICIENT"  # too few rows to tell: what was, still is


class Mark(enum.StrEnum):
    """What a window adds to those before."""

    OVER = "over"
    UNDER = "under"
    NOTHING = "nothing"


class AlertState(BaseModel):
    """Of one measure. Goes through JSON by `model_dump_json` and `model_validate_json`.

    alert, run: what came of windows up to `settled`, which are not revised any more: whether there is an alert, and
        how many windows in a row exceed; in an alert, how many do not.
    recent: the end of each later window, ascending, and its mark.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alert: bool = False
    run: int = 0
    settled: int | None = None
    recent: tuple[tuple[int, Mark], ...] = ()

    def alerting(self, settings: AlertSettings) -> bool:
        """Whether there is an alert by now."""
        return _fold(self, self.recent, settings)[0]


def exceeds(found: Comparison, settings: AlertSettings) -> bool:
    """Size and significance, in a window that has rows enough."""
    return found.n >= settings.min_rows and found.excess >= settings.threshold and found.z > found.limit


def step(
    state: AlertState, window: int, found: Comparison, settings: AlertSettings, *, complete: bool = True
) -> tuple[AlertState, Status]:
    """The state after a window, and the status to publish with it.

    window: its end, on any scale that grows. A window that comes again is revised, and what follows from it anew. One
        at or before `settled` changes nothing.
    complete: False where rows of the window are known to be lacking.
    """
    mark = _mark(found, settings, complete=complete)
    if state.settled is None or window > state.settled:
        marks = dict(state.recent)
        if mark is not Mark.NOTHING or window not in marks:
            marks[window] = mark
        state = _settle(state, sorted(marks.items()), settings)
    alert = _fold(state, (one for one in state.recent if one[0] <= window), settings)[0]
    if found.n < settings.min_rows:
        return state, Status.INSUFFICIENT
    if alert:
        return state, Status.ALERT
    return state, Status.WARN if mark is Mark.OVER else Status.OK


def _mark(found: Comparison, settings: AlertSettings, *, complete: bool) -> Mark:
    if exceeds(found, settings):
        return Mark.OVER
    return Mark.UNDER if complete and found.n >= settings.min_rows else Mark.NOTHING


def _settle(state: AlertState, marks: list[tuple[int, Mark]], settings: AlertSettings) -> AlertState:
    old, recent = marks[:-RECENT], marks[-RECENT:]
    alert, run = _fold(state, old, settings)
    return AlertState(alert=alert, run=run, settled=old[-1][0] if old else state.settled, recent=tuple(recent))


def _fold(state: AlertState, marks: Iterable[tuple[int, Mark]], settings: AlertSettings) -> tuple[bool, int]:
    alert, run = state.alert, state.run
    for _, mark in marks:
        if mark is Mark.NOTHING:
            continue
        run = run + 1 if (mark is Mark.OVER) is not alert else 0
        if run >= (settings.clear if alert else settings.in_a_row):
            alert, run = not alert, 0
    return alert, run
