"""The ledger: what has been sent of each partition, and how far it is safe to commit.

Batches are sent in the order in which they were taken up. An offset may be committed only after a barrier that began
when everything below it had been sent, and ended with every record acknowledged. Pure: no client, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from streamserve.records import TopicPartition


@dataclass(frozen=True, slots=True)
class Boundary:
    """Offsets [start, stop) of a partition that one commit covers."""

    topic: str
    partition: int
    start: int
    stop: int


class Ledger:
    """Positions of the partitions that a worker owns. Its caller serialises the calls."""

    def __init__(self) -> None:
        self._sent: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._starts: dict[TopicPartition, int] = {}

    def sent(self, covers: Mapping[TopicPartition, tuple[int, int]]) -> None:
        """A batch was handed to the producer: [from, to) of each partition. ValueError changes nothing."""
        for partition, (start, _) in covers.items():
            before = self._sent.get(partition)
            if before is not None and start < before:
                raise ValueError(f"{partition} went back from {before} to {start}: batches must be sent in order")
        for partition, (start, stop) in covers.items():
            self._starts.setdefault(partition, start)
            self._sent[partition] = stop

    def boundaries(self) -> tuple[Boundary, ...]:
        """What a barrier that begins now would make safe to commit."""
        return tuple(
            Boundary(
                topic,
                partition,
                self._committed.get((topic, partition), self._starts[topic, partition]),
                stop,
            )
            for (topic, partition), stop in sorted(self._sent.items())
            if self._committed.get((topic, partition)) != stop
        )

    def committed(self, boundaries: Iterable[Boundary]) -> None:
        for boundary in boundaries:
            self._committed[boundary.topic, boundary.partition] = boundary.stop

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions were revoked, lost or rewound: nothing of them may be committed any more."""
        for partition in partitions:
            for positions in (self._sent, self._committed, self._starts):
                positions.pop(partition, None)
