"""The checker: does every input have its answer, once or at least once, under its key, in its order? Pure.

Bound of what at-least-once may repeat. An event is read again only by a worker that takes its partition up from an
offset at or below it, that is from a committed one. While a fault works, committed offsets never go back, so everything
repeated lies between what was committed when it struck and the end of the input when all was well again: that is the
fault's window, what was in flight and what came meanwhile. Whoever takes a partition up without its old owner's leave
repeats each event once, so a window of n events with t such takeovers has n * t repetitions at most. An event that is
repeated outside every window was repeated for no reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chaos.columns import LAW, Answers, DeadLetters, Flags, Inputs, Ints, Predictions, Window

EXAMPLES = 20  # ids named of each violation
SHIFT = 40  # bits of an offset beside its partition's number


@dataclass(frozen=True)
class Violation:
    """A promise that was broken: how often, and by which ids (the generator's numbers, or positions)."""

    promise: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.promise}: {self.count:,} ({', '.join(self.examples)}{more})"


@dataclass
class Verdict:
    """What was found. repeated: records beyond the first of their event, by window. fallbacks: events of a candidate's
    that stable answered.
    """

    inputs: int = 0
    predictions: int = 0
    dead_letters: int = 0
    repeated: dict[str, int] = field(default_factory=dict)
    fallbacks: int = 0
    violations: list[Violation] = field(default_factory=list)

    def broken(self, promise: str, examples: Sequence[object]) -> None:
        """Enter a violation, if there are examples of it."""
        if len(examples):
            told = tuple(str(one) for one in examples[:EXAMPLES])
            self.violations.append(Violation(promise, len(examples), told))


def check(
    inputs: Inputs,
    predictions: Predictions,
    dead: DeadLetters,
    committed: Ints,
    ends: Ints,
    windows: Sequence[Window],
    *,
    exactly_once: bool,
) -> Verdict:
    """Hold every promise against what is there.

    Args:
        committed, ends: by partition, after the last worker has left.
        windows: of the faults, in their order in time.
    """
    found = Verdict(len(inputs), len(predictions), len(dead))
    said, refused = _Output(inputs, predictions), _Output(inputs, dead)
    for name, output in (("prediction", said), ("dead letter", refused)):
        found.broken(f"a {name} of no input", output.strays())
        _carried(found, name, inputs, output)
        found.broken(f"{name}s of a key out of its order", inputs.ids[output.out_of_order()])
    _answered(found, inputs, said, refused, exactly_once=exactly_once)
    _same(found, inputs, said, predictions)
    if inputs.wanted is not None and predictions.law is not None:
        _lawful(found, inputs, said, predictions)
    found.broken("a dead letter whose value is not the event's", _differ(inputs, refused, inputs.values, dead.values))
    behind = np.flatnonzero(committed != ends)
    found.broken(
        "committed offsets are not at the end", [f"partition {p}: {committed[p]} of {ends[p]}" for p in behind]
    )
    _bounded(found, inputs, (said, refused), windows)
    return found


class _Output:
    """An output topic beside the inputs. rows: of each record the input that it answers; -1: there is none."""

    def __init__(self, inputs: Inputs, answers: Answers) -> None:
        self._inputs, self.answers = inputs, answers
        codes = _codes(inputs.partitions, inputs.offsets)
        wanted = _codes(answers.partitions, answers.offsets)
        at = np.minimum(np.searchsorted(codes, wanted), max(len(codes) - 1, 0))
        met = codes[at] == wanted if len(codes) else np.zeros(len(wanted), np.bool_)
        self.rows = np.where(met, at, -1)
        self.known = np.flatnonzero(met)
        order = np.lexsort((answers.out_offsets, answers.out_partitions))
        self._order = order[self.rows[order] >= 0]
        _, first = np.unique(self.rows[self._order], return_index=True)
        self.firsts = self._order[np.sort(first)]  # the first record of each input, as the topic has them

    def counts(self) -> Ints:
        """How many records each input has."""
        return np.bincount(self.rows[self.known], minlength=len(self._inputs))

    def extras(self) -> Ints:
        """Records beyond the first of their input."""
        return np.setdiff1d(self.known, self.firsts)

    def strays(self) -> list[str]:
        """Records of no input, by both positions."""
        one = self.answers
        return [
            f"of {one.partitions[n]}-{one.offsets[n]} at {one.out_partitions[n]}-{one.out_offsets[n]}"
            for n in np.flatnonzero(self.rows < 0)
        ]

    def out_of_order(self) -> Ints:
        """Inputs whose first record comes after that of a later input of their key, or in another partition than it."""
        rows = self.rows[self.firsts]
        keys = self._inputs.keys.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)[rows]
        by_key = np.argsort(keys, kind="stable")
        keys, rows = keys[by_key], rows[by_key]
        places = self.answers.out_partitions[self.firsts][by_key]
        same = keys[1:] == keys[:-1]
        wrong = same & ((rows[1:] < rows[:-1]) | (places[1:] != places[:-1]))
        return rows[1:][wrong]


def _codes(partitions: Ints, offsets: Ints) -> Ints:
    return (partitions.astype(np.int64) << SHIFT) | offsets


def _answered(found: Verdict, inputs: Inputs, said: _Output, refused: _Output, *, exactly_once: bool) -> None:
    predicted, dead = said.counts(), refused.counts()
    total = predicted + dead
    found.broken("lost: neither a prediction nor a dead letter", inputs.ids[total == 0])
    found.broken("a sound event that became a dead letter", inputs.ids[~inputs.malformed & (dead > 0)])
    found.broken("a malformed event that was predicted", inputs.ids[inputs.malformed & (predicted > 0)])
    if exactly_once:
        found.broken("answered more than once", inputs.ids[total > 1])


def _carried(found: Verdict, name: str, inputs: Inputs, output: _Output) -> None:
    answers = output.answers
    found.broken(f"a {name} with a wrong key", _differ(inputs, output, inputs.keys, answers.keys))
    found.broken(f"a {name} with wrong headers", _differ(inputs, output, inputs.headers, answers.headers))


def _differ(inputs: Inputs, output: _Output, wanted: pa.Array, given: pa.Array) -> Ints:
    """Inputs for which a record has something else than it should."""
    rows = output.rows[output.known]
    return inputs.ids[rows[_unequal(wanted.take(pa.array(rows)), given.take(pa.array(output.known)))]]


def _unequal(left: pa.Array, right: pa.Array) -> Flags:
    """Where two columns differ; null is like null alone, NaN like NaN."""
    equal = pc.equal(left, right).fill_null(False).to_numpy(zero_copy_only=False)
    nulls = left.is_null().to_numpy(zero_copy_only=False) & right.is_null().to_numpy(zero_copy_only=False)
    return ~(equal | nulls)


def _same(found: Verdict, inputs: Inputs, said: _Output, predictions: Predictions) -> None:
    """Event ids; and what the predictions of one event may differ in."""
    rows = said.rows[said.known]
    wanted = pa.array(inputs.ids[rows]).cast(pa.string())
    named = predictions.said.column("event_id").combine_chunks().take(pa.array(said.known)).cast(pa.string())
    found.broken("a prediction that names another event", inputs.ids[rows[_unequal(wanted, named)]])
    highest = np.full(len(inputs), -1, np.int64)
    np.maximum.at(highest, rows, predictions.epochs[said.known])
    found.broken("the highest control epoch is not the log's", inputs.ids[(highest >= 0) & (highest != inputs.epochs)])
    extras = said.extras()
    first = np.zeros(len(inputs), np.int64)
    first[said.rows[said.firsts]] = said.firsts
    beside = first[said.rows[extras]]
    differ = np.zeros(len(extras), np.bool_)
    for column in predictions.said.columns:
        both = (column.combine_chunks().take(pa.array(at)) for at in (extras, beside))
        differ |= _unequal(*both)
    status = _unequal(predictions.statuses.take(pa.array(extras)), predictions.statuses.take(pa.array(beside)))
    bits = np.ascontiguousarray(predictions.scores, np.float64).view(np.int64)
    alike = ~status
    if predictions.law is not None:
        versions = predictions.law.column("model_version").combine_chunks()
        alike &= ~_unequal(versions.take(pa.array(extras)), versions.take(pa.array(beside)))
    differ |= alike & (bits[extras] != bits[beside])
    found.broken("predictions of one event that disagree", inputs.ids[said.rows[extras[differ]]])


def _lawful(found: Verdict, inputs: Inputs, said: _Output, predictions: Predictions) -> None:
    """Each was answered by whom the logs name, for that reason; or by stable, which says that a candidate fell back.

    What was answered under an older epoch, and again under that of the log, is at-least-once's affair.
    """
    rows = said.rows[said.known]
    now = predictions.epochs[said.known] == inputs.epochs[rows]
    known, rows = said.known[now], rows[now]
    met = {name: _texts(predictions.law.column(name), known) for name in LAW}
    wanted = {name: _texts(inputs.wanted.column(name), rows) for name in (*LAW, "stable")}
    right = np.ones(len(rows), np.bool_)
    for name in LAW:
        right &= met[name] == wanted[name]
    fell = (met["reason"] == "FALLBACK") & (met["variant"] == "STABLE") & (wanted["variant"] == "CANDIDATE")
    fell &= met["model_version"] == wanted["stable"]
    found.fallbacks = int(np.count_nonzero(fell))
    found.broken(
        "answered by another version, or for another reason, than the logs say", inputs.ids[rows[~right & ~fell]]
    )


def _texts(column: pa.ChunkedArray, rows: Ints) -> np.ndarray:
    return np.array(column.combine_chunks().take(pa.array(rows)).cast(pa.string()).to_pylist(), object)


def _bounded(found: Verdict, inputs: Inputs, outputs: Sequence[_Output], windows: Sequence[Window]) -> None:
    """Which fault each repetition belongs to: the last one whose window begins at or below the event."""
    rows = np.concatenate([output.rows[output.extras()] for output in outputs])
    partitions, offsets = inputs.partitions[rows], inputs.offsets[rows]
    belongs = np.full(len(rows), -1, np.int64)
    for number, window in enumerate(windows):
        inside = (offsets >= window.start[partitions]) & (offsets < window.stop[partitions])
        belongs[inside] = number
    found.broken("repeated without a fault", inputs.ids[rows[belongs < 0]])
    for number, window in enumerate(windows):
        count = int(np.count_nonzero(belongs == number))
        found.repeated[window.name] = count
        limit = window.events * max(window.takeovers, 1)
        if count > limit:
            over = f"{window.name}: {count} where {limit} were in flight"
            found.violations.append(Violation("more repeated than was in flight", count - limit, (over,)))
