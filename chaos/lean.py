"""Whole topics held against the two logs' own words, in columns that a million events fit into: who answered, and why.

Beside `checker.py`, which looks at all that delivery promises and takes some kilobytes an event. Neither the product's
folds nor its router nor its hash are used here, nor what `predictions verify` compares by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from chaos.broker import Broker
from chaos.columns import LAW, Ints
from chaos.law import Epoch, answer
from chaos.reading import decode_all, positions

EXAMPLES = 10
Cuts = Mapping[int, Sequence[tuple[int, int]]]
Words = tuple[int, str, str, str]  # epoch, version, variant, reason


@dataclass
class Lawful:
    """What was found. Each count is of events; repeated: records beyond the first of their event."""

    events: int = 0
    right: int = 0
    fell_back: int = 0
    dead_letters: int = 0
    wrong: int = 0
    missing: int = 0
    repeated: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Every event was answered by whom the logs name, or fell back, or is a dead letter."""
        return not self.wrong and not self.missing and self.right > 0


@dataclass(frozen=True)
class Source:
    """The source topic by partition; a row an offset. keys: numbers of `names`; -1: nothing is there."""

    keys: dict[int, Ints]
    times: dict[int, Ints]
    names: list[bytes | None]


def read_source(broker: Broker, topic: str) -> Source:
    """Keys and timestamps (milliseconds since 1970) of all events."""
    parts = [np.empty((0, 4), np.int64)]
    numbers: dict[bytes | None, int] = {}
    for messages in broker.read(topic):
        if messages:
            rows = [
                (one.partition(), one.offset(), numbers.setdefault(one.key(), len(numbers)), one.timestamp()[1])
                for one in messages
            ]
            parts.append(np.array(rows, np.int64))
    found = np.concatenate(parts)
    keys, times = dict[int, Ints](), dict[int, Ints]()
    for partition in np.unique(found[:, 0]).tolist():
        _, offsets, named, stamps = found[found[:, 0] == partition].T
        keys[partition] = np.full(int(offsets.max()) + 1, -1, np.int64)
        times[partition] = np.zeros(len(keys[partition]), np.int64)
        keys[partition][offsets], times[partition][offsets] = named, stamps
    return Source(keys, times, list(numbers))


class Law:
    """The words that each event should have been answered with, as numbers."""

    def __init__(self, source: Source, epochs: Sequence[Epoch], cuts: Cuts) -> None:
        self._source, self._cuts = source, cuts
        self._epochs = {epoch.number: epoch for epoch in epochs}
        self._first = epochs[0].number
        self._numbers: dict[Words, int] = {}
        self.words: list[Words] = []

    def number(self, words: Words) -> int:
        """The same for the same words."""
        found = self._numbers.setdefault(words, len(self.words))
        if found == len(self.words):
            self.words.append(words)
        return found

    def expected(self, partition: int) -> tuple[Ints, Ints]:
        """By offset: the words' number, and that of what stable says if a candidate falls back."""
        cuts, keys = self._cuts.get(partition, ()), self._source.keys[partition]
        bounds = np.searchsorted([start for _, start in cuts], np.arange(len(keys)), "right")
        epochs = np.array([self._first, *(epoch for epoch, _ in cuts)])[bounds]
        pairs, which = np.unique(np.stack([epochs, keys]), axis=1, return_inverse=True)
        said, fallen = np.empty((2, pairs.shape[1]), np.int64)
        for at, (epoch, key) in enumerate(pairs.T.tolist()):
            version, variant, reason, stable = answer(self._epochs[epoch], self._source.names[key])
            said[at] = self.number((epoch, version, variant, reason))
            fell = (epoch, stable, "STABLE", "FALLBACK") if variant == "CANDIDATE" else (epoch, "", "", "")
            fallen[at] = self.number(fell)
        which = which.reshape(-1)
        return said[which], fallen[which]


def hold(
    broker: Broker, source: Source, law: Law, predictions: str, letters: Sequence[tuple[int, int]], schema_id: int
) -> Lawful:
    """Every prediction of the highest control epoch of its event against the law."""
    found = Lawful()
    best = {p: np.full(len(keys), -1, np.int64) for p, keys in source.keys.items()}
    met = {p: np.full(len(keys), -1, np.int64) for p, keys in source.keys.items()}
    others: list[tuple[int, int, int]] = []  # a second answer of the same epoch that says something else
    for messages in broker.read(predictions):
        if messages:
            table = decode_all([one.value() for one in messages], schema_id)
            _enter(found, law, table, best, met, others)
    dead = {p: np.zeros(len(keys), np.bool_) for p, keys in source.keys.items()}
    for partition, offset in letters:
        dead[partition][offset] = True
    for partition, keys in source.keys.items():
        said, fallen = law.expected(partition)
        there = keys >= 0
        right = there & (met[partition] == said)
        fell = there & ~right & (met[partition] == fallen)
        for p, offset, number in others:
            if p == partition and best[p][offset] == law.words[number][0]:
                wrong = number not in (said[offset], fallen[offset])
                right[offset], fell[offset] = right[offset] and not wrong, fell[offset] and not wrong
        answered = met[partition] >= 0
        wrong = (answered & ~right & ~fell) | (answered & dead[partition])
        missing = there & ~answered & ~dead[partition]
        found.events += int(there.sum())
        found.right += int(right.sum())
        found.fell_back += int(fell.sum())
        found.dead_letters += int(dead[partition].sum())
        found.wrong += int(wrong.sum())
        found.missing += int(missing.sum())
        for offset in np.flatnonzero(wrong | missing)[: max(EXAMPLES - len(found.examples), 0)].tolist():
            number = int(met[partition][offset])
            stands = law.words[number] if number >= 0 else "nothing"
            found.examples.append(f"{partition}-{offset}: {stands}, the logs say {law.words[said[offset]]}")
    return found


def _enter(
    found: Lawful,
    law: Law,
    table: pa.Table,
    best: dict[int, Ints],
    met: dict[int, Ints],
    others: list[tuple[int, int, int]],
) -> None:
    partitions, offsets = positions(table.column("prediction_id"))
    epochs = table.column("control_epoch").to_numpy()
    numbers = _numbers(law, table, epochs)
    for partition in np.unique(partitions).tolist():
        rows = np.flatnonzero(partitions == partition)
        held, said, at = best[partition], met[partition], offsets[rows]
        _, first = np.unique(at, return_index=True)
        fresh = np.zeros(len(rows), np.bool_)
        fresh[first] = held[at[first]] < 0
        held[at[fresh]], said[at[fresh]] = epochs[rows[fresh]], numbers[rows[fresh]]
        for row in rows[~fresh].tolist():  # few: what was answered before
            found.repeated += 1
            offset = int(offsets[row])
            if epochs[row] > held[offset]:
                held[offset], said[offset] = epochs[row], numbers[row]
            elif epochs[row] == held[offset] and numbers[row] != said[offset]:
                others.append((partition, offset, int(numbers[row])))


def _numbers(law: Law, table: pa.Table, epochs: Ints) -> Ints:
    columns = [table.column(name).combine_chunks().cast(pa.string()).dictionary_encode() for name in LAW]
    codes = np.stack([epochs, *(one.indices.to_numpy(zero_copy_only=False) for one in columns)])
    pairs, which = np.unique(codes, axis=1, return_inverse=True)
    words = [
        law.number((int(epoch), *(one.dictionary[code].as_py() for one, code in zip(columns, rest, strict=True))))
        for epoch, *rest in pairs.T.tolist()
    ]
    return np.array(words, np.int64)[which.reshape(-1)]
