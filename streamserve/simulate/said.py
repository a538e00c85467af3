"""What prediction records say, as columns that can be held against each other: a number for the words, bits for scores.

Words are few in a stream (versions, reasons, decisions, statuses); a `Wording` numbers each combination once. So an
event takes some 40 bytes, and two are compared without a Python object. Nothing here knows how events are routed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamserve.pipeline import framing
from streamserve.pipeline.prediction import decode
from streamserve.records import Indices, Int64s

Codes = NDArray[np.int32]
Words = tuple[Any, ...]  # one value for each of FIELDS
ROUTE = ("model", "model_version", "variant", "reason", "rollout_id")
FIELDS = (*ROUTE, "decision", "feature_status", "scores")  # scores: their names
NOTHING: Words = (*[None] * (len(ROUTE) + 1), (), ())
STATUS = FIELDS.index("feature_status")
MOST = 2**62  # what a number of a combination stays below
REASON, VARIANT, NAMES = FIELDS.index("reason"), FIELDS.index("variant"), FIELDS.index("scores")


@dataclass(frozen=True, slots=True)
class Said:
    """Prediction records; all arrays are as long.

    partitions, offsets: of the event. words: numbers of a `Wording`. scored_at: milliseconds since 1970. bits: of the
    float64 scores in the order of their names, [records, most scores]; 0 beyond the names that the words tell.
    """

    partitions: Int64s
    offsets: Int64s
    epochs: Int64s
    words: Codes
    scored_at: Int64s
    bits: Int64s

    def __len__(self) -> int:
        return len(self.offsets)

    @classmethod
    def nothing(cls, count: int) -> Self:
        """Of so many events."""
        epochs, partitions, offsets, scored_at = np.zeros((4, count), np.int64)
        return cls(partitions, offsets, epochs, np.zeros(count, np.int32), scored_at, np.zeros((count, 0), np.int64))

    def take(self, rows: Indices) -> Said:
        return replace(self, **{name: getattr(self, name)[rows] for name in Said.__slots__})

    def wide(self, width: int) -> Int64s:
        """The bits in at least so many columns."""
        return np.pad(self.bits, ((0, 0), (0, max(width - self.bits.shape[1], 0))))


class Wording:
    """Numbers for combinations of words, the same for all who share the object. Number 0 says nothing."""

    def __init__(self) -> None:
        self._words: list[Words] = [NOTHING]
        self._numbers: dict[Words, int] = {NOTHING: 0}
        self._parts: dict[tuple[int, int], tuple[list[int], dict[Words, int]]] = {}

    def number(self, words: Words) -> int:
        found = self._numbers.setdefault(words, len(self._words))
        if found == len(self._words):
            self._words.append(words)
        return found

    def words(self, number: int) -> Words:
        return self._words[number]

    def part(self, numbers: Codes, first: int, end: int) -> Indices:
        """A number for what each of these says in a range of FIELDS: equal ones say the same."""
        of, known = self._parts.setdefault((first, end), ([], {}))
        of += [known.setdefault(words[first:end], len(known)) for words in self._words[len(of) :]]
        return np.array(of, np.intp)[numbers]

    def where(self, numbers: Codes, field: int, value: str) -> NDArray[np.bool_]:
        """Which of these say so."""
        return np.array([words[field] == value for words in self._words], np.bool_)[numbers]


class SaidReader:
    """Framed prediction records as columns. topic: whose events are meant; others are left out, and counted."""

    def __init__(self, topic: str, schema_id: int, wording: Wording) -> None:
        self._position = rf"^{re.escape(topic)}-(?P<partition>\d{{1,9}})-(?P<offset>\d{{1,18}})$"
        self._schema_id, self._frame, self._wording = schema_id, framing.header(schema_id), wording
        self.unreadable = 0
        self.strangers = 0

    def read(self, values: pa.BinaryArray) -> Said:
        framed = pc.equal(pc.binary_slice(values, 0, framing.HEADER), self._frame).fill_null(False)
        if framed.true_count < len(values):
            self.unreadable += len(values) - framed.true_count
            values = values.filter(framed)
        table = decode(values, self._schema_id)
        parts = pc.extract_regex(table.column("prediction_id"), self._position)
        if parts.null_count:
            self.strangers += parts.null_count
            table = table.filter(parts.is_valid())
            parts = parts.drop_null()
        names, bits = _scores(table.column("scores"))
        return Said(
            partitions=_integers(pc.struct_field(parts, "partition")),
            offsets=_integers(pc.struct_field(parts, "offset")),
            epochs=_integers(table.column("control_epoch")),
            words=self._number(table, names),
            scored_at=_integers(table.column("scored_at")),
            bits=bits,
        )

    def _number(self, table: pa.RecordBatch, names: tuple[Indices, list[Words]]) -> Codes:
        columns = [_dictionary(table.column(name)) for name in (*ROUTE, "decision")]
        columns += [_entries(table.column("feature_status"), with_items=True), names]
        code = _mixed([codes for codes, _ in columns])
        met, first, place = np.unique(code, return_index=True, return_inverse=True)
        numbers = [
            self._wording.number(tuple(distinct[codes[row]] for codes, distinct in columns)) for row in first.tolist()
        ]
        return np.array(numbers, np.int32)[place] if len(met) else np.empty(0, np.int32)


def _integers(column: pa.Array) -> Int64s:
    found: Int64s = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return found


def _dictionary(column: pa.Array) -> tuple[Indices, list[Any]]:
    """Each row's place among the distinct values; null is the last."""
    found = column.cast(pa.string()).dictionary_encode()
    values = [*found.dictionary.to_pylist(), None]
    return found.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False).astype(np.intp), values


def _entries(column: pa.MapArray, *, with_items: bool) -> tuple[Indices, list[Words]]:
    """Each row's place among the distinct maps, as sorted tuples: of keys, or of keys and texts."""
    starts = column.offsets.to_numpy()
    keys, key_texts = _dictionary(column.keys)
    parts = [(keys, key_texts)]
    if with_items:
        parts.append(_dictionary(column.items))
    sizes = np.diff(starts)
    place, distinct = np.empty(len(column), np.intp), dict[Words, int]()
    for size in np.unique(sizes).tolist():
        rows = np.flatnonzero(sizes == size)
        at = starts[rows][:, None] + np.arange(size) - starts[0]
        blocks = [codes[at] for codes, _ in parts]
        code = _mixed([block[:, n] for block in blocks for n in range(size)], len(rows))
        _, first, which = np.unique(code, return_index=True, return_inverse=True)
        spelt = [_spelt([block[row].tolist() for block in blocks], parts) for row in first.tolist()]
        place[rows] = np.array([distinct.setdefault(one, len(distinct)) for one in spelt], np.intp)[which]
    return place, list(distinct)


def _mixed(columns: Sequence[Indices], count: int = 0) -> Indices:
    """One number for each combination of these."""
    if not columns:
        return np.zeros(count, np.intp)
    code, size = columns[0], int(columns[0].max(initial=0)) + 1
    for one in columns[1:]:
        more = int(one.max(initial=0)) + 1
        if size * more > MOST:
            met, code = np.unique(code, return_inverse=True)
            size = len(met)
        code, size = code * more + one, size * more
    return code


def _spelt(rows: Sequence[list[int]], parts: Sequence[tuple[Indices, list[Any]]]) -> Words:
    columns = [[texts[code] for code in codes] for codes, (_, texts) in zip(rows, parts, strict=True)]
    return tuple(sorted(columns[0] if len(columns) == 1 else zip(*columns, strict=True)))


def _scores(column: pa.MapArray) -> tuple[tuple[Indices, list[Words]], Int64s]:
    """The names of each row's scores, and the bits of these in the order of the names."""
    place, distinct = _entries(column, with_items=False)
    starts = column.offsets.to_numpy()
    values = column.items.to_numpy(zero_copy_only=False).view(np.int64)
    keys, texts = _dictionary(column.keys)
    rank = np.argsort(np.argsort(np.array([text or "" for text in texts], object), kind="stable"))[keys]
    width = int(np.diff(starts).max(initial=0))
    bits = np.zeros((len(column), width), np.int64)
    for which, names in enumerate(distinct):
        rows = np.flatnonzero(place == which)
        at = starts[rows][:, None] + np.arange(len(names)) - starts[0]
        if len(names) > 1:
            at = np.take_along_axis(at, np.argsort(rank[at], axis=1), axis=1)
        bits[rows, : len(names)] = values[at]
    return (place, distinct), bits
