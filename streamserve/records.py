"""The values that travel through a worker: frozen, columnar, free of any vendor.

A micro-batch goes `RawBatch` -> `EventBatch` -> `FeatureMatrix` a version -> `Scores` a version -> `OutputBatch`,
with one immutable `ControlView` and one `Assignment` beside it. Nothing here does I/O or computes a score.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Bytes = bytes | None
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
Uint8s = NDArray[np.uint8]
Floats = NDArray[np.float64]
TopicPartition = tuple[str, int]


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
    instead_of: the version that `stable` stands in for since that was killed: its events have reason KILLED.
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
class Cutover:
    """From `offset` on, this partition is routed by control epoch `epoch`."""

    epoch: int
    offset: int


@dataclass(frozen=True, slots=True)
class ControlView:
    """An immutable snapshot of both logs' fold, taken once a batch.

    epochs: in the order of the log; the first, of `init`, is in force from offset 0 of every partition.
    cutovers: for each partition, by growing index and offset; a partition without any is at epochs[0].
    """

    topology: str
    epochs: tuple[RoutingEpoch, ...]
    cutovers: Mapping[TopicPartition, tuple[Cutover, ...]] = field(default_factory=dict)
    generation: int = 0

    def epochs_at(self, topic: str, partitions: Int32s, offsets: Int64s) -> NDArray[np.intp]:
        """The index into `epochs` in force at each record: the largest whose cutover is at or below it."""
        found = np.zeros(len(offsets), np.intp)
        for (name, partition), cuts in self.cutovers.items():
            if name != topic or not cuts:
                continue
            here = partitions == partition
            if not here.any():
                continue
            at = np.searchsorted([c.offset for c in cuts], offsets[here], side="right")
            found[here] = np.array([0, *(c.index for c in cuts)], np.intp)[at]
        return found


@dataclass(frozen=True, slots=True)
class Routed:
    """A batch on its way to be scored, with the view that routes it: fixed when it was handed over."""

    raw: RawBatch
    view: ControlView


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which version answers for each event of an EventBatch, and why. All arrays are as long as the batch."""

    versions: tuple[str, ...]
    rollouts: tuple[str | None, ...]
    version: Int32s  # index into versions
    variant: Uint8s  # Variant
    reason: Uint8s  # Reason
    rollout: Int32s  # index into rollouts
    control_epoch: Int64s

    def rows_of(self, version: str) -> NDArray[np.intp]:
        """The events that this version answers for."""
        if self.versions == (version,):
            return np.arange(len(self.version))
        return np.flatnonzero(self.version == self.versions.index(version))


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
    """All that one RawBatch caused. `covers` says, for each partition, the first and the next offset."""

    raw: RawBatch
    outgoing: tuple[Outgoing, ...]
    covers: Mapping[TopicPartition, tuple[int, int]]
    events: int
    rejects: tuple[Reject, ...]
    decisions: Mapping[str, int] = field(default_factory=dict)
    statuses: Mapping[tuple[str, int], int] = field(default_factory=dict)
    times: StageTimes | None = None
