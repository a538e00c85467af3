"""Writing a batch's records: what an output topic can't hold goes to the dead letters, a full queue is waited for.

No Python callback a message. The compiled path counts what the broker confirms, record by record. Without it, with
`delivery.report.only.error`, the producer calls back for failures alone, and a flush that ends with an empty queue and
no failure means that the broker has everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc
from confluent_kafka import KafkaError, Producer

from streamserve.adapters.client_io import RecordWriter
from streamserve.adapters.kafka import Clients, broker_error
from streamserve.adapters.messages import MessageWriter
from streamserve.adapters.packed import PackedWriter
from streamserve.errors import BrokerError
from streamserve.pipeline import emit
from streamserve.records import Outgoing, OutputBatch, RawBatch, Reject, Stage

QUEUE_WAIT_S = 0.1  # how long one wait for room in the client's queue takes; it repeats until there is room
QUEUE_MESSAGES = 200_000
QUEUE_KBYTES = 256 * 1024
LINGER_MS = 1  # a micro-batch comes in one go: what is waited for here is not more rows, but latency
BATCH_BYTES = 1_000_000  # librdkafka's default; the broker holds a topic's limit against the whole batch
CLIENT_BYTES = 4 << 20
RECORD_OVERHEAD = 200  # what the batch and the record add at most, beside 16 bytes a header


class Output:
    """A producer for whole batches. Its caller serialises the calls, but for `stop`.

    Args:
        dead_letters: the topic for records that the output topic can't hold.
        limits: each output topic's max.message.bytes.
        more: settings of the producer.
    """

    def __init__(
        self, clients: Clients, dead_letters: str, release: str, limits: Mapping[str, int], **more: object
    ) -> None:
        self.stopping = False
        self.where = clients.bootstrap
        self.too_large = 0
        self._limits = limits
        self._dead_letters, self._release = dead_letters, release
        messages = MessageWriter()
        producer, handle = clients.batch_producer(
            delivery_report_only_error=True,
            queue_buffering_max_messages=QUEUE_MESSAGES,
            queue_buffering_max_kbytes=QUEUE_KBYTES,
            message_max_bytes=max(CLIENT_BYTES, *limits.values()),
            batch_size=min(BATCH_BYTES, *limits.values()),
            compression_type="lz4",
            linger_ms=LINGER_MS,
            on_delivery=messages.on_delivery,
            **more,
        )
        self.producer: Producer = producer
        messages.producer = producer
        self._writer: RecordWriter = messages if handle is None else PackedWriter(handle)

    def write(self, batch: OutputBatch) -> KafkaError | None:
        """Produce all that a batch causes; returns what stopped it on the way.

        Raises:
            BrokerError: a dead letter is too large, or the worker stops.
        """
        for out in batch.outgoing:
            refused = self._oversized(out)
            fitting = out.take(np.setdiff1d(np.arange(len(out)), refused)) if refused else out
            error = self._write(fitting)
            if error is None and refused:
                self.too_large += len(refused)
                error = self._write(_too_large(batch.raw, out, refused, self._dead_letters, self._release))
            if error is not None:
                return error
        self.producer.poll(0)
        return None

    def _write(self, out: Outgoing) -> KafkaError | None:
        """Produce every record; waits while the client's queue is full."""
        place = 0
        while place < len(out):
            place, error = self._writer.write(out, place)
            if error is None:
                break
            if error.code() != KafkaError._QUEUE_FULL:  # noqa: SLF001
                return error
            self.producer.poll(QUEUE_WAIT_S)
            self.raise_if_stopping()
            if (failed := self._writer.failure()) is not None:
                return failed[0]
        return None

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
                where=f"{self.where} topic {out.topic}",
                mend="raise max.message.bytes of that topic, and start the worker again",
            )
        return refused

    def unconfirmed(self) -> int:
        """Records that the broker neither confirmed nor refused, as far as they are counted."""
        return self._writer.unconfirmed()

    def failure(self) -> BrokerError | None:
        """The first record that failed for good."""
        failed = self._writer.failure()
        return None if failed is None else broker_error(failed[0], f"{self.where} topic {failed[1]}")

    def refused(self) -> KafkaError | None:
        """Why it failed, as the client says it."""
        failed = self._writer.failure()
        return None if failed is None else failed[0]

    def raise_if_stopping(self) -> None:
        """BrokerError where the worker stops: whoever waits for the broker gives up."""
        if self.stopping:
            raise BrokerError(
                "the worker stopped before the broker acknowledged everything",
                where=self.where,
                mend="check the broker; the worker starts again from what is committed",
            )

    def close(self) -> None:
        self._writer.close()


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
