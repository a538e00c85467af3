"""Events in, predictions and dead letters out: what the commands that look at streams promise."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter

import fastavro
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import NewTopic
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from streamserve.adapters.kafka import Clients
from streamserve.adapters.reading import Record, Start, TopicReader, search
from streamserve.adapters.replay import Replay, due, to_come
from streamserve.adapters.schema_ids import PinnedIndex
from streamserve.cli.dead_letters import Letter, _newest, _summary, excerpt
from streamserve.cli.predictions import ALIASES, MAPS
from streamserve.cli.tailing import GrowingColumns, conditions, value_of
from streamserve.errors import BrokerError, ConfigError, TopicError
from streamserve.features.catalogue import Catalogue
from streamserve.features.rows import pack, row_key
from streamserve.models.manifest import Training
from streamserve.models.registry import Registry
from streamserve.pipeline.schemas import EventSchema
from streamserve.settings import Settings
from streamserve.simulate.adding import NewVersion, add_version
from streamserve.simulate.explain import (
    FramedReader,
    Recomputing,
    ScorePair,
    UnreadableError,
    iso,
    jsonable,
    source_position,
)
from streamserve.simulate.offline import MemoryStore, raw_batch
from streamserve.simulate.versions import open_version
from streamserve.topology import Source, Topology, View, category, days, field, load_topology, output, stored, threshold

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


def write_model(path):
    """Its score is sigmoid(features . w)."""
    weights = numpy_helper.from_array(np.array([[0.3], [-0.5], [0.01], [0.2]], np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["features", "w"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "risk",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.save(model, path)
    return path


def record(partition=0, offset=0, *, timestamp=0, value=b"x", **grounds) -> Record:
    headers = tuple((f"streamserve.{name.replace('_', '.')}", text.encode()) for name, text in grounds.items())
    return Record("t", partition, offset, timestamp, b"k", value, headers)


class TestPositions:
    def test_each_spelling(self):
        assert Start.parse("beginning") == Start("beginning")
        assert Start.parse("end") == Start("end")
        assert Start.parse("-25") == Start("last", 25)
        assert Start.parse("2026-01-31T06:00:00Z") == Start.parse("2026-01-31T07:00:00+01:00")
        assert Start.parse("1970-01-01T00:00:01") == Start("time", 1000)

    @pytest.mark.parametrize("text", ["", "-", "-x", "12", "yesterday", "--1"])
    def test_anything_else_is_refused_with_an_example(self, text):
        with pytest.raises(ConfigError, match="expected beginning, end, -N or an ISO time") as caught:
            Start.parse(text)
        assert "--from" in caught.value.mend

    @given(st.from_regex(r"[a-zA-Z0-9._-]{1,30}", fullmatch=True), st.integers(0, 10_000), st.integers(0, 2**62))
    def test_a_prediction_id_is_taken_apart_whatever_the_topics_name(self, topic, partition, offset):
        assert source_position(f"{topic}-{partition}-{offset}", topic) == (partition, offset)

    @pytest.mark.parametrize("text", ["", "events", "events-1", "events-1-", "events--1", "-1-2", "events-1-x"])
    def test_what_is_no_prediction_id_is_refused(self, text):
        with pytest.raises(ConfigError, match="no prediction id"):
            source_position(text, "events")

    def test_an_id_of_another_topic_is_refused(self):
        with pytest.raises(ConfigError, match="is of topic 'old-events', the topology's source is 'events'"):
            source_position("old-events-1-2", "events")


class TestSchedule:
    @given(st.floats(0, 1e5), st.floats(0.001, 1e6))
    def test_what_is_due_depends_on_the_time_alone(self, elapsed, rate):
        assert due(elapsed, rate) == int(elapsed * rate) >= 0

    def test_what_is_to_come_is_told_before_a_parquet_file_is_read(self, tmp_path):
        path, schema = write_events(tmp_path / "e.parquet", 30), EventSchema.parse(TEXT)
        assert to_come(path, schema) == 30
        assert to_come(path, schema, loops=3) == 90
        assert to_come(path, schema, loops=3, limit=50) == 50


class TestReading:
    def frame(self, event: dict, schema_id: int = SCHEMA_ID) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, fastavro.parse_schema(SCHEMA), event)
        return b"\0" + schema_id.to_bytes(4, "big") + out.getvalue()

    def reader(self) -> FramedReader:
        class Writers:
            def writer_schema(self, schema_id):
                return TEXT if schema_id == SCHEMA_ID else None

        return FramedReader(Writers())

    def test_every_field_is_read(self):
        (event,) = rows(1)
        found = self.reader().read(self.frame(event))
        assert jsonable(found) == {**event, "at": "2023-11-14T22:13:20.000Z"}

    @pytest.mark.parametrize(
        ("value", "why"),
        [
            (None, "wire format"),
            (b"", "wire format"),
            (b"\1abcde", "wire format"),
            (b"\0\0\0\0\x08abc", "schema id 8"),
            (b"\0\0\0\0\x07", "Error"),
        ],
    )
    def test_what_is_unreadable_says_why(self, value, why):
        with pytest.raises(UnreadableError, match=why):
            self.reader().read(value)

    def test_an_event_of_endless_nothing_is_refused_at_once(self):
        class Writers:
            def writer_schema(self, _):
                return json.dumps(
                    {
                        "type": "record",
                        "name": "R",
                        "fields": [{"name": "a", "type": {"type": "array", "items": "null"}}],
                    }
                )

        bomb = b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f\0"  # 2**62 items of no bytes
        with pytest.raises(UnreadableError, match="no bytes"):
            FramedReader(Writers()).read(b"\0\0\0\0\1" + bomb)

    def test_values_become_json(self):
        moment = dt.datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=dt.timezone(dt.timedelta(hours=1)))
        value = {"t": moment, "b": b"\xff", "n": float("nan"), "l": [1, None, True], "d": dt.date(2026, 1, 2)}
        assert jsonable(value) == {
            "t": "2026-01-02T02:04:05.678Z",
            "b": "/w==",
            "n": "nan",
            "l": [1, None, True],
            "d": "2026-01-02",
        }
        assert iso(2**62) == f"{2**62} ms"

    @given(st.floats(), st.floats())
    def test_scores_are_equal_by_their_bits(self, one, other):
        same = np.float64(one).tobytes() == np.float64(other).tobytes()
        assert ScorePair("s", one, other).equal == same
        assert not ScorePair("s", one, None).equal


class TestListing:
    def test_columns_stay_aligned_and_grow(self):
        columns = GrowingColumns(("a", "bb"))
        columns.fit(("xxx", "y"))
        assert [columns.line(c) for c in (("a", "bb"), ("xxx", "y"), ("xxxxx", "z"), ("q", ""))] == [
            "a    bb",
            "xxx  y",
            "xxxxx  z",
            "q",
        ]

    def test_conditions_name_fields_views_or_short_names(self):
        prediction = {
            "model_version": "v2",
            "decision": None,
            "control_epoch": 3,
            "feature_status": {"plane": "MISSING"},
        }
        texts = ["version=v2", "decision=", "epoch=3", "status.plane=MISSING"]
        wanted = conditions(texts, ALIASES, "version=v2")
        assert all(value_of(prediction, name, MAPS, "predictions") == value for name, value in wanted)
        assert value_of(prediction, "status.route", MAPS, "predictions") == ""
        with pytest.raises(ConfigError, match="no FIELD=VALUE"):
            conditions(["late"], ALIASES, "version=v2")
        with pytest.raises(ConfigError, match="no such field") as caught:
            value_of(prediction, "colour", MAPS, "predictions")
        assert "control_epoch" in caught.value.mend

    def test_first_bytes_are_shown_as_text_or_as_hex(self):
        assert excerpt(None) == "(no value)"
        assert excerpt(b'{"a": 1}') == '{"a": 1}'
        assert excerpt(b"\0\1abc") == "00 01 61 62 63"
        assert excerpt(b"a" * 25) == "a" * 24 + "..."

    def test_the_newest_are_kept_and_all_are_counted(self):
        stamps = [5, 1, 4, 1, 9, 2]
        letters = [
            Letter.of(record(0, i, timestamp=stamp, stage="decode", error="E" if stamp > 3 else "F"))
            for i, stamp in enumerate(stamps)
        ]
        counts: Counter[tuple[str, str]] = Counter()
        assert [one.record.timestamp for one in _newest(letters, 3, counts)] == [4, 5, 9]
        assert _summary(counts, 3) == "6 dead letters: decode/E 3, decode/F 3 (the newest 3 are shown)"
        assert _summary(Counter(), 0) == "no dead letters"

    def test_a_letter_tells_its_source(self):
        letter = Letter.of(
            record(stage="decode", source_topic="a-b", source_partition="3", source_offset="9", source_timestamp="0")
        )
        assert (letter.source, letter.source_time, letter.error) == ("a-b-3-9", "1970-01-01T00:00:00.000Z", "?")
        assert Letter.of(record(source_timestamp="-1")).source_time is None


class TestRecomputing:
    @pytest.fixture
    def topology(self) -> Topology:
        users = View("users", key="user", fields=("spent", "visits"), max_age=days(30))
        return Topology(
            name="pay",
            source=Source(
                topic="pay-events", schema="payment.avsc", format="json", key="user", event_time="at", id="id"
            ),
            features=(field("amount"), category("country"), stored(users)),
            model="pay",
            outputs={"risk": output("score")},
            decision=threshold("risk", 0.5, labels=("fine", "risky")),
        )

    @pytest.fixture
    def ask(self, topology, tmp_path):
        from streamserve.adapters.onnx import OnnxSession

        catalogue, schema, registry = Catalogue(topology), EventSchema.parse(TEXT), Registry(tmp_path)
        new = NewVersion("v1", write_model(tmp_path / "m.onnx"), created=MADE, vocabularies={"country": ("BE", "NL")})
        add_version(registry, catalogue, schema, new, load=OnnxSession, release="0")

        def ask(store_rows, recorded, value=None):
            version = open_version(registry, "pay", "v1", OnnxSession)
            again = Recomputing(catalogue, schema, MemoryStore(store_rows), None, version)
            event = value if value is not None else json.dumps(rows(4)[3]).encode()
            return again.of(raw_batch("pay-events", [event], timestamps=[AT]), recorded)

        return ask

    def row(self, topology, feature_time, *values):
        return {row_key(topology.views[0], ["u3"]): pack(feature_time, np.array(values, np.float32))}

    def test_the_score_of_the_same_row_is_the_same_bits(self, topology, ask):
        store = self.row(topology, AT - 3_600_000, 10, 2)
        first = ask(store, {})
        recorded = {
            "scores": {p.name: p.recomputed for p in first.scores},
            "feature_status": {"users": "PRESENT"},
        }
        again = ask(store, recorded)
        assert again.equal
        assert again.grounds == ()
        assert again.decision == "fine"
        assert [(f.name, f.kind, f.value, f.fed) for f in again.features] == [
            ("amount", "field", rows(4)[3]["amount"], float(np.float32(rows(4)[3]["amount"]))),
            ("country", "category", "NL", 3.0),
            ("users.spent", "stored", 10.0, 10.0),
            ("users.visits", "stored", 2.0, 2.0),
        ]
        (view,) = again.views
        assert (view.key, view.status.name, view.age_ms) == (("u3",), "PRESENT", 3_600_003)
        json.dumps(again.plain(), allow_nan=False)

    def test_a_row_that_is_gone_is_told_as_the_ground_of_another_score(self, topology, ask):
        first = ask(self.row(topology, AT, 10, 2), {})
        recorded = {
            "scores": {p.name: p.recomputed for p in first.scores},
            "feature_status": {"users": "PRESENT"},
            "scored_at": dt.datetime.fromtimestamp(AT / 1000 + 60, dt.UTC),
        }
        again = ask({}, recorded)
        assert not again.equal
        assert again.views[0].age_ms is None
        assert "view users was PRESENT when it was scored, and is MISSING now" in again.grounds

    def test_a_row_from_after_the_scoring_is_told(self, topology, ask):
        scored = dt.datetime.fromtimestamp(AT / 1000 + 60, dt.UTC)
        again = ask(self.row(topology, AT + 120_000, 1, 1), {"scores": {"risk": 0.1}, "scored_at": scored})
        assert any("written anew" in ground and "users" in ground for ground in again.grounds)
        assert again.views[0].status.name == "FUTURE"

    def test_an_event_that_can_not_be_decoded_any_more_says_why(self, ask):
        again = ask({}, {}, value=b"{")
        assert again.reject is not None
        assert again.reject.startswith("decode: ")
        assert not again.equal


# ---- against the real broker


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


@pytest.mark.services
class TestReplay:
    def test_events_arrive_in_order_framed_keyed_and_stamped_with_the_present(self, clients, topic, replay, tmp_path):
        name, began = topic(), time.time() * 1000
        done = replay(name).run(write_events(tmp_path / "e.parquet", 12_000))
        assert done.sent == done.acknowledged == 12_000
        found = read(clients, name)
        reader = FramedReader(PinnedIndex(tmp_path))
        events = [reader.read(one.value) for one in found]
        assert sorted(int(e["id"][1:]) for e in events) == list(range(12_000))
        assert all(one.key == e["user"].encode() for one, e in zip(found, events, strict=True))
        assert all(began - 1000 <= one.timestamp <= time.time() * 1000 + 1000 for one in found)
        for partition in range(3):
            ids = [int(e["id"][1:]) for one, e in zip(found, events, strict=True) if one.partition == partition]
            assert ids == sorted(ids)
        places = {one.key: one.partition for one in found}
        assert all(places[one.key] == one.partition for one in found)

    def test_a_json_source_gets_json_from_every_kind_of_file(self, clients, topic, replay, tmp_path):
        name, lines = topic(), tmp_path / "e.jsonl"
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows(5)))
        avro = tmp_path / "e.avro"
        with avro.open("wb") as stream:
            fastavro.writer(stream, fastavro.parse_schema(SCHEMA), rows(5))
        for path in (lines, avro, write_events(tmp_path / "e.parquet", 5)):
            assert replay(name, format="json").run(path).acknowledged == 5
        found = [json.loads(one.value) for one in read(clients, name)]
        assert sorted(found, key=lambda e: e["id"]) == [row for row in rows(5) for _ in range(3)]

    def test_a_rate_is_kept_from_the_first_event_on(self, topic, replay, tmp_path):
        sent: list[int] = []
        done = replay(topic()).run(
            write_events(tmp_path / "e.parquet", 600), rate=500, limit=500, on_progress=sent.append
        )
        assert done.acknowledged == 500
        assert done.seconds >= 0.99
        assert sent == sorted(sent)
        assert len(sent) > 20  # small slices, not bursts
        assert sent[-1] == 500

    def test_limit_and_loops(self, topic, replay, tmp_path):
        path = write_events(tmp_path / "e.parquet", 40)
        assert replay(topic()).run(path, loops=3).acknowledged == 120
        assert replay(topic()).run(path, loops=3, limit=100).acknowledged == 100

    def test_a_stop_ends_it_with_all_that_was_sent_acknowledged(self, clients, topic, replay, tmp_path):
        name, stop = topic(), threading.Event()
        done = replay(name).run(
            write_events(tmp_path / "e.parquet", 5000),
            rate=1000,
            stop=stop,
            on_progress=lambda sent: stop.set() if sent > 50 else None,
        )
        assert 50 < done.sent == done.acknowledged < 1000
        assert len(read(clients, name)) == done.sent

    def test_a_topic_that_is_not_there_is_an_error_that_says_how_to_make_it(self, replay, tmp_path):
        with pytest.raises(TopicError, match="no topic") as caught:
            replay("nowhere").run(write_events(tmp_path / "e.parquet", 1))
        assert "topics apply" in caught.value.mend

    def test_records_that_the_broker_refuses_are_an_error(self, topic, replay, tmp_path):
        name = topic(max_message_bytes="100")
        with pytest.raises(BrokerError, match="were not acknowledged"):
            replay(name).run(write_events(tmp_path / "e.parquet", 50))


@pytest.mark.services
class TestTopicReader:
    def test_each_start(self, clients, topic):
        name = topic(2)
        send(clients, name, [b"a0", b"a1", b"a2"], 0, timestamp=1_000_000)
        send(clients, name, [b"b0"], 1, timestamp=3_000_000)
        moment = iso(2_000_000)

        def values(start):
            return sorted(one.value for one in read(clients, name, start))

        assert values("beginning") == [b"a0", b"a1", b"a2", b"b0"]
        assert values("-1") == [b"a2", b"b0"]
        assert values("end") == []
        assert values(moment) == [b"b0"]

    def test_only_committed_records_are_seen_and_their_markers_do_not_hold_it_up(self, clients, topic):
        name = topic(1)
        producer = clients.producer(transactional_id=f"tx-{name}")
        producer.init_transactions(20)
        for value, end in ((b"yes", producer.commit_transaction), (b"no", producer.abort_transaction)):
            producer.begin_transaction()
            producer.produce(name, value)
            producer.flush(20)
            end()
        began = time.monotonic()
        assert [one.value for one in read(clients, name)] == [b"yes"]
        assert time.monotonic() - began < 10

    def test_what_follows_the_backlog_is_neither_lost_nor_repeated(self, clients, topic):
        name = topic(3)
        send(clients, name, [b"%d" % i for i in range(3000)], 0)
        with TopicReader(clients, name) as reader:
            backlog = []
            for one in reader.backlog(Start("beginning")):
                if not backlog:
                    send(clients, name, [b"late0", b"late1"], 0)
                    send(clients, name, [b"late2"], 1)
                backlog.append(one.value)
            after = reader.follow()
            assert backlog == [b"%d" % i for i in range(3000)]
            assert sorted(next(after).value for _ in range(3)) == [b"late0", b"late1", b"late2"]

    def test_single_records_and_why_they_can_not_be_had(self, clients, topic):
        name = topic(1)
        send(clients, name, [b"a", b"b", b"c"], key=b"k", headers=[("h", b"v"), ("h", None)])
        with TopicReader(clients, name) as reader:
            found = reader.at(0, 1)
            assert (found.value, found.key, found.headers) == (b"b", b"k", (("h", b"v"), ("h", None)))
            with pytest.raises(ConfigError, match="nothing is at offset 3"):
                reader.at(0, 3)
            with pytest.raises(ConfigError, match="partition 1 does not exist"):
                reader.at(1, 0)
            admin = clients.admin()
            for done in admin.delete_records([TopicPartition(name, 0, 2)]).values():
                done.result(20)
            with pytest.raises(BrokerError, match="the partition begins at 2"):
                reader.at(0, 1)
            assert reader.at(0, 2).value == b"c"

    def test_a_search_looks_from_a_time_on_and_then_everywhere_and_gives_up_in_time(self, clients, topic):
        name = topic(1)
        send(clients, name, [b"%d" % i for i in range(100)], timestamp=1_000_000)
        send(clients, name, [b"%d" % i for i in range(100, 200)], timestamp=2_000_000)

        def look(value, most=1000, beyond=5):
            with TopicReader(clients, name) as reader:
                return search(reader, 2_000_000, lambda one: one.value == value, most=most, beyond=beyond)

        near = look(b"150")
        assert ([one.offset for one in near.found], near.looked_at) == ([150], 56)
        assert [one.offset for one in look(b"3").found] == [3]
        nowhere = look(b"none")
        assert (nowhere.found, nowhere.looked_at, nowhere.complete) == ((), 200, True)
        assert not look(b"none", most=150).complete

    def test_no_topic_and_no_broker_are_errors_that_say_what_to_do(self, clients):
        with pytest.raises(TopicError, match="no topic 'nowhere'"):
            TopicReader(clients, "nowhere")
        silent = Clients(Settings(bootstrap="127.0.0.1:1", start_timeout=1))
        with pytest.raises(BrokerError) as caught:
            TopicReader(silent, "any")
        assert caught.value.mend


@pytest.mark.services
class TestCommands:
    """One stream, scored by a real worker, looked at by every command."""

    COUNT = 300

    @pytest.fixture
    def scored(self, project):
        name = f"pay{uuid.uuid4().hex[:6]}"
        file = project.folder / "payments.py"
        file.write_text(TOPOLOGY.format(name=name))
        (project.folder / "schemas" / "payment.avsc").write_text(TEXT)
        index = {"schemas": {str(SCHEMA_ID): {"subject": f"{name}-events-value", "file": "payment.avsc"}}}
        (project.folder / "schemas" / "index.json").write_text(json.dumps(index))
        (project.folder / "home").mkdir()
        topology = load_topology(file)
        self.add(project, topology)
        self.load_users(project, topology, spent=10.0)
        write_events(project.folder / "e.parquet", self.COUNT)
        project.ok("topics", "apply", file)
        project.ok("topology", "init", file, "--version", "v1")
        project.worker(file)
        told = project.ok("events", "replay", file, "e.parquet")
        assert told.startswith(f"{self.COUNT} events acknowledged by {name}-events in ")
        clients = Clients(Settings(bootstrap=project.endpoints.bootstrap))
        send(clients, f"{name}-events", [b"no avro at all", b"\0\0\0\0\x63abc"], 1, key=b"k")
        self.wait(clients, topology)
        return project, file, topology

    def add(self, project, topology):
        from streamserve.adapters.onnx import OnnxSession

        training = Training(rows=12, metrics={"auc": 0.75}, start=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
        new = NewVersion(
            "v1",
            write_model(project.folder / "m.onnx"),
            created=MADE,
            vocabularies={"country": ("BE", "NL")},
            training=training,
        )
        add_version(
            Registry(project.folder / "registry"),
            Catalogue(topology),
            EventSchema.parse(TEXT),
            new,
            load=OnnxSession,
            release="0",
        )

    def load_users(self, project, topology, spent):
        table = pa.table(
            {
                "user": [f"u{i}" for i in range(16)],  # u16 has no row
                "feature_time": pa.array([AT - 3_600_000] * 16, pa.timestamp("ms")),
                "spent": [spent] * 16,
                "visits": [2.0] * 16,
            }
        )
        pq.write_table(table, project.folder / "users.parquet")
        project.ok("features", "load", project.folder / "payments.py", "users=users.parquet")

    def wait(self, clients, topology):
        wanted = {topology.topic("predictions"): self.COUNT, topology.topic("dead-letters"): 2}
        for topic, count in wanted.items():
            seen, pause = 0, threading.Event()
            deadline = time.monotonic() + 60
            while seen < count:
                assert time.monotonic() < deadline, f"{seen} of {count} records in {topic}"
                pause.wait(0.05)
                seen = len(read(clients, topic))

    def test_they_tell_one_story(self, scored):
        project, file, topology = scored
        self.tail(project, file, topology)
        self.dead_letters(project, file, topology)
        self.explain(project, file, topology)

    def tail(self, project, file, topology):
        lines = project.ok("predictions", "tail", file, "--no-follow", "--from", "beginning", "--json").splitlines()
        found = {one["prediction_id"]: one for one in map(json.loads, lines)}
        assert len(found) == len(lines) == self.COUNT
        assert {one["event_id"] for one in found.values()} == {f"p{i}" for i in range(self.COUNT)}
        shown = project.ok("predictions", "tail", file, "--no-follow").splitlines()
        assert shown[0].split()[:2] == ["prediction", "event"]
        assert len(shown) == 11
        chosen = ("--where", "decision=risky", "--where", "status.users=MISSING")
        risky = project.ok("predictions", "tail", file, "--no-follow", "--from", "-300", "--json", *chosen)
        expected = [
            i for i, one in found.items() if one["decision"] == "risky" and one["feature_status"]["users"] == "MISSING"
        ]
        assert sorted(json.loads(line)["prediction_id"] for line in risky.splitlines()) == sorted(expected)
        limited = project.ok("predictions", "tail", file, "--from", "beginning", "--limit", 3)  # follows, and ends
        assert len(limited.splitlines()) == 4
        self.closed_pipe_and_interrupt(project, file)

    def closed_pipe_and_interrupt(self, project, file):
        """`| head` and Ctrl-C: quiet, with exit code 0. As JSON it is more than a pipe holds."""
        command = [sys.executable, "-m", "streamserve", "predictions", "tail", str(file), "--from", "beginning"]
        for more, end in (
            (["--json", "--no-follow"], lambda process: process.stdout.close()),
            (["--follow"], lambda process: process.send_signal(signal.SIGINT)),
        ):
            with subprocess.Popen(
                [*command, *more],
                cwd=project.folder,
                env=project.environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            ) as process:
                try:
                    assert process.stdout.readline()
                    end(process)
                    assert process.wait(30) == 0
                    assert process.stderr.read() == b""
                finally:
                    process.kill()

    def dead_letters(self, project, file, topology):
        shown = project.ok("dead-letters", "list", file)
        assert "2 dead letters: " in shown
        assert "no avro at all" in shown
        assert "00 00 00 00 63 61 62 63" in shown
        lines = project.ok("dead-letters", "list", file, "--json", "--error", "WrongMagic").splitlines()
        (letter,) = map(json.loads, lines)
        assert (letter["stage"], letter["error"], letter["key"]) == ("decode", "WrongMagic", "aw==")
        assert letter["source"].startswith(f"{topology.source.topic}-1-")
        told = project.ok("explain", file, letter["source"])
        assert "WrongMagic" in told
        assert "decode" in told

    def explain(self, project, file, topology):
        lines = project.ok(
            "predictions", "tail", file, "--no-follow", "--json", "--where", "event_id=p5", "--from", "-300"
        )
        prediction = json.loads(lines)
        asked = ("explain", file, prediction["prediction_id"])
        told = json.loads(project.ok(*asked, "--json"))
        assert told["event"]["id"] == "p5"
        assert told["prediction"] == prediction
        assert told["recomputed"]["equal"] is True
        assert [f["name"] for f in told["recomputed"]["features"]] == [
            "amount",
            "country",
            "users.spent",
            "users.visits",
        ]
        assert told["manifest"]["training"]["metrics"] == {"auc": 0.75}
        assert "bit for bit" in project.ok(*asked)
        self.load_users(project, topology, spent=500.0)
        later = project.ok(*asked)
        assert "the score is not the recorded one" in later
        assert "rows of views may have been written anew since" in later
        missing = project.run("explain", file, f"{topology.source.topic}-0-999999")
        assert missing.returncode == 2
        assert "nothing is at offset 999999" in missing.stderr


@pytest.mark.services
def test_ctrl_c_ends_a_replay_and_says_how_many_arrived(project, clients, topic):
    name = topic()
    file = project.folder / "t.py"
    file.write_text(TOPOLOGY.format(name=name).replace("{name}-events", name).replace(f"{name}-events", name))
    (project.folder / "schemas" / "payment.avsc").write_text(TEXT)
    index = {"schemas": {str(SCHEMA_ID): {"subject": f"{name}-value", "file": "payment.avsc"}}}
    (project.folder / "schemas" / "index.json").write_text(json.dumps(index))
    write_events(project.folder / "e.parquet", 5000)
    command = [sys.executable, "-m", "streamserve", "events", "replay", str(file), "e.parquet", "--rate", "500"]
    process = subprocess.Popen(
        command, cwd=project.folder, env={**os.environ, **project.environ}, stdout=subprocess.PIPE, text=True
    )
    with TopicReader(clients, name) as reader:
        list(reader.backlog(Start("beginning")))
        next(reader.follow())
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    count = int(told.split()[0].replace(",", ""))
    assert len(read(clients, name)) == count
    assert f"stopped after {count:,} of 5,000" in told
