"""The compiled way to the Kafka client and the one through messages read and write the same, and hide no failure."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from conftest import wait_until
from hypothesis import given
from hypothesis import strategies as st
from support import Broker, Record

from streamserve.adapters import native
from streamserve.adapters.client_io import Fill
from streamserve.adapters.kafka import Clients
from streamserve.adapters.messages import UNREADABLE_HEADERS, MessageReader, MessageWriter
from streamserve.adapters.packed import PackedReader, PackedWriter
from streamserve.errors import BrokerError
from streamserve.headers import header_column, pack, unpack
from streamserve.records import Outgoing, RawBatch, binary
from streamserve.settings import Settings

FILL = Fill(wait=0.5, rows=1, seconds=0, max_rows=1000, max_bytes=1 << 20)
WAYS = [pytest.param(True, id="compiled"), pytest.param(False, id="messages")]
NOW = time.time_ns() // 1_000_000
ODD = [
    (b"k", b"v", [], NOW),
    (None, b"v", None, NOW),
    (b"", b"", [("h", b"")], NOW),
    (b"k", None, [("h", None), ("h", b"\x00\xff"), ("é", b"x")], 0),
    (bytes(range(256)), b"x" * 90_000, [("n" * 300, b"y" * 3_000)] * 5, NOW - 1),
]

texts = st.text(max_size=20)
header_lists = st.lists(st.tuples(texts, st.none() | st.binary(max_size=40)), max_size=5)


@given(header_lists)
def test_packed_headers_are_read_back_as_they_were(headers):
    assert unpack(pack(headers)) == headers
    assert unpack(None) == []


def test_a_header_name_that_is_no_text_keeps_its_bytes():
    name = b"\xff\xfe".decode(errors="surrogateescape")
    assert pack([(name, b"v")])[4:6] == b"\xff\xfe"
    assert unpack(pack([(name, b"v")])) == [(name, b"v")]


def test_the_compiled_way_is_built_here():
    """Without it this file would compare the other way with itself."""
    assert native.library() is not None


@pytest.fixture
def topic(endpoints) -> Iterator[str]:
    name = f"client-{uuid.uuid4().hex[:8]}"
    create(endpoints.bootstrap, name)
    return name


def create(bootstrap: str, name: str, partitions: int = 3, **config: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for done in admin.create_topics([NewTopic(name, partitions, 1, config=config)]).values():
        done.result(15)


def clients(endpoints, *, compiled: bool) -> Clients:
    return Clients(Settings(bootstrap=endpoints.bootstrap, redis_url=None, native=compiled))


class Reading:
    """A consumer that is given its partitions by hand, and its reader."""

    def __init__(self, endpoints, topic: str, *, compiled: bool, epoch=lambda: 0, ends: bool = False) -> None:
        made = clients(endpoints, compiled=compiled)
        self.topic = topic
        self.consumer, handle = made.member(f"g-{uuid.uuid4().hex[:8]}", ends=ends)
        assert (handle is not None) == compiled
        self.reader = (
            MessageReader(self.consumer, epoch, made.bootstrap)
            if handle is None
            else PackedReader(self.consumer, handle, topic, epoch, 1000, made.bootstrap)
        )

    def take(self, partitions, offset: int = 0) -> None:
        placed = [TopicPartition(self.topic, p, offset) for p in partitions]
        self.reader.take(placed)
        self.consumer.incremental_assign(placed)

    def release(self, partitions) -> None:
        self.reader.release([TopicPartition(self.topic, p) for p in partitions])

    def read(self, count: int, fill: Fill = FILL) -> list[RawBatch]:
        batches: list[RawBatch] = []
        wait_until(
            lambda: batches.extend(self.reader.read(fill)) or sum(map(len, batches)) >= count, 30, f"{count} records"
        )
        return batches

    def close(self) -> None:
        self.reader.close()
        self.consumer.close()


def rows_of(batches: list[RawBatch]) -> list[tuple]:
    found = []
    for batch in batches:
        batch.values.validate(full=True)
        batch.keys.validate(full=True)
        headers = [None] * len(batch) if batch.headers is None else batch.headers.to_pylist()
        found += zip(
            batch.partitions.tolist(), batch.offsets.tolist(), batch.timestamps.tolist(),
            batch.timestamp_types.tolist(), batch.keys.to_pylist(), batch.values.to_pylist(), map(unpack, headers),
            strict=True,
        )  # fmt: skip
    return sorted(found)


@pytest.mark.services
@pytest.mark.parametrize("compiled", WAYS)
def test_what_is_written_is_read_back(endpoints, topic, compiled):
    """Null and empty, large and headed; and both ways read each other's."""
    produced, writer = writing(endpoints, compiled=compiled)
    out = outgoing(topic, ODD * 40)
    assert writer.write(out, 0) == (len(out), None)
    assert produced.flush(15) == 0
    assert (writer.unconfirmed(), writer.failure()) == (0, None)
    writer.close()
    found = []
    for way in (True, False):
        reading = Reading(endpoints, topic, compiled=way)
        reading.take(range(3))
        found.append(rows_of(reading.read(len(out))))
        reading.close()
    assert found[0] == found[1]

    def kept(key, value, headers):
        return str((key, value, headers or []))

    assert sorted(kept(key, value, headers) for *_, key, value, headers in found[0]) == sorted(
        kept(key, value, headers) for key, value, headers, _ in ODD * 40
    )
    stamps = {stamp for _, _, stamp, kind, *_ in found[0] if kind == 1}
    assert {NOW, NOW - 1} < stamps, "0 is the present, the others are kept"


def writing(endpoints, *, compiled: bool, **more):
    messages = MessageWriter()
    config = {"delivery_report_only_error": True, "on_delivery": messages.on_delivery, **more}
    producer, handle = clients(endpoints, compiled=compiled).batch_producer(**config)
    messages.producer = producer
    assert (handle is not None) == compiled
    return producer, messages if handle is None else PackedWriter(handle)


def outgoing(topic: str, rows) -> Outgoing:
    keys, values, headers, stamps = zip(*rows, strict=True)
    return Outgoing(
        topic, np.arange(len(rows)), binary(keys), binary(values), header_column(headers), np.array(stamps, np.int64)
    )


@pytest.mark.services
@pytest.mark.parametrize("compiled", WAYS)
def test_a_slice_of_a_column_is_written_as_what_it_is(endpoints, topic, compiled):
    """Arrow shares buffers: a slice begins in the middle of another's bytes and bits."""
    producer, writer = writing(endpoints, compiled=compiled)
    keys = pa.array([None, b"a", None, b"bb", None, b"ccc"] * 5, pa.binary())[3:20]
    values = pa.array([b"%d" % i if i % 3 else None for i in range(40)], pa.binary())[11:28]
    headers = header_column([[("n", b"%d" % i)] if i % 4 else None for i in range(40)])[13:30]
    out = Outgoing(topic, np.arange(17), keys, values, headers, np.full(17, NOW))
    assert writer.write(out, 5) == (17, None)
    assert producer.flush(15) == 0
    writer.close()
    sent = Broker(endpoints.bootstrap).read(topic)
    wanted = zip(keys.to_pylist(), values.to_pylist(), map(unpack, headers.to_pylist()), strict=True)
    assert sorted(map(str, ((one.key, one.value, one.headers or []) for one in sent))) == sorted(
        map(str, list(wanted)[5:])
    )


@pytest.mark.services
@pytest.mark.parametrize("compiled", WAYS)
def test_a_full_queue_stops_the_writing_where_it_was_full(endpoints, topic, compiled):
    producer, writer = writing(endpoints, compiled=compiled, queue_buffering_max_messages=100, linger_ms=1000)
    out, place, stops = outgoing(topic, [(b"k", b"%d" % i, None, NOW) for i in range(450)]), 0, []
    while place < len(out):
        place, error = writer.write(out, place)
        if error is not None:
            assert error.code() == KafkaError._QUEUE_FULL
            stops.append(place)
            assert producer.flush(15) == 0
    assert stops[0] == 100
    assert producer.flush(15) == 0
    assert writer.unconfirmed() == 0
    writer.close()
    values = [int(one.value) for one in Broker(endpoints.bootstrap).read(topic)]
    assert values == list(range(450)), "each once, in order"


@pytest.mark.services
@pytest.mark.parametrize("compiled", WAYS)
def test_a_record_that_the_broker_refuses_is_known(endpoints, compiled):
    name = f"client-{uuid.uuid4().hex[:8]}"
    create(endpoints.bootstrap, name, 1, **{"max.message.bytes": "1000"})
    producer, writer = writing(endpoints, compiled=compiled)
    assert writer.write(outgoing(name, [(b"k", b"x" * 5000, None, NOW)]), 0) == (1, None)
    producer.flush(15)
    error, where = writer.failure()
    assert (error.code(), where) == (KafkaError.MSG_SIZE_TOO_LARGE, name)
    writer.close()


@pytest.mark.services
def test_records_that_were_purged_do_not_count_as_confirmed(endpoints, topic):
    producer, writer = writing(endpoints, compiled=True, linger_ms=10_000)
    writer.write(outgoing(topic, [(b"k", b"v", None, NOW)] * 10), 0)
    assert writer.unconfirmed() == 10
    producer.purge()
    producer.flush(15)
    assert writer.failure() is not None
    writer.close()


@pytest.mark.services
@pytest.mark.parametrize("compiled", WAYS)
def test_a_batch_ends_at_its_rows_and_at_its_bytes(endpoints, topic, compiled):
    Broker(endpoints.bootstrap).produce(topic, [Record(b"k", b"x" * 1000, partition=0) for _ in range(500)])
    reading = Reading(endpoints, topic, compiled=compiled)
    reading.take([0])
    by_rows = reading.read(500, Fill(0.5, 1, 0, max_rows=64, max_bytes=1 << 30))
    reading.close()
    assert max(map(len, by_rows)) == 64
    if compiled:
        reading = Reading(endpoints, topic, compiled=True)
        reading.take([0])
        by_bytes = reading.read(500, Fill(0.5, 1, 0, max_rows=1000, max_bytes=50_000))
        reading.close()
        assert max(batch.values.nbytes for batch in by_bytes) < 120_000


@pytest.mark.services
@pytest.mark.parametrize("compiled", WAYS)
def test_an_end_is_told_until_there_is_more_to_read(endpoints, topic, compiled):
    reading, broker = Reading(endpoints, topic, compiled=compiled, ends=True), Broker(endpoints.bootstrap)
    broker.produce(topic, [Record(b"k", b"v", partition=0) for _ in range(10)])
    reading.take([0, 1])

    def ended(*expected: tuple[int, int]) -> bool:
        return not list(reading.reader.read(FILL)) and reading.reader.ended == dict(expected)

    reading.read(10)
    wait_until(lambda: ended((0, 10), (1, 0)), 15, "both ends")
    broker.produce(topic, [Record(b"k", b"v", partition=1) for _ in range(2)])
    reading.read(2)
    wait_until(lambda: ended((0, 10), (1, 2)), 15, "the new end")
    reading.consumer.seek(TopicPartition(topic, 0, 4))
    reading.reader.forget_end(0)
    assert reading.reader.ended == {1: 2}
    assert sum(map(len, reading.read(6))) == 6
    wait_until(lambda: ended((0, 10), (1, 2)), 15, "the end again")
    assert not list(reading.reader.idle())
    assert reading.reader.ended == {}  # nobody looks
    broker.produce(topic, [Record(b"k", b"v", partition=1)])
    reading.read(1)
    wait_until(lambda: ended((0, 10), (1, 3)), 15, "the ends after a rest")
    reading.release([0])
    assert reading.reader.ended == {1: 3}
    reading.close()


@pytest.mark.services
@pytest.mark.parametrize("compiled", WAYS)
def test_a_read_waits_for_the_rows_that_it_is_told_to(endpoints, topic, compiled):
    """Records that come one by one, each in time, are one batch; without a wait they are many."""
    reading, broker = Reading(endpoints, topic, compiled=compiled), Broker(endpoints.bootstrap)
    reading.take([0])
    begun, found = threading.Event(), list[RawBatch]()

    def feed() -> None:
        begun.wait(10)
        for at in range(20):
            broker.produce(topic, [Record(b"k", b"%d" % at, partition=0)])

    feeding = threading.Thread(target=feed)
    feeding.start()
    begun.set()
    wait_until(lambda: found.extend(reading.reader.read(Fill(0.2, 20, 20.0, 1000, 1 << 20))) or found, 30, "a batch")
    feeding.join()
    reading.close()
    assert [len(batch) for batch in found] == [20]
    assert found[0].ready_ns > found[0].first_ns


@pytest.mark.services
@pytest.mark.parametrize("compiled", WAYS)
def test_partitions_come_and_go_and_come_again(endpoints, topic, compiled):
    """Given up with records fetched and unread; taken up again from the beginning: each is read in order again."""
    Broker(endpoints.bootstrap).produce(topic, [Record(b"k", b"%d" % i, partition=i % 3) for i in range(3000)])
    reading = Reading(endpoints, topic, compiled=compiled)
    for turn in range(15):
        mine = [0, 1, 2] if turn % 2 == 0 else [turn % 3]
        reading.take(mine)
        batches = reading.read(700 * len(mine))
        for partition in mine:
            offsets = np.concatenate([b.offsets[b.partitions == partition] for b in batches])
            assert offsets.tolist() == list(range(len(offsets)))
        assert {p for b in batches for p in b.partitions.tolist()} <= set(mine)
        reading.release(mine)
        reading.consumer.incremental_unassign([TopicPartition(topic, p) for p in mine])
        assert not list(reading.reader.read(Fill(0, 1, 0, 1000, 1 << 20)))
    reading.close()


@pytest.mark.services
def test_records_that_reach_the_consumer_instead_are_read_first(endpoints, topic):
    """What the late end of a partition's first life does: its queue leads to the consumer's again."""
    Broker(endpoints.bootstrap).produce(topic, [Record(b"k", b"%d" % i, partition=0) for i in range(3000)])
    reading = Reading(endpoints, topic, compiled=True)
    placed = [TopicPartition(topic, 0, 0)]
    reading.consumer.incremental_assign(placed)  # and the reader was not told
    batches = reading.read(3000)
    reading.close()
    assert np.concatenate([batch.offsets for batch in batches]).tolist() == list(range(3000))


@pytest.mark.services
@pytest.mark.parametrize("compiled", WAYS)
def test_an_offset_out_of_range_is_an_error_that_says_what_to_do(endpoints, topic, compiled):
    reading = Reading(endpoints, topic, compiled=compiled)
    reading.take([0], offset=77)

    with pytest.raises(BrokerError, match="out of range") as told:
        reading.read(1)
    reading.close()
    assert f"{topic}-0" in str(told.value)


@pytest.mark.services
@pytest.mark.parametrize("compiled", WAYS)
def test_a_refusal_at_once_is_told_with_its_place(endpoints, topic, compiled):
    _, writer = writing(endpoints, compiled=compiled, message_max_bytes=2000)
    out = outgoing(topic, [(b"k", b"v", None, NOW), (b"k", b"x" * 9000, None, NOW), (b"k", b"v", None, NOW)])
    place, error = writer.write(out, 0)
    assert (place, error.code()) == (1, KafkaError.MSG_SIZE_TOO_LARGE)
    writer.close()


@pytest.mark.services
def test_the_present_headers_that_no_python_can_read_are_carried(endpoints, topic):
    """Through the compiled way their bytes go on; the way through messages says that they are left out."""
    name = b"\xff".decode(errors="surrogateescape")
    producer, writer = writing(endpoints, compiled=True)
    writer.write(outgoing(topic, [(b"k", b"v", [(name, b"1")], NOW)]), 0)
    assert producer.flush(15) == 0
    writer.close()
    found = {}
    for compiled in (True, False):
        reading = Reading(endpoints, topic, compiled=compiled)
        reading.take(range(3))
        ((*_, found[compiled]),) = rows_of(reading.read(1))
        reading.close()
    assert found == {True: [(name, b"1")], False: UNREADABLE_HEADERS}


def test_a_plugin_of_the_user_s_stays(monkeypatch, endpoints):
    seen = []

    def make(config):
        seen.append(config[native.PLUGIN])
        raise KafkaException(KafkaError(KafkaError._INVALID_ARG))

    with pytest.raises(KafkaException):
        native.make_client(make, {native.PLUGIN: "mine"})
    assert seen[0].startswith("mine;")


@pytest.mark.services
def test_an_assignment_that_comes_while_the_consumer_closes_is_let_be(endpoints, topic):
    """`close` answers what the group has pending, callbacks included; the reader's queue is gone by then."""
    reading = Reading(endpoints, topic, compiled=True)
    reading.reader.close()
    reading.take([0, 1, 2])
    reading.consumer.close()


def test_without_a_compiled_part_clients_are_plain(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    assert native.make_client(lambda config: config, {"a": 1}) == ({"a": 1}, None)
