"""What two versions said of the same events, as columns: what a divergence report is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamserve.records import Floats, Int32s, Int64s

Mask = NDArray[np.bool_]
Rows = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Words:
    """A text column. codes: of each row an index into `values`; -1: it has none."""

    codes: Int32s
    values: Sequence[str]

    def take(self, rows: Rows | Mask) -> Words:
        return Words(self.codes[rows], self.values)


@dataclass(frozen=True, slots=True)
class Score:
    """One side's score of one name. there: whether it has one; where not, its value is NaN."""

    values: Floats
    there: Mask

    def take(self, rows: Rows | Mask) -> Score:
        return Score(self.values[rows], self.there[rows])


@dataclass(frozen=True, slots=True)
class Pairs:
    """One row an event, none twice, in an order that the events alone decide (then so do all figures, to the last bit).

    ids: of predictions, something that is spelled by `str`. times: when compared, milliseconds since 1970.
    failures: why the candidate failed. stable, candidate: scores by name. stable_decisions, candidate_decisions: with
    the same values. segments: by field.
    """

    ids: Sequence[object]
    times: Int64s
    failures: Words
    stable: Mapping[str, Score]
    candidate: Mapping[str, Score]
    stable_decisions: Words
    candidate_decisions: Words
    segments: Mapping[str, Words]

    def __len__(self) -> int:
        return len(self.times)
