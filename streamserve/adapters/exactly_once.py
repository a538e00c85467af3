"""Exactly-once output: one transaction over several micro-batches, their offsets in it.

Who reads with `read_committed` sees predictions and dead letters of an event once. A transaction begins with the first
batch after a commit. Its producer has a transactional id of this incarnation, so that whoever takes over can fence it.
Protocol: KIP-98 and KIP-447 (offsets go with the group's metadata, which the coordinator checks).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streamserve.adapters.kafka import UNCONFIRMED, broker_error, missing_right
from streamserve.adapters.member import GONE
from streamserve.adapters.output import Output
from streamserve.delivery.emitter import Membership, Outcome, StartAnewError
from streamserve.delivery.ledger import Boundary
from streamserve.errors import BrokerError
from streamserve.records import OutputBatch

LOG = logging.getLogger("streamserve.transactions")
SLICE_S = 1.0  # how long one step of a transaction waits before it looks whether the worker stops
INIT_S = 30.0  # the first time; a later incarnation is tried again for longer
ABORT_S = 60.0
ABORTS = 5  # in a row, without a commit between them: something that a new try does not mend
TRANSACTION_TIMEOUT_MS = 60_000  # the broker ends what nobody fenced; a step that takes longer is refused
# Offsets that wait for a group coordinator which has died are led to its successor only when some connection comes or
# goes. librdkafka (2.16) forgets the step's limit meanwhile: after two kills of eight the worker stood still for as
# long as the dead broker was away. An idle connection goes.
IDLE_MS = 10_000
FENCED = frozenset(
    (
        KafkaError._FENCED,  # noqa: SLF001
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
    )
)


class ExactlyOnceEmitter:
    """An `Emitter`.

    Raises:
        BrokerError: (from the constructor) the broker does not let us begin.
    """

    transactional = True

    def __init__(self, output: Output, transactional_id: str) -> None:
        self._output, self._producer = output, output.producer
        self._open = self._unsettled = False
        self._aborts = 0
        self._spoilt_by: KafkaError | None = None
        try:
            self._step(self._producer.init_transactions, INIT_S)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
                raise missing_right("WRITE", "transactional-id", transactional_id, output.where) from None
            raise BrokerError(
                f"Kafka does not let transactions begin: {error.args[0].str()}",
                where=f"{output.where} transactional id {transactional_id}",
                mend="check the topic __transaction_state: transaction.state.log.replication.factor and .min.isr must "
                "fit the number of brokers",
            ) from None

    @property
    def spoilt(self) -> bool:
        return self._spoilt_by is not None

    def send(self, batch: OutputBatch) -> None:
        if self.spoilt:
            return  # it is read again after the abort
        try:
            if not self._open:
                self._producer.begin_transaction()
                self._open = True
            error = self._output.write(batch)
        except KafkaException as raised:
            error = raised.args[0]
        except BaseException:
            # A part of the batch may be in the transaction, and its offsets are not
            self._spoil(KafkaError(KafkaError._FAIL))  # noqa: SLF001
            raise
        if error is not None:
            self._spoil(error)

    def _spoil(self, error: KafkaError) -> None:
        LOG.warning("the transaction can't be committed: %s", error.str())
        self._spoilt_by = error

    def commit(self, boundaries: Sequence[Boundary], group: Membership, limit: float) -> Outcome:
        if self.spoilt:
            return Outcome.ABORTED
        # Offsets that come under a generation that has passed end the transaction; a plain commit is only refused. But
        # it takes as long as all the rest, so it is asked for only after such an end.
        if self._unsettled and group.settled() is Outcome.LATER:
            return Outcome.LATER
        try:
            self._send_offsets(boundaries, group, limit)
            self._step(self._producer.commit_transaction, limit)
        except KafkaException as raised:
            error = raised.args[0]
            self._raise_if_over(error)
            if error.txn_requires_abort():
                self._unsettled = True
                self._spoil(error)
                return Outcome.ABORTED
            raise broker_error(error, f"{self._output.where}, committing a transaction", UNCONFIRMED) from None
        self._open, self._unsettled, self._aborts = False, False, 0
        return Outcome.DONE

    def _send_offsets(self, boundaries: Sequence[Boundary], group: Membership, limit: float) -> None:
        offsets = [TopicPartition(b.topic, b.partition, b.stop) for b in boundaries]
        self._step(lambda s: self._producer.send_offsets_to_transaction(offsets, group.metadata(), s), limit)

    def abort(self) -> None:
        if self._spoilt_by is not None:
            self._raise_if_over(self._spoilt_by)
        self._aborts += 1
        if self._aborts > ABORTS:
            raise self._output.failure() or BrokerError(
                f"{ABORTS} transactions in a row could not be committed",
                where=self._output.where,
                mend="look at the warnings above for the reason; nothing is lost, and nothing is visible twice",
            )
        if self._open:
            try:
                self._step(self._producer.abort_transaction, ABORT_S)
            except KafkaException as raised:
                self._raise_if_over(raised.args[0])
                raise broker_error(
                    raised.args[0], f"{self._output.where}, aborting a transaction", UNCONFIRMED
                ) from None
        self._open, self._spoilt_by = False, None

    def _step(self, step: Callable[[float], object], limit: float) -> None:
        """One step of a transaction; what may be tried again is, within the limit (seconds).

        Raises:
            KafkaException: it was refused.
            BrokerError: the worker stops.
        """
        deadline = time.monotonic() + limit
        while True:
            try:
                step(SLICE_S)
            except KafkaException as raised:
                error = raised.args[0]
                if not error.retriable() or error.txn_requires_abort() or time.monotonic() > deadline:
                    raise
                self._output.raise_if_stopping()
                LOG.debug("tried again: %s", error.str())
            else:
                return

    def _raise_if_over(self, error: KafkaError) -> None:
        if error.code() in FENCED or error.code() in GONE or error.fatal():
            raise StartAnewError(f"this producer is over: {error.str()}") from None

    def stop(self) -> None:
        self._output.stopping = True

    def close(self) -> None:
        """An open transaction is ended here where that is quick, else by whoever fences this incarnation."""
        if self._open:
            try:
                self._producer.abort_transaction(SLICE_S)
            except KafkaException as error:
                LOG.warning("the open transaction is left to the broker: %s", error.args[0].str())
        self._output.close()
