"""The broker of the simulated world: two logs, a source topic, a group, transactions, and what readers see.

It does what Kafka does, as far as the protocol rests on it: the group refuses commits of one that it does not know, a
newer life of a transactional id ends and refuses the older one, committed offsets can't be read while a transaction
holds some, and what was sent may land late or never. It tells `laws` of all that becomes visible.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException
from world_laws import Laws

Predictions = list["Prediction"]


class Prediction(NamedTuple):
    """What stands in an output topic. epoch: None: a dead letter."""

    partition: int
    offset: int
    epoch: int | None
    version: str
    variant: int
    reason: str
    incarnation: str


@dataclass(eq=False)
class Sent:
    """A record on its way into the progress log. landed: its offset. gone: its sender does not wait for it any more."""

    incarnation: str
    value: bytes
    landed: int | None = None
    gone: bool = False


@dataclass(eq=False)
class Member:
    """One of the group, as the coordinator sees it; calls: what it is told at its next poll, in order."""

    id: str
    process: str
    calls: deque[tuple[str, list[int]]] = field(default_factory=deque)
    kicked: bool = False
    told: bool = False  # that it was kicked
    moving: int = 0  # so many of its next commits are refused for the while


@dataclass(eq=False)
class Transactional:
    """The broker's side of one transactional id. epoch: of its present life."""

    epoch: int = 0
    open: bool = False
    offsets: dict[int, int] = field(default_factory=dict)
    inside: Predictions = field(default_factory=list)

    def drop(self) -> None:
        self.open = False
        self.offsets, self.inside = {}, []


def refusal(code: int, **more: bool) -> KafkaException:
    return KafkaException(KafkaError(code, **more))


class Broker:
    def __init__(self, partitions: int, laws: Laws) -> None:
        self.laws = laws
        self.control: list[bytes] = []
        self.progress: list[bytes] = []
        self.sent: list[Sent] = []  # on their way to the progress log
        self.ends = [0] * partitions
        self.committed = [-1] * partitions
        self.owners: list[Member | None] = [None] * partitions
        self.revoking: set[int] = set()
        self.members: dict[str, Member] = {}
        self.transactional: dict[str, Transactional] = {}
        self.produced: dict[str, deque[Predictions]] = {}  # at least once: sent, not landed, by incarnation
        self._joined = 0

    # ---- the progress log

    def land(self, sent: Sent) -> None:
        self.sent.remove(sent)
        sent.landed = len(self.progress)
        self.progress.append(sent.value)
        self.laws.landed(sent.value)

    def heads(self) -> list[Sent]:
        """What may land next: one incarnation's records keep their order."""
        first = {one.incarnation: one for one in reversed(self.sent)}
        return [one for one in self.sent if first[one.incarnation] is one]

    # ---- the group

    def join(self, process: str) -> Member:
        self._joined += 1
        member = Member(f"m{self._joined}", process)
        self.members[member.id] = member
        return member

    def assign(self, partition: int, member: Member, *, apart: bool) -> None:
        """apart: told in a call of its own."""
        self.owners[partition] = member
        if member.calls and member.calls[-1][0] == "assign" and not apart:
            member.calls[-1][1].append(partition)
        else:
            member.calls.append(("assign", [partition]))

    def revoke(self, partition: int) -> None:
        member = self.owners[partition]
        assert member is not None
        self.revoking.add(partition)
        member.calls.append(("revoke", [partition]))

    def let_go(self, member: Member, partitions: Iterable[int]) -> None:
        for partition in partitions:
            if self.owners[partition] is member:
                self.owners[partition] = None
                self.revoking.discard(partition)

    def kick(self, member: Member) -> None:
        member.kicked = True
        self.members.pop(member.id, None)
        self.let_go(member, range(len(self.owners)))

    def check(self, member: Member, **more: bool) -> None:
        """Is this one of the group?"""
        if member.kicked:
            self.laws.seen("a commit of one that was kicked is refused")
            raise refusal(KafkaError.UNKNOWN_MEMBER_ID, **more)
        if member.moving:
            member.moving -= 1
            raise refusal(KafkaError.REBALANCE_IN_PROGRESS, **more)

    def commit(self, member: Member, offsets: dict[int, int]) -> None:
        """Of a consumer."""
        self.check(member)
        self._store(offsets, member.id)

    def _store(self, offsets: dict[int, int], by: str) -> None:
        for partition, offset in offsets.items():
            before, self.committed[partition] = self.committed[partition], offset
            self.laws.committed(partition, max(before, 0), offset, by)

    def unstable(self, partitions: Iterable[int]) -> bool:
        """Whether a transaction that is open holds offsets of one of these."""
        held = {p for one in self.transactional.values() for p in one.offsets}
        return not held.isdisjoint(partitions)

    # ---- transactions

    def begin_life(self, tid: str) -> int:
        """A new life of a transactional id; what an older one has open is aborted."""
        known = self.transactional.setdefault(tid, Transactional())
        if known.inside or known.offsets:
            self.laws.seen("a fence ends an open transaction")
        known.drop()
        known.epoch += 1
        return known.epoch

    def alive(self, tid: str, epoch: int) -> Transactional:
        known = self.transactional[tid]
        if known.epoch != epoch:
            self.laws.seen("a fenced worker is refused")
            raise refusal(KafkaError._FENCED, fatal=True)
        return known

    def hold_offsets(self, tid: str, epoch: int, member: Member, offsets: dict[int, int]) -> None:
        known = self.alive(tid, epoch)
        self.check(member, txn_requires_abort=True)
        known.offsets.update(offsets)

    def end_transaction(self, tid: str, epoch: int) -> None:
        known = self.alive(tid, epoch)
        for one in known.inside:
            self.laws.visible(one)
        self._store(known.offsets, tid)
        self.laws.transaction_ended()
        known.drop()

    # ---- at least once

    def emit(self, incarnation: str) -> None:
        """The next batch of an incarnation lands."""
        waiting = self.produced[incarnation]
        for one in waiting.popleft():
            self.laws.visible(one)
