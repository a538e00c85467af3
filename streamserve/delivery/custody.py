"""What a worker holds: which rows still count, what was sent of them, and what a commit covers.

All three change under one lock, so that no record is sent whose offset the next commit does not cover, and no row
passes that was read before its partition was taken up anew. No client and no clock is known here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from streamserve.delivery.emitter import BoundaryHook, Emitter, Membership, Outcome
from streamserve.delivery.gate import Gate
from streamserve.delivery.ledger import Boundary, Ledger
from streamserve.records import OutputBatch, RawBatch, TopicPartition


class Custody:
    """Safe from several threads. A `send` may wait for the broker, and all others wait for it then."""

    def __init__(self) -> None:
        self._whole = threading.RLock()
        self._gate, self._ledger = Gate(), Ledger()
        self._rewound: dict[TopicPartition, int] = {}
        self.hooks: list[BoundaryHook] = []
        self.commits = self.aborts = 0

    @property
    def epoch(self) -> int:
        """The intake epoch of now."""
        return self._gate.epoch

    @property
    def partitions(self) -> frozenset[TopicPartition]:
        return self._gate.partitions

    def owner_epochs(self) -> dict[TopicPartition, int]:
        return self._ledger.owner_epochs()

    def begins(self) -> dict[TopicPartition, int]:
        """Of each partition, the first offset that is not committed."""
        with self._whole:
            return self._ledger.begins()

    def take(self, begins: Mapping[TopicPartition, int], owner_epoch: int) -> None:
        """Partitions were taken up: where each is read from, and under which owner epoch."""
        with self._whole:
            self._ledger.open(begins, owner_epoch)
            self._gate.open(begins)

    def drop(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions were given up or lost."""
        gone = list(partitions)
        with self._whole:
            self._gate.close(gone)
            self._ledger.forget(gone)
            for partition in gone:
                self._rewound.pop(partition, None)
            for hook in self.hooks:
                hook.drop(gone)

    def send(self, batch: OutputBatch, emitter: Callable[[], Emitter | None]) -> None:
        """Send what of a batch still counts. emitter: asked under the lock; None: nothing counts any more.

        Raises:
            BrokerError: the output can't be delivered.
        """
        with self._whole:
            passed, open_ = self._gate.pass_through(batch), emitter()
            if open_ is not None and passed.covers:
                open_.send(passed)
                self._ledger.sent(passed.covers)
                for hook in self.hooks:
                    hook.sent(passed)

    def commit(self, emitter: Emitter, group: Membership, limit: float) -> Outcome:
        """Everything that was sent is acknowledged, its offsets are stored. limit: seconds.

        Raises:
            StartAnewError: this incarnation is over.
            BrokerError: the broker does not confirm it in time.
        """
        with self._whole:
            boundaries = self._ledger.boundaries()
            if emitter.spoilt:
                outcome = Outcome.ABORTED
            elif not boundaries:
                outcome = Outcome.DONE
            else:
                for hook in self.hooks:
                    hook.prepare(boundaries)
                outcome = emitter.commit(boundaries, group, limit)
            if outcome is Outcome.DONE:
                self._end_commit(boundaries)
            elif outcome is Outcome.ABORTED:
                self._rewind(emitter)
        return outcome

    def _end_commit(self, boundaries: Sequence[Boundary]) -> None:
        if boundaries:
            self._ledger.committed(boundaries)
            self.commits += 1
        for hook in self.hooks:
            if boundaries:
                hook.committed(boundaries)
            hook.rest(self._ledger.resting())

    def _rewind(self, emitter: Emitter) -> None:
        """What was sent since the last commit is void, and so is all that is read until its partition is led back."""
        self.aborts += 1
        for hook in self.hooks:
            hook.void()
        emitter.abort()
        self._rewound = self._ledger.rewind()
        self._gate.close(self._rewound)

    def routed(self, in_flight: Iterable[RawBatch]) -> dict[TopicPartition, int]:
        """Of each partition, the first offset that was not handed over to be scored; what is void does not count.

        in_flight: whatever was handed over and is not finished, noted before this is asked.
        """
        with self._whole:
            found = {place: max(offset, 0) for place, offset in self._ledger.unsent().items()}
            for raw in in_flight:
                for partition in np.unique(raw.partitions).tolist():
                    if self._gate.admits(raw, partition):
                        last = int(raw.offsets[raw.partitions == partition][-1])
                        place = raw.topic, partition
                        found[place] = max(found.get(place, 0), last + 1)
        return found

    def recall(self) -> None:
        """What was handed over and is not sent is void; it is to be read again, from where nothing was sent."""
        with self._whole:
            unsent = self._ledger.unsent()
            # What waits to be led back goes where the abort said: that lies below
            self._rewound = {**unsent, **self._rewound}
            self._gate.close(unsent)

    @property
    def rewound(self) -> Mapping[TopicPartition, int]:
        """Partitions to be led back, and where to; nothing of them counts before `led_back`."""
        return dict(self._rewound)

    def led_back(self, partition: TopicPartition) -> None:
        """What is read of it from here on counts."""
        with self._whole:
            del self._rewound[partition]
            self._gate.open([partition])

    def hand_over(
        self, partitions: Iterable[TopicPartition], emitter: Emitter, commit: Callable[[], object]
    ) -> dict[TopicPartition, int]:
        """Commit, and let go of partitions; nothing is sent between the two. Returns the claims that end with it.

        What could not be committed of them must not be seen with a later commit, that of their neighbours.
        """
        gone = list(partitions)
        with self._whole:
            commit()
            left = {(b.topic, b.partition) for b in self._ledger.boundaries()}
            if emitter.transactional and not left.isdisjoint(gone):
                self._rewind(emitter)
            epochs = self.owner_epochs()
            for hook in self.hooks:
                hook.give_up(gone)
            self.drop(gone)
        return {partition: epochs[partition] for partition in gone if partition in epochs}
