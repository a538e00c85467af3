"""A rollout's candidate answers for its events, or stable does: whatever it does, nothing of stable's is touched.

A candidate that is not loaded, that fails, is late, or refuses a row falls back: its predictions say so (FALLBACK), and
it is counted against it. Nothing of it becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from streamserve.features.columns import BatchColumns
from streamserve.models.plan import FeaturePlan
from streamserve.pipeline.enrich import build_matrix
from streamserve.records import FeatureMatrix, Indices, Int64s, Scores

Finish = Callable[[], Scores]


class Trial(Protocol):
    """A version that is tried: how its inputs are filled, and its scoring, which may run beside stable's."""

    @property
    def plan(self) -> FeaturePlan: ...

    def begin(self, matrix: FeatureMatrix, raw_rows: Int64s) -> Finish:
        """Begin to score; what is returned waits for it, and raises whatever went wrong."""
        ...


@dataclass(slots=True)
class Attempt:
    """Some events of a batch, given to a candidate. why: the name of the error, where it did not answer for all."""

    version: str
    rows: Indices
    matrix: FeatureMatrix | None = None
    finish: Finish | None = None
    scores: Scores | None = None
    why: str = ""

    def conclude(self) -> None:
        """Wait for its scores."""
        if self.finish is None:
            return
        try:
            self.scores = self.finish()
        except Exception as error:  # noqa: BLE001  (whatever it is, stable answers, and `why` is counted)
            self.why = type(error).__name__
        else:
            rejects = (*(self.matrix.rejects if self.matrix else ()), *self.scores.rejects)
            self.why = rejects[0].error if rejects else ""

    @property
    def fallen(self) -> Indices:
        """The events that it did not answer for."""
        return self.rows if self.scores is None else np.setdiff1d(self.rows, self.scores.rows)


def attempt(version: str, trial: Trial | None, columns: BatchColumns, rows: Indices) -> Attempt:
    """Give these events to a candidate. trial: None where it is not loaded."""
    made = Attempt(version, rows, why="NotLoaded")
    if trial is None:
        return made
    try:
        made.matrix = build_matrix(version, trial.plan, columns, rows)
        made.finish = trial.begin(made.matrix, columns.events.rows)
    except Exception as error:  # noqa: BLE001  (as above)
        made.why = type(error).__name__
    return made
