"""Where shadow decisions and pane chunks leave: producers of their own, so that their topics can't hold up stable.

In exactly-once mode too: in the transaction of the predictions, a topic that is full, gone or refused would. What can't
be written is dropped and counted.
"""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from confluent_kafka import KafkaError, Producer

from streamserve.adapters.client_io import RecordWriter
from streamserve.adapters.kafka import Clients
from streamserve.adapters.messages import MessageWriter
from streamserve.adapters.output import RECORD_OVERHEAD
from streamserve.adapters.packed import PackedWriter
from streamserve.records import Outgoing

QUEUE_MESSAGES, QUEUE_KBYTES = 100_000, 64 * 1024
LINGER_MS = 20
TIMEOUT_MS = 30_000  # until a record that the broker does not take is given up


class SideOutput:
    """Its caller serialises the calls, but for `lost`. limit: the topic's max.message.bytes."""

    def __init__(self, clients: Clients, limit: int, linger_ms: int = LINGER_MS) -> None:
        messages = MessageWriter()
        producer, handle = clients.batch_producer(
            delivery_report_only_error=True,
            queue_buffering_max_messages=QUEUE_MESSAGES,
            queue_buffering_max_kbytes=QUEUE_KBYTES,
            message_timeout_ms=TIMEOUT_MS,
            batch_size=min(1_000_000, limit),
            compression_type="lz4",
            linger_ms=linger_ms,
            on_delivery=messages.on_delivery,
        )
        self._producer: Producer = producer
        messages.producer = producer
        self._writer: RecordWriter = messages if handle is None else PackedWriter(handle)
        self._limit, self._dropped = limit, 0

    @property
    def lost(self) -> int:
        """Records that did not reach the topic."""
        return self._dropped + self._writer.failures()

    def write(self, out: Outgoing) -> None:
        """Produce what there is room for."""
        sizes = pc.binary_length(out.values).to_numpy(zero_copy_only=False) + RECORD_OVERHEAD
        sizes = sizes + pc.binary_length(out.keys).fill_null(0).to_numpy(zero_copy_only=False)
        fitting = out if (sizes <= self._limit).all() else out.take(np.flatnonzero(sizes <= self._limit))
        self._dropped += len(out) - len(fitting)
        place = 0
        while place < len(fitting):
            place, error = self._writer.write(fitting, place)
            if error is None:
                break
            full = error.code() == KafkaError._QUEUE_FULL  # noqa: SLF001
            skipped = len(fitting) - place if full else 1
            self._dropped, place = self._dropped + skipped, place + skipped
        self._producer.poll(0)

    def settled(self, seconds: float) -> bool:
        """Wait so long at most until the broker has answered for all that was written; whether it has."""
        return not self._producer.flush(seconds)

    def close(self, seconds: float) -> None:
        """Wait so long at most for what is on its way."""
        self._dropped += self._producer.flush(seconds)
        self._writer.close()
