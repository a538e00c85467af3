"""What the runner asks the broker: who owns what, what is committed, where topics end; and whole topics, read again."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, GroupMetadata

from chaos.columns import Ints

ASK_S = 10.0
PATIENCE_S = 200.0  # what a restart and a recovery of its logs take at most
PAUSE_S = 0.05
ANEW_S = 2.0  # a client is never taken down, and a process has room for a thousand
QUIET = {"log_level": 2, "error_cb": lambda _: None, "reconnect.backoff.max.ms": 500}
READ = 10_000
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Members:
    """A worker group as its coordinator sees it: how many members, and the partitions of each client id.

    A worker that began anew is there twice until its former self is taken for dead.
    """

    stable: bool
    count: int
    owned: dict[str, frozenset[int]]


class Broker:
    """Asks again until it is answered: between two faults the broker may still be coming up."""

    def __init__(self, bootstrap: str, topic: str, group: str, partitions: int) -> None:
        self._bootstrap, self._topic, self._group = bootstrap, topic, group
        self._former: list[object] = []  # never taken down: a client whose broker died may wait for itself for ever
        self._open()
        self._places = [TopicPartition(topic, p) for p in range(partitions)]

    def _open(self) -> None:
        self._admin = AdminClient({"bootstrap.servers": self._bootstrap, **QUIET})
        # What is pending in a transaction is not committed: a reader of committed records would be told to wait for it
        self._asker = self.consumer(self._group, "read_uncommitted")
        self._opened = time.monotonic()

    def consumer(self, group: str, isolation: str = "read_committed") -> Consumer:
        """One that joins no group."""
        return Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": group,
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "isolation.level": isolation,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
                "topic.metadata.refresh.interval.ms": 5_000,
                **QUIET,
            }
        )

    def members(self) -> Members:
        """Who is in the worker group."""
        found = self._patiently(self._group_now)
        owned: dict[str, frozenset[int]] = {}
        for one in found.members:
            owned[one.client_id] = owned.get(one.client_id, frozenset()) | partitions_of(one.assignment)
        return Members(found.state == "Stable", len(found.members), owned)

    def _group_now(self) -> GroupMetadata:
        # Not `describe_consumer_groups`: librdkafka 2.16 ends the process where a broker dies under that question. Its
        # price: only groups of the classic protocol are told of
        [found] = self._admin.list_groups(self._group, ASK_S) or [None]
        if found is None or found.error is not None:
            raise KafkaException(KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE) if found is None else found.error)
        return found

    def committed(self) -> Ints:
        """The group's offsets by partition; 0 where there is none."""
        return self._patiently(self._committed)

    def _committed(self) -> Ints:
        found = self._asker.committed(self._places, ASK_S)
        for tp in found:
            if tp.error is not None:
                raise KafkaException(tp.error)
        return np.array([max(tp.offset, 0) for tp in found], np.int64)

    def ends(self) -> Ints:
        """The end of the source topic by partition."""
        return self._patiently(self._ends)

    def _ends(self) -> Ints:
        return np.array([self._asker.get_watermark_offsets(tp, ASK_S)[1] for tp in self._places], np.int64)

    def assigned(self, *topics: str) -> Consumer:
        """A consumer of whole topics, from their beginnings."""
        consumer = self.consumer("chaos")
        known = self._patiently(lambda: consumer.list_topics(timeout=ASK_S)).topics
        consumer.assign([TopicPartition(topic, p, 0) for topic in topics for p in known[topic].partitions])
        return consumer

    def read(self, topic: str) -> Iterator[Sequence[Message]]:
        """Every record of a topic that a reader of committed records sees."""
        consumer = self.assigned(topic)
        left = {tp.partition for tp in consumer.assignment()}
        limit = time.monotonic() + PATIENCE_S
        while left:
            messages = consumer.consume(READ, 1.0)
            good = [m for m in messages if m.error() is None]
            ended = {m.partition() for m in messages if m.error() and m.error().code() == KafkaError._PARTITION_EOF}  # noqa: SLF001
            left -= ended
            if good or ended:
                limit = time.monotonic() + PATIENCE_S
                yield good
            elif time.monotonic() > limit:
                raise TimeoutError(f"{topic} could not be read to its end")
        consumer.close()

    def _patiently(self, ask: Callable[[], _Found]) -> _Found:
        limit = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask()
            except KafkaException:
                if time.monotonic() > limit:
                    raise
            # A client that has seen the broker die may ask with the old leader's epoch, or nobody, for ever
            if time.monotonic() > self._opened + ANEW_S:
                self._former += [self._admin, self._asker]
                self._open()
            time.sleep(PAUSE_S)


def partitions_of(assignment: bytes) -> frozenset[int]:
    """A member's partitions of its one topic. The consumer protocol: version, then topics, each a name and numbers."""
    if not assignment:
        return frozenset()
    found, at = set[int](), 6
    for _ in range(struct.unpack_from(">i", assignment, 2)[0]):
        at += 2 + struct.unpack_from(">h", assignment, at)[0]
        (count,) = struct.unpack_from(">i", assignment, at)
        found.update(struct.unpack_from(f">{count}i", assignment, at + 4))
        at += 4 + 4 * count
    return frozenset(found)
