"""Shadow decisions gathered into columns: one row an event, by rollout; some 100 bytes a record.

Neither the order of records nor how they were cut into batches makes any difference to what comes out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamserve.records import Floats, Int32s, Int64s
from streamserve.rollouts.pairs import Mask, Pairs, Rows, Score, Words

Values = NDArray[Any]
NUMBERS = ("compared_at", "control_epoch")
TEXTS = ("rollout_id", "stable_version", "candidate_version", "error", "stable_decision", "candidate_decision")
SIDES = ("stable_scores", "candidate_scores")


@dataclass(frozen=True, slots=True, order=True)
class Compared:
    """Two versions within a rollout. first, last: when they were compared, milliseconds since 1970."""

    last: int
    rollout_id: str
    stable: str
    candidate: str
    records: int
    first: int


@dataclass(frozen=True, slots=True)
class Gathered:
    """repeated: records of events that were there already, as after a crash."""

    pairs: Pairs
    repeated: int


class ShadowPairs:
    """Takes record batches of `shadow_reading.PATHS`. Of an event that is there twice one record counts.

    It is that of the highest control epoch, as with predictions, and of these the one that was compared last.
    """

    def __init__(self) -> None:
        self.records = 0
        self._ids: list[pa.StringArray] = []
        self._numbers: dict[str, list[Int64s]] = {name: [] for name in NUMBERS}
        decided = _Vocabulary()
        self._texts = {name: _Codes(decided if name.endswith("decision") else _Vocabulary()) for name in TEXTS}
        self._scores = {side: _Spread(np.nan) for side in SIDES}
        self._segments = _Spread(-1)
        self._words = defaultdict[str, _Vocabulary](_Vocabulary)

    def add(self, batch: pa.RecordBatch) -> None:
        start, self.records = self.records, self.records + batch.num_rows
        self._ids.append(batch.column("prediction_id"))
        for name, parts in self._numbers.items():
            parts.append(batch.column(name).cast(pa.int64()).to_numpy(zero_copy_only=False))
        for name, codes in self._texts.items():
            codes.add(batch.column(name))
        for side, scores in self._scores.items():
            for name, rows, values in _taken_apart(batch.column(side), start):
                scores.add(name, rows, values.to_numpy())
        for field, rows, values in _taken_apart(batch.column("segments"), start):
            self._segments.add(field, rows, self._words[field].codes(values))

    def compared(self) -> tuple[Compared, ...]:
        """Every two versions that there are, the ones that were compared last at the end."""
        times = self._number("compared_at")
        found = ((names, times[rows]) for names, rows in self._groups())
        return tuple(sorted(Compared(int(at.max()), *names, len(at), int(at.min())) for names, at in found))

    def pairs(self, wanted: Compared) -> Gathered:
        """The events in which these two were compared."""
        names = (wanted.rollout_id, wanted.stable, wanted.candidate)
        ids, rows, repeated = self._one_each(next(rows for these, rows in self._groups() if these == names))
        texts = {name: self._texts[name].words().take(rows) for name in TEXTS[3:]}
        scores = {side: self._spread_scores(side, rows) for side in SIDES}
        segments = {
            field: Words(self._segments.column(field, self.records)[0][rows], self._words[field].values)
            for field in self._segments.names
        }
        pairs = Pairs(
            ids=ids,
            times=self._number("compared_at")[rows],
            failures=texts["error"],
            stable=scores["stable_scores"],
            candidate=scores["candidate_scores"],
            stable_decisions=texts["stable_decision"],
            candidate_decisions=texts["candidate_decision"],
            segments={field: words for field, words in segments.items() if (words.codes >= 0).any()},
        )
        return Gathered(pairs, repeated)

    def _spread_scores(self, side: str, rows: Rows) -> dict[str, Score]:
        spread = self._scores[side]
        return {name: Score(*spread.column(name, self.records)).take(rows) for name in spread.names}

    def _number(self, name: str) -> Int64s:
        self._numbers[name] = [np.concatenate([np.zeros(0, np.int64), *self._numbers[name]])]
        return self._numbers[name][0]

    def _groups(self) -> Iterator[tuple[tuple[str, str, str], Rows]]:
        """Rows by rollout, stable and candidate."""
        rollout, stable, candidate = (self._texts[name].words() for name in TEXTS[:3])
        shape = (len(rollout.values), len(stable.values), len(candidate.values))
        if not self.records:
            return
        keys = np.ravel_multi_index((rollout.codes, stable.codes, candidate.codes), shape)
        for key in np.unique(keys).tolist():
            one, two, three = (int(at) for at in np.unravel_index(key, shape))
            yield (rollout.values[one], stable.values[two], candidate.values[three]), np.flatnonzero(keys == key)

    def _one_each(self, rows: Rows) -> tuple[pa.StringArray, Rows, int]:
        """By prediction id: the ids, the row of each, and how many rows were left out."""
        ids = pa.concat_arrays(self._ids)
        self._ids = [ids]
        ids = ids.take(pa.array(rows))
        order = pc.sort_indices(ids)
        ids, rows = ids.take(order), rows[order.to_numpy()]
        again = pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False).astype(bool)
        if not again.any():
            return ids, rows, 0
        event = np.concatenate([[0], np.cumsum(~again)])
        best = np.lexsort((*self._preferred(rows), event))
        first = np.concatenate([[True], np.diff(event) > 0])  # events ascend in either order
        return ids.filter(pa.array(first)), rows[best][first], int(again.sum())

    def _preferred(self, rows: Rows) -> list[Floats | Int64s | Mask]:
        """Keys to sort by, the last one first: which of several records of an event counts."""
        scores = (score.values for side in SIDES for score in self._spread_scores(side, rows).values())
        failed = self._texts["error"].words().codes[rows] >= 0
        return [*scores, failed, -self._number("compared_at")[rows], -self._number("control_epoch")[rows]]


class _Vocabulary:
    """Distinct texts, numbered as they come."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}

    @property
    def values(self) -> list[str]:
        return list(self._place)

    def codes(self, texts: pa.StringArray) -> Int32s:
        """-1: null."""
        encoded = texts.dictionary_encode()
        place = self._place
        own = [place.setdefault(text, len(place)) for text in encoded.dictionary.to_pylist()]
        found: Int32s = np.array([*own, -1], np.int32)[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        return found


class _Codes:
    """A text column that grows."""

    def __init__(self, vocabulary: _Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._parts: list[Int32s] = [np.zeros(0, np.int32)]

    def add(self, texts: pa.StringArray) -> None:
        self._parts.append(self._vocabulary.codes(texts))

    def words(self) -> Words:
        self._parts = [np.concatenate(self._parts)]
        return Words(self._parts[0], self._vocabulary.values)


class _Spread:
    """Columns by name that grow; not every row has every name. missing: what stands where it has none."""

    def __init__(self, missing: float) -> None:
        self._missing = missing
        self._parts = defaultdict[str, list[tuple[Rows, Values]]](list)

    @property
    def names(self) -> list[str]:
        return sorted(self._parts)

    def add(self, name: str, rows: Rows, values: Values) -> None:
        self._parts[name].append((rows, values))

    def column(self, name: str, length: int) -> tuple[Values, Mask]:
        """The column, and which rows have it."""
        rows, values = (np.concatenate(parts) for parts in zip(*self._parts[name], strict=True))
        self._parts[name] = [(rows, values)]
        column, there = np.full(length, self._missing, values.dtype), np.zeros(length, bool)
        column[rows], there[rows] = values, True
        return column, there


def _taken_apart(maps: pa.MapArray, start: int) -> Iterator[tuple[str, Rows, pa.Array]]:
    """Each name of a column of maps, the rows that have it, and their values. start: the number of the first row."""
    ends = maps.offsets.to_numpy()
    keys, items = (some[ends[0] : ends[-1]] for some in (maps.keys, maps.items))
    of_row = np.repeat(np.arange(start, start + len(maps), dtype=np.int32), np.diff(ends))
    encoded = keys.dictionary_encode()
    codes = encoded.indices.to_numpy()
    for code, name in enumerate(encoded.dictionary.to_pylist()):
        here = np.flatnonzero(codes == code)
        yield name, of_row[here], items if len(here) == len(items) else items.take(pa.array(here))
