"""Promise: shadow picks its events by their place alone, tells of each what both versions said, and changes none."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shadow_support import LATER, answered, beside, compared, decisions, shadow, stub, under
from test_pipeline import (
    NOW,
    ONE,
    OTHER,
    ROWS,
    THREE,
    VIEW,
    by_row,
    event,
    pipeline,
    raw,
    read,
    version,
)

from streamserve.pipeline.shadow import Shadowed, sheets
from streamserve.pipeline.shadow_compare import compare
from streamserve.pipeline.shadow_decision import PINNED_ID
from streamserve.records import ControlView, Cutover, Reason, RoutingEpoch, Variant
from streamserve.rollouts.shadow import sampled
from streamserve.simulate.offline import MemoryStore
from streamserve.testing import StubModel

pure = settings(deadline=None, derandomize=True, max_examples=100)
LAST = 2**63 - 1


# ---- which events


def draw(partition, offsets, share_bp):
    offsets = np.asarray(offsets, np.int64)
    return sampled(np.full(len(offsets), partition, np.int32), offsets, share_bp)


@pure
@given(
    st.integers(0, 2**31 - 1),
    st.lists(st.integers(0, LAST), max_size=50),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
)
def test_of_a_larger_share_the_smaller_is_a_part(partition, offsets, one, other):
    less, more = (draw(partition, offsets, share) for share in sorted((one, other)))
    assert not (less & ~more).any()
    assert draw(partition, offsets, 10_000).all()
    assert not draw(partition, offsets, 0).any()
    assert draw(partition, offsets[::-1], one)[::-1].tolist() == draw(partition, offsets, one).tolist()


# Offsets that a stream may well have: of one batch, of every second transaction, of one key in a thousand, far ones
STRIDES = {
    "each": 1,
    "after markers": 2,
    "hashed": 1000,
    "pages": 4096,
    "shares": 10_000,
    "halves": 2**32,
    "high": 2**40,
}


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("share", [100, 3000, 5000, 9900])
def test_a_share_is_near_its_size_whatever_the_offsets_look_like(stride, share):
    count = 20_000
    for partition in (0, 1, 7, 2**31 - 1):
        found = draw(partition, (np.arange(count) * STRIDES[stride]) & LAST, share).mean()
        p = share / 10_000
        assert abs(found - p) < 5 * math.sqrt(p * (1 - p) / count), (partition, found)


def test_partitions_are_drawn_apart():
    """Else the n-th events of all partitions would be in or out together."""
    drawn = np.stack([draw(partition, np.arange(20_000), 5000) for partition in range(8)])
    apart = np.corrcoef(drawn)
    assert np.abs(apart - np.eye(8)).max() < 0.05


def bucket(partition: int, offset: int) -> int:
    """By SplitMix64 as Stafford has it, written out a second time: no release may draw other events."""
    mask = 2**64 - 1
    mixed = ((offset ^ (partition << 44)) + 0x9E3779B97F4A7C15) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & mask
    return (mixed ^ (mixed >> 31)) % 10_000


@pure
@given(st.integers(0, 2**20 - 1), st.integers(0, LAST))
def test_the_events_of_a_share_are_the_same_in_every_release(partition, offset):
    place = bucket(partition, offset)
    assert [bool(draw(partition, [offset], share)[0]) for share in (place, place + 1)] == [False, True]


def places(batch) -> set[str]:
    """The ids of the events that are shadowed."""
    if batch is None:
        return set()
    ids = batch.columns.events.columns.column("id").to_pylist()
    found = [ids[row] for _, said, _ in batch.answers for row in said.rows.tolist()]
    assert len(found) == len(set(found)) == len(batch)
    return set(found)


def test_a_batch_gives_what_its_events_would_give_alone():
    values = [event(i) for i in range(12)]
    partitions = [i % 3 for i in range(12)]
    whole = places(answered(values, shadow(4000), partitions=partitions))
    assert 0 < len(whole) < 12
    where = {f"e{i}": (i % 3, i // 3) for i in range(12)}
    assert whole == {name for name, (p, o) in where.items() if draw(p, [o], 4000)[0]}


def test_a_segment_is_asked_for_as_rules_do():
    values = [event(i, b="k" if i % 2 else None, n=i % 5) for i in range(12)]
    for where, wanted in {
        (("b", ("k",)),): {1, 3, 5, 7, 9, 11},
        (("n", (1, 2)), ("b", ("k", "z"))): {1, 7, 11},
        (("n", ("1",)),): set(),
        (("not there", (1,)),): set(),
        (): set(range(12)),
    }.items():
        assert places(answered(values, shadow(where=where))) == {f"e{i}" for i in wanted}


def test_what_stable_refused_is_not_shadowed():
    assert places(answered([event(12), event(13), b"{", None, event(15)], shadow())) == {"e12", "e15"}
    assert answered([event(13), b"{"], shadow()) is None
    assert answered([], shadow()) is None


EPOCH = RoutingEpoch(3, "v1", "v9", 5000, "salt", "r1")
WELL = stub(StubModel({"in": 3}, {"y": 1}, lambda x: x.sum(axis=1)))


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_candidate_was_to_answer_is_not_shadowed(fails):
    """Neither what it answered, nor what stable answered in its place: that says nothing new of it."""
    ill = stub(StubModel({"in": 3}, {"y": 1}, lambda x: x / (not fails)))
    made = pipeline({"v1": ONE, "v9": ill if fails else WELL})
    if fails:
        made._versions.trial = lambda name: None
    result = made.run(raw([event(i % 10) for i in range(60)]), under(shadow(), EPOCH))
    assigned = result.assignment
    own = (assigned.variant == Variant.STABLE) & (assigned.reason != Reason.FALLBACK)
    assert 0 < own.sum() < 60
    assert (assigned.reason == Reason.FALLBACK).any() == fails
    ((_, said, _),) = result.shadowed.answers
    assert said.rows.tolist() == np.flatnonzero(own).tolist()


def test_a_version_is_no_shadow_of_itself():
    assert answered([event(1)], shadow(candidate="v1")) is None


# ---- stable is as it was


@pure
@given(
    st.lists(st.integers(0, 20).map(event) | st.sampled_from([None, b"{", b'{"id": 5}']), max_size=20),
    st.integers(0, 10_000),
    st.booleans(),
    st.booleans(),
)
def test_every_byte_that_stable_sends_is_the_same_with_a_shadow_and_without(values, share, canary, segment):
    epochs = (EPOCH,) if canary else (RoutingEpoch(3, "v1"),)
    made = pipeline({"v1": ONE, "v9": WELL})
    batch = raw(values, [i % 2 for i in range(len(values))])
    wanted = shadow(share, where=(("n", (1, 2, 3)),) if segment else None, segments=("n", "b"))
    without, with_it = (made.process(batch, under(one, *epochs), NOW) for one in (None, wanted))
    assert by_row(with_it) == by_row(without)
    assert (with_it.covers, with_it.events, with_it.rejects) == (without.covers, without.events, without.rejects)
    assert without.shadowed is None
    if with_it.shadowed is not None:
        fed = [{k: v.tobytes() for k, v in matrix.inputs.items()} for matrix, _, _ in with_it.shadowed.answers]
        compared(with_it.shadowed, WELL)
        compared(with_it.shadowed, THREE, MemoryStore(ROWS))
        assert fed == [{k: v.tobytes() for k, v in m.inputs.items()} for m, _, _ in with_it.shadowed.answers]
        assert by_row(made.process(batch, under(None, *epochs), NOW)) == by_row(without)


# ---- what a candidate is fed


class Counting(MemoryStore):
    """Also remembers every key, be it there or not."""

    def __init__(self, rows):
        super().__init__(rows)
        self.keys = Counter()

    def fetch(self, keys):
        self.keys.update(key.split(b":")[1].decode() for key in keys)
        return super().fetch(keys)


def fed(session, candidate, values, store):
    """What a model is fed of these events as a shadow."""
    seen = []
    watched = StubModel({"in": session.inputs[0].shape[1]}, {"y": 1}, lambda x: seen.append(x.copy()) or x[:, 0])
    made = pipeline()
    own = made._store = Counting(ROWS)
    batch = made.process(raw(values), under(shadow()), NOW).shadowed
    before = Counter(own.keys)
    compared(batch, candidate(watched), store)
    assert own.keys == before, "stable's store was asked for more"
    return np.concatenate(seen)


@pytest.mark.parametrize(
    ("features", "views", "asked"),
    [
        (("x", "d", "v.p"), (VIEW,), set()),
        (("n", "x"), (), set()),
        (("v.q", "d"), (VIEW,), set()),
        (("w.r", "x"), (OTHER,), {"w"}),
        (("w.r", "v.q", "v.p", "n"), (VIEW, OTHER), {"w"}),
    ],
)
def test_it_is_fed_as_if_it_were_stable_and_only_what_is_missing_is_asked_of_another_store(features, views, asked):
    values = [event(i) for i in range(12)]
    session, store = StubModel({"in": len(features)}, {"y": 1}, lambda x: x[:, 0]), Counting(ROWS)
    seen = fed(session, lambda model: version("v9", features, model, views=views), values, store)
    alone = pipeline({"v1": version("v1", features, session, views=views)}).run(raw(values), under(None))
    assert seen.tobytes() == alone.matrices[0].inputs["in"].tobytes()
    assert set(store.keys) == asked


def test_a_view_that_it_pins_otherwise_is_read_its_way():
    """The rows are stable's, fetched once; how fresh they must be, and what stands in for them, is its own."""
    strict = VIEW.model_copy(update={"max_age": dt.timedelta(0), "default": (-7.0, -8.0), "future": "default"})
    store = Counting(ROWS)
    session = StubModel({"in": 2}, {"y": 1}, lambda x: x[:, 0])
    values = [event(i) for i in range(5)]
    seen = fed(session, lambda model: version("v9", ("v.p", "v.q"), model, views=(strict,)), values, store)
    assert seen.tolist() == [[-7, -8]] * 5
    assert not store.keys


@pytest.mark.parametrize("candidate", [WELL, THREE])
def test_a_batch_of_several_stable_versions_is_told_by_each(candidate):
    """Be the candidate fed by itself, or with what one of them was fed."""
    epochs, cuts = (RoutingEpoch(3, "v1"), RoutingEpoch(8, "v3")), {("events", 0): (Cutover(8, 4),)}
    view = ControlView("t", epochs, cuts, shadow=shadow(6000))
    batch = pipeline().process(raw([event(i) for i in range(10)]), view, NOW).shadowed
    found = compared(batch, candidate, MemoryStore(ROWS))
    chosen = [i for i in range(10) if bucket(0, i) < 6000]
    assert 0 < sum(i < 4 for i in chosen) < 4
    assert 0 < sum(i >= 4 for i in chosen) < 6
    assert [one["event_id"] for one in found] == [f"e{i}" for i in chosen]
    law = [("v1", 3) if i < 4 else ("v3", 8) for i in chosen]
    assert [(one["stable_version"], one["control_epoch"]) for one in found] == law
    said = [{"y": 5.0 * i if candidate is WELL else 9.0 + i} for i in chosen]
    assert [one["candidate_scores"] for one in found] == said


@pytest.mark.parametrize("candidate", [WELL, THREE])
def test_batches_are_told_together_as_far_as_they_have_all_in_common(candidate):
    def left(first: int, stable: str, **more) -> Shadowed:
        values = [event(i) for i in range(first, first + 5)]
        return pipeline().process(raw(values), under(shadow(**more), RoutingEpoch(3, stable)), NOW).shadowed

    batches = [left(0, "v1"), left(5, "v1"), left(10, "v3"), left(15, "v1", share_bp=5000), left(20, "v1"),
               left(25, "v1", segments=("x",)), left(30, "v1", rollout="r2")]  # fmt: skip
    asked = [(batch, beside(batch, candidate.plan, MemoryStore(ROWS))) for batch in batches]
    together = sheets(asked, candidate.plan)
    assert [len(sheet) for sheet in together] == [10, 5, 5 + len(batches[3]), 5, 5]
    found = [one for sheet in together
             for one in decisions(compare(sheet.table, candidate.scorer, PINNED_ID, LATER), sheet)]  # fmt: skip
    assert found == [one for batch in batches for one in compared(batch, candidate, MemoryStore(ROWS))]
    keys = [key for sheet in together for key in sheet.keys.to_pylist()]
    places = [int(one["event_id"][1:]) % 5 for one in found]
    assert keys == [None if place % 3 == 2 else f"key{place}".encode() for place in places]


@pure
@given(
    st.lists(st.integers(0, 20).map(event) | st.just(b"{"), min_size=1, max_size=12),
    st.sampled_from(["v1", "v2", "v3"]),
    st.lists(st.sampled_from([-1, 0, NOW, 2**52]), min_size=12, max_size=12),
)
def test_what_it_says_of_stable_is_what_stables_prediction_says(values, stable, stamps):
    made = pipeline().process(raw(values, stamps=stamps[: len(values)]), under(shadow(), RoutingEpoch(3, stable)), NOW)
    said = [read(value) for value in made.outgoing[0].values.to_pylist()]
    found = [] if made.shadowed is None else compared(made.shadowed, WELL)
    both = ("prediction_id", "topology", "event_id", "event_time", "source_timestamp", "model", "control_epoch")
    assert [[one[name] for name in both] for one in found] == [[one[name] for name in both] for one in said]
    assert [one["stable_scores"] for one in found] == [one["scores"] for one in said]
    assert [one["stable_decision"] for one in found] == [one["decision"] for one in said]
    assert {one["stable_version"] for one in found} <= {stable}
