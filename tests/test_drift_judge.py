"""Promise: a window is told with all that a reader and a successor need, against its reference and beside stable."""

from __future__ import annotations

import datetime as dt
import html.parser
import io
import json
import math
from dataclasses import fields, replace
from types import SimpleNamespace

import fastavro
import numpy as np
import pytest
from conftest import ROOT
from rich.console import Console

from streamserve.adapters.schema_ids import PinnedIndex
from streamserve.cli.drift_report import DriftReport, headline, page, sentences, show
from streamserve.drift.alerts import Status
from streamserve.drift.building import category, numeric, status
from streamserve.drift.chunks import Series
from streamserve.drift.history import history, series_in
from streamserve.drift.judge import Beside, Verdict, judge
from streamserve.drift.measures import count
from streamserve.drift.reference import build
from streamserve.drift.windows import Window
from streamserve.errors import DriftError, ModelError
from streamserve.models.manifest import Input, Manifest, Tensor
from streamserve.models.registry import Registry, file_ref
from streamserve.pipeline.drift_window import SCHEMA, encode, states_of, told_of, window_of
from streamserve.pipeline.framing import header
from streamserve.pipeline.pane_chunk import runs
from streamserve.simulate.explain import FramedReader
from streamserve.simulate.tallying import REFERENCE, read_reference
from streamserve.topology import output

HOUR = 3_600_000
READER = FramedReader(PinnedIndex(ROOT / "schemas"))
RNG = np.random.default_rng(3)
TRAINED = RNG.normal(size=10_000).astype(np.float32)
WORDS = np.array(["a", "b<i>", "c"], object)[RNG.integers(0, 3, 10_000)]
STATUSES = np.zeros(10_000, np.uint8)


def reference(version="v1", shift=0.0):
    """Of the same features and a score; shift: of the score, so that its bins are others."""
    measures = [
        numeric("x", TRAINED),
        category("w", WORDS),
        numeric("y", TRAINED.astype(np.float64) + shift, of="score", dtype="float64"),
        status("v", STATUSES),
    ]
    return build(
        measures, model="m", version=version, manifest_sha256="0" * 64, rows=10_000, source="training",
        created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    )  # fmt: skip


PART = Series("v1", "r", "a")
ONE, TWO, OTHER = reference(), reference("v2"), reference("v2", shift=3.0)


def window(of, hour, shift=0.0, rows=2_000, *, complete=True, seed=0):
    rng = np.random.default_rng([hour, seed, of.version == "v2"])
    x = (rng.normal(size=rows) + shift).astype(np.float32)
    given = [x, np.array(["a", "b<i>", "c"], object)[rng.integers(0, 3, rows)], x.astype(np.float64), STATUSES[:rows]]
    counts = np.concatenate([count(m, values) for m, values in zip(of.measures, given, strict=True)])
    return Window(
        start_ms=hour * HOUR, end_ms=(hour + 1) * HOUR, series=Series(of.version, of.fingerprint, None), revision=0,
        rows=rows, counted=rows, counts=counts, digest=f"{hour}", late=0, wild=0, shed=0, sample_bp=(10_000,),
        complete=complete, watermark_ms=(hour + 1) * HOUR, panes_from=hour, panes_to=hour + 9,
    )  # fmt: skip


def walk(of, shifts, **more):
    """Judge windows one after the other, each from what the record of the one before told."""
    records, judged = [], []
    for hour, shift in enumerate(shifts):
        states = states_of(records).get((Series(of.version, of.fingerprint, None), ""), {})
        judged.append(judge(window(of, hour, shift, **more), of, states))
        records.append(told(judged[-1]))
    return judged, records


def told(judged):
    value = encode(judged, topology="t", model="m", worker="w", now_ms=7, schema_id=900_004)
    return told_of(READER.read(value))


def status_of(judged, key="feature:x"):
    return next(one.status for one in judged.measures if one.found.key == key)


def test_a_record_of_an_earlier_release_is_read_by_the_schema_that_it_was_written_with():
    schema = {**SCHEMA, "fields": [one for one in SCHEMA["fields"] if one["name"] not in ("stable", "beside")]}
    judged = judge(window(ONE, 0), ONE, {})
    plain = told(judged)
    body = io.BytesIO()
    given = {**plain, "counts": runs(plain["counts"])}
    fastavro.schemaless_writer(body, fastavro.parse_schema(json.loads(json.dumps(schema))), given)
    writers = SimpleNamespace(writer_schema=lambda number: json.dumps(schema) if number == 77 else None)
    earlier = told_of(FramedReader(writers).read(header(77) + body.getvalue()))
    assert (earlier["stable"], earlier["beside"]) == ("", [])
    assert window_of(earlier).digest == judged.window.digest


def test_an_alert_begins_and_ends_once_and_survives_whoever_tells_it():
    judged, _ = walk(ONE, [0, 0.3, 0.3, 0.3, 0, 0, 0, 0])
    wanted = [Status.OK, Status.WARN, Status.ALERT, Status.ALERT, *[Status.ALERT] * 2, Status.OK, Status.OK]
    assert [status_of(one) for one in judged] == wanted
    changes = [(hour, c.measured.found.key, c.alert) for hour, one in enumerate(judged) for c in one.changes]
    assert [c for c in changes if c[1] == "feature:x"] == [(2, "feature:x", True), (6, "feature:x", False)]
    assert [one.verdict for one in judged][:3] == [Verdict.OK, Verdict.WARN, Verdict.ALERT]


def test_an_incomplete_window_may_raise_an_alert_and_ends_none():
    judged, _ = walk(ONE, [0.3, 0.3, 0, 0, 0, 0], complete=False)
    assert status_of(judged[-1]) is Status.ALERT


def test_a_window_without_its_reference_is_not_compared():
    assert judge(window(ONE, 0), None, {}).verdict is Verdict.NO_REFERENCE
    assert judge(window(ONE, 0), TWO, {}).measures == ()


def test_few_events_say_nothing():
    assert judge(window(ONE, 0, 5.0, rows=60), ONE, {}).verdict is Verdict.INSUFFICIENT


def test_a_candidate_is_held_against_the_events_that_stable_answered_in_the_same_window():
    # the world has moved, for both alike: beside stable the candidate sees nothing else
    stable, moved = window(ONE, 0, 1.0), window(TWO, 0, 1.0)
    found = judge(moved, TWO, {}, Beside(stable, ONE))
    assert status_of(found) is Status.WARN
    assert found.stable == "v1"
    assert {one.found.key: one.status for one in found.beside} == {
        "feature:x": Status.OK, "feature:w": Status.OK, "score:y": Status.OK,
    }  # fmt: skip
    other = judge(window(TWO, 0, 1.4), TWO, {}, Beside(stable, ONE))
    assert {one.found.key: one.status for one in other.beside}["feature:x"] is Status.WARN
    states = states_of([told(other)])[other.window.series, "v1"]
    again = judge(window(TWO, 1, 1.4), TWO, {}, Beside(window(ONE, 1, 1.0), ONE), states)
    assert ("feature:x", True) in [(c.measured.found.key, c.alert) for c in again.changes if c.measured in again.beside]


def test_what_two_versions_count_in_other_bins_is_not_compared():
    found = judge(window(OTHER, 0), OTHER, {}, Beside(window(ONE, 0), ONE))
    assert [one.found.key for one in found.beside] == ["feature:x", "feature:w"]


def test_a_record_holds_the_window_and_what_it_was_found_to_be():
    judged = judge(window(ONE, 3, 0.3), ONE, {})
    record = told(judged)
    same, given = window_of(record), judged.window
    assert np.array_equal(same.counts, given.counts)
    for name in (one.name for one in fields(given) if one.name != "counts"):
        assert getattr(same, name) == getattr(given, name), name
    x = next(one for one in record["measures"] if one["measure"] == "feature:x")
    found = judged.measures[0].found
    assert (x["psi"], x["p"], x["distance"]) == (found.psi, found.p, found.distance)
    assert x["limit"] == pytest.approx(found.limit * (1 / 2_000 + 1 / 10_000))
    assert x["psi"] > x["limit"] > x["noise"] > 0
    empty = told(judge(replace(given, rows=0, counted=0, counts=np.zeros_like(given.counts)), ONE, {}))
    assert {one["psi"] for one in empty["measures"]} == {None}
    assert empty["status"] == "INSUFFICIENT"


# ---- the report


def report(shifts=(0, 0.3, 0.3, 0.3), **more):
    _, records = walk(ONE, shifts, **more)
    (series,) = series_in(records)
    return DriftReport("t", "m", history(records, series), ONE)


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.names = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)


def test_a_segment_is_held_against_its_own_part_of_the_reference():
    measures = [one.with_counts(n // 2 for n in one.counts) for one in ONE.measures]
    known = build(
        ONE.measures, model="m", version="v1", manifest_sha256="0" * 64, rows=10_000, source="training",
        created=ONE.created, segment="site", segments={"a": measures},
    )  # fmt: skip
    found = {}
    for segment, shift in ((None, 0.0), ("a", 0.5), ("b", 0.5)):
        records = []
        for hour in range(2):
            one = window(known, hour, shift)
            one = replace(one, series=replace(one.series, segment=segment))
            records.append(told(judge(one, known, states_of(records).get((one.series, ""), {}))))
        found[segment] = records
    assert [found[segment][1]["status"] for segment in (None, "a", "b")] == ["OK", "ALERT", "NO_REFERENCE"]
    records = [*found[None], *found["a"]]
    whole, part = (history(records, Series("v1", known.fingerprint, one)) for one in (None, "a"))
    report = DriftReport("t", "m", whole, known, (part,))
    assert any(text.startswith("a: 2 of 4 measures have drifted") for text, look in sentences(report) if look)
    assert report.plain()["segments"] == {"a": {"alerts": list(part.alerts)}}
    assert headline(DriftReport("t", "m", part, known)).startswith("m v1, a: 2 of 4 measures have drifted")
    assert "<svg" in page(DriftReport("t", "m", part, known))


def test_the_report_tells_what_moved_since_when_and_how_far():
    made = report()
    assert headline(made) == "m v1: 2 of 4 measures have drifted, x most"
    console = Console(width=150, record=True, file=None, force_terminal=False)
    with console.capture() as text:
        show(console, made, everything=False)
    said = text.get()
    assert "measures as the reference: 2 (--all shows them)" in said
    assert "ALERT" in said
    plain = json.loads(json.dumps(made.plain(), allow_nan=False))
    assert plain["alerts"][0] == {"measure": "feature:x", "since": 2 * HOUR}
    assert [len(one["measures"]) for one in plain["windows"]] == [4] * 4
    assert headline(report((0, 0))) == "m v1: no drift in 2 windows up to 1970-01-01 02:00"


def test_a_report_on_too_few_events_says_no_more_than_that():
    made = report((0, 0, 0), rows=20)
    assert headline(made) == "m v1: too few events in each of 3 windows to tell of drift"
    whole = DriftReport("t", "m", report((0, 0)).history, ONE, (replace(made.history, series=PART),))
    assert ("too few events in windows of a", False) in sentences(whole)
    with (console := Console(width=150, force_terminal=False)).capture() as text:
        show(console, made, everything=False)
    assert "measures with too few events to tell: 4" in text.get()


def test_what_was_late_is_told_once_and_added_up():
    _, records = walk(ONE, (0, 0))
    late = [{**records[0], "late": 7}, records[1], {**records[0], "revision": 1, "late": 2, "wild": 1}]
    (series,) = series_in(late)
    assert [(one["revision"], one["late"], one["wild"]) for one in history(late, series).windows] == [
        (1, 9, 1),
        (0, 0, 0),
    ]


def test_the_page_needs_nothing_and_escapes_what_came_with_events():
    text = page(report())
    tags = Tags(text)
    assert "script" not in tags.names
    assert not {"link", "img", "i", "iframe"} & set(tags.names)
    assert "b&lt;i&gt;" in text
    assert tags.names.count("svg") == 1 + 4  # the heat map, and each measure
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_of_several_records_of_a_window_the_last_revision_counts():
    _, records = walk(ONE, [0, 0])
    mended = {**records[0], "revision": 1, "rows": 2_001}
    (series,) = series_in([*records, mended])
    assert [one["rows"] for one in history([*records, mended], series).windows] == [2_001, 2_000]
    assert [one["rows"] for one in history([mended, *records], series, last=1).windows] == [2_000]


def test_a_report_without_a_reference_or_a_comparison_still_tells_the_windows():
    records = [told(judge(window(ONE, hour), None, {})) for hour in range(2)]
    (series,) = series_in(records)
    made = DriftReport("t", "m", history(records, series), None)
    assert headline(made) == "m v1 has no drift reference: its windows are not compared"
    assert "<h1>" in page(made)
    assert not any(math.isnan(one["rows"]) for one in made.plain()["windows"])


# ---- where references lie


def version(registry):
    model = b"a model"
    manifest = Manifest(
        model="m", version="v1", created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), release="t",
        file=file_ref("model.onnx", model),
        inputs=(Input(name="in", dtype="float32", shape=(None, 1), features=("x",)),),
        outputs=(Tensor(name="y", dtype="float32", shape=(None, 1)),), scores={"y": output("y")}, decision=None,
        features={},
    )  # fmt: skip
    registry.add(manifest, {"model.onnx": model})
    return registry.manifest_sha256("m", "v1")


def test_a_reference_lies_beside_its_version_and_is_of_it_alone(tmp_path):
    registry = Registry(tmp_path)
    sha = version(registry)
    assert read_reference(registry, "m", "v1") is None
    mine = ONE.model_copy(update={"manifest_sha256": sha})
    path = registry.attach("m", "v1", REFERENCE, mine.to_bytes())
    before = registry.attached_stamp("m", "v1", REFERENCE)
    found = read_reference(registry, "m", "v1")
    assert found.fingerprint == mine.fingerprint
    registry.attach("m", "v1", REFERENCE, ONE.to_bytes())  # of another manifest
    assert registry.attached_stamp("m", "v1", REFERENCE) != before
    with pytest.raises(DriftError, match="manifest"):
        read_reference(registry, "m", "v1")
    path.write_bytes(mine.to_bytes()[:-40])
    with pytest.raises(DriftError):
        read_reference(registry, "m", "v1")
    assert registry.versions("m") == ["v1"]


def test_nothing_is_attached_in_place_of_a_file_of_the_version(tmp_path):
    registry = Registry(tmp_path)
    version(registry)
    for name in ("manifest.json", "model.onnx"):
        with pytest.raises(ModelError, match="a file of the version itself"):
            registry.attach("m", "v1", name, b"")
