"""At-least-once output over one idempotent producer: sent in order, confirmed by a flush at each barrier.

No Python callback a message: with `delivery.report.only.error` the producer calls back for failures alone, and a
flush that ends with an empty queue and no failure means that the broker has everything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException, Message

from streamserve.adapters.kafka import Clients, broker_error
from streamserve.errors import BrokerError
from streamserve.pipeline import emit
from streamserve.records import Outgoing, OutputBatch, RawBatch, Reject, Stage

QUEUE_WAIT_S = 0.1  # how long one wait for room in the client's queue takes; it repeats until there is room
FLUSH_SLICE_S = 0.5  # how long a flush waits before it looks whether the worker stops
FLUSH_S = 60.0  # a broker that acknowledges nothing for this long stops the worker: nothing is committed
QUEUE_MESSAGES = 200_000
QUEUE_KBYTES = 256 * 1024
METADATA_MS = 5_000  # a leader that went with its broker is looked for again; the default of 300 s outlasts a flush
BATCH_BYTES = 1_000_000  # librdkafka's default; the broker holds a topic's limit against the whole batch
CLIENT_BYTES = 4 << 20
RECORD_OVERHEAD = 200  # what the batch and the record add at most, beside 16 bytes a header


class AtLeastOnceEmitter:
    """An `Emitter`.

    Args:
        dead_letters: the topic for records that the output topic can't hold.
        limits: each output topic's max.message.bytes.
    """

    def __init__(self, clients: Clients, dead_letters: str, release: str, limits: Mapping[str, int]) -> None:
        self._failed: tuple[KafkaError, str] | None = None
        self._closing = False
        self._limits = limits
        self._where = clients.bootstrap
        self._dead_letters, self._release = dead_letters, release
        self._lock = threading.Lock()
        self.too_large = 0
        self._producer = clients.producer(
            delivery_report_only_error=True,
            queue_buffering_max_messages=QUEUE_MESSAGES,
            queue_buffering_max_kbytes=QUEUE_KBYTES,
            message_max_bytes=max(CLIENT_BYTES, *limits.values()),
            batch_size=min(BATCH_BYTES, *limits.values()),
            topic_metadata_refresh_interval_ms=METADATA_MS,
            compression_type="lz4",
            on_delivery=self._on_failure,
        )

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:
        if self._failed is None and error is not None:
            self._failed = error, message.topic()

    def send(self, batch: OutputBatch) -> None:
        with self._lock:
            for out in batch.outgoing:
                refused = self._send(out)
                if refused:
                    self.too_large += len(refused)
                    self._send(_too_large(batch.raw, out, refused, self._dead_letters, self._release))
            self._producer.poll(0)
            self._raise_failure()

    def _send(self, out: Outgoing) -> list[int]:
        """Produce every record; returns the places of those that are too large for their topic."""
        refused = self._oversized(out)
        produce = self._producer.produce
        rows = zip(out.keys, out.values, out.headers, out.timestamps.tolist(), strict=True)
        for place, (key, value, headers, timestamp) in enumerate(rows):
            while place not in refused:
                try:
                    produce(out.topic, value, key, headers=headers, timestamp=timestamp)
                    break
                except BufferError:
                    self._producer.poll(QUEUE_WAIT_S)
                    self._raise_failure()
                except KafkaException as error:
                    raise broker_error(error.args[0], f"{self._where} topic {out.topic}") from None
        return refused

    def _oversized(self, out: Outgoing) -> list[int]:
        """The places of records that their topic can't hold. One such would fail its whole produce batch.

        Raises:
            BrokerError: a dead letter is among them; it has nowhere else to go.
        """
        limit = self._limits[out.topic]
        longest = (max(map(len, filter(None, column)), default=0) for column in (out.keys, out.values))
        if not any(out.headers) and sum(longest) + RECORD_OVERHEAD <= limit:
            return []
        sizes = [
            len(key or b"") + len(value or b"") + (_header_bytes(headers) if headers else 0)
            for key, value, headers in zip(out.keys, out.values, out.headers, strict=True)
        ]
        refused = [place for place, size in enumerate(sizes) if size + RECORD_OVERHEAD > limit]
        if refused and out.topic == self._dead_letters:
            raise BrokerError(
                f"a dead letter of {sizes[refused[0]]} bytes does not fit its topic: max.message.bytes is {limit}",
                where=f"{self._where} topic {out.topic}",
                mend="raise max.message.bytes of that topic, and start the worker again",
            )
        return refused

    def barrier(self, limit: float | None = None) -> None:
        seconds = FLUSH_S if limit is None else limit
        deadline = time.monotonic() + seconds
        with self._lock:
            left = self._flush(min(seconds, FLUSH_SLICE_S))
            while left and time.monotonic() < deadline:
                self._raise_failure()
                left = self._flush(FLUSH_SLICE_S)
            self._raise_failure()
        if left:
            raise BrokerError(
                f"{left} records were not acknowledged in {seconds:.0f} s",
                where=self._where,
                mend="check the broker; the worker starts again from what is committed",
            )

    def _flush(self, seconds: float) -> int:
        try:
            left: int = self._producer.flush(seconds)
        except KafkaException as error:
            raise broker_error(error.args[0], self._where) from None
        return left

    def abort(self) -> None:
        with self._lock:
            self._producer.purge()

    def close(self) -> None:
        """Whoever still waits for the broker in another thread gives up."""
        self._closing = True
        with self._lock:
            self._producer.flush(FLUSH_SLICE_S)

    def _raise_failure(self) -> None:
        if self._failed is not None:
            error, topic = self._failed
            raise broker_error(error, f"{self._where} topic {topic}")
        if self._closing:
            raise BrokerError(
                "the worker stopped before the broker acknowledged everything",
                where=self._where,
                mend="check the broker; the worker starts again from what is committed",
            )


def _header_bytes(headers: Sequence[tuple[str, bytes | None]]) -> int:
    return sum(16 + len(name.encode()) + len(value or b"") for name, value in headers)


def _too_large(raw: RawBatch, out: Outgoing, places: Sequence[int], topic: str, release: str) -> Outgoing:
    rejects = [
        Reject(
            int(out.rows[place]),
            Stage.EMIT,
            "TooLarge",
            f"the record for {out.topic}, key and headers included, is larger than the topic's max.message.bytes",
        )
        for place in places
    ]
    return emit.dead_letters(raw, rejects, topic, release)
