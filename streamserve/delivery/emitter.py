"""The doors through which a worker's output leaves, and its progress is kept, whatever the delivery guarantee."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum
from typing import Protocol

from streamserve.delivery.ledger import Boundary
from streamserve.records import OutputBatch, TopicPartition


class Outcome(Enum):
    """What became of a commit."""

    DONE = "done"
    LATER = "later"  # everything is acknowledged, the offsets were not taken: it may be tried again
    ABORTED = "aborted"  # nothing since the last commit counts: it is to be read again


class StartAnewError(Exception):
    """This incarnation of the worker is over: another owns what it owned, or it is no member any more.

    Nothing that it has not committed may be; it leaves and joins again, under a new name.
    """


class BoundaryHook(Protocol):
    """Whoever has something of its own to say of what is committed: drift counts. Calls come one at a time.

    Of each commit it hears `prepare` before the barrier and `committed` after it, or `void` where what was sent since
    the last commit does not count: that is sent again. Neither: the commit is tried again, with what is sent meanwhile.
    """

    def sent(self, batch: OutputBatch) -> None:
        """What of a batch counts was sent."""
        ...

    def prepare(self, boundaries: Sequence[Boundary]) -> None: ...

    def committed(self, boundaries: Sequence[Boundary]) -> None: ...

    def void(self) -> None: ...

    def rest(self, positions: Sequence[Boundary]) -> None:
        """A commit is over, or there was nothing to commit: where each partition is that nothing was sent of since."""
        ...

    def give_up(self, partitions: Collection[TopicPartition]) -> None:
        """Partitions are handed over, in good order: what is committed of them will not be sent again."""
        ...

    def drop(self, partitions: Collection[TopicPartition]) -> None:
        """Partitions are gone."""
        ...


class Membership(Protocol):
    """The group, for whoever commits. Called from the consumer's own thread, between polls."""

    def commit(self, boundaries: Sequence[Boundary]) -> Outcome:
        """Store the offsets in the group.

        Raises:
            StartAnewError: the group does not know this member any more.
            BrokerError: refused for a reason that a person has to mend.
        """
        ...

    def settled(self) -> Outcome:
        """DONE: the group knows this member under its present generation. LATER: it is on the move.

        Raises:
            StartAnewError, BrokerError: as `commit` does.
        """
        ...

    def metadata(self) -> object:
        """Who this member is, as of now: goes with offsets into a transaction."""
        ...


class Emitter(Protocol):
    """One incarnation's output. Its caller serialises the calls, but for `stop`."""

    @property
    def transactional(self) -> bool:
        """What is sent is seen only with a commit, all of it or nothing."""
        ...

    @property
    def spoilt(self) -> bool:
        """What was sent since the last commit can't be committed any more."""
        ...

    def send(self, batch: OutputBatch) -> None:
        """Hand a batch over, in order; blocks while the client's queue is full.

        Raises:
            BrokerError: the output can't be delivered; nothing may be committed any more.
        """
        ...

    def commit(self, boundaries: Sequence[Boundary], group: Membership, limit: float) -> Outcome:
        """Return once everything sent is acknowledged and the offsets are stored, or why not. limit: seconds.

        Raises:
            StartAnewError: this incarnation is over.
            BrokerError: something was not acknowledged.
        """
        ...

    def abort(self) -> None:
        """Drop what is not committed, as far as that can be done.

        Raises:
            StartAnewError: this incarnation is over.
        """
        ...

    def stop(self) -> None:
        """Whoever still waits for the broker gives up. From any thread."""
        ...

    def close(self) -> None: ...
