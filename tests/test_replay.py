"""Promise: events are sent in order and at their rate, and a topic is read whole, as committed, from any start."""

# ruff: noqa: F811  (fixtures are parameters)

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import fastavro
import pytest
from confluent_kafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from payments import (  # noqa: F401  (fixtures)
    SCHEMA,
    SCHEMA_ID,
    TEXT,
    TOPOLOGY,
    clients,
    read,
    replay,
    rows,
    send,
    topic,
    write_events,
)  # fmt: skip

from streamserve.adapters.kafka import Clients
from streamserve.adapters.reading import Start, TopicReader, search
from streamserve.adapters.replay import due, to_come
from streamserve.adapters.schema_ids import PinnedIndex
from streamserve.errors import BrokerError, ConfigError, TopicError
from streamserve.pipeline.schemas import EventSchema
from streamserve.settings import Settings
from streamserve.simulate.explain import (
    FramedReader,
    iso,
)


class TestSchedule:
    @given(st.floats(0, 1e5), st.floats(0.001, 1e6))
    def test_what_is_due_depends_on_the_time_alone(self, elapsed, rate):
        assert due(elapsed, rate) == int(elapsed * rate) >= 0

    def test_what_is_to_come_is_told_before_a_parquet_file_is_read(self, tmp_path):
        path, schema = write_events(tmp_path / "e.parquet", 30), EventSchema.parse(TEXT)
        assert to_come(path, schema) == 30
        assert to_come(path, schema, loops=3) == 90
        assert to_come(path, schema, loops=3, limit=50) == 50


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
