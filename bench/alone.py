"""The floors: one part of the work alone, in a process of its own. Prints a Cost as JSON.

    python -m bench.alone ort MODEL MATRIX INPUT EVENTS
    python -m bench.alone trees MODEL MATRIX INPUT EVENTS
    python -m bench.alone decode READER SCHEMA EVENTS_FILE EVENTS
    python -m bench.alone read BOOTSTRAP TOPIC EVENTS
    python -m bench.alone write HOW BOOTSTRAP TOPIC EVENTS_FILE EVENTS

All but the first three count the Kafka client's own threads as well.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from bench.decoders import DECODERS
from bench.events import read_events
from bench.measure import Cost, rss_mib
from streamserve.adapters.onnx import OnnxSession
from streamserve.models.session import SessionSettings

BATCH = 2000
AT_ONCE = 500  # values that are decoded at once: more of them leave the caches
WARM = 10  # batches that are not counted


def over_and_over(parts: Sequence[int], work: Callable[[int], object], events: int) -> Cost:
    """Work on parts (their sizes) in turn until `events` are done; the first ones are not counted."""
    for at in range(WARM):
        work(at % len(parts))
    started, cpu, done, at = time.monotonic(), time.process_time(), 0, 0
    while done < events:
        work(at % len(parts))
        done += parts[at % len(parts)]
        at += 1
    return _cost(done, started, cpu)


def _cost(events: int, started: float, cpu: float) -> Cost:
    seconds, spent, memory = time.monotonic() - started, time.process_time() - cpu, rss_mib(os.getpid())
    return Cost(events, seconds, spent, (memory, memory, memory))


def ort(model: str, matrix: str, name: str, events: str) -> Cost:
    """ONNX Runtime on matrices in memory, one thread, as many rows as a micro-batch."""
    return _scored(OnnxSession(Path(model), SessionSettings(compiled_trees=False)), matrix, name, events)


def trees(model: str, matrix: str, name: str, events: str) -> Cost:
    """The same with this project's compiled trees in it."""
    return _scored(OnnxSession(Path(model)), matrix, name, events)


def _scored(session: OnnxSession, matrix: str, name: str, events: str) -> Cost:
    rows = np.load(matrix)
    asked = [session.outputs[-1].name]
    parts = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
    return over_and_over([len(p) for p in parts], lambda at: session.run({name: parts[at]}, asked), int(events))


def decode(reader: str, schema: str, file: str, events: str) -> Cost:
    """Bytes to a float32 matrix, by one of the decoders."""
    values = read_events(Path(file))[1]
    parts = [values[at : at + AT_ONCE] for at in range(0, len(values), AT_ONCE)]
    read = DECODERS[reader](Path(schema).read_text())
    return over_and_over([len(p) for p in parts], lambda at: read(parts[at]), int(events))


def read(bootstrap: str, topic: str, events: str) -> Cost:
    """The Kafka client's own reading, in bulk: a value of bytes for each record, and nothing done with it."""
    config = {"bootstrap.servers": bootstrap, "group.id": "bench-alone", "enable.auto.commit": False}
    consumer = Consumer({**config, "auto.offset.reset": "earliest", "fetch.queue.backoff.ms": 10})
    partitions = consumer.list_topics(topic, 10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    wanted, done = int(events), 0
    while not done:  # connections and the first fetch are not counted
        done = len(consumer.consume(1, 10))
    started, cpu, counted = time.monotonic(), time.process_time(), 0
    while done + counted < wanted:
        messages = consumer.consume(min(BATCH, wanted - done - counted), 10)
        if not messages:
            raise RuntimeError(f"{topic}: {done + counted} of {wanted} records came")
        counted += len([m.value() for m in messages])
    cost = _cost(counted, started, cpu)
    consumer.close()
    return cost


def write(how: str, bootstrap: str, topic: str, file: str, events: str) -> Cost:
    """The Kafka client's own writing, in bulk: idempotent, lz4, to the last acknowledgement."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "linger.ms": 5,
            "compression.type": "lz4",
            "delivery.report.only.error": True,
            "queue.buffering.max.messages": 500_000,
            "queue.buffering.max.kbytes": 1 << 20,
        }
    )
    keys, values = read_events(Path(file))
    producer.produce(topic, values[0], keys[0])
    producer.flush(10)
    send = _one_by_one if how == "produce" else _in_batches
    started, cpu = time.monotonic(), time.process_time()
    for at in range(0, int(events), len(values)):
        count = min(len(values), int(events) - at)
        send(producer, topic, keys[:count], values[:count])
        producer.poll(0)
    if producer.flush(60):
        raise RuntimeError(f"{topic}: not everything was acknowledged")
    return _cost(int(events), started, cpu)


def _one_by_one(producer: Producer, topic: str, keys: Sequence[bytes | None], values: Sequence[bytes]) -> None:
    for key, value in zip(keys, values, strict=True):
        producer.produce(topic, value, key)


def _in_batches(producer: Producer, topic: str, keys: Sequence[bytes | None], values: Sequence[bytes]) -> None:
    producer.produce_batch(topic, [{"key": key, "value": value} for key, value in zip(keys, values, strict=True)])


KINDS: dict[str, Callable[..., Cost]] = {"ort": ort, "trees": trees, "decode": decode, "read": read, "write": write}

if __name__ == "__main__":
    print(json.dumps(KINDS[sys.argv[1]](*sys.argv[2:]).as_dict()))
