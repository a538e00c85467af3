"""The ledger: what has been sent of each partition, and how far it is safe to commit.

Batches are sent in the order in which they were taken up. An offset may be committed only after a barrier that began
when everything below it had been sent, and ended with every record acknowledged. Pure: no client, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from streamserve.records import NOBODY, TopicPartition


@dataclass(frozen=True, slots=True)
class Boundary:
    """Offsets [start, stop) of a partition that one commit covers, and the owner epoch that they were read under."""

    topic: str
    partition: int
    start: int
    stop: int
    owner_epoch: int = NOBODY


@dataclass(slots=True)
class _Account:
    """A partition. begin: where it is read from after a rewind, as the client takes it (it may stand for "beginning").

    first: where the next commit begins, once something was sent. sent: one past the last offset sent.
    """

    begin: int
    owner_epoch: int
    first: int | None = None
    sent: int | None = None
    committed: int | None = None


class Ledger:
    """Positions of the partitions that a worker owns. Its caller serialises the calls."""

    def __init__(self) -> None:
        self._accounts: dict[TopicPartition, _Account] = {}

    def open(self, begins: Mapping[TopicPartition, int], owner_epoch: int = NOBODY) -> None:
        """Partitions were taken up: where each is read from, and under which owner epoch."""
        for partition, begin in begins.items():
            self._accounts[partition] = _Account(begin, owner_epoch)

    def sent(self, covers: Mapping[TopicPartition, tuple[int, int]]) -> None:
        """A batch was handed to the producer: [from, to) of each partition.

        Raises:
            ValueError: a partition went back, or is not open; nothing is changed.
        """
        for partition, (start, _) in covers.items():
            account = self._accounts.get(partition)
            if account is None:
                raise ValueError(f"{partition} is not owned: its rows may not be sent")
            if account.sent is not None and start < account.sent:
                raise ValueError(f"{partition} went back from {account.sent} to {start}: batches must be sent in order")
        for partition, (start, stop) in covers.items():
            account = self._accounts[partition]
            if account.first is None:
                account.first = account.begin if account.begin >= 0 else start
            account.sent = stop

    def boundaries(self) -> tuple[Boundary, ...]:
        """What a barrier that begins now would make safe to commit."""
        return tuple(
            Boundary(topic, partition, account.first, account.sent, account.owner_epoch)
            for (topic, partition), account in sorted(self._accounts.items())
            if account.first is not None and account.sent is not None
        )

    def resting(self) -> tuple[Boundary, ...]:
        """Partitions of which nothing was sent since the last commit: an empty range where each is, in client words."""
        return tuple(
            Boundary(topic, partition, account.begin, account.begin, account.owner_epoch)
            for (topic, partition), account in sorted(self._accounts.items())
            if account.first is None
        )

    def committed(self, boundaries: Iterable[Boundary]) -> None:
        """A commit of these ended well. What was forgotten meanwhile stays forgotten."""
        for boundary in boundaries:
            account = self._accounts.get((boundary.topic, boundary.partition))
            if account is not None and account.owner_epoch == boundary.owner_epoch:
                account.committed = account.begin = boundary.stop
                account.first = None if account.sent == boundary.stop else boundary.stop

    def rewind(self) -> dict[TopicPartition, int]:
        """Nothing that was sent since the last commit counts: where each partition is to be read from again."""
        for account in self._accounts.values():
            account.first, account.sent = None, account.committed
        return {partition: account.begin for partition, account in self._accounts.items()}

    def unsent(self) -> dict[TopicPartition, int]:
        """Of each partition, the first offset of which nothing was sent, as the client takes it."""
        return {p: account.begin if account.sent is None else account.sent for p, account in self._accounts.items()}

    def begins(self) -> dict[TopicPartition, int]:
        """Where each partition would be read again from."""
        return {partition: max(account.begin, 0) for partition, account in self._accounts.items()}

    def owner_epochs(self) -> dict[TopicPartition, int]:
        return {partition: account.owner_epoch for partition, account in self._accounts.items()}

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions were revoked or lost: nothing of them may be committed any more."""
        for partition in partitions:
            self._accounts.pop(partition, None)
