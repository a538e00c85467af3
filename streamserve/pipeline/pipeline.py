"""The pipeline: one micro-batch through decode, enrich, route, score, emit. Bytes in, bytes out, time passed in.

The same object runs in a worker, in the tests, over recorded events and behind `streamserve explain`. It holds no
state between batches and may run several at once; their order is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from streamserve.drift.tallies import BatchTallies
from streamserve.features.catalogue import Catalogue
from streamserve.features.columns import BatchColumns
from streamserve.features.rows import FeatureStore
from streamserve.models.plan import FeaturePlan
from streamserve.pipeline import emit
from streamserve.pipeline.candidates import Attempt, Trial, attempt
from streamserve.pipeline.decode import EventDecoder
from streamserve.pipeline.emit import TimestampLimits
from streamserve.pipeline.encode import encode
from streamserve.pipeline.enrich import build_matrix, open_columns
from streamserve.pipeline.prediction import Provenance
from streamserve.pipeline.route import route
from streamserve.pipeline.score import Scorer
from streamserve.pipeline.shadow import Shadowed, choose
from streamserve.pipeline.tally import Tallying, tally
from streamserve.records import (
    Assignment,
    ControlView,
    EventBatch,
    FeatureMatrix,
    OutputBatch,
    RawBatch,
    Reject,
    Scores,
    Stage,
    StageTimes,
    TopicPartition,
    Variant,
)


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """A version ready to answer: how its inputs are filled, and its scorer."""

    plan: FeaturePlan
    scorer: Scorer


class Versions(Protocol):
    def get(self, version: str) -> LoadedVersion:
        """A version that is loaded and warm."""
        ...

    def trial(self, version: str) -> Trial | None:
        """The same for a rollout's candidate, which may fail; None: it is not loaded."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that is known of a batch on its way; what `explain` and the tests look into.

    assignment: who answered in the end. fallbacks: by candidate and error, the events that stable answered for it.
    shadowed: what is to be scored by a candidate as well. tallied: drift counts; None: none are kept.
    """

    events: EventBatch
    assignment: Assignment
    matrices: tuple[FeatureMatrix, ...]
    scores: tuple[Scores, ...]
    rejects: tuple[Reject, ...]
    times: StageTimes
    fallbacks: Mapping[tuple[str, str], int]
    shadowed: Shadowed | None = None
    tallied: BatchTallies | None = None


class Pipeline:
    """A topology's pipeline.

    Args:
        clock_ns: monotonic nanoseconds, for the stage times; the pipeline owns no clock. The one that stamped
            `RawBatch.ready_ns`, where the wait before the first stage is to be right.
        release: of streamserve, written into dead letters.
        tallying: by what drift is counted; None: it is not.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        decoder: EventDecoder,
        versions: Versions,
        store: FeatureStore,
        *,
        schema_id: int,
        limits: TimestampLimits,
        release: str,
        clock_ns: Callable[[], int],
        tallying: Tallying | None = None,
    ) -> None:
        topology = catalogue.topology
        self._catalogue, self._decoder, self._versions, self._store = catalogue, decoder, versions, store
        self._limits, self._release, self._clock_ns = limits, release, clock_ns
        self._tallying = tallying
        self._about = Provenance(
            topology=topology.name,
            model=topology.model,
            event_id=topology.source.id,
            has_event_time=topology.source.event_time is not None,
            schema_id=schema_id,
        )
        self._predictions, self._dead_letters = topology.topic("predictions"), topology.topic("dead-letters")

    def run(self, raw: RawBatch, view: ControlView) -> Result:
        """Everything up to the scores.

        Raises:
            SignatureError: a model's output is not what its manifest says; nothing of the batch may be emitted.
        """
        clock_ns = self._clock_ns
        marks = [clock_ns()]
        events = self._decoder.decode(raw)
        marks.append(clock_ns())
        assignment = route(events, view)
        tried = {name: (self._versions.trial(name), rows) for name, rows in assignment.tried()}
        loaded = {name: self._versions.get(name) for name in assignment.standing()}
        marks.append(clock_ns())
        plans = [one.plan for one in (*loaded.values(), *(trial for trial, _ in tried.values())) if one is not None]
        columns = open_columns(self._catalogue, events, plans, self._store)
        attempts = [attempt(name, trial, columns, rows) for name, (trial, rows) in tried.items()]
        matrices = [
            build_matrix(name, version.plan, columns, rows)
            for name, version in loaded.items()
            if len(rows := assignment.rows_of(name, Variant.STABLE))
        ]
        marks.append(clock_ns())
        answers = _Answers(loaded, columns, clock_ns)
        for matrix in matrices:
            answers.score(matrix)
        for one in attempts:
            assignment = answers.conclude(one, assignment)
        marks.append(clock_ns())
        rejects = (*events.rejects, *answers.rejects())
        stages = (Stage.DECODE, Stage.ROUTE, Stage.ENRICH, Stage.SCORE)
        wall = {stage.value: stop - start for stage, (start, stop) in zip(stages, pairwise(marks), strict=True)}
        times = StageTimes({**_waits(raw, marks[0]), **wall}, answers.times)
        fallbacks = {(one.version, one.why): len(one.fallen) for one in attempts if len(one.fallen)}
        made = [*answers.stable, *((one.matrix, one.scores) for one in attempts if one.matrix and one.scores)]
        shadowed = None
        if view.shadow is not None:
            said = [(matrix, scores, loaded[matrix.version].plan) for matrix, scores in answers.stable]
            shadowed = choose(view.shadow, columns, assignment, said, self._about)
        tallied = None if self._tallying is None else tally(self._tallying, columns, made)
        return Result(
            events=events,
            assignment=assignment,
            matrices=tuple(matrix for matrix, _ in made),
            scores=tuple(scores for _, scores in made),
            rejects=rejects,
            times=times,
            fallbacks=fallbacks,
            shadowed=shadowed,
            tallied=tallied,
        )

    def process(self, raw: RawBatch, view: ControlView, now_ms: int) -> OutputBatch:
        """What a batch causes, ready to be sent. now_ms: the wall clock, milliseconds since 1970."""
        result = self.run(raw, view)
        started = self._clock_ns()
        rows, values = encode(result.events, result.assignment, result.matrices, result.scores, self._about, now_ms)
        outgoing = [emit.predictions(raw, result.events.rows[rows], values, self._predictions, self._limits, now_ms)]
        if result.rejects:
            outgoing.append(emit.dead_letters(raw, result.rejects, self._dead_letters, self._release))
        wall = {**result.times.wall, Stage.EMIT.value: self._clock_ns() - started}
        return OutputBatch(
            raw=raw,
            outgoing=tuple(outgoing),
            covers=covers(raw),
            events=len(rows),
            rejects=result.rejects,
            decisions=_count_decisions(result.scores),
            fallbacks=result.fallbacks,
            statuses=_count_statuses(result.matrices),
            times=StageTimes(wall, result.times.versions),
            shadowed=result.shadowed,
            tallied=result.tallied,
        )


class _Answers:
    """What stable versions said of a batch, and how long each version took."""

    def __init__(self, loaded: Mapping[str, LoadedVersion], columns: BatchColumns, clock_ns: Callable[[], int]) -> None:
        self._loaded, self._columns, self._clock_ns = loaded, columns, clock_ns
        self._began = clock_ns()
        self.stable: list[tuple[FeatureMatrix, Scores]] = []
        self.times: dict[str, int] = {}

    def score(self, matrix: FeatureMatrix) -> None:
        """Have a stable version answer."""
        started = self._clock_ns()
        self.stable.append((matrix, self._loaded[matrix.version].scorer.score(matrix, self._columns.events.rows)))
        self.times[matrix.version] = self.times.get(matrix.version, 0) + self._clock_ns() - started

    def conclude(self, one: Attempt, assignment: Assignment) -> Assignment:
        """Wait for a candidate, and have stable answer for the events that it leaves."""
        one.conclude()
        self.times.setdefault(one.version, self._clock_ns() - self._began)
        fallen = one.fallen
        for place in np.unique(assignment.stable[fallen]).tolist():
            name, rows = assignment.versions[place], fallen[assignment.stable[fallen] == place]
            self.score(build_matrix(name, self._loaded[name].plan, self._columns, rows))
        return assignment.fallen_back(fallen) if len(fallen) else assignment

    def rejects(self) -> list[Reject]:
        return [reject for matrix, said in self.stable for reject in (*matrix.rejects, *said.rejects)]


def _waits(raw: RawBatch, began_ns: int) -> dict[str, int]:
    """How long the batch was gathered, and then waited for its first stage; nothing for one that no intake made."""
    if not raw.ready_ns:
        return {}
    return {"gather": raw.ready_ns - raw.first_ns, "queue": began_ns - raw.ready_ns}


def covers(raw: RawBatch) -> dict[TopicPartition, tuple[int, int]]:
    """For each partition of a batch, its first offset and the one after its last."""
    found = {}
    for partition in np.flatnonzero(np.bincount(raw.partitions)).tolist():
        at = np.flatnonzero(raw.partitions == partition)
        found[raw.topic, partition] = (int(raw.offsets[at[0]]), int(raw.offsets[at[-1]]) + 1)
    return found


def _count_decisions(scores: tuple[Scores, ...]) -> dict[str, int]:
    total: dict[str, int] = {}
    for said in scores:
        counts = np.bincount(said.decisions + 1, minlength=len(said.labels) + 1)
        for label, n in zip(("", *said.labels), counts.tolist(), strict=False):
            if n:
                total[label] = total.get(label, 0) + n  # one by one: two classes may have the same label
    return total


def _count_statuses(matrices: tuple[FeatureMatrix, ...]) -> dict[tuple[str, int], int]:
    total: dict[tuple[str, int], int] = {}
    for matrix in matrices:
        for place, name in enumerate(matrix.views):
            for status, n in enumerate(np.bincount(matrix.status[:, place]).tolist()):
                if n:
                    total[name, status] = total.get((name, status), 0) + n
    return total
