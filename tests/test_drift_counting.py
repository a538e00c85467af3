"""Promise: every event that answered is counted once, in its bin, partition and pane, whichever code does it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamserve.adapters.pane_chunks import CONFIRM_S, MOST_CPU, PaneChunks
from streamserve.adapters.schema_ids import PinnedIndex
from streamserve.delivery.ledger import Boundary
from streamserve.drift import binning, tallies
from streamserve.drift.binning import Block, Watched
from streamserve.drift.chunks import Cell, Chunk
from streamserve.drift.measures import DEFAULT, DEFAULT_BIN, MISSING, NAN_BIN, UNSEEN_BIN, Measure, bins_of
from streamserve.drift.tallies import BatchTallies, Groups, Tallied, Tallies, group, with_whole
from streamserve.pipeline.pane_chunk import PINNED_ID, chunk_of, encode, runs, spread
from streamserve.simulate.explain import FramedReader

READER = FramedReader(PinnedIndex(ROOT / "schemas"))
pure = settings(deadline=None, derandomize=True, max_examples=200)
EDGES = [-1.0, 0.0, 0.5, 2.0]
MISSING_BIN = 0
CODES = np.array([MISSING_BIN, UNSEEN_BIN, 3, 5, 4])
WORDS = Measure(kind="category", name="w", of="feature", values=("a", "b"), counts=(0,) * 6)
CHOICE = Measure(kind="decision", name="decision", of="decision", values=("a", "b", "c", "d"), counts=(0,) * 6)
ANY = st.floats(width=32) | st.sampled_from([*EDGES, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1.0000001])
CODE = st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, -1.0, 2.5, np.nan, np.inf, 1e30, -0.25])


def numbers(dtype="float32", edges=EDGES):
    edges = tuple(map(float, edges))
    return Measure(kind="numeric", name="x", of="feature", edges=edges, dtype=dtype, counts=(0,) * (len(edges) + 4))


def in_both(watched, values, groups, count, width, specials=None):
    """Counts by the compiled part and by numpy."""
    found = []
    for compiled in (True, False):
        block = Block(watched, values.dtype)
        assert (block._lib is not None) == (binning.library() is not None)
        if not compiled:
            block._lib = None
        counts = np.zeros((count, width), np.int32)
        block.count(values, groups, counts, specials)
        found.append(counts)
    return found


def test_the_compiled_part_is_there():
    assert binning.library() is not None  # else what follows compares numpy with itself


@pure
@given(st.data(), st.sampled_from([np.float32, np.float64]), st.integers(0, 40))
def test_numbers_are_placed_alike_by_both(data, dtype, rows):
    values = np.array(data.draw(st.lists(st.tuples(ANY, ANY, ANY), min_size=rows, max_size=rows)), dtype)
    values = values.reshape(rows, 3)
    groups = data.draw(hnp.arrays(np.int32, rows, elements=st.integers(0, 2)))
    specials = data.draw(st.none() | hnp.arrays(np.uint8, (2, rows), elements=st.integers(0, 2)))
    kind = np.dtype(dtype).name
    watched = [
        Watched(2, numbers(kind), 0, special=1),
        Watched(0, numbers(kind, []), 8, special=0),
        Watched(1, numbers(kind, range(20)), 12),
    ]
    one, other = in_both(watched, values, groups, 3, 12 + 24, specials)
    assert np.array_equal(one, other)
    assert one.sum() == 3 * rows
    assert np.array_equal(one[:, :8].sum(1), np.bincount(groups, minlength=3))


@pure
@given(
    st.data(),
    st.sampled_from([np.float32, np.int32, np.uint8, np.int64, np.float64]),
    st.sampled_from([(WORDS, UNSEEN_BIN), (CHOICE, 0)]),
)
def test_codes_are_placed_alike_by_both(data, dtype, of):
    floats = np.issubdtype(dtype, np.floating)
    element = CODE if floats else st.integers(0 if dtype is np.uint8 else -3, 9)
    values = np.array(data.draw(st.lists(element, min_size=1, max_size=30)), dtype)[:, None]
    measure, outside = of
    counts = []
    for compiled in (True, False):
        block = Block([Watched(0, measure, 0, CODES)], values.dtype)
        block._lib = block._lib if compiled else None
        counts.append(np.zeros((1, 6), np.int32))
        block.count(values, np.zeros(len(values), np.int32), counts[-1])
    assert np.array_equal(*counts)
    assert counts[0].sum() == len(values)
    strange = [value for value in values[:, 0].tolist() if not 0 <= value < len(CODES)]
    assert counts[0][0, outside] >= len(strange)


@pytest.mark.parametrize(
    ("value", "bin_"),
    [(-np.inf, 3), (-1.0, 3), (-0.999, 4), (0.0, 4), (-0.0, 4), (0.25, 5), (2.0, 6), (2.1, 7), (np.inf, 7)],
)
def test_an_edge_belongs_to_the_bin_below_it(value, bin_):
    assert bins_of(numbers(), np.array([value], np.float32)).tolist() == [bin_]


def test_what_is_special_goes_before_what_the_value_is():
    values, special = np.array([np.nan, np.nan, 1.0, 1.0], np.float32), np.array([0, MISSING, DEFAULT, 0], np.uint8)
    assert bins_of(numbers(), values, special).tolist() == [NAN_BIN, MISSING_BIN, DEFAULT_BIN, 6]


@pure
@given(st.data(), st.integers(0, 50), st.sampled_from([1, 60_000, 3_600_000]))
def test_groups_are_partition_pane_and_segment(data, rows, pane):
    partitions = data.draw(hnp.arrays(np.int32, rows, elements=st.integers(0, 5)))
    times = data.draw(
        hnp.arrays(np.int64, rows, elements=st.integers(-(2**63), 2**63 - 1) | st.integers(10**12, 10**12 + 10**6))
    )
    segments = data.draw(st.none() | hnp.arrays(np.int32, rows, elements=st.integers(0, 3)))
    found = group(partitions, times, pane, segments)
    with mock.patch.object(tallies, "library", return_value=None):
        same = group(partitions, times, pane, segments)
    both = [
        sorted(zip(one.partition, one.pane, one.segment, one.rows, one.latest, strict=True)) for one in (found, same)
    ]
    assert both[0] == both[1]
    assert found.rows.tolist() == np.bincount(found.of, minlength=len(found)).tolist()
    told = [(int(found.partition[at]), int(found.pane[at]), int(found.segment[at])) for at in found.of.tolist()]
    wanted = [
        (int(p), int(t) // pane * pane, 0 if segments is None else int(segments[at]))
        for at, (p, t) in enumerate(zip(partitions, times, strict=True))
    ]
    # a pane that begins before all time that an int64 tells is told by what is left of it
    assert [(p, t % 2**64, s) for p, t, s in told] == [(p, t % 2**64, s) for p, t, s in wanted]
    assert len(set(told)) == len(found)


def tallied(partitions, panes, counts, version="v1"):
    counts = np.array(counts, np.int32).reshape(len(panes), -1)
    rows = counts.sum(1).astype(np.int64)
    groups = Groups(
        np.arange(len(panes), dtype=np.int32),
        np.array(partitions, np.int32),
        np.array(panes, np.int64),
        np.zeros(len(panes), np.int32),
        rows,
        np.array(panes, np.int64) + 1,
    )
    return Tallied(version, "ref", groups, (None,), rows, counts)


@pure
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(1, 9)), max_size=40))
def test_segments_are_told_apart_and_counted_with_the_whole(told):
    rows = np.array(told, np.int64).reshape(-1, 4)
    partitions, times, segments = (rows[:, at].astype(np.int32) for at in range(3))
    groups = group(partitions, times.astype(np.int64), 1, segments)
    counts = np.zeros((len(groups), 10), np.int32)
    np.add.at(counts, (groups.of, rows[:, 3]), 1)
    found = with_whole(Tallied("v", "ref", groups, (None, "one", "two"), groups.rows, counts))
    wanted: dict[tuple, Counter] = {}
    for partition, pane, segment, value in told:
        for name in {None, (None, "one", "two")[segment]}:
            wanted.setdefault((partition, pane, name), Counter())[value] += 1
    assert len(found.groups) == len(wanted)
    for at in range(len(found.groups)):
        place = int(found.groups.partition[at]), int(found.groups.pane[at])
        mine = wanted[*place, found.segments[found.groups.segment[at]]]
        assert {value: n for value, n in enumerate(found.counts[at].tolist()) if n} == mine
        assert found.groups.rows[at] == found.counted[at] == mine.total()
        assert found.groups.latest[at] == place[1]


PART = st.tuples(st.integers(0, 2), st.integers(0, 3), st.lists(st.integers(0, 9), min_size=4, max_size=4))


@pure
@given(st.lists(PART, max_size=30), st.randoms(use_true_random=False))
def test_sums_are_the_same_in_any_order_and_split(parts, random):
    whole, other, more = Tallies(100), Tallies(100), Tallies(100)
    batch = [tallied([p], [pane], counts) for p, pane, counts in parts]
    whole.add("t", {0, 1, 2}, BatchTallies(tuple(batch)))
    random.shuffle(batch)
    for at, one in enumerate(batch):
        (other if at % 2 else more).add("t", {0, 1, 2}, BatchTallies((one,)))
    for partition in range(3):
        other.merge(("t", partition), more)
        one, shed = whole.of(("t", partition))
        two, _ = other.of(("t", partition))
        assert shed == 0
        assert one.keys() == two.keys()
        for place, total in one.items():
            same = two[place]
            assert (total.rows, total.counted, total.latest) == (same.rows, same.counted, same.latest)
            assert total.counts.tolist() == same.counts.tolist()


def test_a_partition_that_does_not_count_adds_nothing():
    sums = Tallies(100)
    sums.add("t", {1}, BatchTallies((tallied([0, 1], [0, 0], [[1, 2], [3, 4]]),), {0: 5, 1: 6}))
    assert sums.of(("t", 0)) == ({}, 0)
    (one,), shed = sums.of(("t", 1))[0].values(), sums.of(("t", 1))[1]
    assert (one.counts.tolist(), shed) == ([3, 4], 6)


def test_sums_are_bounded_and_what_is_beyond_is_counted():
    sums = Tallies(2)
    sums.add("t", {0}, BatchTallies((tallied([0] * 4, range(4), [[1], [2], [3], [4]]),)))
    kept, shed = sums.of(("t", 0))
    assert (len(kept), shed) == (2, 7)
    sums.forget(("t", 0))
    sums.add("t", {0}, BatchTallies((tallied([0], [9], [[1]]),)))
    assert sums.of(("t", 0))[1] == 0


def test_a_pane_that_is_not_kept_is_shed_once_with_its_segments():
    groups = group(np.zeros(10, np.int32), np.arange(10) // 5, 1, np.ones(10, np.int32))
    both = with_whole(Tallied("v", "ref", groups, (None, "one"), groups.rows, np.ones((2, 3), np.int32)))
    for most, kept, shed in ((0, 0, 10), (1, 2, 5), (9, 4, 0)):
        sums, more = Tallies(most), Tallies(most)
        sums.add("t", {0}, BatchTallies((both,)))
        more.merge(("t", 0), sums)
        for one in (sums, more):
            assert (len(one.of(("t", 0))[0]), one.of(("t", 0))[1]) == (kept, shed)


# ---- chunks beside commits


class Desk:
    """A worker's partitions as the hook meets them, and the topic that it writes to."""

    def __init__(self):
        self.now, self.written, self.slow, self.ends = 0.0, [], False, {}
        self.spent, self.cost = 0.0, 0.9 * MOST_CPU  # so that a chunk may follow another one after 0.9 s
        self.hook = PaneChunks(
            self, "t.panes", self.keep, 1_000, 10_000, self.ends.get, lambda: self.now, lambda: self.spent
        )

    def keep(self, chunk):
        self.spent += self.cost
        self.written.append(chunk)
        return b"x" * 100 * len(chunk.cells)

    def write(self, out):
        assert (out.topic, len(out)) == ("t.panes", len(out.keys))

    def settled(self, seconds):
        return not self.slow

    def send(self, partition, *rows, pane=0):
        counts = [0, 0, 0, 0]
        for row in rows:
            counts[row % 4] += 1
        made = SimpleNamespace(
            raw=SimpleNamespace(topic="t"),
            covers={("t", partition): (0, 0)},
            tallied=BatchTallies((tallied([partition], [pane], [counts]),)),
        )
        self.hook.sent(made)


def boundary(start, stop, partition=0, epoch=7):
    return Boundary("t", partition, start, stop, epoch)


def counted(chunks):
    return [
        (c.partition, c.start, c.stop, sum(cell.rows for cell in c.cells), [cell.counts.tolist() for cell in c.cells])
        for c in chunks
    ]


def test_a_chunk_goes_before_its_commit_and_covers_it():
    desk = Desk()
    desk.send(0, 1, 2, 2)
    desk.hook.prepare([boundary(10, 13)])
    assert counted(desk.written) == [(0, 10, 13, 3, [[0, 1, 2, 0]])]
    assert (desk.written[0].owner_epoch, desk.written[0].idle, desk.written[0].sample_bp) == (7, False, 10_000)
    desk.hook.committed([boundary(10, 13)])
    desk.hook.rest([])
    desk.now = 1.0
    desk.send(0, 3)
    desk.hook.prepare([boundary(13, 14)])
    assert counted(desk.written[1:]) == [(0, 13, 14, 1, [[0, 0, 0, 1]])]


def test_every_transaction_has_its_chunks_where_they_cost_little():
    desk = Desk()
    desk.cost = 0.0004
    for number in range(30):
        desk.now = number / 10
        spans = [boundary(number, number + 1, partition) for partition in range(6)]
        for partition in range(6):
            desk.send(partition, number)
        desk.hook.prepare(spans)
        desk.hook.committed(spans)
    assert len(desk.written) == 30 * 6


def test_transactions_share_chunks_that_would_cost_too_much_and_none_is_forgotten():
    desk = Desk()
    for number in range(30):
        desk.now = number / 10
        desk.send(0, number)
        span = boundary(number, number + 1)
        desk.hook.prepare([span])
        desk.hook.committed([span])
    assert [(c.start, c.stop) for c in desk.written] == [(0, 1), (1, 10), (10, 19), (19, 28)]
    desk.now = 9.0
    desk.hook.rest([])  # the stream has stopped
    assert [(c.start, c.stop) for c in desk.written[4:]] == [(28, 30)]
    assert sum(cell.rows for c in desk.written for cell in c.cells) == 30


def test_what_is_void_is_not_counted_and_a_chunk_of_it_is_replaced():
    desk = Desk()
    desk.send(0, 0)
    desk.hook.prepare([boundary(0, 1)])
    desk.hook.committed([boundary(0, 1)])
    desk.now = 0.5
    desk.send(0, 1)
    desk.hook.prepare([boundary(1, 2)])  # not due yet
    desk.hook.committed([boundary(1, 2)])
    desk.now = 1.0
    desk.send(0, 2, 2)
    desk.hook.prepare([boundary(2, 4)])
    desk.hook.void()
    desk.now = 1.1
    desk.send(0, 3)
    desk.hook.prepare([boundary(2, 3)])
    assert counted(desk.written) == [
        (0, 0, 1, 1, [[1, 0, 0, 0]]),
        (0, 1, 4, 3, [[0, 1, 2, 0]]),
        (0, 1, 3, 2, [[0, 1, 0, 1]]),  # from the same start: it replaces the one before
    ]


def test_a_commit_that_is_tried_again_takes_along_what_was_sent_meanwhile():
    desk = Desk()
    desk.send(0, 0)
    desk.hook.prepare([boundary(0, 1)])
    desk.now = 0.2
    desk.send(0, 1)
    desk.hook.prepare([boundary(0, 2)])
    desk.hook.committed([boundary(0, 2)])
    assert counted(desk.written)[-1] == (0, 0, 2, 2, [[1, 1, 0, 0]])


def test_the_events_of_a_chunk_that_its_topic_would_refuse_are_shed():
    desk = Desk()
    for pane in range(11):
        desk.send(0, 1, 2, pane=pane)
    desk.hook.prepare([boundary(0, 22)])
    whole, instead = desk.written
    assert (len(whole.cells), whole.shed) == (11, 0)
    assert (instead.start, instead.stop, len(instead.cells), instead.shed) == (0, 22, 0, 22)


def test_who_hands_a_partition_over_writes_what_is_committed_of_it():
    desk = Desk()
    for number in range(2):
        desk.now = number / 10
        for partition in (0, 1):
            desk.send(partition, number)
        spans = [boundary(number, number + 1, partition) for partition in (0, 1)]
        desk.hook.prepare(spans)
        desk.hook.committed(spans)
    desk.hook.give_up([("t", 1)])
    desk.hook.drop([("t", 1)])
    assert [(c.partition, c.start, c.stop) for c in desk.written] == [(0, 0, 1), (1, 0, 1), (1, 1, 2)]
    desk.hook.drop([("t", 0)])  # lost: nothing of it may be said
    desk.now = 9.0
    desk.hook.rest([])
    assert len(desk.written) == 3


def test_idle_is_said_at_a_confirmed_end_alone_and_again_from_time_to_time():
    desk, said = Desk(), []
    desk.send(1, 0)  # this partition has something that is not committed
    for now, end in ((0.0, None), (1.0, 40), (1.5, 40), (2.0, 40), (3.0, None), (9.0, None)):
        desk.now, before = now, len(desk.written)
        if end is None:
            desk.ends.clear()
        else:
            desk.ends["t", 0] = end
        desk.hook.rest([boundary(40, 40)])
        said += [now for _ in desk.written[before:]]
    assert said == [1.0, 2.0]
    assert {(c.partition, c.start, c.stop, c.idle, c.cells) for c in desk.written} == {(0, 40, 40, True, ())}


def test_a_partition_without_a_position_is_idle_at_its_end_and_goes_on_from_there():
    desk = Desk()
    desk.ends["t", 0] = 12
    desk.hook.rest([boundary(-2, -2)])  # "from the beginning", as the client says it
    desk.now = 1.0
    desk.send(0, 1)
    desk.hook.prepare([boundary(15, 16)])
    assert [(c.start, c.stop) for c in desk.written] == [(12, 12), (12, 16)]


def test_a_topic_that_is_slow_is_waited_for_once():
    desk, waits = Desk(), []
    desk.slow = True
    desk.settled = waits.append
    for number in range(3):
        desk.now = number
        desk.send(0, number)
        desk.hook.prepare([boundary(number, number + 1)])
        desk.hook.committed([boundary(number, number + 1)])
    assert waits == [CONFIRM_S, 0.0, 0.0]


# ---- chunks as records


@pure
@given(st.lists(st.integers(0, 2**40) | st.just(0), max_size=60))
def test_counts_come_back_from_a_record_as_they_were(counts):
    given_ = np.array(counts, np.int64)
    assert spread(runs(given_)).tolist() == counts
    assert len(runs(given_)) <= len(counts)


@pytest.mark.parametrize("told", [[-(2**62), 1], [-600_000, -600_000], [-(2**63)]])
def test_counts_of_endless_bins_are_refused(told):
    with pytest.raises(ValueError, match="bins"):
        spread(told)


def test_a_chunk_comes_back_as_it_was():
    cell = Cell("v1", "ref", None, -60_000, 3, 2, -1, np.array([0, 0, 2, 0, 0], np.int64))
    chunk = Chunk("t", 3, 5, 9, 11, False, 1, 2_500, (cell, replace(cell, segment="UA", latest_ms=2**62)))
    found = chunk_of(READER.read(encode(chunk, "top", "w", PINNED_ID)))
    assert repr(found) == repr(chunk)
