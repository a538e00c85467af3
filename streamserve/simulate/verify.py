"""Verifying predictions: recorded events are scored again by the worker's own pipeline, and what it says is compared.

The comparison looks at records, those that stand in the topic and those that the pipeline would write now. It knows
neither epochs nor buckets nor rules: a fault of the router is in what it is given, never in how that is judged.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamserve.errors import ModelError
from streamserve.pipeline.candidates import Trial
from streamserve.pipeline.pipeline import LoadedVersion, Pipeline, Versions
from streamserve.records import ControlView, Indices, RawBatch
from streamserve.simulate.explain import jsonable
from streamserve.simulate.said import FIELDS, NAMES, REASON, ROUTE, STATUS, VARIANT, Said, SaidReader, Wording
from streamserve.simulate.standing import EXAMPLES, Rows, Standing

EPOCH, ANSWER = "control_epoch", "answer"  # fields of a difference beside FIELDS
PREDICTION, LETTER, NOTHING, BOTH = "prediction", "dead letter", "nothing", "prediction and dead letter"


PLAIN = ("scores_alone", "repeated", "strays", "unreadable", "outside", "batches", "changes", "unloadable")


class Verdict(enum.IntEnum):
    """Of an event; of several records of it, the greatest."""

    AGREES = 0
    FELL_BACK = 1  # stable answered for the candidate, and this is stable's answer
    DEAD_LETTER = 2  # there, and again
    WAITING = 3  # not answered yet
    CHANGED = 4  # routed alike; its features had another status, so the scores can't be compared
    MISSING = 5
    DIFFERS = 6


@dataclass(frozen=True, slots=True)
class Difference:
    """Of an event, field by field: what stands in the topic, and what is said again."""

    prediction_id: str
    verdict: str
    fields: Mapping[str, tuple[Any, Any]]


@dataclass
class Report:
    """What was found.

    verdicts: events by verdict. fields: of those that differ or changed, by what is different; an event may be in
    several. scores_alone: differing events that read stored rows, with nothing but scores and decision different.
    repeated: records beyond the first of their event. strays: predictions of no event. unreadable: records of the
    predictions topic that are none. outside: predictions and letters of events that were not looked at. epochs, routes:
    agreeing events by control epoch, and by version, variant and reason. changes: how often the epoch changed inside a
    batch. unloadable: candidates that can't be loaded any more, and why.
    """

    events: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    scores_alone: int = 0
    repeated: int = 0
    strays: int = 0
    unreadable: int = 0
    outside: int = 0
    batches: int = 0
    changes: int = 0
    epochs: Counter[int] = field(default_factory=Counter)
    routes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    unloadable: dict[str, str] = field(default_factory=dict)
    examples: list[Difference] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Something was compared, and nothing of it differs."""
        wrong = self.verdicts[Verdict.DIFFERS] + self.verdicts[Verdict.MISSING] + self.strays + self.unreadable
        return self.events > 0 and not wrong

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = jsonable(
            {
                "good": self.good,
                "events": self.events,
                **{verdict.name.lower(): self.verdicts[verdict] for verdict in Verdict},
                "fields": {name: count for name, count in self.fields.items() if count},
                **{name: getattr(self, name) for name in PLAIN},
                "epochs": dict(sorted(self.epochs.items())),
                "routes": [[*route, count] for route, count in sorted(self.routes.items())],
                "examples": [{name: getattr(one, name) for name in Difference.__slots__} for one in self.examples],
            }
        )
        return found


class Trying:
    """Versions to score with again: no deadline; a candidate that can't be loaded falls back, and is told of."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self.unloadable: dict[str, str] = {}

    def get(self, version: str) -> LoadedVersion:
        return self._versions.get(version)

    def trial(self, version: str) -> Trial | None:
        if version in self.unloadable:
            return None
        try:
            return self._versions.trial(version)
        except ModelError as error:
            self.unloadable[version] = error.what
            return None


class StableAlone(Trying):
    """The same where every candidate falls back."""

    def trial(self, version: str) -> Trial | None:  # noqa: ARG002
        return None


class Verifier:
    """Holds source events, batch by batch, against what stands of them.

    Args:
        pipeline, fallback: the topology's pipeline; and with candidates that all fall back, for events of which a
            candidate did: which ones no log can foretell, and what stable says in its place can be told.
        again: reads what the pipelines write. standing: read by one with the same `wording`.
        sure: by partition, the offset below which every event must have its answer.
        now_ms: milliseconds since 1970; nothing that is compared depends on it.
        ignore_scores: compare who answers and why, and nothing of what is said.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        fallback: Pipeline,
        view: ControlView,
        again: SaidReader,
        wording: Wording,
        standing: Standing,
        sure: Mapping[int, int],
        *,
        now_ms: int,
        ignore_scores: bool = False,
    ) -> None:
        self._pipeline, self._fallback = pipeline, fallback
        self._view = replace(view, shadow=None)
        self._again, self._wording, self._standing = again, wording, standing
        self._sure = np.array([sure.get(p, 0) for p in range(max(sure, default=-1) + 1)], np.int64)
        self._now_ms, self._ignore_scores = now_ms, ignore_scores
        self.report = Report()

    def take(self, raw: RawBatch) -> None:
        """Score a batch again and compare."""
        there = self._standing.at(raw.partitions, raw.offsets)
        now = self._said_again(self._pipeline, raw)
        now = self._let_fall(raw, there, now)
        # It was scored, and its prediction found too large: to write it is not tried again
        now = replace(now, predicted=now.predicted & ~there.refused, letter=now.letter | there.refused)
        verdicts, differ = self._judge(there, now)
        for row, one in self._standing.copies(raw.partitions, raw.offsets):
            now = self._judge_copy(raw, row, one, now, verdicts, differ)
        self._count(raw, there, now, verdicts, differ)

    def finish(self) -> Report:
        """When all events were taken."""
        report = self.report
        report.repeated, report.outside = self._standing.repeated, self._standing.outside
        report.strays, where = self._standing.of_no_event()
        for partition, offset in where:
            self._example(f"partition {partition}, offset {offset}", "STRAY", {ANSWER: (PREDICTION, "no such event")})
        return report

    # ---- scoring again

    def _said_again(self, pipeline: Pipeline, raw: RawBatch) -> Rows:
        out = pipeline.process(raw, self._view, self._now_ms)
        count = len(raw)
        predicted, letter = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        written = out.outgoing[0]  # the predictions; dead letters, if there are any, come after
        predicted[written.rows] = True
        letter[[reject.row for reject in out.rejects]] = True
        said = _with(Said.nothing(count), written.rows, self._again.read(written.values))
        return Rows(predicted, letter, np.zeros(count, np.bool_), said)

    def _let_fall(self, raw: RawBatch, there: Rows, now: Rows) -> Rows:
        """Where a candidate fell back, what stable would say in its place."""
        fell = there.predicted & self._wording.where(there.said.words, REASON, "FALLBACK")
        fell |= there.letter & ~there.refused  # stable could not score it either
        fell &= now.predicted & self._wording.where(now.said.words, VARIANT, "CANDIDATE")
        rows = np.flatnonzero(fell)
        if not len(rows):
            return now
        found = self._said_again(self._fallback, _rows(raw, rows))
        now.predicted[rows], now.letter[rows] = found.predicted, found.letter
        return replace(now, said=_with(now.said, rows, found.said))

    # ---- comparing

    def _judge(self, there: Rows, now: Rows) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]:
        """The verdict of each event; and by field, where the two differ."""
        both = there.predicted & now.predicted
        differ = {EPOCH: both & (there.said.epochs != now.said.epochs)}
        for at, name in enumerate(FIELDS):
            if at < len(ROUTE) or not self._ignore_scores:
                parts = (self._wording.part(one.said.words, at, at + 1) for one in (there, now))
                differ[name] = both & np.not_equal(*parts)
        if not self._ignore_scores:
            differ[FIELDS[NAMES]] |= both & _bits_differ(there.said, now.said)
        differ[ANSWER] = (there.predicted != now.predicted) | (there.letter != now.letter)
        answered = there.predicted | there.letter
        return self._verdicts(answered, there, differ), differ

    def _verdicts(
        self, answered: NDArray[np.bool_], there: Rows, differ: Mapping[str, NDArray[np.bool_]]
    ) -> NDArray[np.uint8]:
        """The later ones go before."""
        found = np.full(len(answered), Verdict.AGREES, np.uint8)
        found[self._wording.where(there.said.words, REASON, "FALLBACK") & there.predicted] = Verdict.FELL_BACK
        found[there.letter] = Verdict.DEAD_LETTER
        routed = np.logical_or.reduce([differ[name] for name in (EPOCH, ANSWER, *ROUTE)])
        if not self._ignore_scores:
            found[differ["decision"] | differ[FIELDS[NAMES]]] = Verdict.DIFFERS
            found[differ[FIELDS[STATUS]]] = Verdict.CHANGED
        found[routed] = Verdict.DIFFERS
        there_said = there.said
        sure = there_said.offsets < self._sure[np.minimum(there_said.partitions, len(self._sure) - 1)]
        found[~answered] = np.where(sure, Verdict.MISSING, Verdict.WAITING)[~answered]
        return found

    def _judge_copy(
        self,
        raw: RawBatch,
        row: int,
        one: Said,
        now: Rows,
        verdicts: NDArray[np.uint8],
        differ: Mapping[str, NDArray[np.bool_]],
    ) -> Rows:
        """A further record of the same event and epoch: it must hold by itself. What is told of is the worse one."""
        at = np.array([row])
        no = np.zeros(1, np.bool_)
        there = Rows(~no, no, no, one)
        alone = _rows(raw, at)
        fresh = self._let_fall(alone, there, self._said_again(self._pipeline, alone))
        verdict, apart = self._judge(there, fresh)
        if verdict[0] <= verdicts[row]:
            return now
        verdicts[row] = verdict[0]
        for name, flags in apart.items():
            differ[name][row] = flags[0]
        return replace(now, said=_with(now.said, at, fresh.said))

    # ---- counting

    def _count(
        self,
        raw: RawBatch,
        there: Rows,
        now: Rows,
        verdicts: NDArray[np.uint8],
        differ: Mapping[str, NDArray[np.bool_]],
    ) -> None:
        report = self.report
        report.events += len(raw)
        report.batches += 1
        report.verdicts += Counter(dict(_tally(verdicts, Verdict)))
        agree = (verdicts == Verdict.AGREES) | (verdicts == Verdict.FELL_BACK)
        report.epochs += Counter(dict(_tally(there.said.epochs[agree], int)))
        for number, count in _tally(there.said.words[agree], int):
            words = self._wording.words(number)
            report.routes[words[1], words[2], words[3]] += count
        report.changes += _changes(raw, now)
        bad = verdicts >= Verdict.CHANGED
        if not bad.any():
            return
        for name, flags in differ.items():
            report.fields[name] += int(np.count_nonzero(flags & bad))
        self._count_scores_alone(there, verdicts, differ)
        told = Counter(one.verdict for one in report.examples)
        for verdict in (Verdict.DIFFERS, Verdict.MISSING, Verdict.CHANGED):
            left = EXAMPLES - told[verdict.name]
            for row in np.flatnonzero(verdicts == verdict)[: max(left, 0)].tolist():
                place = f"{raw.topic}-{raw.partitions[row]}-{raw.offsets[row]}"
                self._example(place, verdict.name, self._fields(there, now, differ, row))

    def _count_scores_alone(
        self, there: Rows, verdicts: NDArray[np.uint8], differ: Mapping[str, NDArray[np.bool_]]
    ) -> None:
        said = ("decision", FIELDS[NAMES])
        routed = np.logical_or.reduce([flags for name, flags in differ.items() if name not in said])
        reads = np.flatnonzero((verdicts == Verdict.DIFFERS) & ~routed)
        stored = sum(bool(self._wording.words(number)[STATUS]) for number in there.said.words[reads].tolist())
        self.report.scores_alone += stored

    def _example(self, place: str, verdict: str, fields: Mapping[str, tuple[Any, Any]]) -> None:
        self.report.examples.append(Difference(place, verdict, fields))

    def _fields(
        self, there: Rows, now: Rows, differ: Mapping[str, NDArray[np.bool_]], row: int
    ) -> dict[str, tuple[Any, Any]]:
        return {
            name: (self._value(there, name, row), self._value(now, name, row))
            for name, flags in differ.items()
            if flags[row]
        }

    def _value(self, one: Rows, name: str, row: int) -> Any:
        if name == ANSWER:
            ways = {(True, False): PREDICTION, (False, True): LETTER, (False, False): NOTHING, (True, True): BOTH}
            return ways[bool(one.predicted[row]), bool(one.letter[row])]
        if name == EPOCH:
            return int(one.said.epochs[row])
        words = self._wording.words(int(one.said.words[row]))
        value = words[FIELDS.index(name)]
        if name == FIELDS[NAMES]:
            return dict(zip(value, one.said.bits[row].view(np.float64).tolist(), strict=False))
        return dict(value) if name == FIELDS[STATUS] else value


def _with(into: Said, rows: Indices, said: Said) -> Said:
    """The same with what others say in these rows; as wide as the wider of both."""
    bits = into.wide(said.bits.shape[1]).copy()
    bits[rows] = said.wide(bits.shape[1])
    columns = {name: getattr(into, name).copy() for name in Said.__slots__ if name != "bits"}
    for name, column in columns.items():
        column[rows] = getattr(said, name)
    return Said(**columns, bits=bits)


def _bits_differ(left: Said, right: Said) -> NDArray[np.bool_]:
    width = max(left.bits.shape[1], right.bits.shape[1])
    found: NDArray[np.bool_] = (left.wide(width) != right.wide(width)).any(axis=1)
    return found


def _rows(raw: RawBatch, rows: Indices) -> RawBatch:
    at = pa.array(rows)
    return replace(
        raw,
        **{n: getattr(raw, n)[rows] for n in ("partitions", "offsets", "timestamps", "timestamp_types")},
        keys=raw.keys.take(at),
        values=raw.values.take(at),
        headers=None if raw.headers is None else raw.headers.take(at),
    )


def _tally(values: NDArray[Any], kind: type[Any]) -> Sequence[tuple[Any, int]]:
    met, counts = np.unique(values, return_counts=True)
    return [(kind(one), count) for one, count in zip(met.tolist(), counts.tolist(), strict=True)]


def _changes(raw: RawBatch, now: Rows) -> int:
    """How often the epoch is another one at the next event of a partition."""
    rows = np.flatnonzero(now.predicted)
    rows = rows[np.argsort(raw.partitions[rows], kind="stable")]
    same = np.diff(raw.partitions[rows]) == 0
    return int(np.count_nonzero(same & (np.diff(now.said.epochs[rows]) != 0)))
