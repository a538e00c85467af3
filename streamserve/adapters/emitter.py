"""At-least-once output over one idempotent producer: sent in order, confirmed by a flush at each barrier.

No Python callback a message: with `delivery.report.only.error` the producer calls back for failures alone, and a
flush that ends with an empty queue and no failure means that the broker has everything.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException, Message

from streamserve.adapters.kafka import Clients, broker_error
from streamserve.errors import BrokerError
from streamserve.pipeline import emit
from streamserve.records import Outgoing, OutputBatch, RawBatch, Reject, Stage

QUEUE_WAIT_S = 0.1  # how long one wait for room in the client's queue takes; it repeats until there is room
FLUSH_S = 60.0  # a broker that acknowledges nothing for this long stops the worker: nothing is committed
QUEUE_MESSAGES = 200_000
QUEUE_KBYTES = 256 * 1024


class AtLeastOnceEmitter:
    """An `Emitter`. dead_letters: the topic for records that the output topic can't hold."""

    def __init__(self, clients: Clients, dead_letters: str, release: str) -> None:
        self._failed: KafkaError | None = None
        self._where = clients.bootstrap
        self._dead_letters, self._release = dead_letters, release
        self._lock = threading.Lock()
        self.too_large = 0
        self._producer = clients.producer(
            delivery_report_only_error=True,
            queue_buffering_max_messages=QUEUE_MESSAGES,
            queue_buffering_max_kbytes=QUEUE_KBYTES,
            message_max_bytes=4 << 20,
            compression_type="lz4",
            on_delivery=self._on_failure,
        )

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:  # noqa: ARG002
        self._failed = self._failed or error

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
        """Produce every record; returns the places of those that the client refused for their size."""
        refused = []
        produce = self._producer.produce
        rows = zip(out.keys, out.values, out.headers, out.timestamps.tolist(), strict=True)
        for place, (key, value, headers, timestamp) in enumerate(rows):
            while True:
                try:
                    produce(out.topic, value, key, headers=headers, timestamp=timestamp)
                    break
                except BufferError:
                    self._producer.poll(QUEUE_WAIT_S)
                    self._raise_failure()
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE or out.topic == self._dead_letters:
                        raise broker_error(error.args[0], f"{self._where} topic {out.topic}") from None
                    refused.append(place)
                    break
        return refused

    def barrier(self) -> None:
        with self._lock:
            left = self._flush()
            self._raise_failure()
        if left:
            raise BrokerError(
                f"{left} records were not acknowledged in {FLUSH_S:.0f} s",
                where=self._where,
                mend="check the broker; the worker starts again from what is committed",
            )

    def _flush(self) -> int:
        try:
            left: int = self._producer.flush(FLUSH_S)
        except KafkaException as error:
            raise broker_error(error.args[0], self._where) from None
        return left

    def abort(self) -> None:
        with self._lock:
            self._producer.purge()

    def close(self) -> None:
        with self._lock:
            self._producer.flush(1.0)

    def _raise_failure(self) -> None:
        if self._failed is not None:
            raise broker_error(self._failed, self._where)


def _too_large(raw: RawBatch, out: Outgoing, places: Sequence[int], topic: str, release: str) -> Outgoing:
    rejects = [
        Reject(
            int(out.rows[place]),
            Stage.EMIT,
            "TooLarge",
            f"the record for {out.topic} has {len(out.values[place] or b'')} bytes beside key and headers",
        )
        for place in places
    ]
    return emit.dead_letters(raw, rejects, topic, release)
