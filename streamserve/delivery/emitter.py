"""The door through which a worker's output leaves, whatever the delivery guarantee."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from streamserve.delivery.ledger import Boundary
from streamserve.records import OutputBatch

BoundaryHook = Callable[[Sequence[Boundary]], None]


class Emitter(Protocol):
    """`send` and `barrier` may be called from different threads; the emitter serialises them."""

    def send(self, batch: OutputBatch) -> None:
        """Hand a batch over, in order; blocks while the client's queue is full.

        Raises:
            BrokerError: the output can't be delivered; nothing may be committed any more.
        """
        ...

    def barrier(self) -> None:
        """Return once everything sent before is acknowledged.

        Raises:
            BrokerError: something was not.
        """
        ...

    def abort(self) -> None:
        """Drop what is not acknowledged."""
        ...

    def close(self) -> None: ...
