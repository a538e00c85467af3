"""Payments for tests: a schema, a topology, files of events, and topics that they are sent to and read from."""

from __future__ import annotations

import datetime as dt
import json
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic

from streamserve.adapters.kafka import Clients
from streamserve.adapters.reading import Record, Start, TopicReader
from streamserve.adapters.replay import Replay
from streamserve.adapters.schema_ids import PinnedIndex
from streamserve.pipeline.schemas import EventSchema
from streamserve.settings import Settings
from streamserve.topology import Source, Topology, field, output

SCHEMA = {
    "type": "record",
    "name": "Payment",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "user", "type": ["null", "string"], "default": None},
        {"name": "amount", "type": "double"},
        {"name": "country", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
TEXT = json.dumps(SCHEMA)
SCHEMA_ID = 7
AT = 1_700_000_000_000
MADE = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
TOPOLOGY = """
from streamserve.topology import Source, Topology, View, category, days, field, output, stored, threshold

users = View("users", key="user", fields=("spent", "visits"), max_age=days(30))
payments = Topology(
    name="{name}",
    source=Source(topic="{name}-events", schema="payment.avsc", key="user", event_time="at", id="id", partitions=3),
    features=(field("amount"), category("country"), stored(users)),
    model="{name}",
    outputs={{"risk": output("score")}},
    decision=threshold("risk", 0.5, labels=("fine", "risky")),
)
"""


def rows(count: int, start: int = 0) -> list[dict]:
    return [
        {"id": f"p{i}", "user": f"u{i % 17}", "amount": i * 0.1, "country": "NL" if i % 2 else "BE", "at": AT + i}
        for i in range(start, start + count)
    ]


def write_events(path, count: int):
    arrow = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            ("user", pa.string()),
            pa.field("amount", pa.float64(), nullable=False),
            pa.field("country", pa.string(), nullable=False),
            pa.field("at", pa.timestamp("ms"), nullable=False),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows(count), arrow), path)
    return path


@pytest.fixture
def clients(endpoints, tmp_path) -> Clients:
    return Clients(
        Settings(bootstrap=endpoints.bootstrap, redis_url=endpoints.redis_url, home=tmp_path, start_timeout=20)
    )


@pytest.fixture
def topic(clients):
    """Makes topics, under names that nobody else has."""

    def make(partitions: int = 3, **config) -> str:
        name = f"streams-{uuid.uuid4().hex[:8]}"
        config = {name.replace("_", "."): value for name, value in config.items()}
        admin = clients.admin()
        for done in admin.create_topics([NewTopic(name, partitions, config=config)]).values():
            done.result(20)
        return name

    return make


@pytest.fixture
def replay(clients, tmp_path):
    (tmp_path / "payment.avsc").write_text(TEXT)
    index = {"schemas": {str(SCHEMA_ID): {"subject": "any-value", "file": "payment.avsc"}}}
    (tmp_path / "index.json").write_text(json.dumps(index))

    def make(name: str, **source) -> Replay:
        topology = Topology(
            name=name,
            source=Source(topic=name, schema="payment.avsc", key="user", id="id", **source),
            features=(field("amount"),),
            model="m",
            outputs={"s": output("s")},
        )
        return Replay(clients, topology, EventSchema.parse(TEXT), PinnedIndex(tmp_path))

    return make


def send(clients: Clients, topic: str, values, partition: int = 0, **more) -> None:
    producer: Producer = clients.producer()
    for value in values:
        producer.produce(topic, value, partition=partition, **more)
    assert producer.flush(20) == 0


def read(clients: Clients, topic: str, start: str = "beginning") -> list[Record]:
    with TopicReader(clients, topic) as reader:
        return list(reader.backlog(Start.parse(start)))
