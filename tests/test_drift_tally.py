"""Promise: what is counted is what the model was fed and said; what has no value, or a default, is told apart."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline import CATALOGUE, ONE, OTHER, ROWS, STATIC, TOPOLOGY, TWO, VIEW, event, pipeline, raw, version

from streamserve.adapters.schema_ids import PinnedIndex
from streamserve.drift import binning, calibration
from streamserve.drift.chunks import Cell, Chunk, refusal
from streamserve.drift.reference import Reference, build
from streamserve.drift.tallies import BatchTallies, Tallies
from streamserve.errors import TopologyError
from streamserve.features.catalogue import Catalogue
from streamserve.pipeline.enrich import build_matrix, open_columns
from streamserve.pipeline.gather import Gathered
from streamserve.pipeline.pane_chunk import PINNED_ID, chunk_of, encode
from streamserve.pipeline.tally import SALT, Panes, Tally
from streamserve.rollouts.buckets import buckets
from streamserve.simulate.explain import FramedReader
from streamserve.simulate.offline import MemoryStore
from streamserve.testing import StubModel
from streamserve.topology import Drift

READER = FramedReader(PinnedIndex(ROOT / "schemas"))
pure = settings(deadline=None, derandomize=True, max_examples=40)
NUMBERS = st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, 1.0, 2.0])
EVENTS = st.lists(st.tuples(NUMBERS, st.sampled_from(["old", "new", "late", "none", None])), min_size=1, max_size=60)
WIDE = version(
    "v1", ("x", "d", "v.p", "v.q", "w.r"), StubModel({"in": 5}, {"y": 1}, lambda x: np.nan_to_num(x[:, 0])),
    views=(VIEW, OTHER),
)  # fmt: skip


def values(told):
    return [event(n, x=x, a=a, at=1050 + n) for n, (x, a) in enumerate(told)]


def through(batch, loaded=WIDE):
    """The columns, matrix and scores of a batch."""
    events = pipeline()._decoder.decode(batch)
    columns = open_columns(CATALOGUE, events, [loaded.plan], MemoryStore(ROWS))
    matrix = build_matrix("v1", loaded.plan, columns, np.arange(len(events)))
    return columns, matrix, loaded.scorer.score(matrix, events.rows)


def gathered(batches, loaded=WIDE, segment=None):
    found = Gathered(loaded.plan, CATALOGUE, loaded.scorer.names, loaded.scorer.labels, segment)
    for batch in batches:
        found.add(*through(batch, loaded))
    return found


def reference(measures, **more):
    return build(
        measures, model="m", version="v1", manifest_sha256="0" * 64, rows=measures[0].rows, source="a test",
        created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def known():
    """A reference of ordinary events."""
    rng = np.random.default_rng(1)
    told = [(float(x), ("old", "new", "late", "none", None)[n % 5]) for n, x in enumerate(rng.normal(size=2_000))]
    return reference(gathered([raw(values(told))]).measures())


def tally(known, share_bp=10_000, pane_ms=1_000, loaded=WIDE, segment=None):
    panes = Panes(pane_ms, share_bp, segment)
    return Tally("v1", known, loaded.plan, CATALOGUE, loaded.scorer.names, loaded.scorer.labels, panes)


def counts(known, total):
    parts = np.split(total, known.offsets[1:-1])
    each = zip(known.measures, parts, strict=True)
    return {one.key: dict(zip(one.bins, part.tolist(), strict=True)) for one, part in each}


@pytest.mark.parametrize("compiled", [True, False])
def test_a_reference_and_a_tally_of_the_same_events_have_the_same_counts(known, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(binning, "library", lambda: None)

    @pure
    @given(EVENTS, st.integers(1, 20))
    def check(told, cut):
        made = values(told)
        whole, one = gathered([raw(made)]), tally(known)
        total = np.zeros(known.offsets[-1], np.int64)
        for at in range(0, len(made), cut):
            total += one.count(*through(raw(made[at : at + cut]))).counts.sum(0)
        for measure, part in zip(known.measures, np.split(total, known.offsets[1:-1]), strict=True):
            again = next(each for each in whole.measures() if each.key == measure.key)
            special = measure.first_value if measure.kind != "status" else len(measure.bins)
            assert part[:special].tolist() == list(again.counts[:special]), measure.key
            assert part.sum() == again.rows, measure.key

    check()


def test_no_value_a_default_and_a_value_are_told_apart(known):
    told = [(1.0, "new"), (None, "new"), (2.0, "none"), (3.0, "late"), (4.0, "old"), (5.0, None)]
    found = tally(known).count(*through(raw([event(n, x=x, a=a, at=1050) for n, (x, a) in enumerate(told)])))
    (group,) = found.counts
    seen = counts(known, group)
    assert seen["feature:x"]["missing"] == 1
    assert seen["feature:d"]["nan"] == 1  # what is derived of nothing is no number
    statuses = {name: n for name, n in seen["view:v"].items() if n}
    assert statuses == {"PRESENT": 1 + 1, "STALE": 1, "FUTURE": 1, "MISSING": 2}
    # of v, a stale row gives way to the default; one of the future is used
    assert seen["feature:v.p"]["default"] == 3
    assert seen["feature:w.r"]["default"] == 0
    assert sum(seen["score:y"].values()) == len(told)
    assert {name: n for name, n in seen["decision:decision"].items() if n} == {"low": 4, "high": 2}
    assert (found.groups.rows.tolist(), found.counted.tolist(), found.groups.latest.tolist()) == ([6], [6], [1050])


def test_events_are_told_apart_by_partition_and_pane(known):
    made = [event(n, x=float(n), at=at) for n, at in enumerate([5, 999, 1000, 2500, 2600])]
    found = tally(known).count(*through(raw(made, partitions=[0, 1, 1, 0, 0])))
    told = list(
        zip(found.groups.partition.tolist(), found.groups.pane.tolist(), found.groups.rows.tolist(), strict=True)
    )
    assert sorted(told) == [(0, 0, 1), (0, 2000, 2), (1, 0, 1), (1, 1000, 1)]
    assert found.counts.sum(1).tolist() == [n * len(known.measures) for n in found.groups.rows.tolist()]


@pytest.mark.parametrize("field", ["a", "n"])  # a text; whole numbers
def test_a_segment_counts_what_its_events_alone_would(field, monkeypatch):
    monkeypatch.setattr(calibration, "DRAWS", (50, 50))
    rng = np.random.default_rng(2)
    made = [
        event(n, x=float(x), a=("old", "new", None)[n % 3], n=n % 3 or None) for n, x in enumerate(rng.normal(size=900))
    ]
    whole = gathered([raw(made[:500]), raw(made[500:])], segment=field)
    measures = whole.measures()
    segments = whole.segments(measures, 300, 8)
    assert list(segments) == {"a": ["new", "old"], "n": ["1", "2"]}[field]
    assert whole.segments(measures, 301, 8) == {}
    assert list(whole.segments(measures, 300, 1)) == list(segments)[:1]
    known = reference(measures, segment=field, segments=segments)
    assert Reference.from_bytes(known.to_bytes()) == known
    assert known.values == tuple(segments)
    batch = raw(made[:240], partitions=[n % 2 for n in range(240)])
    found = tally(known, pane_ms=10_000, segment=field).count(*through(batch))
    of = {None: range(240), **{value: [] for value in segments}}
    for n in range(240):
        value = str(json.loads(made[n])[field])
        if value in segments:
            of[value].append(n)
    for at in range(len(found.groups)):
        mine = [n for n in of[found.segments[found.groups.segment[at]]] if n % 2 == found.groups.partition[at]]
        alone = tally(known, pane_ms=10_000).count(*through(raw([made[n] for n in mine])))
        assert found.counts[at].tolist() == alone.counts[0].tolist()
        assert found.groups.rows[at] == len(mine)
    assert len(found.groups) == 2 * len(of)
    for value, alone in segments.items():
        assert [one.counts for one in known.of(value)[0]] == [one.counts for one in alone]
        assert known.of(value)[0][0].rows == 300


@pytest.mark.parametrize("field", ["gone", "x"])
def test_a_field_that_no_event_has_or_none_of_the_values_tells_nobody_apart(known, field):
    told = reference(known.measures, segment=field, segments={"never": known.measures})
    found = tally(told, segment=field).count(*through(raw([event(n, at=1050) for n in range(20)])))
    assert (len(found.groups), found.groups.rows.tolist()) == (1, [20])


def test_a_segment_field_that_nothing_is_read_from_is_refused():
    """Read for drift alone, it would make dead letters of events that do not fit there."""
    for segment, fits in (("a", True), ("n", True), ("q", False)):
        topology = TOPOLOGY.model_copy(update={"drift": Drift(segment=segment)})
        with nullcontext() if fits else pytest.raises(TopologyError, match="no feature or key is read from"):
            Catalogue(topology)


def test_a_reference_by_another_field_than_the_topology_asks_for_counts_the_whole(known):
    told = reference(known.measures, segment="a", segments={"new": known.measures})
    for field in (None, "b"):
        found = tally(told, segment=field).count(*through(raw([event(n, at=1050) for n in range(20)])))
        assert (found.segments, len(found.groups)) == ((None,), 1) if field is None else len(found.groups) == 1


def test_a_time_at_the_end_of_time_spoils_no_chunk(known):
    times = [-(2**63), 2**63 - 1, 1_050, 1_060]
    found = tally(known, pane_ms=7 * 86_400_000).count(*through(raw([event(n, at=at) for n, at in enumerate(times)])))
    sums = Tallies(100)
    sums.add("t", {0}, BatchTallies((found,)))
    cells = tuple(
        Cell("v1", known.fingerprint, None, pane, one.rows, one.counted, one.latest, one.counts)
        for (_, pane), one in sums.of(("t", 0))[0].items()
    )
    chunk = Chunk("t", 0, 0, 4, 1, False, 0, 10_000, cells)
    assert refusal(chunk) == ""
    assert sorted(cell.rows for cell in cells) == [1, 1, 2]
    assert repr(chunk_of(READER.read(encode(chunk, "t", "w", PINNED_ID)))) == repr(chunk)


def test_a_share_is_of_keys_and_says_so(known):
    made = [event(n, x=float(n), at=1050) for n in range(600)]
    batch = raw(made)
    found = tally(known, share_bp=2_500).count(*through(batch))
    inside = int((buckets(batch.keys, SALT) < 2_500).sum())
    assert 0 < inside < 600
    assert (found.groups.rows.tolist(), found.counted.tolist()) == ([600], [inside])
    assert found.counts.sum() == inside * len(known.measures)


def test_a_version_without_a_reference_is_told_apart_and_not_counted():
    found = Tally("v1", None, WIDE.plan, CATALOGUE, WIDE.scorer.names, WIDE.scorer.labels, Panes(1_000)).count(
        *through(raw([event(n, at=1050) for n in range(4)]))
    )
    assert (found.reference, found.groups.rows.tolist(), found.counted.tolist(), found.counts.shape) == (
        "",
        [4],
        [0],
        (1, 0),
    )


class Tallying:
    def __init__(self, **tallies):
        self.tallies, self.failures = tallies, Counter()

    def of(self, version):
        return self.tallies.get(version)

    def failed(self, version, error):
        self.failures[version, type(error).__name__] += 1


class Broken:
    def count(self, *_):
        raise ZeroDivisionError("in the midst of it")


@pytest.mark.parametrize(("tallies", "failures"), [({"v1": Broken()}, 1), ({}, 0)])
def test_what_can_not_be_counted_is_predicted_all_the_same_and_told(tallies, failures):
    plain, counting = pipeline({"v1": ONE}), pipeline({"v1": ONE})
    counting._tallying = Tallying(**tallies)
    batch = raw([event(n) for n in (1, 2, 3)], partitions=[0, 1, 1])
    one, other = plain.process(batch, STATIC, 5), counting.process(batch, STATIC, 5)
    assert [out.values.to_pylist() for out in one.outgoing] == [out.values.to_pylist() for out in other.outgoing]
    assert (one.tallied, other.tallied) == (None, BatchTallies((), {0: 1, 1: 2}))
    assert counting._tallying.failures.total() == failures


def test_the_version_that_answered_is_the_one_that_is_counted(known):
    both = pipeline({"v1": WIDE, "v2": TWO})
    both._tallying = Tallying(v1=tally(known))
    told = both.process(raw([event(n) for n in range(9)]), STATIC, 5).tallied
    assert [one.version for one in told.of] == ["v1"]
    assert not told.shed
