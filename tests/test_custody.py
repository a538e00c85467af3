"""Promise: nothing is seen whose offset is not committed with it, whatever a commit or a rebalance comes to."""

from __future__ import annotations

import numpy as np
import pytest
from confluent_kafka import KafkaError, KafkaException

from streamserve.adapters.exactly_once import ExactlyOnceEmitter
from streamserve.delivery.custody import Custody
from streamserve.delivery.emitter import Outcome
from streamserve.errors import BrokerError
from streamserve.records import OutputBatch, RawBatch, binary

BOTH = [("a", 0), ("a", 1)]


def batch(custody: Custody, start: int = 0) -> OutputBatch:
    """One row of each of two partitions."""
    raw = RawBatch(
        "a", np.int32([0, 1]), np.int64([start, start]), np.zeros(2, np.int64), np.zeros(2, np.uint8),
        binary([None, None]), binary([None, None]), None, custody.epoch,
    )  # fmt: skip
    return OutputBatch(raw, (), dict.fromkeys(BOTH, (start, start + 1)), 2, ())


class Transactions:
    """An emitter that keeps books: what is in its transaction, and what was seen with which offsets."""

    spoilt = False

    def __init__(self, *outcomes: Outcome, transactional: bool = True) -> None:
        self.transactional, self._outcomes = transactional, list(outcomes)
        self.inside: set[tuple[str, int, int]] = set()
        self.seen: set[tuple[str, int, int]] = set()

    def send(self, given):
        self.inside |= {(t, p, o) for (t, p), span in given.covers.items() for o in range(*span)}

    def commit(self, boundaries, group, limit):
        outcome = self._outcomes.pop(0) if self._outcomes else Outcome.DONE
        if outcome is Outcome.DONE:
            offsets = {(b.topic, b.partition, o) for b in boundaries for o in range(b.start, b.stop)}
            assert self.inside <= offsets, f"seen without an offset: {sorted(self.inside - offsets)}"
            self.seen, self.inside = self.seen | self.inside, set()
        return outcome

    def abort(self):
        self.inside = set()


def held() -> Custody:
    custody = Custody()
    custody.take(dict.fromkeys(BOTH, 0), 7)
    return custody


def test_what_could_not_be_committed_of_a_partition_that_goes_is_not_seen_with_its_neighbour():
    custody, emitter = held(), Transactions(Outcome.LATER)
    custody.send(batch(custody), lambda: emitter)
    ended = custody.hand_over([("a", 0)], emitter, lambda: custody.commit(emitter, None, 1))
    assert ended == {("a", 0): 7}
    assert custody.rewound == {("a", 1): 0}, "its neighbour is read again"
    custody.send(batch(custody), lambda: emitter)
    assert not emitter.inside, "what was read before does not count"
    custody.led_back(("a", 1))
    custody.send(batch(custody), lambda: emitter)
    assert custody.commit(emitter, None, 1) is Outcome.DONE
    assert emitter.seen == {("a", 1, 0)}


def test_where_nothing_can_be_taken_back_the_neighbours_go_on():
    custody, emitter = held(), Transactions(Outcome.LATER, transactional=False)
    custody.send(batch(custody), lambda: emitter)
    custody.hand_over([("a", 0)], emitter, lambda: custody.commit(emitter, None, 1))
    assert not custody.rewound


def test_a_commit_that_ends_well_rewinds_nothing():
    custody, emitter = held(), Transactions()
    custody.send(batch(custody), lambda: emitter)
    custody.hand_over([("a", 0)], emitter, lambda: custody.commit(emitter, None, 1))
    assert not custody.rewound
    assert emitter.seen == {("a", 0, 0), ("a", 1, 0)}
    custody.send(batch(custody, 1), lambda: emitter)
    assert custody.commit(emitter, None, 1) is Outcome.DONE
    assert ("a", 0, 1) not in emitter.seen


class Producer:
    def init_transactions(self, seconds):
        pass

    begin_transaction = lambda self: None  # noqa: E731

    def commit_transaction(self, seconds):
        raise AssertionError("a transaction with half a batch was committed")

    send_offsets_to_transaction = commit_transaction


class Output:
    """Writes half a batch, then fails."""

    producer, where, stopping = Producer(), "nowhere", False

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def write(self, given):
        raise self.error


@pytest.mark.parametrize(
    "error", [BrokerError("a dead letter does not fit"), MemoryError(), KafkaException(KafkaError(KafkaError._STATE))]
)
def test_a_transaction_with_half_a_batch_is_not_committed(error):
    """Between the failure and the worker's end the intake may come to its next commit."""
    custody, emitter = held(), ExactlyOnceEmitter(Output(error), "id")
    try:
        custody.send(batch(custody), lambda: emitter)
    except type(error):
        assert not isinstance(error, KafkaException)
    assert emitter.spoilt
    assert emitter.commit((), None, 1) is Outcome.ABORTED


def test_what_is_routed_is_what_was_sent_and_what_is_in_flight():
    custody, emitter = Custody(), Transactions()
    custody.take({("a", 0): 5, ("a", 1): -2}, 7)
    assert custody.routed([]) == {("a", 0): 5, ("a", 1): 0}, "a beginning without a number is 0"
    first, second = batch(custody, 5), batch(custody, 6)
    assert custody.routed([first.raw, second.raw]) == dict.fromkeys(BOTH, 7)
    custody.send(first, lambda: emitter)
    assert custody.routed([]) == dict.fromkeys(BOTH, 6)
    custody.drop([("a", 1)])
    assert custody.routed([second.raw]) == {("a", 0): 7}, "what is given up is no affair of ours"


def test_a_recall_voids_what_is_in_flight_and_keeps_what_was_sent():
    custody, emitter = held(), Transactions()
    custody.send(batch(custody, 0), lambda: emitter)
    flying = batch(custody, 1)
    custody.recall()
    assert custody.rewound == dict.fromkeys(BOTH, 1)
    assert custody.routed([flying.raw]) == dict.fromkeys(BOTH, 1), "it will be routed again"
    custody.send(flying, lambda: emitter)
    for place in BOTH:
        custody.led_back(place)
    custody.send(flying, lambda: emitter)
    assert emitter.inside == {("a", 0, 0), ("a", 1, 0)}
    custody.send(batch(custody, 1), lambda: emitter)
    assert custody.commit(emitter, None, 1) is Outcome.DONE
    assert emitter.seen == {(t, p, o) for t, p in BOTH for o in (0, 1)}


def test_a_recall_does_not_go_beyond_where_an_abort_leads():
    custody, emitter = held(), Transactions(Outcome.ABORTED)
    custody.send(batch(custody, 0), lambda: emitter)
    assert custody.commit(emitter, None, 1) is Outcome.ABORTED
    custody.recall()
    assert custody.rewound == dict.fromkeys(BOTH, 0)
