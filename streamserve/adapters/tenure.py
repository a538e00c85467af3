"""What one incarnation does about its partitions: takes them up, obeys commands on them, lets them go, or loses them.

The group's calls run inside `poll`: `list_topics`, `poll` and `consume` of the consumer are forbidden in them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streamserve.adapters.incarnation import Incarnation
from streamserve.adapters.positions import starting_positions
from streamserve.delivery.custody import Custody
from streamserve.delivery.cutovers import Due, starts
from streamserve.delivery.emitter import StartAnewError
from streamserve.errors import BrokerError
from streamserve.records import ControlView, RawBatch
from streamserve.records import TopicPartition as Place
from streamserve.settings import Settings

LOG = logging.getLogger("streamserve.intake")


class InForce(Protocol):
    """Both logs, as far as they were read."""

    def view(self) -> ControlView: ...

    def due(self, owned: Iterable[Place]) -> Due | None: ...

    def wait_for(self, places: Iterable[Place]) -> None: ...


class Desk(Protocol):
    """The intake, which knows what is in flight."""

    @property
    def abandoned(self) -> bool: ...

    @property
    def stopping(self) -> bool: ...

    def flying(self) -> tuple[RawBatch, ...]: ...

    def drained(self) -> bool: ...

    def commit_until(self, life: Incarnation, deadline: float) -> bool: ...

    def took_up(self) -> None: ...


class Tenure:
    """Every call is the intake thread's."""

    def __init__(
        self,
        topic: str,
        settings: Settings,
        life: Incarnation,
        custody: Custody,
        control: InForce,
        count: Callable[[str], int],
        *,
        desk: Desk,
    ) -> None:
        self._topic, self._settings, self._life = topic, settings, life
        self._custody, self._control, self._count, self._desk = custody, control, count, desk

    def subscribe(self) -> None:
        """Join the group."""
        self._life.consumer.subscribe(
            [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    # ---- between two reads

    def cut_over(self) -> None:
        """Obey what was put in force: write down from where on; nothing is handed over until that was read back.

        A kill takes back what is not sent yet.

        Raises:
            StartAnewError: partitions have a later owner, or the progress log does not answer.
        """
        claims = self._custody.owner_epochs()
        due = self._control.due(claims)
        if due is None:
            return
        began = time.monotonic()
        if due.recall:
            self._custody.recall()
            self.read_again()
        routed = self._custody.routed(self._desk.flying())
        offsets = {partition: offset for (_, partition), offset in starts(due, self._control.view(), routed).items()}
        try:
            self._life.ownership.cut_over(
                self._topic, due.epoch, offsets, {partition: claims[self._topic, partition] for partition in offsets}
            )
        except BrokerError as error:
            raise StartAnewError(f"epoch {due.epoch} can't be put in force: {error.what}") from error
        LOG.info("control epoch %d holds from %s on, %.3f s", due.epoch, offsets, time.monotonic() - began)

    def read_again(self) -> None:
        """After an abort or a kill: what is read from here on counts, what was read before does not."""
        led = []
        for place, offset in self._custody.rewound.items():
            try:
                self._life.consumer.seek(TopicPartition(*place, offset))
            except KafkaException as error:  # its fetching has not begun yet
                LOG.info("%s-%d is led back in a moment: %s", *place, error.args[0].str())
                continue
            self._life.reader.forget_end(place[1])
            self._custody.led_back(place)
            led.append(place[1])
        if led:
            LOG.warning("partitions %s are read again from where nothing counts yet", sorted(led))

    # ---- the group's calls

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        life = self._life
        # A consumer that closes may be given partitions yet, and is told nothing any more that taking them up needs
        if life.is_over() or self._desk.stopping or not partitions:
            consumer.incremental_assign([])
            return
        try:
            owner_epoch = life.ownership.take(self._topic, [tp.partition for tp in partitions])
            self._control.wait_for([(tp.topic, tp.partition) for tp in partitions])
            placed = starting_positions(consumer, partitions, self._settings, self._count)
        except BrokerError as error:
            raise StartAnewError(f"partitions can't be taken up: {error.what}") from error
        self._desk.took_up()
        self._custody.take({(tp.topic, tp.partition): tp.offset for tp in placed}, owner_epoch)
        life.reader.take(placed)
        consumer.incremental_assign(placed)
        LOG.info("took up partitions %s (owner epoch %d)", [tp.partition for tp in placed], owner_epoch)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Finish what is in flight, commit, say so in the progress log, let go."""
        try:
            if not self._life.is_over():
                self._give_up([(tp.topic, tp.partition) for tp in partitions])
        finally:
            self._let_go(consumer, partitions)

    def _give_up(self, places: Sequence[Place]) -> None:
        life, desk = self._life, self._desk
        deadline = time.monotonic() + self._settings.drain_timeout
        if not desk.drained() and not desk.abandoned:
            LOG.error("batches are still in flight; they will be scored again")
        epochs = self._custody.hand_over(
            places, life.emitter, lambda: desk.abandoned or desk.commit_until(life, deadline)
        )
        if epochs and not desk.abandoned:
            try:
                life.ownership.release(self._topic, {partition: epoch for (_, partition), epoch in epochs.items()})
            except BrokerError as error:
                LOG.warning("who comes next will take this worker for lost: %s", error)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [tp.partition for tp in partitions]
        LOG.warning("lost partitions %s; nothing of them is committed", numbers)
        self._life.end(f"partitions {numbers} were lost")
        self._let_go(consumer, partitions)

    def _let_go(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._custody.drop((tp.topic, tp.partition) for tp in partitions)
        self._life.reader.release(partitions)
        consumer.incremental_unassign(partitions)
        LOG.info("gave up partitions %s", [tp.partition for tp in partitions])
