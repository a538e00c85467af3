"""The door through which a worker's output leaves, whatever the delivery guarantee."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from streamserve.delivery.ledger import Boundary
from streamserve.records import OutputBatch


class BoundaryHook(Protocol):
    """Whoever has something of its own to commit along with offsets: drift panes, cutovers.

    Of each commit it hears `prepare` before the barrier (what it sends then is covered by the barrier), and afterwards
    one of `committed` and `void`. A void range is prepared again, from the same start, or belongs to another worker.
    """

    def prepare(self, boundaries: Sequence[Boundary]) -> None: ...

    def committed(self, boundaries: Sequence[Boundary]) -> None: ...

    def void(self, boundaries: Sequence[Boundary]) -> None: ...


class Emitter(Protocol):
    """`send` and `barrier` may be called from different threads; the emitter serialises them."""

    def send(self, batch: OutputBatch) -> None:
        """Hand a batch over, in order; blocks while the client's queue is full.

        Raises:
            BrokerError: the output can't be delivered; nothing may be committed any more.
        """
        ...

    def barrier(self, limit: float | None = None) -> None:
        """Return once everything sent before is acknowledged. limit: seconds to wait, if not the emitter's own.

        Raises:
            BrokerError: something was not.
        """
        ...

    def abort(self) -> None:
        """Drop what is not acknowledged."""
        ...

    def close(self) -> None: ...
