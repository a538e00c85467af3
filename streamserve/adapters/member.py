"""A worker as a member of its group: commits, and what their refusal means.

Every call is made by the consumer's own thread, between polls or inside the group's callbacks: the client serves a loss
to its callback before it joins again, so what is committed here is still ours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streamserve.adapters.control_log import PROGRESS
from streamserve.adapters.kafka import broker_error
from streamserve.delivery.emitter import Outcome, StartAnewError
from streamserve.delivery.ledger import Boundary

LOG = logging.getLogger("streamserve.member")
CONFIRM_S = 5.0  # how long a stale generation is asked again before this member counts as gone
RETRY_S = 0.05
GONE = frozenset((KafkaError.UNKNOWN_MEMBER_ID, KafkaError.FENCED_MEMBER_EPOCH, KafkaError.FENCED_INSTANCE_ID))
LATER = frozenset(
    (
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.UNKNOWN,  # what a coordinator says of a commit that its full disk does not take
        KafkaError._WAIT_COORD,  # noqa: SLF001
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    )
)


class Member:
    """A `Membership`.

    Args:
        position: how far the progress log was read.
        where: the broker, for errors.
    """

    def __init__(self, consumer: Consumer, position: Callable[[], int], where: str) -> None:
        self._consumer, self._position, self._where = consumer, position, where

    def metadata(self) -> object:
        return self._consumer.consumer_group_metadata()

    def commit(self, boundaries: Sequence[Boundary]) -> Outcome:
        return self._commit([TopicPartition(b.topic, b.partition, b.stop) for b in boundaries])

    def settled(self) -> Outcome:
        """Does the group know this member, and under its present generation? LATER: the group is on the move.

        Asked by a commit that its coordinator checks, of an offset that nobody uses: a member may commit one of a topic
        that it does not read, here the progress log's; one whose session has expired is refused.
        """
        return self._commit([TopicPartition(PROGRESS, 0, self._position())])

    def confirm(self) -> None:
        """Return once the group confirms that this is a member.

        Raises:
            StartAnewError: no, or it can't be told.
        """
        deadline = time.monotonic() + CONFIRM_S
        while self.settled() is Outcome.LATER:
            if time.monotonic() > deadline:
                raise StartAnewError("the group does not confirm that this worker is a member")
            time.sleep(RETRY_S)

    def _commit(self, offsets: list[TopicPartition]) -> Outcome:
        try:
            done = self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            return self._refused(error.args[0], self._where)
        for tp in done:
            if tp.error is not None:
                return self._refused(tp.error, f"{self._where} commit of {tp.topic}-{tp.partition}")
        return Outcome.DONE

    def _refused(self, error: KafkaError, where: str) -> Outcome:
        if error.code() in GONE:
            raise StartAnewError(f"the group does not know this worker any more: {error.str()}")
        if error.code() in LATER:
            LOG.warning("commit not taken, it is tried again: %s", error.str())
            return Outcome.LATER
        raise broker_error(error, where)
