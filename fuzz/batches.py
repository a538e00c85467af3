"""Batches of inputs: what a batch is follows from the seed and its number alone; and batches as files."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import numpy as np

from fuzz import mutate, odd
from fuzz.streams import VERSIONS, Stream
from streamserve.headers import pack
from streamserve.records import ControlView, Cutover, FeatureStatus, RawBatch, RoutingEpoch, binary

NOW_MS = 1_767_268_800_000
PARTITIONS = 4
SIZES = (1, 2, 3, 17, 40, 64, 100, 150, 250, 310, 400)
SHARES = (0.0, 0.02, 0.3, 0.6, 0.9, 1.0)  # of the rows of a batch that are mutated
STARTS = (0, 7, 10**6, 2**40, 2**53, 2**63 - 2000)  # offsets


@dataclass(frozen=True)
class Input:
    """One record. headers: in the form of `streamserve.headers`."""

    key: bytes | None
    value: bytes | None
    headers: bytes | None
    partition: int
    offset: int
    timestamp: int


@dataclass(frozen=True)
class Batch:
    """outage: what the store answers instead of rows. cut: offset at which the second version takes over."""

    stream: str
    seed: int
    number: int
    inputs: tuple[Input, ...]
    outage: int | None
    cut: int

    def take(self, places: Sequence[int]) -> Batch:
        return replace(self, inputs=tuple(self.inputs[at] for at in places))

    def raw(self, topic: str) -> RawBatch:
        rows = self.inputs
        headers = binary([row.headers for row in rows]) if any(row.headers is not None for row in rows) else None
        return RawBatch(
            topic=topic,
            partitions=np.array([row.partition for row in rows], np.int32),
            offsets=np.array([row.offset for row in rows], np.int64),
            timestamps=np.array([row.timestamp for row in rows], np.int64),
            timestamp_types=np.ones(len(rows), np.uint8),
            keys=binary([row.key for row in rows]),
            values=binary([row.value for row in rows]),
            headers=headers,
        )

    def view(self, topic: str) -> ControlView:
        """The first version answers everywhere, the second on some partitions from `cut` on."""
        epochs = tuple(RoutingEpoch(number, version) for number, version in enumerate(VERSIONS))
        return ControlView(self.stream, epochs, {(topic, at): (Cutover(1, self.cut),) for at in (1, 3)})


def make(stream: Stream, seed: int, number: int) -> Batch:
    random = Random(f"{seed}/{stream.name}/{number}")
    size, share = random.choice(SIZES), random.choice(SHARES)
    if stream.name.startswith("digits"):
        size = max(1, size // 4)
    start, inputs = random.choice(STARTS), list[Input]()
    timestamp = random.choice(odd.LONGS) if random.random() < 0.1 else NOW_MS - random.randrange(10**9)
    for at in range(size):
        if random.random() < share:
            value = mutate.value(stream.pool, stream.ids, random)
            sample = random.choice(stream.pool)
        else:
            sample = random.choice(stream.pool)
            value = sample.value
        stamp = random.choice((*odd.LONGS, -1, -1)) if random.random() < 0.1 else timestamp
        headers = mutate.headers(random)
        packed = None if headers is None else pack(headers)
        partition = random.randrange(PARTITIONS)
        inputs.append(Input(mutate.key(sample, random), value, packed, partition, start + at, stamp))
    outage = random.choice((FeatureStatus.TIMEOUT, FeatureStatus.DEFAULTED)) if random.random() < 0.05 else None
    return Batch(stream.name, seed, number, tuple(inputs), outage, start + random.randrange(size + 1))


# ---- as files


def save(batch: Batch, path: Path, found: str) -> None:
    """JSON; bytes in base64. found: the broken promise, for the reader."""
    rows = [{name: _text(value) for name, value in asdict(row).items()} for row in batch.inputs]
    about = {"found": found, **{name: value for name, value in asdict(batch).items() if name != "inputs"}}
    path.write_text(json.dumps({**about, "inputs": rows}, indent=1) + "\n", "utf-8")


def load(path: Path) -> Batch:
    given = json.loads(path.read_text("utf-8"))
    given.pop("found")
    rows = [{name: _bytes(value) for name, value in row.items()} for row in given.pop("inputs")]
    return Batch(inputs=tuple(Input(**row) for row in rows), **given)


def _text(value: object) -> object:
    return "base64:" + base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _bytes(value: object) -> object:
    return base64.b64decode(value[7:]) if isinstance(value, str) else value
