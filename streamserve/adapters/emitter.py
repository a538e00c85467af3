"""At-least-once output over one idempotent producer: sent in order, confirmed by a flush at each barrier.

No Python callback a message. The compiled path counts what the broker confirms, record by record. Without it, with
`delivery.report.only.error`, the producer calls back for failures alone, and a flush that ends with an empty queue and
no failure means that the broker has everything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc
from confluent_kafka import KafkaError, KafkaException

from streamserve.adapters.client_io import RecordWriter
from streamserve.adapters.kafka import Clients, broker_error
from streamserve.adapters.messages import MessageWriter
from streamserve.adapters.packed import PackedWriter
from streamserve.errors import BrokerError
from streamserve.pipeline import emit
from streamserve.records import Outgoing, OutputBatch, RawBatch, Reject, Stage

QUEUE_WAIT_S = 0.1  # how long one wait for room in the client's queue takes; it repeats until there is room
FLUSH_SLICE_S = 0.5  # how long a flush waits before it looks whether the worker stops
FLUSH_S = 60.0  # a broker that acknowledges nothing for this long stops the worker: nothing is committed
QUEUE_MESSAGES = 200_000
QUEUE_KBYTES = 256 * 1024
LINGER_MS = 1  # a micro-batch comes in one go: what is waited for here is not more rows, but latency
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
        self._closing = False
        self._limits = limits
        self._where = clients.bootstrap
        self._dead_letters, self._release = dead_letters, release
        self._lock = threading.Lock()
        self.too_large = 0
        messages = MessageWriter()
        self._producer, handle = clients.batch_producer(
            delivery_report_only_error=True,
            queue_buffering_max_messages=QUEUE_MESSAGES,
            queue_buffering_max_kbytes=QUEUE_KBYTES,
            message_max_bytes=max(CLIENT_BYTES, *limits.values()),
            batch_size=min(BATCH_BYTES, *limits.values()),
            topic_metadata_refresh_interval_ms=METADATA_MS,
            compression_type="lz4",
            linger_ms=LINGER_MS,
            on_delivery=messages.on_delivery,
        )
        messages.producer = self._producer
        self._writer: RecordWriter = messages if handle is None else PackedWriter(handle)

    def send(self, batch: OutputBatch) -> None:
        with self._lock:
            for out in batch.outgoing:
                refused = self._oversized(out)
                fitting = out.take(np.setdiff1d(np.arange(len(out)), refused)) if refused else out
                self._write(fitting)
                if refused:
                    self.too_large += len(refused)
                    self._write(_too_large(batch.raw, out, refused, self._dead_letters, self._release))
            self._producer.poll(0)
            self._raise_failure()

    def _write(self, out: Outgoing) -> None:
        """Produce every record; waits while the client's queue is full."""
        place = 0
        while place < len(out):
            place, error = self._writer.write(out, place)
            if error is None:
                return
            if error.code() != KafkaError._QUEUE_FULL:  # noqa: SLF001
                raise broker_error(error, f"{self._where} topic {out.topic}")
            self._producer.poll(QUEUE_WAIT_S)
            self._raise_failure()

    def _oversized(self, out: Outgoing) -> list[int]:
        """The places of records that their topic can't hold. One such would fail its whole produce batch.

        Raises:
            BrokerError: a dead letter is among them; it has nowhere else to go.
        """
        limit = self._limits[out.topic]
        sizes = np.full(len(out), RECORD_OVERHEAD, np.int64)
        for column in (out.keys, out.values, out.headers):  # packed headers are as long as the broker counts, or longer
            if column is not None:
                sizes += pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        refused: list[int] = np.flatnonzero(sizes > limit).tolist()
        if refused and out.topic == self._dead_letters:
            raise BrokerError(
                f"a dead letter of {sizes[refused[0]] - RECORD_OVERHEAD} bytes does not fit its topic: "
                f"max.message.bytes is {limit}",
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
            left = left or self._writer.unconfirmed()
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
            self._writer.close()

    def _raise_failure(self) -> None:
        failed = self._writer.failure()
        if failed is not None:
            error, topic = failed
            raise broker_error(error, f"{self._where} topic {topic}")
        if self._closing:
            raise BrokerError(
                "the worker stopped before the broker acknowledged everything",
                where=self._where,
                mend="check the broker; the worker starts again from what is committed",
            )


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
