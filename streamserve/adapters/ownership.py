"""Taking partitions up and letting them go, in the order of the control protocol.

Taking up: append `owned` and read it back (its offset is the owner epoch); have the group confirm that we are a member;
fence the transactional ids of all older claims that were not released; only then may the committed offset be read.
Letting go: append `released` once nothing of ours is open. So a worker that sleeps can't commit what another has taken
up, and nobody waits for a dead worker's transaction to time out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from confluent_kafka import KafkaException, Producer

from streamserve.adapters.kafka import Clients, broker_error
from streamserve.adapters.member import Member
from streamserve.adapters.progress_log import ProgressLog
from streamserve.delivery.emitter import StartAnewError
from streamserve.delivery.progress import CutOver, Owned, Released
from streamserve.records import TopicPartition

LOG = logging.getLogger("streamserve.ownership")
FENCE_S = 30.0  # what a fence may take, which ends a transaction at the broker
FENCES = 8  # at once


@dataclass(frozen=True, slots=True)
class Identity:
    """One life of a worker as a member of its group. transactional_id: of its producer; None: it has none."""

    topology: str
    worker: str
    name: str
    release: str
    transactional_id: str | None

    def signature(self, topic: str) -> dict[str, str]:
        """What its every record about a topic carries."""
        return {
            "topology": self.topology,
            "topic": topic,
            "worker": self.worker,
            "incarnation": self.name,
            "release": self.release,
        }


class Ownership:
    def __init__(self, clients: Clients, log: ProgressLog, who: Identity, member: Member) -> None:
        self._clients, self._log, self._who, self._member = clients, log, who, member

    def take(self, topic: str, partitions: Sequence[int]) -> int:
        """Claim partitions; returns the owner epoch. What they have committed may be read after this, not before.

        Raises:
            StartAnewError: the group does not know us any more.
            BrokerError: the log or a fence did not answer in time.
        """
        who = self._who
        epoch = self._log.append(
            Owned(**who.signature(topic), partitions=tuple(partitions), transactional_id=who.transactional_id)
        )
        self._log.wait_for(epoch)
        self._member.confirm()
        self._fence(self._log.predecessors([(topic, p) for p in partitions], epoch))
        return epoch

    def _fence(self, transactional_ids: Iterable[str]) -> None:
        others = [one for one in transactional_ids if one != self._who.transactional_id]
        if not others:
            return
        started = time.monotonic()
        with ThreadPoolExecutor(min(FENCES, len(others)), "fence") as pool:
            list(pool.map(self._fence_one, others))
        LOG.info("fenced %d claims that were not released, %.1f s", len(others), time.monotonic() - started)

    def _fence_one(self, transactional_id: str) -> None:
        """Begin a new life of a transactional id: the broker ends its open transaction, and refuses the old life."""
        producer: Producer = self._clients.producer(transactional_id=transactional_id)
        try:
            producer.init_transactions(FENCE_S)
        except KafkaException as error:
            raise broker_error(
                error.args[0], f"{self._clients.bootstrap} transactional id {transactional_id}"
            ) from None

    def release(self, topic: str, owner_epochs: Mapping[int, int]) -> None:
        """Say that nothing of ours is open on these partitions. Must land before another is told to take them up.

        Raises:
            BrokerError: the log did not take it in time; whoever comes next fences us.
        """
        self._log.append(Released(**self._who.signature(topic), owner_epochs=dict(owner_epochs)))

    def cut_over(self, topic: str, epoch: int, offsets: Mapping[int, int], owner_epochs: Mapping[int, int]) -> None:
        """Partitions obey an epoch from these offsets on; nothing from there on may be routed before this returns.

        Raises:
            StartAnewError: another owns one of them by now.
            BrokerError: the log did not answer in time.
        """
        record = CutOver(
            **self._who.signature(topic), epoch=epoch, offsets=dict(offsets), owner_epochs=dict(owner_epochs)
        )
        self._log.wait_for(self._log.append(record))
        _, found = self._log.cutovers()
        refused = [p for p in offsets if not any(cut.epoch == epoch for cut in found.get((topic, p), ()))]
        if refused:
            raise StartAnewError(f"partitions {refused} have a later owner")

    def superseded(self, owner_epochs: Mapping[TopicPartition, int]) -> list[TopicPartition]:
        return self._log.superseded(owner_epochs.items())
