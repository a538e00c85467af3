"""Promise: nothing is committed that was not sent before a barrier, and no row passes that was read before a rewind."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamserve.delivery.gate import Gate
from streamserve.delivery.ledger import Boundary, Ledger
from streamserve.headers import header_column, unpack
from streamserve.records import Outgoing, OutputBatch, RawBatch, binary

pure = settings(deadline=None, derandomize=True, max_examples=150)
PLACES = [("a", 0), ("a", 1), ("b", 0)]
places = st.sampled_from(PLACES)


class LedgerMachine(RuleBasedStateMachine):
    """Beside the ledger: every offset that was handed over, that a barrier acknowledged, that was committed."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.ledger.open(dict.fromkeys(PLACES, -2))
        self.epoch = 0
        self.next = dict.fromkeys(PLACES, 0)
        self.sent = {place: [] for place in PLACES}
        self.committed = {place: set() for place in PLACES}
        self.barrier = None

    @rule(chosen=st.dictionaries(places, st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1))
    def send(self, chosen):
        covers = {}
        for place, (gap, rows) in chosen.items():  # a gap: markers of transactions, compacted records
            start = self.next[place] + gap
            covers[place] = (start, start + rows)
            self.sent[place] += range(start, start + rows)
            self.next[place] = start + rows
        self.ledger.sent(covers)

    @rule(place=places, back=st.integers(1, 3), other=places)
    def send_out_of_order(self, place, back, other):
        if not self.sent[place]:
            return
        before = self.ledger.boundaries()
        covers = {other: (self.next[other], self.next[other] + 1), place: (self.next[place] - back, 99)}
        with pytest.raises(ValueError, match="batches must be sent in order"):
            self.ledger.sent(covers)
        assert self.ledger.boundaries() == before, "a refused batch changes nothing"

    @precondition(lambda self: self.barrier is None)
    @rule()
    def begin_barrier(self):
        self.barrier = (self.ledger.boundaries(), {place: list(sent) for place, sent in self.sent.items()})

    @precondition(lambda self: self.barrier is not None)
    @rule()
    def commit(self):
        boundaries, acknowledged = self.barrier
        self.barrier = None
        for boundary in boundaries:
            place = (boundary.topic, boundary.partition)
            assert boundary.start < boundary.stop
            covered = {offset for offset in self.sent[place] if boundary.start <= offset < boundary.stop}
            assert covered <= set(acknowledged[place]), "only what was sent when the barrier began"
            assert not covered & self.committed[place], "once"
            below = {offset for offset in self.sent[place] if offset < boundary.stop}
            self.committed[place] |= covered
            assert below <= self.committed[place], "nothing below is left out"
        self.ledger.committed(boundaries)

    @precondition(lambda self: self.barrier is None)
    @rule(chosen=st.sets(places), back=st.integers(0, 5))
    def forget(self, chosen, back):
        """Revoked, and taken up again from a position that may be earlier."""
        self.ledger.forget(chosen)
        with pytest.raises(ValueError, match="not owned"):
            self.ledger.sent(dict.fromkeys(chosen, (0, 10**6)) or {("z", 9): (0, 1)})
        self.epoch += 1
        self.ledger.open(dict.fromkeys(chosen, 0), self.epoch)
        for place in chosen:
            self.next[place] = max(0, self.next[place] - back)
            self.sent[place].clear()
            self.committed[place].clear()

    @precondition(lambda self: self.barrier is None)
    @rule()
    def rewind(self):
        """An aborted transaction: everything since the last commit is read again."""
        begins = self.ledger.rewind()
        for place in PLACES:
            if self.committed[place]:
                assert begins[place] == max(self.committed[place]) + 1
                self.next[place] = begins[place]
            elif begins[place] >= 0:
                self.next[place] = begins[place]
            self.sent[place] = [offset for offset in self.sent[place] if offset in self.committed[place]]

    @invariant()
    def what_is_open_is_what_was_sent_and_not_committed(self):
        open_ = {(b.topic, b.partition) for b in self.ledger.boundaries()}
        assert open_ == {place for place in PLACES if set(self.sent[place]) - self.committed[place]}


LedgerMachine.TestCase.settings = settings(deadline=None, derandomize=True, max_examples=100, stateful_step_count=25)
test_a_commit_covers_what_was_sent_before_its_barrier_once_and_without_a_gap = LedgerMachine.TestCase


def test_a_boundary_begins_where_the_last_commit_ended():
    ledger = Ledger()
    ledger.open({("a", 0): 3})
    ledger.sent({("a", 0): (5, 8)})
    first = ledger.boundaries()
    assert first == (Boundary("a", 0, 3, 8),), "between a position and the first event there is none"
    ledger.sent({("a", 0): (10, 12)})
    ledger.committed(first)
    assert ledger.boundaries() == (Boundary("a", 0, 8, 12),)


def test_a_partition_that_was_forgotten_begins_anew():
    ledger = Ledger()
    ledger.open({("a", 0): 5, ("a", 1): 0}, 7)
    ledger.sent({("a", 0): (5, 8), ("a", 1): (0, 1)})
    before = ledger.boundaries()
    ledger.forget([("a", 0), ("z", 9)])
    assert ledger.boundaries() == (Boundary("a", 1, 0, 1, 7),)
    ledger.committed(before)
    assert ledger.owner_epochs() == {("a", 1): 7}, "a late commit does not bring it back"
    ledger.open({("a", 0): 2}, 9)
    ledger.committed(before)
    ledger.sent({("a", 0): (2, 3)})
    assert ledger.boundaries() == (Boundary("a", 0, 2, 3, 9),)


# ---- the gate


def batch(topic, partitions, epoch, outgoing):
    """A batch whose row i is of partition partitions[i]; outgoing: the rows of each output topic."""
    count = len(partitions)
    raw = RawBatch(
        topic, np.array(partitions, np.int32), np.arange(count), np.zeros(count, np.int64), np.zeros(count, np.uint8),
        binary([None] * count), binary([None] * count), None, epoch,
    )  # fmt: skip
    made = tuple(
        Outgoing(
            f"out{i}", np.array(rows, np.int64), binary([b"k%d" % r for r in rows]), binary([b"v%d" % r for r in rows]),
            header_column([[("h", b"%d" % r)] for r in rows]), np.array(rows, np.int64) * 7,
        )
        for i, rows in enumerate(outgoing)
    )  # fmt: skip
    spans = {(topic, p): (10 * p, 10 * p + 5) for p in set(partitions)}
    return OutputBatch(raw, made, spans, count, ())


class GateMachine(RuleBasedStateMachine):
    """Beside the gate: for each batch that was read, which of its partitions were given up or reopened since."""

    @initialize()
    def begin(self):
        self.gate = Gate()
        self.open = set()
        self.batches = []

    def void(self, chosen):
        for read in self.batches:
            read["void"] |= chosen

    @rule(chosen=st.sets(places, min_size=1))
    def open_some(self, chosen):
        before = self.gate.epoch
        assert self.gate.open(chosen) == self.gate.epoch == before + 1
        self.open |= chosen
        self.void(chosen)

    @rule(chosen=st.sets(places))
    def close_some(self, chosen):
        self.gate.close(chosen)
        self.open -= chosen
        self.void(chosen)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def read(self, data):
        topic = data.draw(st.sampled_from(sorted({topic for topic, _ in self.open})))
        mine = sorted(partition for name, partition in self.open if name == topic)
        partitions = data.draw(st.lists(st.sampled_from(mine), min_size=1, max_size=6))
        split = data.draw(st.integers(0, len(partitions)))
        rows = list(range(len(partitions)))
        made = batch(topic, partitions, self.gate.epoch, [rows[:split], rows[split:]])
        self.batches.append({"batch": made, "void": set()})

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def send(self, data):
        read = self.batches.pop(data.draw(st.integers(0, len(self.batches) - 1)))
        made = read["batch"]
        topic, partitions = made.raw.topic, made.raw.partitions.tolist()
        passed = self.gate.pass_through(made)
        shut = {p for name, p in read["void"] if name == topic}
        assert passed.covers == {place: span for place, span in made.covers.items() if place[1] not in shut}
        for before, after in zip(made.outgoing, passed.outgoing, strict=True):
            kept = [row for row in before.rows.tolist() if partitions[row] not in shut]
            assert after.rows.tolist() == kept
            assert after.keys.to_pylist() == [b"k%d" % row for row in kept]
            assert after.values.to_pylist() == [b"v%d" % row for row in kept]
            packed = [] if after.headers is None else after.headers.to_pylist()
            assert [unpack(one) for one in packed] == [[("h", b"%d" % row)] for row in kept]
            assert after.timestamps.tolist() == [7 * row for row in kept]

    @invariant()
    def the_gate_knows_what_is_open(self):
        assert self.gate.partitions == self.open


GateMachine.TestCase.settings = settings(deadline=None, derandomize=True, max_examples=80, stateful_step_count=25)
test_only_rows_of_partitions_that_are_still_held_as_they_were_read_pass = GateMachine.TestCase


@pure
@given(st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_a_batch_of_which_nothing_is_shut_passes_untouched(partitions):
    gate = Gate()
    epoch = gate.open([("a", p) for p in range(3)])
    made = batch("a", partitions, epoch, [range(len(partitions))])
    assert gate.pass_through(made) is made


def test_a_partition_of_another_topic_of_the_same_number_is_another():
    gate = Gate()
    epoch = gate.open([("a", 0), ("b", 0)])
    made = batch("a", [0], epoch, [[0]])
    gate.close([("b", 0)])
    assert gate.pass_through(made) is made
