"""One life of a worker as a member of its group: consumer, reader, membership, ownership and output, made together.

A worker that was taken for dead begins anew under another name, with another transactional id: what its earlier self
may still have on the way can't be mistaken for its own.
"""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from confluent_kafka import Consumer

from streamserve import __version__
from streamserve.adapters.at_least_once import AtLeastOnceEmitter
from streamserve.adapters.client_io import BatchReader
from streamserve.adapters.exactly_once import IDLE_MS, TRANSACTION_TIMEOUT_MS, ExactlyOnceEmitter
from streamserve.adapters.kafka import Clients
from streamserve.adapters.member import Member
from streamserve.adapters.messages import MessageReader
from streamserve.adapters.output import Output
from streamserve.adapters.ownership import Identity, Ownership
from streamserve.adapters.packed import PackedReader
from streamserve.adapters.progress_log import ProgressLog
from streamserve.delivery.emitter import Emitter, Membership
from streamserve.topology import Topology


def worker_name() -> str:
    """Host and process: what people know a worker by."""
    return f"{platform.node()}-{os.getpid()}"


@dataclass(slots=True)
class Incarnation:
    """why: it has ended; nothing of it may be committed any more then."""

    consumer: Consumer
    reader: BatchReader
    member: Membership
    ownership: Ownership
    emitter: Emitter
    why: str = field(default="")

    def is_over(self) -> bool:
        return bool(self.why)

    def end(self, why: str) -> None:
        """Whoever waits for the broker in its name gives up."""
        self.why = self.why or why
        self.emitter.stop()


class Incarnations:
    """Begins them.

    Args:
        limits: each output topic's max.message.bytes.
    """

    def __init__(
        self, clients: Clients, topology: Topology, group: str, log: ProgressLog, limits: Mapping[str, int]
    ) -> None:
        self._clients, self._topology, self._group = clients, topology, group
        self._log, self._limits = log, limits

    def begin(self, epoch: Callable[[], int]) -> Incarnation:
        """epoch: the intake epoch of now.

        Raises:
            BrokerError: the broker does not let us begin.
        """
        name = secrets.token_hex(8)
        exactly_once = self._topology.delivery == "exactly_once"
        who = Identity(
            topology=self._topology.name,
            worker=worker_name(),
            name=name,
            release=__version__,
            transactional_id=f"{self._group}.{name}" if exactly_once else None,
        )
        emitter = self._emitter(who.transactional_id)
        where = self._clients.bootstrap
        consumer, handle = self._clients.member(self._group, ends=self._topology.drift is not None)
        topic, rows = self._topology.source.topic, self._clients.settings.batch_rows
        reader: BatchReader = (
            MessageReader(consumer, epoch, where)
            if handle is None
            else PackedReader(consumer, handle, topic, epoch, rows, where)
        )
        member = Member(consumer, lambda: self._log.position, where)
        return Incarnation(consumer, reader, member, Ownership(self._clients, self._log, who, member), emitter)

    def _emitter(self, transactional_id: str | None) -> Emitter:
        dead_letters = self._topology.topic("dead-letters")
        more = (
            {
                "transactional_id": transactional_id,
                "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS,
                "connections_max_idle_ms": IDLE_MS,
            }
            if transactional_id
            else {}
        )
        output = Output(self._clients, dead_letters, __version__, self._limits, **more)
        return ExactlyOnceEmitter(output, transactional_id) if transactional_id else AtLeastOnceEmitter(output)
