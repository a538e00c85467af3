"""Promise: `streamserve shadow` tells what lies on the topic, whoever wrote it, or why there is nothing to tell."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import uuid
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser

import fastavro
import numpy as np
import pytest
from conftest import ROOT
from shadow_records import AT, SCHEMA_ID, decision, failed, framed, gather, scores
from support import Broker, Record, renamed

from streamserve.adapters.schema_ids import PinnedIndex
from streamserve.cli.shadow_page import page
from streamserve.cli.shadow_tables import grids
from streamserve.cli.shadow_words import Report, headline, of_events, percent, sentences
from streamserve.pipeline.shadow_pairs import Compared
from streamserve.pipeline.shadow_reading import ShadowReader
from streamserve.rollouts.divergence import diverge
from streamserve.rollouts.pictures import picture
from streamserve.rollouts.statistics import share

COUNT = 4000
EVIL = '<script>alert("x")</script>&'


def records(count: int = COUNT, **more) -> list[dict]:
    """Of two versions that differ for carrier B6 alone; in each 200th event the candidate failed."""
    one, other = scores(count)
    carriers = np.random.default_rng(9).choice(["UA", "AA", "B6"], count).tolist()
    other = np.where(np.array(carriers) == "B6", np.clip(other + 0.15, 0, 1), other)
    rows = zip(range(count), one.tolist(), other.tolist(), carriers, strict=True)
    return [
        failed(number, a, segments={"carrier": carrier}, **more)
        if number % 200 == 0
        else decision(number, a, b, segments={"carrier": carrier}, **more)
        for number, a, b, carrier in rows
    ]


def report(events, **more) -> Report:
    found = gather(framed(event) for event in events)
    divergence = diverge(found.pairs)
    compared = Compared(AT + 1000, "r1", "v1", "v2", len(events), AT)
    made = Report(
        topology="pay", topic="pay.shadow-decisions", compared=compared, divergence=divergence,
        pictures=picture(found.pairs, divergence.about), records=len(events), repeated=found.repeated,
        unreadable=Counter(), others=(),
    )  # fmt: skip
    return dataclasses.replace(made, **more)


class Parts(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


class TestReading:
    def reader(self) -> ShadowReader:
        return ShadowReader(PinnedIndex(ROOT / "schemas"))

    def rows(self, reader, values) -> list[dict]:
        found = [row for batch in reader.read(values) for row in batch.to_pylist()]
        return sorted(found, key=lambda row: row["prediction_id"])

    def test_the_fast_way_reads_what_the_strict_one_reads(self):
        events = [*records(300), decision(300, float("nan"), float("inf"), segments={"a": "ü", "b": ""})]
        values = list(map(framed, events))
        fast, slow = self.reader(), self.reader()
        assert fast._reader(values[0][:5]) is not None
        slow._fast[values[0][:5]] = None
        assert repr(self.rows(fast, values)) == repr(self.rows(slow, values))
        assert not fast.unreadable + slow.unreadable

    def test_what_can_not_be_read_is_counted_and_the_rest_is_read(self):
        good = list(map(framed, records(200)))
        text = framed(decision(1, 0.1, 0.2, rollout_id="ABCDEF")).replace(b"ABCDEF", b"\xff\xfe\xfdDEF")
        broken = [None, b"", b"x", b"\1" + good[0][1:], good[0][:20], b"\0\0\0\0\7" + good[0][5:], text]
        reader = self.reader()
        assert len(self.rows(reader, [*good[:77], *broken, *good[77:]])) == 200
        assert reader.unreadable == {
            "Tombstone": 2,
            "TooShort": 1,
            "WrongMagic": 1,
            "UnknownSchemaId": 1,
            "Undecodable": 2,
        }

    def test_a_later_writer_s_additional_field_is_no_hindrance(self, tmp_path):
        later = json.loads((ROOT / "schemas" / "streamserve.shadow-decision.avsc").read_text())
        later["fields"].insert(3, {"name": "added", "type": "long", "default": 0})
        (tmp_path / "later.avsc").write_text(json.dumps(later))
        (tmp_path / "index.json").write_text('{"schemas": {"5": {"subject": "s", "file": "later.avsc"}}}')
        out = io.BytesIO()
        fastavro.schemaless_writer(out, fastavro.parse_schema(later), {**decision(8, 0.1, 0.2), "added": 5})
        reader = ShadowReader(PinnedIndex(tmp_path))
        found = self.rows(reader, [b"\0\0\0\0\5" + out.getvalue(), framed(decision(9, 0.1, 0.2))])
        assert [row["compared_at"].timestamp() * 1000 for row in found] == [AT + 1080, AT + 1090]
        assert reader._reader(b"\0\0\0\0\5") is not None


class TestWords:
    def test_the_headline_says_how_many_and_how_sure(self):
        assert of_events(share(46_909, 48_211)) == "97.3% of 48,211 events (97.2 to 97.4)"
        assert of_events(share(1, 1)) == "100.0% of 1 event (20.7 to 100.0)"
        assert headline(report(records())).startswith("v2 decides as v1 in ")

    @pytest.mark.parametrize(
        ("count", "of", "told"),
        [(9999, 10_000, "99.99%"), (999_999, 1_000_000, "99.9999%"), (50, 100, "50.0%"), (0, 0, "-"), (7, 7, "100.0%")],
    )
    def test_nearly_all_is_not_all(self, count, of, told):
        assert percent(share(count, of)) == told

    def test_findings_are_told_and_those_worth_a_look_are_marked(self):
        found = {one.text: one.worth_a_look for one in sentences(report(records(), unreadable=Counter(TooShort=2)))}
        for start, look in (
            ("v2 gave no answer in 0.5% of 4,000 events", True),
            ("v2 says 'yes' more often", True),
            ("risk: v2 is off by", False),
            ("carrier=B6: they agree in", True),
            ("2 records can't be read: TooShort 2", True),
        ):
            assert [mark for text, mark in found.items() if text.startswith(start)] == [look], start
        assert not any(text.startswith(("carrier=UA", "carrier=AA")) for text in found)

    def test_two_that_are_one_give_no_ground_for_a_look(self):
        one, _ = scores(2000)
        found = sentences(report([decision(i, a, a) for i, a in enumerate(one.tolist())]))
        assert not any(sentence.worth_a_look for sentence in found)
        assert any("the same number in all 2,000 events" in sentence.text for sentence in found)

    def test_scores_that_only_one_has_are_named(self):
        events = [decision(i, 0.1, 0.2, candidate_scores={"risk": 0.2, "late": 1.0}) for i in range(30)]
        found = report(events)
        assert found.divergence.only_candidate == ("late",)
        assert any("only v2 has the scores late" in one.text for one in sentences(found))

    def test_all_of_it_is_plain_json(self):
        plain = json.loads(json.dumps(report([decision(1, float("nan"), float("inf"))]).plain(), allow_nan=False))
        assert plain["rollout_id"] == "r1"
        assert plain["scores"][0]["stable_nan"] == 1


class TestPage:
    ODD = (
        [decision(1, 0.1, 0.2)],
        [failed(i, 0.1) for i in range(5)],
        [decision(i, 0.3, 0.3) for i in range(100)],
        [decision(i, 0.3, float("nan"), candidate_decision=None) for i in range(100)],
        [decision(i, 1e308 * (i % 2), -1e308) for i in range(100)],
        [decision(i, 0.1, 0.1, stable_scores={}, candidate_scores={}) for i in range(9)],
        [decision(i, i, i, stable_decision=None, candidate_decision=None) for i in range(9)],
    )

    def test_it_is_whole_and_fetches_nothing(self):
        told = page(report(records()))
        found = Parts(told)
        assert found.tags.count("svg") == 5
        assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
        assert {value for name, value in found.attributes if name in ("href", "src")} == set()
        assert "url(" not in told
        assert "@import" not in told

    def test_what_came_from_records_is_text(self):
        names = {"stable_version": EVIL + "1", "candidate_version": EVIL + "2", "rollout_id": EVIL}
        says = [EVIL, "no"]
        events = [
            decision(
                i, 0.1, 0.1 + i % 3 / 10, **names, prediction_id=f"{EVIL}-{i}", segments={EVIL: EVIL + str(i % 3)},
                stable_scores={EVIL: 0.1}, candidate_scores={EVIL: 0.1 + i % 3 / 10}, stable_decision=says[i % 2],
                candidate_decision=says[i % 3 % 2],
            )
            for i in range(300)
        ]  # fmt: skip
        events += [failed(900 + i, 0.1, error=EVIL, **names) for i in range(3)]
        compared = Compared(AT, EVIL, EVIL + "1", EVIL + "2", 3, AT)
        found = Parts(page(report(events, topology=EVIL, compared=compared, others=(compared,))))
        assert "script" not in found.tags
        assert sum(EVIL in text for text in found.texts) > 20
        assert not any(name.startswith("on") for name, _ in found.attributes)

    @pytest.mark.parametrize("events", [records(), *ODD], ids=range(len(ODD) + 1))
    def test_every_plot_is_well_formed_and_within_its_frame(self, events):
        told = page(report(events))
        assert "NaN" not in re.sub(r">[^<]*<", "><", told)
        for text in re.findall(r"<svg.*?</svg>", told, re.DOTALL):
            root = ET.fromstring(text)  # noqa: S314
            width, height = float(root.get("width")), float(root.get("height"))
            for element in root.iter():
                for name, most in (
                    ("x", width),
                    ("x1", width),
                    ("x2", width),
                    ("cx", width),
                    ("y", height),
                    ("cy", height),
                ):
                    if element.get(name) is not None:
                        assert -0.1 <= float(element.get(name)) <= most + 0.1, ET.tostring(element)

    @pytest.mark.parametrize("events", ODD, ids=range(len(ODD)))
    def test_every_table_has_as_many_cells_as_heads(self, events):
        for grid in grids(report(events)):
            assert {len(row.cells) for row in grid.rows} == {len(grid.head)}, grid


# ---- over the real broker


@pytest.mark.services
class TestCommands:
    @pytest.fixture
    def stream(self, project):
        """A topology with its topics, and its name; nothing is on them."""
        for name in ("reading.avsc",):
            shutil.copy(ROOT / "tests" / "topologies" / name, project.folder / "schemas")
        name = f"shadow-{uuid.uuid4().hex[:6]}"
        file = renamed(project, ROOT / "tests" / "topologies" / "readings.py", name)
        project.ok("topics", "apply", file)
        return project, file, name

    def send(self, project, name, events, **more) -> None:
        made = [
            Record(b"k", event if isinstance(event, bytes | None) else framed(event), partition=at % 4, **more)
            for at, event in enumerate(events)
        ]
        Broker(project.endpoints.bootstrap).produce(f"{name}.shadow-decisions", made)

    def test_it_tells_of_the_latest_rollout_and_names_the_others(self, stream):
        project, file, name = stream
        events = records()
        older = [decision(i, 0.2, 0.2, rollout_id="r0", compared_at=AT - 10**6) for i in range(50)]
        self.send(project, name, [*older, *events, *events[:30], b"junk", None])
        told = json.loads(project.ok("shadow", "report", file, "--json"))
        assert (told["rollout_id"], told["stable_version"], told["candidate_version"]) == ("r1", "v1", "v2")
        assert (told["events"], told["repeated"], told["records_read"]) == (COUNT, 30, COUNT + 80)
        assert told["unreadable"] == {"TooShort": 1, "Tombstone": 1}
        assert [other["rollout_id"] for other in told["others"]] == ["r0"]
        assert told["failures"] == {"DeadlineError": 20}
        agreed = sum(one["agreement"] is True for one in events)
        assert (told["decisions"]["agreement"]["count"], told["decisions"]["agreement"]["of"]) == (agreed, COUNT - 20)
        (field,) = told["fields"]
        assert {one["value"]: one["flags"] for one in field["segments"]} == {
            "B6": ["agreement", "scores"],
            "UA": [],
            "AA": [],
        }
        text = project.ok("shadow", "report", file)
        assert text.startswith(f"v2 decides as v1 in {100 * agreed / (COUNT - 20):.1f}% of 3,980 events (")
        assert "! carrier=B6: they agree in" in text
        assert "also on the topic: r0 (v2 beside v1, 50 of its records); --rollout ID" in text
        assert json.loads(project.ok("shadow", "report", file, "--json", "--rollout", "r0"))["events"] == 50
        self.refuses(project, file)
        self.page(project, file)
        self.tail(project, file)

    def refuses(self, project, file) -> None:
        for words, what, mend in (
            (("--rollout", "r7"), "no record is of rollout 'r7'", "r1 (v2 beside v1), r0 (v2 beside v1)"),
            (("--segment", "colour"), "no record has a segment 'colour'", "the fields are carrier"),
            (("--score", "late"), "no event has a score 'late' of both versions", "the scores are risk"),
            (("--from", "tomorrow"), "is no position", "--from"),
            (("--until", "tomorrow"), "is no ISO time", "--until"),
            (("--from", "2100-01-01"), "none of 0 records", ""),
            (("--until", "2001-01-01"), "is of that time", "widen --from and --until"),
            (("--html", "no/such/folder.html"), "can't be written", "name a file"),
        ):
            done = project.run("shadow", "report", file, *words)
            assert done.returncode == 2, (words, done.stdout, done.stderr)
            assert what in done.stderr or not mend
            assert mend in done.stderr
            assert "Traceback" not in done.stderr

    def page(self, project, file) -> None:
        done = project.run("shadow", "report", file, "--html", "report.html")
        assert done.returncode == 0
        assert done.stdout.startswith("v2 decides as v1 in ")
        assert "the report is in report.html" in done.stderr
        assert "carrier=B6" in (project.folder / "report.html").read_text()

    def tail(self, project, file) -> None:
        ask = ("shadow", "tail", file, "--no-follow", "--from", "beginning", "--json", "--where", "rollout=r1")
        found = [json.loads(line) for line in project.run(*ask, "--disagreements").stdout.splitlines()]
        wanted = [one for one in records() if one["agreement"] is False or one["error"]]
        assert {one["prediction_id"] for one in found} == {one["prediction_id"] for one in wanted}
        chosen = project.run(*ask, "--where", "segment.carrier=B6").stdout.splitlines()
        assert {json.loads(line)["segments"]["carrier"] for line in chosen} == {"B6"}
        shown = project.run("shadow", "tail", file, "--no-follow", "--from", "-5").stdout.splitlines()
        assert shown[0].split()[:2] == ["prediction", "compared"]

    def test_a_time_chooses_records_by_their_timestamps(self, stream):
        project, file, name = stream
        self.send(project, name, [decision(i, 0.2, 0.2) for i in range(40)], timestamp=AT)
        self.send(project, name, [decision(i, 0.2, 0.9) for i in range(40, 60)], timestamp=AT + 3_600_000)

        def events(*words):
            return json.loads(project.ok("shadow", "report", file, "--json", *words))["events"]

        assert events("--from", "2025-10-09T09:00:00Z") == 20
        assert events("--until", "2025-10-09T09:00:00Z") == 40
        assert events("--from", "-2") == 8
        assert events() == 60

    def test_nothing_to_tell_says_why_that_may_be(self, stream, project):
        _, file, name = stream
        done = project.run("shadow", "report", file)
        assert done.returncode == 2
        assert "there is no shadow decision" in done.stderr
        assert "rollout shadow" in done.stderr
        self.send(project, name, [b"junk", b"\0\0\0\0\7junk", framed(decision(1, 0.1, 0.2), SCHEMA_ID)[:30]])
        done = project.run("shadow", "report", file)
        assert done.returncode == 2
        assert "none of 3 records can be read" in done.stderr
        assert "UnknownSchemaId" in done.stderr

    def test_no_topic_says_how_to_make_one(self, project):
        shutil.copy(ROOT / "tests" / "topologies" / "reading.avsc", project.folder / "schemas")
        file = renamed(project, ROOT / "tests" / "topologies" / "readings.py", "nowhere")
        for command in ("report", "tail"):
            done = project.run("shadow", command, file)
            assert done.returncode == 6
            assert "topics apply" in done.stderr
