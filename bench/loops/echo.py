"""The floor of latency: a client that answers every batch at once, with its keys and values of a prediction's size.

python -m bench.loops.echo BOOTSTRAP SOURCE TARGET

It reads and writes as a worker does, by the compiled path, and does nothing else.
"""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
from confluent_kafka import KafkaError

from bench.stand import MOST, at_the_end
from streamserve.adapters.client_io import Fill, RecordWriter
from streamserve.adapters.messages import MessageWriter
from streamserve.adapters.packed import PackedWriter
from streamserve.records import Outgoing

LINGER_MS = 2  # without, it sends more requests and all wait for the broker: p99 38 ms in place of 20
VALUE = bytes(250)
FILL = Fill(wait=0.5, rows=1, seconds=0.0, max_rows=MOST, max_bytes=1 << 26)


def main(bootstrap: str, source: str, target: str) -> None:
    stand = at_the_end(bootstrap, source, "bench-echo")
    messages = MessageWriter()
    producer, handle = stand.clients.batch_producer(linger_ms=LINGER_MS, on_delivery=messages.on_delivery)
    messages.producer = producer
    writer: RecordWriter = messages if handle is None else PackedWriter(handle)
    values, rows = pa.array([VALUE] * MOST, pa.binary()), np.arange(MOST)
    while True:
        for batch in stand.reader.read(FILL):
            count = len(batch)
            out = Outgoing(target, rows[:count], batch.keys, values[:count], None, np.zeros(count, np.int64))
            place, error = writer.write(out, 0)
            while error is not None:
                if error.code() != KafkaError._QUEUE_FULL:  # noqa: SLF001
                    raise RuntimeError(error.str())
                producer.poll(0.1)
                place, error = writer.write(out, place)
            producer.poll(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
