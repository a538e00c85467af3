"""What a run left in the topics, as columns: inputs, what answered them, and where the group had come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
LAW = ("model_version", "variant", "reason")


@dataclass(frozen=True)
class Inputs:
    """The source topic, ordered by partition and offset; a row an event.

    ids: the generator's number. malformed: it can't be read, and must become a dead letter. headers: packed
    (`streamserve.headers`). epochs: the control epoch in force at each event, by the logs' own words. wanted: who is to
    answer each, as `LAW` says, and `stable`, who does where a candidate falls back; None: nobody looks.
    """

    partitions: Ints
    offsets: Ints
    ids: Ints
    malformed: Flags
    epochs: Ints
    keys: pa.Array
    values: pa.Array
    headers: pa.Array
    wanted: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Answers:
    """An output topic; a row a record, in any order.

    out_partitions, out_offsets: its own position. partitions, offsets: of the event that it says it answers. headers:
    the event's, packed, without those that the product added.
    """

    out_partitions: Ints
    out_offsets: Ints
    partitions: Ints
    offsets: Ints
    keys: pa.Array
    headers: pa.Array

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True)
class DeadLetters(Answers):
    """values: must be the event's own bytes."""

    values: pa.Array


@dataclass(frozen=True)
class Predictions(Answers):
    """said: what every prediction of an event must have in common, column by column, `event_id` among them.

    epochs: the control epoch; scores; statuses: of the stored view, as text. Both may differ between two answers, but
    a score only with its status. law: who answered, column by column.
    """

    said: pa.Table
    epochs: Ints
    scores: NDArray[np.float64]
    statuses: pa.Array
    law: pa.Table | None = None


@dataclass(frozen=True)
class Window:
    """From which offset to which, a partition each, a fault may have had events repeated.

    takeovers: how often partitions may have changed hands without their old owner's leave while it lasted.
    """

    name: str
    start: Ints
    stop: Ints
    takeovers: int = 1

    @property
    def events(self) -> int:
        """How many it holds."""
        return int(np.maximum(self.stop - self.start, 0).sum())


def without(columns: Answers, rows: Sequence[int]) -> Answers:
    """The same without some rows."""
    keep = np.setdiff1d(np.arange(len(columns)), rows)
    return pick(columns, keep)


def pick(columns: Answers, rows: NDArray[np.integer]) -> Answers:
    """Some rows, in the order asked for, some perhaps twice."""
    at = pa.array(rows)
    taken = {
        name: one.take(at) if isinstance(one, pa.Array | pa.Table | pa.ChunkedArray) else one[rows]
        for name, one in vars(columns).items()
        if one is not None
    }
    return replace(columns, **taken)
