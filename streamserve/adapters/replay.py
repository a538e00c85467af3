"""Replaying recorded events: a file's rows into a topology's source topic, at a rate or as fast as it goes.

The rate is an open loop: what is due is told by the clock alone, so that a broker that was slow for a while is
caught up with and the schedule never drifts. Nothing is printed here; several replays may run in one process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streamserve.adapters.kafka import Clients, broker_error
from streamserve.adapters.schema_ids import SchemaIds
from streamserve.errors import BrokerError, TopicError
from streamserve.pipeline.schemas import EventSchema
from streamserve.simulate.recorded import BATCH, RecordedEvents, keys_of, to_avro, to_json
from streamserve.topology import Topology

SLICE_S = 0.01  # how often a rate looks at the clock: bursts are of what falls due in this time
PACED_BATCH = 500  # rows encoded at once under a rate: 0.5 ms as Avro, 7 ms as JSON, so that slices stay short
QUEUE_WAIT_S = 0.02  # poll returns early for failures alone; long against a full queue it would run dry
MESSAGE_TIMEOUT_S = 30  # what is not acknowledged by then has failed
LINGER_MS = 20  # fuller batches are cheaper for both sides, and a replay has no latency to lose

Pairs = tuple[Sequence[bytes | None], Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class Replayed:
    """sent: handed to the client. acknowledged: of these, what the broker has. seconds: to the last of both."""

    sent: int
    acknowledged: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.acknowledged / self.seconds if self.seconds else 0.0


def due(elapsed: float, rate: float) -> int:
    """How many events should have left after so many seconds."""
    return int(elapsed * rate)


def to_come(path: Path, schema: EventSchema, *, limit: int | None = None, loops: int = 1) -> int | None:
    """How many events a replay will send, where the file tells without being read.

    Raises:
        ConfigError: no such file, or a kind that is not known.
    """
    count = RecordedEvents(path, schema).count
    if count is None:
        return limit
    return count * loops if limit is None else min(count * loops, limit)


class Replay:
    """Sends files of events to the source topic of a topology, in its format, keyed by its entity key.

    Records are stamped as they are sent. Each `run` opens a producer of its own.
    """

    def __init__(self, clients: Clients, topology: Topology, schema: EventSchema, ids: SchemaIds) -> None:
        self._clients, self._source, self._schema, self._ids = clients, topology.source, schema, ids

    def run(
        self,
        path: Path,
        *,
        rate: float | None = None,
        limit: int | None = None,
        loops: int = 1,
        on_progress: Callable[[int], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Replayed:
        """Send a file's events in its order; returns when the broker has acknowledged them.

        Args:
            rate: events a second; None: as fast as it goes.
            limit: how many at most, over all loops.
            loops: how often the file is sent.
            on_progress: told how many are sent, some hundred times a second at most.
            stop: when set, sends nothing more; what is sent is still waited for.

        Raises:
            ConfigError: the file can't be read or does not fit the schema. Events before the fault are sent.
            SchemaError: nobody knows an id for the schema.
            TopicError: there is no such topic.
            BrokerError: a record was not acknowledged.
        """
        events = RecordedEvents(path, self._schema)
        encoded = self._encoded(events, PACED_BATCH if rate else BATCH, loops)
        line = _Line(self._clients, self._source.topic, on_progress or _nobody, stop or threading.Event())
        started = time.monotonic()
        try:
            line.send(encoded, rate, limit)
        except BrokerError:
            line.drain()
            line.check()  # says how many it came to
            raise
        except Exception:
            line.drain()  # and not at a Ctrl-C: who asks twice does not want to wait
            raise
        line.drain()
        line.check()
        return Replayed(line.sent, line.acknowledged, time.monotonic() - started)

    def _encoded(self, events: RecordedEvents, size: int, loops: int) -> Iterator[Pairs]:
        if self._source.format == "avro":
            schema_id = self._ids.id_of(f"{self._source.topic}-value", self._schema.text)
            for _ in range(loops):
                for batch in events.batches(size):
                    yield keys_of(batch, self._source.key), to_avro(batch, self._schema, schema_id)
        else:
            for _ in range(loops):
                for batch in events.batches(size):
                    yield keys_of(batch, self._source.key), to_json(batch)


def _nobody(_: int) -> None:
    pass


class _Line:
    """One run's producer, what it has sent, and what failed."""

    def __init__(self, clients: Clients, topic: str, on_progress: Callable[[int], None], stop: threading.Event) -> None:
        self._topic, self._on_progress, self._stop = topic, on_progress, stop
        self._where = f"{clients.bootstrap} topic {topic}"
        self._first_failure: KafkaError | None = None
        self._failures = 0
        self.sent = 0
        # No Python callback a message (0.85 us each): only failures call back, and the flush tells of the rest
        self._producer: Producer = clients.producer(
            delivery_report_only_error=True,
            on_delivery=self._on_failure,
            message_timeout_ms=MESSAGE_TIMEOUT_S * 1000,
            linger_ms=LINGER_MS,
            compression_type="lz4",
        )
        if not clients.partitions(self._producer, topic):
            raise TopicError(
                f"there is no topic {topic!r} to replay into",
                where=clients.bootstrap,
                mend="create it: `streamserve topics apply <topology file>`",
            )

    def _on_failure(self, error: KafkaError | None, _message: Message) -> None:
        self._first_failure = self._first_failure or error
        self._failures += 1

    @property
    def acknowledged(self) -> int:
        return self.sent - len(self._producer) - self._failures

    def send(self, encoded: Iterator[Pairs], rate: float | None, limit: int | None) -> None:
        started = time.monotonic()
        for keys, values in encoded:
            at, stop_at = 0, len(values) if limit is None else min(len(values), limit - self.sent)
            while at < stop_at:
                size = stop_at - at if rate is None else self._wait_until_due(started, rate, stop_at - at)
                if self._stop.is_set():
                    return
                self._produce(keys[at : at + size], values[at : at + size])
                at += size
                self._on_progress(self.sent)
            if self.sent == limit:
                return

    def _wait_until_due(self, started: float, rate: float, most: int) -> int:
        """How many of the next events are due; waits for the first of them, or for the stop."""
        while True:
            count = due(time.monotonic() - started, rate) - self.sent
            if count > 0:
                return min(count, most)
            self._serve(0)
            if self._stop.wait(SLICE_S):
                return 0

    def _produce(self, keys: Sequence[bytes | None], values: Sequence[bytes]) -> None:
        produce, topic = self._producer.produce, self._topic
        for key, value in zip(keys, values, strict=True):
            while True:
                try:
                    produce(topic, value, key)
                    break
                except BufferError:
                    self._serve(QUEUE_WAIT_S)
                    if self._stop.is_set():
                        return
                except KafkaException as error:
                    raise broker_error(error.args[0], self._where) from None
            self.sent += 1
        self._serve(0)

    def _serve(self, seconds: float) -> None:
        self._producer.poll(seconds)
        self.check()

    def drain(self) -> None:
        """Wait until every record that was sent is acknowledged or has failed."""
        deadline = time.monotonic() + MESSAGE_TIMEOUT_S + 5
        try:
            while self._producer.flush(QUEUE_WAIT_S * 10) and time.monotonic() < deadline:
                self._on_progress(self.sent)
        except KafkaException as error:
            raise broker_error(error.args[0], self._where) from None

    def check(self) -> None:
        if self._first_failure is None:
            return
        told = broker_error(self._first_failure, self._where)
        raise BrokerError(
            f"{self._failures} of {self.sent} events were not acknowledged: {told.what}",
            where=told.where,
            mend=told.mend,
        )
