"""Events in, predictions and dead letters out: what the commands that look at streams promise."""

from __future__ import annotations

import datetime as dt
import io
import json
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
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from payments import AT, MADE, SCHEMA, SCHEMA_ID, TEXT, TOPOLOGY, read, rows, send, write_events

from streamserve.adapters.kafka import Clients
from streamserve.adapters.reading import Record, Start
from streamserve.cli.dead_letters import Letter, _newest, _summary, excerpt
from streamserve.cli.predictions import ALIASES, MAPS
from streamserve.cli.tailing import GrowingColumns, conditions, value_of
from streamserve.errors import ConfigError
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
