"""The floor of latency: a client that answers every record at once, with its key and a value of a prediction's size.

python -m bench.loops.echo BOOTSTRAP SOURCE TARGET
"""

from __future__ import annotations

import sys

from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

VALUE = bytes(250)


def main(bootstrap: str, source: str, target: str) -> None:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench-echo", "fetch.queue.backoff.ms": 1})
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 2, "delivery.report.only.error": True})
    partitions = consumer.list_topics(source, 10).topics[source].partitions
    consumer.assign([TopicPartition(source, p, OFFSET_END) for p in partitions])
    while True:
        first = consumer.poll(0.5)
        if first is None:
            continue
        for message in (first, *consumer.consume(5000, 0)):
            producer.produce(target, VALUE, message.key())
        producer.poll(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
