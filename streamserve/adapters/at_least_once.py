"""At-least-once output over one idempotent producer: sent in order, confirmed by a flush before each commit."""

from __future__ import annotations

import time
from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException

from streamserve.adapters.kafka import UNCONFIRMED, broker_error
from streamserve.adapters.output import Output
from streamserve.delivery.emitter import Membership, Outcome, StartAnewError
from streamserve.delivery.ledger import Boundary
from streamserve.errors import BrokerError
from streamserve.records import OutputBatch

FLUSH_SLICE_S = 0.5  # how long a flush waits before it looks whether the worker stops


class AtLeastOnceEmitter:
    """An `Emitter`."""

    transactional = False

    def __init__(self, output: Output) -> None:
        self._output = output

    @property
    def spoilt(self) -> bool:
        return self._refused()

    def _refused(self) -> bool:
        """A broker could not write a record: another try, by a new producer, may find it mended."""
        refused = self._output.refused()
        return refused is not None and refused.code() == KafkaError.UNKNOWN

    def send(self, batch: OutputBatch) -> None:
        if self._refused():
            return  # it is read again by the next incarnation
        error = self._output.write(batch)
        if self._refused():
            return
        self._raise_failure()
        if error is not None:
            raise broker_error(error, self._output.where)

    def commit(self, boundaries: Sequence[Boundary], group: Membership, limit: float) -> Outcome:
        self.barrier(limit)
        return group.commit(boundaries)

    def barrier(self, limit: float) -> None:
        """Return once everything that was sent is acknowledged. limit: seconds.

        Raises:
            BrokerError: something was not.
            StartAnewError: something was refused that may not be the next time.
        """
        deadline = time.monotonic() + limit
        left = self._flush(min(limit, FLUSH_SLICE_S))
        while left and time.monotonic() < deadline:
            self._raise_failure()
            left = self._flush(FLUSH_SLICE_S)
        self._raise_failure()
        left = left or self._output.unconfirmed()
        if left:
            raise BrokerError(
                f"{left} records were not acknowledged in {limit:.0f} s",
                where=self._output.where,
                mend=UNCONFIRMED,
            )

    def _flush(self, seconds: float) -> int:
        try:
            left: int = self._output.producer.flush(seconds)
        except KafkaException as error:
            raise broker_error(error.args[0], self._output.where) from None
        return left

    def _raise_failure(self) -> None:
        failed = self._output.failure()
        if failed is not None and self._refused():
            raise StartAnewError(f"a record was refused: {failed.what}") from failed
        if failed is not None:
            raise failed
        self._output.raise_if_stopping()

    def abort(self) -> None:
        """Nothing is taken back: what is sent again is a duplicate."""
        self._raise_failure()

    def stop(self) -> None:
        self._output.stopping = True

    def close(self) -> None:
        self._output.producer.flush(FLUSH_SLICE_S)
        self._output.close()
