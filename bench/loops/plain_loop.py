"""Contestant: a careful loop around confluent-kafka. Batches of 500, one MGET, one ORT run, a commit each second."""

from __future__ import annotations

import importlib
import os
import time

from confluent_kafka import Consumer, Producer


def main() -> None:
    topic, output = os.environ["BENCH_TOPIC"], os.environ["BENCH_OUTPUT"]
    common = {"bootstrap.servers": os.environ["BENCH_BOOTSTRAP"]}
    consumer = Consumer(
        {
            **common,
            "group.id": os.environ["BENCH_GROUP"],
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 10,
        }
    )
    producer = Producer({**common, "enable.idempotence": True, "linger.ms": 5, "compression.type": "lz4"})
    scorer = importlib.import_module(os.environ["BENCH_SCORER"]).Scorer()
    consumer.subscribe([topic])
    committed = time.monotonic()
    while True:
        first = consumer.poll(0.5)
        if first is None:
            continue
        messages = [m for m in (first, *consumer.consume(499, 0)) if m.error() is None]
        values = scorer.score(topic, [(m.partition(), m.offset(), m.value()) for m in messages])
        for message, value in zip(messages, values, strict=True):
            while True:
                try:
                    producer.produce(output, value, message.key())
                    break
                except BufferError:
                    producer.poll(0.1)
        producer.poll(0)
        if time.monotonic() - committed >= 1:
            producer.flush()
            consumer.commit(asynchronous=False)
            committed = time.monotonic()


if __name__ == "__main__":
    main()
