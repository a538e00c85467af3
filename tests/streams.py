"""Topologies in force on a cluster of a test's own, of both kinds of delivery; events that flow into them meanwhile."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cluster import LOOK_S
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition
from conftest import ROOT, Project, Worker, wait_until
from support import Broker, linear_model, prediction, renamed

NO_REDIS = "redis://127.0.0.1:1/0"
DELIVERIES = ("at_least_once", "exactly_once")
GOES_ON_S = 60.0  # a loaded machine; some 5 s on an idle one
SENDING = {
    "enable.idempotence": True,
    "partitioner": "murmur2_random",
    "socket.timeout.ms": 5000,  # a broker that hangs holds up what is tested, not the events
    "linger.ms": 20,
    "log_level": 0,
}
PARTITIONS = 4  # of tests/topologies/readings.py
ASK_S = 5.0
FLOW_PAUSE_S = 0.05
FLOW_ROWS = 10
_Found = TypeVar("_Found")


def patiently(ask: Callable[[], _Found], seconds: float = GOES_ON_S) -> _Found:
    """The first answer of a cluster that may be about to find another leader."""
    answers: list[_Found] = []

    def answered() -> bool:
        try:
            answers.append(ask())
        except KafkaException:
            return False
        return True

    wait_until(answered, seconds, "an answer of the cluster", LOOK_S)
    return answers[0]


@dataclass
class Stream:
    """A topology, and everything that was sent to it. worker: the latest."""

    project: Project
    file: Path
    delivery: str
    ids: Iterator[int] = field(default_factory=itertools.count)
    sent: list[str] = field(default_factory=list)
    worker: Worker | None = None

    @property
    def name(self) -> str:
        return self.file.stem.replace("_", "-")

    @property
    def broker(self) -> Broker:
        """A new one: a client that saw a broker die may ask that one for ever."""
        return Broker(self.project.endpoints.bootstrap)

    def start(self, **environ: str) -> Worker:
        self.worker = self.project.worker(self.file, **environ)
        return self.worker

    def kill(self) -> None:
        if self.worker is not None:
            self.worker.process.kill()
            self.worker.process.wait(10)

    def send(self, count: int) -> None:
        with self.producing() as produce:
            produce(count)

    @contextmanager
    def producing(self) -> Iterator[Callable[[int], None]]:
        """Sends so many events; with the end of the block the brokers have all of them."""
        producer = Producer({"bootstrap.servers": self.project.endpoints.bootstrap, **SENDING})

        def delivered(error: KafkaError | None, message: Message) -> None:
            assert error is None, error

        def produce(count: int) -> None:
            for number in itertools.islice(self.ids, count):
                value = json.dumps({"id": str(number), "sensor": "s", "value": number % 7})
                producer.produce(f"{self.name}.events", value, f"k{number % 50}", on_delivery=delivered)
                self.sent.append(str(number))
            producer.poll(0)

        yield produce
        assert producer.flush(GOES_ON_S) == 0, "events that no broker has taken"

    def ready(self) -> str:
        return self.worker.get("/ready")[1]

    def taken(self) -> float:
        """Events that the worker has read and not given back."""
        return self.worker.metric("streamserve_predictions_total") + self.worker.metric("streamserve_rows_in_flight")

    def ends(self) -> dict[int, int]:
        return patiently(lambda: self.broker.ends(f"{self.name}.events"))

    def committed(self) -> dict[int, int]:
        """One past the last event, by partition; 0: none. What is pending in a transaction is not committed."""
        return patiently(self._committed)

    def _committed(self) -> dict[int, int]:
        # As a reader of committed records it would be told to wait for the end of the transaction
        asker = self.broker.consumer(f"streamserve.{self.name}", **{"isolation.level": "read_uncommitted"})
        asked = [TopicPartition(f"{self.name}.events", partition) for partition in range(PARTITIONS)]
        try:
            found = asker.committed(asked, ASK_S)
        finally:
            asker.close()
        for tp in found:
            if tp.error is not None:
                raise KafkaException(tp.error)
        return {tp.partition: max(tp.offset, 0) for tp in found}

    def wait_until_committed(self, ends: dict[int, int], seconds: float = GOES_ON_S) -> None:
        def covers() -> bool:
            assert self.worker.process.poll() is None, self.worker.log.read_text()
            committed = self.committed()
            return all(committed[partition] >= end for partition, end in ends.items())

        wait_until(covers, seconds, f"the commits of {self.name} ({self.worker.log})", LOOK_S)

    def wait_until_on(self, seconds: float = GOES_ON_S) -> None:
        """An event that comes from now on is predicted and committed, in each partition."""
        self.wait_until_committed({partition: end + 1 for partition, end in self.ends().items()}, seconds)

    def seen(self) -> Counter[str]:
        """How often each event is predicted, by its id, for a reader with read_committed."""
        return Counter(str(prediction(one)["event_id"]) for one in self.broker.read(f"{self.name}.predictions"))

    def check(self) -> None:
        """Nothing is lost, nothing is a dead letter; where delivery is exactly once, nothing is there twice."""
        seen, sent = self.seen(), set(self.sent)
        assert not sent - seen.keys(), f"{len(sent - seen.keys())} events are lost"
        assert not seen.keys() - sent
        twice = {one: count for one, count in seen.items() if count > 1}
        assert self.delivery == "at_least_once" or not twice, f"{len(twice)} events are predicted twice"
        assert not self.broker.read(f"{self.name}.dead-letters")


def stream(project: Project, name: str, delivery: str, *apply: str) -> Stream:
    """As a user makes one. apply: options of `topics apply`. There is no stored view: no Redis is needed."""
    shutil.copy(ROOT / "tests" / "topologies" / "reading.avsc", project.folder / "schemas")
    linear_model(project.folder / "model.onnx", [1, 1])
    more = f"'delivery': {delivery!r}, 'features': base.features[:2]"
    file = renamed(
        project, ROOT / "tests" / "topologies" / "readings.py", f"{name}-{delivery.replace('_', '-')}", more=more
    )
    project.ok("topics", "apply", file, *apply)
    project.ok("models", "add", file, f"v-{delivery}", project.folder / "model.onnx")
    project.ok("topology", "init", file, "--version", f"v-{delivery}")
    return Stream(project, file, delivery)


@contextmanager
def flowing(some: Iterable[Stream]) -> Iterator[None]:
    """Events come to these all the time, two hundred a second each."""
    ended = threading.Event()
    flows = [threading.Thread(target=_flow, args=(one, ended)) for one in some]
    for flow in flows:
        flow.start()
    try:
        yield
    finally:
        ended.set()
        for flow in flows:
            flow.join(GOES_ON_S)


def _flow(into: Stream, ended: threading.Event) -> None:
    with into.producing() as produce:
        while not ended.wait(FLOW_PAUSE_S):
            produce(FLOW_ROWS)
