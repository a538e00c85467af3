"""Promise: a dead letter is shown in whole, and its event is sent again as it was, and never unasked."""

from __future__ import annotations

import json
import random
import shlex
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from conftest import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Broker, Record, by_source, framed, linear_model, serve_until

from streamserve.adapters.kafka import Clients
from streamserve.adapters.letters import LetterReplay, Outcome, _oldest
from streamserve.adapters.reading import Record as Read
from streamserve.adapters.reading import Start
from streamserve.cli import cli
from streamserve.cli.letters import dump, harmless, text_of
from streamserve.errors import BrokerError, ConfigError, StreamserveError, TopicError
from streamserve.headers import pack, unpack
from streamserve.pipeline.emit import dead_letters
from streamserve.records import RawBatch, Reject, Stage, binary
from streamserve.settings import Settings
from streamserve.simulate.letters import FOREVER, MARKER, Letter, Origin, Selection, parse_ranges, spell_ranges
from streamserve.topology import load_topology

SCHEMA = {
    "type": "record",
    "name": "Payment",
    "fields": [{"name": "user", "type": "string"}, {"name": "amount", "type": "double"}],
}
WIDER = {**SCHEMA, "fields": [*SCHEMA["fields"], {"name": "note", "type": "string", "default": ""}]}
KNOWN, UNKNOWN_ID = 7, 9
TOPOLOGY = """
from streamserve.topology import Source, Topology, field, output

topology = Topology(
    name="{name}",
    source=Source("{name}-events", schema="payment.avsc", key="user", partitions=3),
    features=(field("amount"),),
    model="{name}",
    outputs={{"risk": output("probabilities", column=1)}},
)
"""
NOW = int(time.time() * 1000)
HOUR = 3_600_000
Names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
HEADERS = st.lists(
    st.tuples(Names | st.sampled_from(["h", "streamserve.own", MARKER, "streamserve.stage"]), st.none() | st.binary())
)


def letter_of(
    event: Record, *, topic: str, stage: str = "decode", error: str = "WrongMagic", message: str = "found x, expected y"
) -> Record:
    """The dead letter that a worker makes of an event, by the worker's own code."""
    raw = RawBatch(
        topic=topic,
        partitions=np.array([event.partition], np.int32),
        offsets=np.array([event.offset]),
        timestamps=np.array([event.timestamp]),
        timestamp_types=np.array([1], np.uint8),
        keys=binary([event.key]),
        values=binary([event.value]),
        headers=None if event.headers is None else pa.array([pack(event.headers)], pa.binary()),
    )
    out = dead_letters(raw, [Reject(0, Stage(stage), error, message)], "any", "0.1.0")
    return Record(event.key, event.value, unpack(out.headers[0].as_py()))


def read_as(letter: Record, partition: int = 0, offset: int = 0, stamp: int = 0) -> Letter:
    headers = tuple(letter.headers or ())
    return Letter.of(Read("t.dead-letters", partition, offset, stamp, letter.key, letter.value, headers))


class TestTakingApart:
    @settings(deadline=None)  # the first call imports
    @given(HEADERS, st.integers(0, 2**31 - 1), st.integers(0, 2**53), st.integers(-1, 2**53))
    def test_an_events_own_headers_come_back_whatever_they_were(self, own, partition, offset, stamp):
        event = Record(b"k", b"v", own, stamp, partition, offset)
        found = read_as(letter_of(event, topic="events-1")).origin
        assert found == Origin("events-1", partition, offset, stamp, tuple(own))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("streamserve.stage", None),
            ("streamserve.source.topic", b""),
            ("streamserve.source.topic", None),
            ("streamserve.source.partition", b"one"),
            ("streamserve.source.partition", b"-1"),
            ("streamserve.source.offset", b"1" * 30),
            ("streamserve.source.offset", "\u0663".encode()),
            ("streamserve.source.timestamp", b"-"),
        ],
    )
    def test_grounds_that_are_not_a_workers_are_none(self, name, value):
        """Left out where the value is None, or wrong."""
        letter = letter_of(Record(b"k", b"v", [("h", b"1")], 5, 1, 2), topic="events")
        assert read_as(letter).origin is not None
        headers = [(n, value if n == name else v) for n, v in letter.headers if n != name or value is not None]
        assert read_as(replace(letter, headers=headers)).origin is None

    def test_a_header_behind_the_grounds_is_no_workers(self):
        letter = letter_of(Record(b"k", b"v", None, 5, 1, 2), topic="events")
        assert read_as(replace(letter, headers=[*letter.headers, ("h", b"")])).origin is None

    def test_replays_are_those_of_this_topic_in_their_order(self):
        own = [(MARKER, text) for text in (b"t.dead-letters-1-5", b"other.dead-letters-1-6", b"t.dead-letters-0-7")]
        own += [(MARKER, b"t.dead-letters-x-7"), (MARKER, None), (MARKER, b"\xff")]
        assert read_as(Record(headers=own)).replays("t.dead-letters") == [(1, 5), (0, 7)]


class TestChoosing:
    @pytest.mark.parametrize(
        ("partitions", "text", "found"),
        [
            ((), None, {}),
            ((2, 0), None, {2: (0, FOREVER), 0: (0, FOREVER)}),
            ((1,), "5-9", {1: (5, 10)}),
            ((1,), "5-", {1: (5, FOREVER)}),
            ((1,), "-9", {1: (0, 10)}),
            ((1,), "5", {1: (5, 6)}),
            ((), "0:5-9,2:7-, 1:3", {0: (5, 10), 2: (7, FOREVER), 1: (3, 4)}),
        ],
    )
    def test_offsets_in_each_spelling(self, partitions, text, found):
        assert parse_ranges(partitions, text) == found

    @pytest.mark.parametrize(
        ("partitions", "text"),
        [
            ((), "5-9"),
            ((0, 1), "5-9"),
            ((0,), "0:5-9"),
            ((), "0:1,0:2"),
            ((), "x:1"),
            ((0,), ""),
            ((0,), "-"),
            ((0,), "9-5"),
            ((0,), "a-b"),
            ((0,), "1-2-3"),
            ((), "0:"),
        ],
    )
    def test_anything_else_is_refused_with_an_example(self, partitions, text):
        with pytest.raises(ConfigError) as caught:
            parse_ranges(partitions, text)
        assert "100-199" in caught.value.mend

    @given(st.dictionaries(st.integers(0, 99), st.tuples(st.integers(0, 99), st.integers(100, 199)), min_size=1))
    def test_what_is_told_as_offsets_is_taken_as_offsets(self, ranges):
        assert parse_ranges((), spell_ranges(ranges)) == ranges

    def test_all_that_is_given_must_hold(self):
        event = Record(b"k", b"v", None, 5, 1, 2)
        one = read_as(letter_of(event, topic="e", stage="score", error="E"), 1, 7, stamp=1000)
        yes = {
            "stages": {"score"}, "errors": {"E", "F"}, "since": 1000, "until": 1001, "ranges": {1: (7, 8)},
        }  # fmt: skip
        no = {"stages": {"emit"}, "errors": {"F"}, "since": 1001, "until": 1000, "ranges": {0: (7, 8), 1: (8, 9)}}
        assert Selection().holds(one)
        assert Selection(**yes).holds(one)
        for name, value in no.items():
            assert not Selection(**{**yes, name: value}).holds(one), name

    def test_only_what_can_hold_is_read(self):
        spans = {0: (10, 20), 1: (0, 5), 2: (0, 9)}
        assert Selection().narrow(spans) == spans
        assert Selection(ranges={0: (0, 15), 1: (3, FOREVER)}).narrow(spans) == {0: (10, 15), 1: (3, 5)}
        with pytest.raises(ConfigError, match="no partition 3, it has 3"):
            Selection(ranges={3: (0, 1)}).narrow(spans)

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), min_size=1, max_size=40), st.integers(1, 40))
    def test_the_oldest_are_a_beginning_of_each_partition(self, rows, limit):
        partitions, stamps = np.array(sorted(rows, key=lambda row: row[0]), np.int64).T
        kept = _oldest(partitions, stamps, limit)
        assert kept.sum() == min(limit, len(rows))
        for partition in np.unique(partitions):
            here = kept[partitions == partition]
            assert not (~here[:-1] & here[1:]).any()
        # clocks that never go back: exactly the oldest
        stamps = np.sort(stamps)
        assert stamps[_oldest(partitions, stamps, limit)].tolist() == stamps[:limit].tolist()


class TestShowing:
    def test_bytes_that_move_a_cursor_are_not_text(self):
        assert text_of("caf\u00e9\n\t{}".encode()) == "caf\u00e9\n\t{}"
        for bad in (b"\x1b[2J", b"a\rb", b"\xff", b"\0", "\u202e".encode(), "\x9b".encode()):
            assert text_of(bad) is None
        assert harmless("a\x1b[2J\n\u202e\u00e9") == "a\\x1b[2J\\n\\u202e\u00e9"

    @given(st.binary(max_size=100))
    def test_a_dump_holds_every_byte(self, value):
        shown = dump(value).splitlines()
        assert b"".join(bytes.fromhex(line[10:58]) for line in shown) == value
        assert [int(line[:8], 16) for line in shown] == list(range(0, len(value), 16))


# ---- against the real broker


@dataclass
class Desk:
    """A topology with topics of its own, a plain client, and the command line in this process."""

    file: Path
    name: str
    broker: Broker

    @property
    def source(self) -> str:
        return f"{self.name}-events"

    @property
    def letters(self) -> str:
        return f"{self.name}.dead-letters"

    def dead(self, *events: Record, **grounds: str) -> list[str]:
        """Dead letters of these events, by hand; their places."""
        made = []
        for at, one in enumerate(events):
            event = replace(one, partition=max(one.partition, 0), offset=one.offset if one.offset >= 0 else at)
            made.append(replace(letter_of(event, **{"topic": self.source, **grounds}), partition=one.partition))
        return self.put(*made)

    def put(self, *records: Record) -> list[str]:
        return [f"{p}-{o}" for p, o in self.broker.produce(self.letters, records)]

    def run(self, command: str, *words: object) -> str:
        done = CliRunner().invoke(cli, ["dead-letters", command, str(self.file), *map(str, words)])
        assert done.exception is None, (done.output, done.exception)
        return done.stdout

    def error(self, command: str, *words: object) -> StreamserveError:
        done = CliRunner().invoke(cli, ["dead-letters", command, str(self.file), *map(str, words)])
        assert isinstance(done.exception, StreamserveError), (done.output, done.exception)
        assert done.exception.mend
        return done.exception

    def events(self) -> list[Record]:
        return self.broker.read(self.source)

    def replay(self, *words: object) -> list[Record]:
        """What is in the source topic behind what was there before."""
        before = self.broker.ends(self.source)
        self.run("replay", "--yes", *words)
        return self.broker.read(self.source, before)

    def room(self, clients: Clients) -> LetterReplay:
        return LetterReplay(clients, load_topology(self.file))


@pytest.fixture
def clients(endpoints) -> Clients:
    return Clients(Settings(bootstrap=endpoints.bootstrap, redis_url=endpoints.redis_url, start_timeout=20))


@pytest.fixture
def desk(project, monkeypatch) -> Desk:
    name = f"pay{uuid.uuid4().hex[:8]}"
    file = project.folder / "paid.py"
    file.write_text(TOPOLOGY.format(name=name))
    (project.folder / "schemas" / "payment.avsc").write_text(json.dumps(SCHEMA))
    know(project.folder, {KNOWN: "payment.avsc"})
    for variable, value in project.environ.items():
        if variable.startswith("STREAMSERVE_") or variable == "NO_COLOR":
            monkeypatch.setenv(variable, value)
    monkeypatch.chdir(project.folder)
    done = CliRunner().invoke(cli, ["topics", "apply", str(file)])
    assert done.exception is None, done.exception
    return Desk(file, name, Broker(project.endpoints.bootstrap))


def know(folder: Path, ids: dict[int, str]) -> None:
    index = {"schemas": {str(n): {"subject": "any-value", "file": file} for n, file in ids.items()}}
    (folder / "schemas" / "index.json").write_text(json.dumps(index))


def configure(clients: Clients, topic: str, **config: str) -> None:
    entries = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in config.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    admin = clients.admin()
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(20)

    def told() -> bool:
        (found,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
        entries = found.result(20)
        return all(entries[name.replace("_", ".")].value == value for name, value in config.items())

    wait_until(told, what="the topic's new settings")


def bare(records: list[Record]) -> Counter:
    """Key, value, the headers before the marker, and timestamp; how often each is there."""
    for one in records:
        assert [name for name, _ in one.headers][-1] == MARKER
    return Counter((one.key, one.value, tuple(one.headers[:-1]), one.timestamp) for one in records)


ODD = (
    Record(b"k1", b"\0\0\0\0\x07broken", [("trace", b"1"), ("trace", b"2"), ("trace", None)], NOW - 5000),
    Record(b"k2", None, [("only", b"")], NOW - 4000),  # a tombstone
    Record(b"k3", b"", None, NOW - 3000),  # an empty value
    Record(b"", b"empty key", None, NOW - 2500),
    Record(None, b"no key", None, NOW - 2000, partition=2),
    Record(b"\xff\0k", b"\xff" * 3000, [("bytes", b"\xff\xfe\0"), ("caf\u00e9", "\u2603".encode())], NOW - 1000),
    Record(b"k4", b"mine", [("streamserve.mine", b"x"), ("streamserve.stage", b"mine")], NOW - 500),
)


@pytest.mark.services
class TestReplay:
    def test_what_is_replayed_is_the_event_byte_for_byte(self, desk):
        places = desk.dead(*ODD)
        found = desk.replay()
        expected = Counter((one.key, one.value, tuple(one.headers or ()), one.timestamp) for one in ODD)
        assert bare(found) == expected
        marks = {one.value: one.headers[-1][1].decode() for one in found}
        assert marks == {one.value: f"{desk.letters}-{place}" for one, place in zip(ODD, places, strict=True)}

    def test_a_key_finds_its_partition_and_a_record_without_one_its_own(self, desk):
        keyed = [Record(b"key%d" % n, b"%d" % n) for n in range(20)]
        own = desk.broker.produce(desk.source, keyed)
        loose = [Record(None, b"loose%d" % n, None, 0, partition=n % 3) for n in range(6)]
        gone = Record(None, b"gone", None, 0, partition=0)
        desk.dead(*keyed, *loose)
        desk.put(letter_of(replace(gone, partition=17, offset=1), topic=desk.source))  # a partition that is no more
        found = {one.value: one.partition for one in desk.replay()}
        assert {value: found[value] for value in (one.value for one in keyed)} == {
            one.value: partition for one, (partition, _) in zip(keyed, own, strict=True)
        }
        assert all(found[one.value] == one.partition for one in loose)
        assert found[b"gone"] in range(3)

    def test_an_entitys_events_keep_their_order_and_thousands_are_no_matter(self, desk):
        desk.dead(*(Record(b"k%d" % (n % 7), b"%05d" % n, None, NOW) for n in range(2500)))
        found = desk.replay()
        assert sorted(one.value for one in found) == [b"%05d" % n for n in range(2500)]
        for partition in range(3):
            values = [one.value for one in found if one.partition == partition]
            assert values == sorted(values)

    def test_a_dry_run_writes_nothing_and_tells_what_it_would(self, desk):
        desk.dead(Record(b"k", b"1234"), Record(b"k", b"56", offset=5), error="WrongMagic")
        last = desk.dead(Record(b"k", b"7", offset=6), stage="score", error="NotFinite")
        told = desk.run("replay")
        assert desk.events() == []
        rows = [line.split() for line in told.splitlines()]
        assert ["decode", "WrongMagic", "2", "8"] in rows
        assert ["score", "NotFinite", "1", "2"] in rows
        assert ["in", "all", "3", "10"] in rows
        assert any(row[:2] == ["last", f"{desk.letters}-{last[0]}"] for row in rows)
        assert "nothing is written" in told
        assert desk.run("list").splitlines()[-1].startswith("3 dead letters: ")

    def test_what_a_dry_run_names_is_what_is_written_whatever_comes_meanwhile(self, desk):
        desk.dead(*(Record(b"k%d" % n, b"early%d" % n) for n in range(5)))
        words = shlex.split(desk.run("replay").splitlines()[-1].partition("add: ")[2])
        desk.dead(*(Record(b"k%d" % n, b"late%d" % n, offset=9 + n) for n in range(5)))
        assert words[-1] == "--yes"
        assert sorted(one.value for one in desk.replay(*words[:-1])) == [b"early%d" % n for n in range(5)]

    def test_a_replay_says_where_to_go_on(self, desk):
        desk.dead(*(Record(b"k%d" % n, b"early%d" % n) for n in range(5)))
        told = desk.run("replay", "--yes")
        assert "5 of 5 letters are confirmed" in told
        words = shlex.split(told.splitlines()[-1].partition(": ")[2])
        assert desk.replay(*words) == []
        desk.dead(*(Record(b"k%d" % n, b"late%d" % n, offset=9 + n) for n in range(5)))
        assert sorted(one.value for one in desk.replay(*words)) == [b"late%d" % n for n in range(5)]

    def test_a_limit_takes_the_oldest_and_the_next_goes_on_behind_them(self, desk):
        for n in range(12):
            desk.dead(Record(b"k%d" % n, b"%02d" % n, None, 0, offset=n))
            next_millisecond()  # so that their times are in order
        words: list[str] = []
        seen: list[bytes] = []
        for _ in range(3):
            before = desk.broker.ends(desk.source)
            told = desk.run("replay", "--yes", "--limit", 5, *words)
            words = shlex.split(told.splitlines()[-1].partition(": ")[2])
            seen += sorted(one.value for one in desk.broker.read(desk.source, before))
        assert seen == [b"%02d" % n for n in range(12)]

    def test_letters_of_another_topic_and_records_of_somebody_else_stay_where_they_are(self, desk):
        desk.dead(Record(b"k", b"other", None, NOW), topic="old-events")
        desk.put(Record(b"k", b"plain"), Record(b"k", b"half", [("streamserve.stage", b"decode")]))
        mine = desk.dead(Record(b"k", b"mine", None, NOW))
        told = desk.run("replay")
        assert "left out: 1 came from old-events, which is not this topology's source" in told
        assert "left out: 2 without a worker's grounds" in told
        assert [one.value for one in desk.replay()] == [b"mine"]
        assert mine[0] in desk.run("list")

    def test_nothing_to_replay_is_no_error(self, desk):
        desk.put(Record(b"k", b"plain"))
        assert "nothing to replay" in desk.run("replay", "--yes")

    def test_an_event_that_came_back_is_left_out_until_it_is_asked_for(self, desk):
        """And of its letters only the last is sent: it is one event."""
        (first,) = desk.dead(Record(b"k", b"poison", [("h", b"1")], NOW))
        (event,) = desk.replay()
        (second,) = desk.dead(replace(event, partition=-1, offset=40 + event.offset))
        for words in ((), ("--offsets", f"{first.partition('-')[0]}:{first.partition('-')[2]}")):
            told = desk.run("replay", *words)
            assert "nothing to replay" in told
            assert "1 were replayed already and came back as later letters" in told
        assert "1 came of a replay already (--again takes them)" in desk.run("replay")
        (again,) = desk.replay("--again")
        marks = [(MARKER, f"{desk.letters}-{place}".encode()) for place in (first, second)]
        assert again.headers == [("h", b"1"), *marks]
        rows = desk.run("list").splitlines()
        assert "replayed from" in rows[0]
        assert [first in row.split()[1:] for row in rows[1:3]] == [False, True]
        assert json.loads(desk.run("show", second, "--json"))["grounds"]["replayed-from"].endswith(first)

    def test_a_mark_of_another_topologys_letters_does_not_hold_an_event_back(self, desk):
        desk.dead(Record(b"k", b"passed on", [(MARKER, b"other.dead-letters-0-1")], NOW))
        assert len(desk.replay()) == 1

    def test_copies_of_a_letter_are_one_event(self, desk):
        desk.dead(Record(b"k", b"twice", None, NOW, offset=3), Record(b"k", b"twice", None, NOW, offset=3))
        assert "1 are copies of a letter that was delivered twice" in desk.run("replay")
        assert len(desk.replay()) == 1

    def test_times_that_the_topic_does_not_take_are_clamped_and_told(self, desk, clients):
        configure(clients, desk.source, message_timestamp_before_max_ms=str(24 * HOUR), retention_ms=str(HOUR))
        old, ahead, none, fine = NOW - 48 * HOUR, NOW + 5 * HOUR, -1, NOW - 60_000
        desk.dead(*(Record(b"k", b"%d" % n, None, at) for n, at in enumerate((old, ahead, none, fine))))
        told = desk.run("replay")
        assert "2 of 4 would get another timestamp" in told
        assert "1 of 4 are older than retention.ms" in told
        stamps = {one.value: one.timestamp for one in desk.replay()}
        now = time.time() * 1000
        assert now - 24 * HOUR < stamps[b"0"] < now - 23 * HOUR
        assert now < stamps[b"1"] < now + HOUR
        assert abs(stamps[b"2"] - now) < 60_000
        assert stamps[b"3"] == fine

    def test_what_does_not_fit_is_left_out_and_its_neighbours_go(self, desk, clients):
        configure(clients, desk.source, max_message_bytes="3000")
        desk.dead(*(Record(b"k", b"x" * size, None, NOW) for size in (2000, 2950, 1000, 5000)))
        assert f"2 do not fit max.message.bytes of {desk.source}" in desk.run("replay")
        assert [len(one.value) for one in desk.replay()] == [2000, 1000]

    def test_a_broker_that_refuses_is_an_error_that_says_how_far_it_came(self, desk, clients):
        values = [b"%02d" % n + random.Random(n).randbytes(1500) for n in range(20)]
        desk.dead(*(Record(b"k", value, None, NOW, partition=1) for value in values))
        room = desk.room(clients)
        plan = room.survey(Start("beginning"), Selection())
        assert len(plan) == 20

        def on_progress(sent: int) -> None:
            if sent == 10:
                wait_until(lambda: len(desk.events()) == 10)
                configure(clients, desk.source, max_message_bytes="1000")

        outcome = room.send(plan, on_progress=on_progress)
        assert isinstance(outcome.fault, BrokerError)
        assert f"{desk.letters}-1-10 was not acknowledged" in outcome.fault.what
        assert outcome.confirmed == 10
        assert outcome.left == {0: (0, FOREVER), 1: (10, FOREVER), 2: (0, FOREVER)}
        configure(clients, desk.source, max_message_bytes="100000")
        desk.replay("--offsets", spell_ranges(outcome.left))
        assert [one.value for one in desk.events()] == values

    def test_the_command_ends_with_that_error_and_says_how_to_go_on(self, desk, monkeypatch):
        desk.dead(*(Record(b"k", b"%d" % n) for n in range(5)))
        fault = BrokerError("one was not acknowledged", where="there", mend="do this")
        monkeypatch.setattr(LetterReplay, "send", lambda *_, **__: Outcome(3, {1: (3, FOREVER)}, fault))
        error = desk.error("replay", "--yes")
        assert error.exit_code == 3
        assert "3 of 5 letters are confirmed" in error.what
        assert "one was not acknowledged" in error.what
        assert error.mend.startswith("do this")
        assert error.mend.endswith("--offsets 1:3-")

    def test_what_was_too_late_for_a_replay_is_where_the_next_begins(self, desk):
        desk.dead(Record(b"k", b"early"))
        next_millisecond()
        moment = iso_now()
        next_millisecond()
        desk.dead(Record(b"k", b"late", offset=9))
        told = desk.run("replay", "--yes", "--until", moment)
        words = shlex.split(told.splitlines()[-1].partition(": ")[2])
        assert words == ["--since", moment]
        assert [one.value for one in desk.replay(*words)] == [b"late"]

    def test_a_stop_leaves_what_was_sent_confirmed_and_the_rest_to_go_on_with(self, desk, clients):
        desk.dead(*(Record(b"k%d" % (n % 9), b"%04d" % n, None, NOW) for n in range(1200)))
        room = desk.room(clients)
        plan = room.survey(Start("beginning"), Selection())
        outcome = replay_slowly(room, plan, 500)
        assert outcome.fault is None
        assert outcome.confirmed == len(desk.events()) == 500
        desk.replay("--offsets", spell_ranges(outcome.left))
        assert sorted(one.value for one in desk.events()) == [b"%04d" % n for n in range(1200)]

    def test_a_source_topic_that_is_not_there_is_an_error(self, desk):
        text = desk.file.read_text()
        desk.file.write_text(text.replace("-events", "-nowhere"))
        assert isinstance(desk.error("replay"), TopicError)


def replay_slowly(room: LetterReplay, plan, stop_at: int):
    """A replay that is stopped once so many letters were sent."""
    stop = threading.Event()
    return room.send(plan, stop=stop, on_progress=lambda sent: stop.set() if sent >= stop_at else None)


@pytest.mark.services
class TestFilters:
    @pytest.fixture
    def mixed(self, desk) -> Desk:
        """Three kinds, in two partitions, with a moment between the first four and the last two."""
        at = iter(range(100))

        def dead(partition, stage, error):
            event = Record(b"k", f"{stage}/{error}/{partition}".encode(), None, NOW, partition)
            desk.dead(replace(event, offset=next(at)), stage=stage, error=error)

        for partition in (0, 1):
            dead(partition, "decode", "WrongMagic")
            dead(partition, "score", "NotFinite")
        next_millisecond()
        desk.moment = iso_now()
        next_millisecond()
        for partition in (0, 1):
            dead(partition, "enrich", "NotFinite")
        return desk

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            ((), {"decode/0", "decode/1", "score/0", "score/1", "enrich/0", "enrich/1"}),
            (("--stage", "decode"), {"decode/0", "decode/1"}),
            (("--stage", "decode", "--stage", "score", "--partition", 1), {"decode/1", "score/1"}),
            (("--error", "NotFinite"), {"score/0", "score/1", "enrich/0", "enrich/1"}),
            (("--error", "NotFinite", "--stage", "decode"), set()),
            (("--since", "MOMENT"), {"enrich/0", "enrich/1"}),
            (("--until", "MOMENT", "--partition", 0), {"decode/0", "score/0"}),
            (("--since", "MOMENT", "--until", "MOMENT"), set()),
            (("--partition", 0, "--offsets", "1-2"), {"score/0", "enrich/0"}),
            (("--offsets", "0:2-,1:-0"), {"enrich/0", "decode/1"}),
            (("--from", "-1"), {"enrich/0", "enrich/1"}),
        ],
    )
    def test_list_replay_and_show_mean_the_same_letters(self, mixed, words, found):
        words = [mixed.moment if word == "MOMENT" else word for word in words]

        def short(value: bytes) -> str:
            stage, _, partition = value.decode().split("/")
            return f"{stage}/{partition}"

        listed = [json.loads(line) for line in mixed.run("list", "--json", *words).splitlines()]
        kinds = Counter((one["stage"], one["record"].rsplit("-", 2)[1]) for one in listed)
        assert kinds == Counter(tuple(one.split("/")) for one in found)
        assert {short(one.value) for one in mixed.replay(*words)} == found
        if not words:
            return
        if found:
            shown = json.loads(mixed.run("show", "--json", *words))
            assert shown["record"] == max(listed, key=lambda one: one["timestamp"])["record"]
        else:
            assert "no dead letter fits" in mixed.error("show", *words).what

    def test_a_partition_or_a_time_that_is_none_is_an_error(self, mixed):
        assert "no partition 7" in mixed.error("list", "--partition", 7).what
        assert "no partition 7" in mixed.error("replay", "--offsets", "7:1-").what
        assert "no ISO time" in mixed.error("list", "--until", "tomorrow").what


def next_millisecond() -> None:
    """Return when the clock, as records are stamped by it, shows another time."""
    now = time.time_ns() // 1_000_000
    wait_until(lambda: time.time_ns() // 1_000_000 > now + 1)


def iso_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at := time.time())) + f".{int(at * 1000) % 1000:03d}Z"


@pytest.mark.services
class TestShow:
    def test_a_letter_is_shown_in_whole(self, desk):
        event = framed(SCHEMA, {"user": "u1", "amount": 2.5}, KNOWN)
        headers = [("trace", b"one"), ("trace", b"\xff\0"), ("none", None)]
        (place,) = desk.dead(
            Record(b"u1", event, headers, NOW), stage="score", error="NotFinite", message="found nan\x1b[2J"
        )
        for named in (place, f"{desk.letters}-{place}"):
            told = desk.run("show", named)
            for part in ("score", "NotFinite", "found nan\\x1b[2J", f"{desk.source}-0-0", "u1", "2.5", "ff 00", "null"):
                assert part in told, part
            assert told.count("trace") == 2
            assert "00 00 00 00 07 04 75 31" in told
            assert "\x1b" not in told

    def test_what_is_text_is_shown_as_text_and_what_is_nothing_as_nothing(self, desk):
        text, tombstone, empty, long = desk.dead(*(Record(b"k", v) for v in (b"hello {", None, b"", b"\0" * 5000)))
        assert "hello {" in desk.run("show", text)
        assert "tombstone" in desk.run("show", tombstone)
        assert "(empty)" in desk.run("show", empty)
        assert "more bytes; --raw" in desk.run("show", long)
        assert len(desk.run("show", long)) < 5000

    def test_the_original_bytes_are_written_to_a_file(self, desk, tmp_path):
        value = bytes(range(256)) * 20
        place, tombstone = desk.dead(Record(b"k", value), Record(b"k", None))
        desk.run("show", place, "--raw", tmp_path / "raw")
        assert (tmp_path / "raw").read_bytes() == value
        done = CliRunner().invoke(cli, ["dead-letters", "show", str(desk.file), place, "--raw", "-"])
        assert done.stdout_bytes == value
        assert "tombstone" in desk.error("show", tombstone, "--raw", tmp_path / "none").what
        assert "can't be written" in desk.error("show", place, "--raw", tmp_path / "no" / "folder").what

    def test_somebody_elses_record_is_shown_and_said_to_be_that(self, desk):
        (place,) = desk.put(Record(b"k", b"plain", [("h", b"v")]))
        told = desk.run("show", place)
        assert "somebody else's record" in told
        assert "plain" in told
        assert json.loads(desk.run("show", "--stage", "?", "--json"))["replayable"] is False

    def test_a_letter_that_is_not_there_says_where_to_look(self, desk):
        desk.dead(Record(b"k", b"v"))
        for text, why in (("0-999", "nothing is at offset 999"), ("9-0", "partition 9 does not exist")):
            error = desk.error("show", text)
            assert why in error.what
            assert "dead-letters list" in error.mend
        assert "streamserve explain" in desk.error("show", f"{desk.source}-0-0").mend
        for text in ("x", "0", "-1-2", "0-1-2"):
            assert "names no letter" in desk.error("show", "--", text).what
        assert "leave one of both out" in desk.error("show", "0-0", "--stage", "decode").mend


@pytest.mark.services
def test_a_replayed_event_that_was_mended_is_scored_and_a_poisonous_one_comes_back_once(desk, project):
    """Events of a writer whose schema id nobody knew; then somebody knows it."""
    folder = project.folder
    linear_model(folder / "m.onnx", (0.1,))
    project.ok("models", "add", desk.file, "v1", folder / "m.onnx", "--input", "features=amount")
    project.ok("topology", "init", desk.file, "--version", "v1")
    early = [Record(b"u%d" % n, framed(WIDER, {"user": f"u{n}", "amount": float(n), "note": "x"}, UNKNOWN_ID),
                    [("trace", b"%d" % n)], NOW + n) for n in range(8)]  # fmt: skip
    poison = Record(b"p", b"no avro at all", None, NOW)
    sent = desk.broker.produce(desk.source, [*early, poison])
    worker = project.worker(desk.file)
    serve_until(worker, 9)
    assert worker.stop() == 0
    assert "decode/UnknownSchemaId 8" in desk.run("list")

    (folder / "schemas" / "wider.avsc").write_text(json.dumps(WIDER))
    know(folder, {KNOWN: "payment.avsc", UNKNOWN_ID: "wider.avsc"})
    assert "UnknownSchemaId" in desk.run("show", "--error", "UnknownSchemaId")
    replayed = desk.replay()
    assert len(replayed) == 9
    worker = project.worker(desk.file)
    serve_until(worker, 9)
    assert worker.stop() == 0

    found = by_source(desk.broker.read(f"{desk.name}.predictions"))
    positions = {one.key: one.position for one in replayed}
    assert set(found) == {positions[one.key] for one in early}  # new positions, new ids
    assert not set(found) & set(sent)
    for one in early:
        record, said = found[positions[one.key]]
        assert record.headers[0] == one.headers[0]
        assert record.headers[1][0] == MARKER
        assert record.timestamp == one.timestamp
        assert said["scores"]["risk"] > 0
    assert "nothing to replay" in desk.run("replay", "--error", "WrongMagic")
    assert len(desk.replay("--error", "WrongMagic", "--again")) == 1
