"""The progress log: who owns a partition, and from which offset on it obeys a command. Folded, pure and total.

A worker that is given partitions appends `owned`; the offset of that record is its *owner epoch*, which grows with each
owner. When it lets go in good order it appends `released`. A claim that was never released is that of a worker that
crashed, or sleeps: whoever comes after it fences its transactional id before it reads where to go on. `released` closes
the worker's own claim and those that it took over from.

`cutover` says from which offset on a partition is routed by a control epoch. It counts under the latest claim alone,
while that is open; epochs and offsets of a partition grow. Any bytes at any offset of the log give a state.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from streamserve.records import NOBODY, Cutover, TopicPartition

SCHEMA_VERSION = 1
Number = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1, max_length=300)]


class ProgressRecord(BaseModel):
    """What every record of the log carries; the models are its published form (`schemas/streamserve.progress.json`).

    Fields that are not known yet are let be: workers of two releases read one log.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = Field(default=SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    topology: Text
    worker: Annotated[str, Field(max_length=300, description="Host and process, for people.")] = ""
    release: Annotated[str, Field(max_length=100)] = ""

    def encode(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()


class OfTopic(ProgressRecord):
    """What is said about partitions."""

    topic: Text
    incarnation: Annotated[Text, Field(description="One life of a worker as a member of its group.")]


class Owned(OfTopic):
    """From this record's offset on, its owner epoch, these partitions are claimed."""

    kind: Literal["owned"] = "owned"
    partitions: tuple[Number, ...] = Field(min_length=1)
    transactional_id: Annotated[
        str | None, Field(max_length=500, description="Of its producer; whoever takes over fences it.")
    ] = None


class Released(OfTopic):
    """Everything that was read of these partitions is committed, or void, and no transaction is open."""

    kind: Literal["released"] = "released"
    owner_epochs: dict[Number, Number] = Field(min_length=1, description="By partition, the claim that ends.")


class CutOver(OfTopic):
    """From these offsets on, these partitions are routed by a control epoch; below them nothing changes."""

    kind: Literal["cutover"] = "cutover"
    epoch: Annotated[Number, Field(description="The command's offset in the control log.")]
    offsets: dict[Number, Number] = Field(min_length=1, description="By partition, the first offset that it routes.")
    owner_epochs: dict[Number, Number] = Field(description="By partition, the claim under which this is said.")

    @model_validator(mode="after")
    def _under_claims(self) -> Self:
        if self.offsets.keys() != self.owner_epochs.keys():
            raise ValueError("offsets and owner_epochs name different partitions")
        return self


class Prepared(ProgressRecord):
    """A worker has loaded a version, warmed it and found it true to its golden set; or why it can't."""

    kind: Literal["prepared"] = "prepared"
    version: Text
    manifest: Annotated[str, Field(max_length=64, description="sha256 of its manifest, as it was found.")] = ""
    why_not: Annotated[str, Field(max_length=2000, description="Empty: it is ready to score.")] = ""
    seconds: Annotated[float, Field(ge=0)] = 0.0


Form = Owned | Released | CutOver | Prepared
FORMS: Mapping[str, type[Form]] = {"owned": Owned, "released": Released, "cutover": CutOver, "prepared": Prepared}


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that is open. owner_epoch: the offset of its `owned`."""

    owner_epoch: int
    incarnation: str
    transactional_id: str | None


class Progress:
    """The fold, for one topology. Its caller serialises the calls."""

    def __init__(self, topology: str) -> None:
        self._topology = topology
        self._claims: dict[TopicPartition, tuple[Claim, ...]] = {}
        self._latest: dict[TopicPartition, int] = {}
        self._cutovers: dict[TopicPartition, tuple[Cutover, ...]] = {}
        self._prepared: dict[tuple[str, str], Prepared] = {}
        self.cutover_count = 0

    def step(self, offset: int, value: bytes | None) -> str | None:
        """Take one record. Returns why it does not count, for the log; None: it does, or it is no affair of ours."""
        try:
            found = json.loads(value or b"")
        except (ValueError, RecursionError):
            return "it is no JSON"
        if not isinstance(found, dict):
            return "it is no JSON object"
        kind = found.get("kind")
        form = FORMS.get(kind) if isinstance(kind, str) else None
        if form is None or found.get("topology") != self._topology:
            return None
        try:
            record = form.model_validate(found)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            return f"{kind}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        if isinstance(record, Owned):
            claim = Claim(offset, record.incarnation, record.transactional_id)
            for partition in record.partitions:
                key = record.topic, partition
                self._claims[key] = (*self._claims.get(key, ()), claim)
                self._latest[key] = offset
        elif isinstance(record, Released):
            for partition, epoch in record.owner_epochs.items():
                self._release((record.topic, partition), epoch)
        elif isinstance(record, CutOver):
            return self._cut_over(record)
        else:
            self._prepared[record.worker, record.version] = record
        return None

    def _cut_over(self, record: CutOver) -> str | None:
        refused = []
        for partition, start in record.offsets.items():
            key = record.topic, partition
            before = self._cutovers.get(key, ())
            why = self._refusal(key, record.owner_epochs[partition], record.epoch, start)
            if why:
                refused.append(f"cutover of partition {partition} to epoch {record.epoch}: {why}")
            else:
                self._cutovers[key] = (*before, Cutover(record.epoch, start))
                self.cutover_count += 1
        return "; ".join(refused) or None

    def _refusal(self, key: TopicPartition, owner_epoch: int, epoch: int, start: int) -> str:
        if self._latest.get(key, NOBODY) != owner_epoch:
            return f"owner epoch {owner_epoch} is not the latest"
        if not self._claims.get(key):
            return f"owner epoch {owner_epoch} was released"
        last = self._cutovers.get(key, ())[-1:]
        if last and not (epoch > last[0].epoch and start >= last[0].offset):
            return f"epoch {last[0].epoch} holds from {last[0].offset} on"
        return ""

    def _release(self, key: TopicPartition, epoch: int) -> None:
        claims = self._claims.get(key, ())
        if any(claim.owner_epoch == epoch for claim in claims):
            self._claims[key] = tuple(claim for claim in claims if claim.owner_epoch > epoch)

    def latest(self, partition: TopicPartition) -> int:
        """The owner epoch of its last claim, open or not; NOBODY: there was none."""
        return self._latest.get(partition, NOBODY)

    def cutovers(self) -> dict[TopicPartition, tuple[Cutover, ...]]:
        """By partition, in the order of epochs and offsets alike."""
        return dict(self._cutovers)

    def prepared(self, version: str) -> dict[str, Prepared]:
        """What each worker said last of a version."""
        return {worker: said for (worker, of), said in self._prepared.items() if of == version}

    def before(self, partitions: Iterable[TopicPartition], owner_epoch: int) -> frozenset[str]:
        """The transactional ids of open claims on these partitions that are older than this epoch."""
        return frozenset(
            claim.transactional_id
            for partition in partitions
            for claim in self._claims.get(partition, ())
            if claim.owner_epoch < owner_epoch and claim.transactional_id
        )
