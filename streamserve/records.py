"""The values that travel through a worker: frozen, columnar, free of any vendor.

A micro-batch goes `RawBatch` -> `EventBatch` -> `FeatureMatrix` a version -> `Scores` a version -> `OutputBatch`,
with one immutable `ControlView` and one `Assignment` beside it. Nothing here does I/O or computes a score.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import attrgetter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Bytes = bytes | None
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
Indices = NDArray[np.intp]
Uint8s = NDArray[np.uint8]
Floats = NDArray[np.float64]
TopicPartition = tuple[str, int]
NOBODY = -1  # the owner epoch where nothing was claimed in the progress log


def binary(values: Sequence[Bytes]) -> pa.BinaryArray:
    """Byte strings as a column."""
    return pa.array(values, pa.binary())


class TimestampType(enum.IntEnum):
    """Kafka's record timestamp types, by the client's numbers."""

    NONE = 0
    CREATE_TIME = 1
    LOG_APPEND_TIME = 2


class FeatureStatus(enum.IntEnum):
    """What a view had for an event. Published by name, in each prediction, view by view."""

    PRESENT = 0
    STALE = 1  # older than the view's max_age at the event's own time
    FUTURE = 2  # computed from what happened after the event
    MISSING = 3  # no row for this key (cold start), or the event has no key: defaults were used
    TIMEOUT = 4  # the store did not answer in time: defaults were used
    DEFAULTED = 5  # the store was not asked (its breaker is open), or the row is unreadable: defaults were used


class Variant(enum.IntEnum):
    STABLE = 0
    CANDIDATE = 1


class Reason(enum.IntEnum):
    """Why this version scored this event."""

    STATIC = 0  # no rollout is open
    SPLIT = 1
    TARGETING = 2
    KILLED = 3
    FALLBACK = 4  # the candidate failed or was late; stable answered


class Stage(enum.StrEnum):
    DECODE = "decode"
    ENRICH = "enrich"
    ROUTE = "route"
    SCORE = "score"
    EMIT = "emit"


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Records of one source topic, as read. Row i is record (topic, partitions[i], offsets[i]).

    Offsets ascend within a partition. `intake_epoch` grows with every assignment and rewind of the intake;
    a row of partition p counts only if it is at least the epoch at which p was last taken up, so that what was
    read before a rewind is dropped for that partition and kept for its neighbours.
    `first_ns`/`ready_ns` are monotonic nanoseconds: first row received, batch handed over.

    keys, values, headers: Arrow binary columns, null where the record has none (a null value is a tombstone). Headers
        in the form of `streamserve.headers`; None: no record of the batch has any.
    """

    topic: str
    partitions: Int32s
    offsets: Int64s
    timestamps: Int64s  # milliseconds since 1970; -1: none
    timestamp_types: Uint8s  # TimestampType
    keys: pa.BinaryArray
    values: pa.BinaryArray
    headers: pa.BinaryArray | None = None
    intake_epoch: int = 0
    first_ns: int = 0
    ready_ns: int = 0

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True, slots=True)
class Reject:
    """One event that a stage could not take: it becomes a dead letter, its neighbours go on."""

    row: int  # of the RawBatch
    stage: Stage
    error: str  # a stable class name, to filter by
    message: str


@dataclass(frozen=True, slots=True)
class EventBatch:
    """The rows that could be decoded, as columns.

    columns: one nullable Arrow column per event path that the topology reads ("distance", "weather.temp"),
        in the types of `pipeline.columns.arrow_type`; as many rows as `rows`.
    rows: the row of `raw` behind each, ascending.
    event_times: milliseconds since 1970 of each event; where the event has none, its record timestamp.
    """

    raw: RawBatch
    rows: Int64s
    columns: pa.RecordBatch
    event_times: Int64s
    rejects: tuple[Reject, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)


Scalar = str | int | bool


@dataclass(frozen=True, slots=True)
class Rule:
    """A segment of events, by what fields hold, and who answers for it: the candidate, or stable.

    where: (path of an event field, values): an event is in the segment if each of these fields holds one of its values.
        A field that is null, or is not there, holds none.
    """

    name: str
    where: tuple[tuple[str, tuple[Scalar, ...]], ...]
    candidate: bool


@dataclass(frozen=True, slots=True)
class RoutingEpoch:
    """What a routing command put in force. `number` is the command's offset in the control log.

    rules: asked in order before the split; the first one that an event is in decides.
    killed: versions that must not answer. A candidate among them keeps its weight here: stable answers for its events,
        with reason KILLED.
    instead_of: the version that `stable` stands in for since that was killed: stable's events have reason KILLED.
    """

    number: int
    stable: str
    candidate: str | None = None
    weight_bp: int = 0
    salt: str = ""
    rollout_id: str | None = None
    rules: tuple[Rule, ...] = ()
    killed: frozenset[str] = frozenset()
    instead_of: str | None = None


@dataclass(frozen=True, slots=True)
class Shadow:
    """A candidate that scores a share of the stream beside stable, and answers for nothing.

    where: of these events alone, as in `Rule`; None: of all. segments: event fields by whose values it is told apart.
    """

    candidate: str
    rollout_id: str
    share_bp: int
    where: tuple[tuple[str, tuple[Scalar, ...]], ...] | None = None
    segments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cutover:
    """From `offset` on, this partition is routed by the epoch of this number, as the progress log has it."""

    epoch: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Latest:
    """By partition of a topic, where its latest cutover is and which epoch it names; in the last place, of the others.

    sole: that epoch, where it is the same of all partitions but the others.
    """

    since: Int64s
    index: Indices
    sole: int | None


HELD = -1  # in place of an index into `ControlView.epochs`: a record that may not be routed yet


@dataclass(frozen=True, slots=True)
class ControlView:
    """An immutable snapshot of both logs' fold, taken once a batch.

    epochs: in the order of the log; the first, of `init`, is in force from offset 0 of every partition.
    cutovers: for each partition, by growing epoch and offset; a partition without any is at epochs[0]. They may name
        epochs that are not among `epochs`: the two logs are read apart.
    shadow: as of now; no offset is written down for it, since nothing that is answered depends on it.
    """

    topology: str
    epochs: tuple[RoutingEpoch, ...]
    cutovers: Mapping[TopicPartition, tuple[Cutover, ...]] = field(default_factory=dict)
    generation: int = 0
    shadow: Shadow | None = None
    _latest: dict[str, _Latest] = field(default_factory=dict, init=False, repr=False, compare=False)

    def epochs_at(self, topic: str, partitions: Int32s, offsets: Int64s) -> Indices:
        """The index into `epochs` in force at each record: that of the last cutover at or below it, HELD if unread."""
        latest = self._latest_of(topic)
        place = np.minimum(partitions, len(latest.since) - 1)
        found = latest.index[place]
        earlier = np.flatnonzero(offsets < latest.since[place])
        if len(earlier):
            self._look_back(topic, partitions, offsets, earlier, found)
        return found

    def sole_epoch(self, topic: str, partitions: Int32s, offsets: Int64s) -> int | None:
        """The index in force at all of these records, where all partitions are known to be behind a cutover to it.

        None: ask `epochs_at`, for three times the work.
        """
        latest = self._latest_of(topic)
        if len(latest.since) == 1:
            return latest.sole
        if latest.sole is None or not len(offsets) or partitions.max() >= len(latest.since) - 1:
            return None
        return None if (offsets < latest.since[partitions]).any() else latest.sole

    def held(self, topic: str, partitions: Int32s, offsets: Int64s) -> NDArray[np.bool_]:
        """The records that wait, as those after them in their partition do: their epoch was not read yet."""
        waiting: NDArray[np.bool_] = self.epochs_at(topic, partitions, offsets) == HELD
        return waiting

    def _latest_of(self, topic: str) -> _Latest:
        found = self._latest.get(topic)
        if found is None:
            cuts = {at: cuts[-1] for (name, at), cuts in self.cutovers.items() if name == topic and cuts}
            known = {number: self._index_of(number) for number in {cut.epoch for cut in cuts.values()}}
            count = max(cuts, default=-1) + 2
            since, index = np.zeros(count, np.int64), np.full(count, self._first, np.intp)
            for partition, cut in cuts.items():
                since[partition], index[partition] = cut.offset, known[cut.epoch]
            sole = index[: max(count - 1, 1)]
            found = self._latest[topic] = _Latest(since, index, int(sole[0]) if (sole == sole[0]).all() else None)
        return found

    def _look_back(self, topic: str, partitions: Int32s, offsets: Int64s, earlier: Indices, found: Indices) -> None:
        """Put in `found` what is in force at earlier records. Of a long history only what they span is looked at."""
        rows = earlier[np.argsort(partitions[earlier], kind="stable")]
        ranked, sought = partitions[rows], offsets[rows]
        starts = np.flatnonzero(np.diff(ranked, prepend=-1))
        first, last = np.minimum.reduceat(sought, starts).tolist(), np.maximum.reduceat(sought, starts).tolist()
        spans = pairwise([*starts.tolist(), len(rows)])
        for partition, (start, end), low, high in zip(ranked[starts].tolist(), spans, first, last, strict=True):
            cuts = self.cutovers[topic, partition]
            below = bisect_right(cuts, low, key=_OFFSET)
            within = cuts[below : bisect_right(cuts, high, below, key=_OFFSET)]
            index = [self._index_of(cuts[below - 1].epoch) if below else self._first]
            index += [self._index_of(cut.epoch) for cut in within]
            at = np.searchsorted([cut.offset for cut in within], sought[start:end], "right") if within else 0
            found[rows[start:end]] = np.array(index, np.intp)[at]

    def _index_of(self, number: int) -> int:
        at = bisect_left(self.epochs, number, key=_NUMBER)
        return at if at < len(self.epochs) and self.epochs[at].number == number else HELD

    @property
    def _first(self) -> int:
        return 0 if self.epochs else HELD


_OFFSET, _NUMBER = attrgetter("offset"), attrgetter("number")


@dataclass(frozen=True, slots=True)
class Routed:
    """A batch on its way to be scored, with the view that routes it: fixed when it was handed over."""

    raw: RawBatch
    view: ControlView


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which version answers for each event of an EventBatch, and why. All arrays are as long as the batch.

    versions: those that may answer in the epochs in force here, even if none of these events is theirs.
    """

    versions: tuple[str, ...]
    rollouts: tuple[str | None, ...]
    version: Int32s  # index into versions
    stable: Int32s  # index into versions: who answers where the candidate fails
    variant: Uint8s  # Variant
    reason: Uint8s  # Reason
    rollout: Int32s  # index into rollouts
    control_epoch: Int64s

    def standing(self) -> list[str]:
        """The versions that answer as stable for an event, or would if its candidate failed."""
        return [self.versions[place] for place in np.flatnonzero(np.bincount(self.stable)).tolist()]

    def tried(self) -> list[tuple[str, Indices]]:
        """The candidates, and the events that each is to answer for."""
        if not self.variant.any():
            return []
        places = np.unique(self.version[self.variant == Variant.CANDIDATE]).tolist()
        names = (self.versions[place] for place in places)
        return [(name, self.rows_of(name, Variant.CANDIDATE)) for name in names]

    def rows_of(self, version: str, variant: Variant) -> Indices:
        """The events that this version answers for, as this variant."""
        if self.versions == (version,):
            return np.arange(len(self.version)) if variant == Variant.STABLE else np.arange(0)
        return np.flatnonzero((self.version == self.versions.index(version)) & (self.variant == variant))

    def fallen_back(self, rows: Indices) -> Assignment:
        """The same with stable in place of the candidate for these events: the candidate failed there, or was late."""
        if (self.variant[rows] != Variant.CANDIDATE).any():
            raise ValueError("only an event of the candidate can fall back to stable")
        version, variant, reason = self.version.copy(), self.variant.copy(), self.reason.copy()
        version[rows], variant[rows], reason[rows] = self.stable[rows], Variant.STABLE, Reason.FALLBACK
        return replace(self, version=version, variant=variant, reason=reason)


@dataclass(frozen=True, slots=True)
class FeatureMatrix:
    """What one version's model is fed for some events of a batch.

    rows: index into the EventBatch, ascending.
    inputs: by the model's input name, arrays [len(rows), ...] in the model's types.
    status: [len(rows), len(views)] of FeatureStatus.
    """

    version: str
    rows: NDArray[np.intp]
    inputs: Mapping[str, NDArray[np.generic]]
    views: tuple[str, ...]
    status: Uint8s
    rejects: tuple[Reject, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """What a version said of the rows of its FeatureMatrix.

    values: [len(rows), len(names)] float64, which holds float32 and int32 scores without loss.
    decisions: index into `labels` of each row, -1 for none.
    """

    version: str
    rows: NDArray[np.intp]
    names: tuple[str, ...]
    values: Floats
    labels: tuple[str, ...]
    decisions: Int32s
    rejects: tuple[Reject, ...] = ()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Records for one output topic, column by column; row i came from row `rows[i]` of the RawBatch."""

    topic: str
    rows: Int64s
    keys: pa.BinaryArray
    values: pa.BinaryArray
    headers: pa.BinaryArray | None  # as in RawBatch
    timestamps: Int64s  # milliseconds; 0: the client's present

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Int64s) -> Outgoing:
        """Some of the records, by their place."""
        at = pa.array(places)
        headers = None if self.headers is None else self.headers.take(at)
        return Outgoing(
            self.topic, self.rows[places], self.keys.take(at), self.values.take(at), headers, self.timestamps[places]
        )


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Nanoseconds that each stage of one micro-batch took, by stage name, and the scoring of each version."""

    wall: Mapping[str, int]
    versions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputBatch:
    """All that one RawBatch caused. `covers` says, for each partition, the first and the next offset.

    fallbacks: by candidate and error, the events that stable answered for it. shadowed: what a candidate is to score as
    well, once this is sent (`pipeline.shadow.Shadowed`). tallied: its drift counts (`drift.tallies.BatchTallies`).
    """

    raw: RawBatch
    outgoing: tuple[Outgoing, ...]
    covers: Mapping[TopicPartition, tuple[int, int]]
    events: int
    rejects: tuple[Reject, ...]
    decisions: Mapping[str, int] = field(default_factory=dict)
    statuses: Mapping[tuple[str, int], int] = field(default_factory=dict)
    times: StageTimes | None = None
    fallbacks: Mapping[tuple[str, str], int] = field(default_factory=dict)
    shadowed: object | None = None
    tallied: object | None = None
