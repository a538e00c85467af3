"""Promise: a store that fails is soon not waited for any more; one probe at a time asks it again, until it answers."""

from __future__ import annotations

import itertools
import logging
import threading
import time

import pytest
from conftest import wait_until
from hypothesis import given
from hypothesis import settings as pure
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamserve.adapters.redis_faults import Failure, Kind
from streamserve.adapters.redis_guard import Guard
from streamserve.features.breaker import FORGIVEN, Breaker, Rules, State

LATE = Failure(Kind.TIMEOUT, "Timeout reading from socket")
RULES = Rules(failures=3, first_pause=1.0, longest_pause=8.0)
rules = st.builds(
    lambda failures, first, more: Rules(failures, first, first * more),
    st.integers(1, 6), st.floats(0.01, 5), st.floats(1, 50),
)  # fmt: skip


def tell(breaker, ticket, *, well, now):
    (breaker.succeeded if well else breaker.failed)(ticket, now)


def opened(by=RULES, now=0.0):
    breaker = Breaker(by)
    for _ in range(by.failures):
        breaker.failed(breaker.admit(), now)
    assert breaker.state is State.OPEN
    return breaker


# ---- what opens it


@pure(deadline=None)
@given(rules, st.lists(st.booleans(), max_size=60))
def test_failures_in_a_row_open_it_whatever_went_before(by, story):
    breaker = Breaker(by)
    for well in story:
        if breaker.state is State.CLOSED:
            tell(breaker, breaker.admit(), well=well, now=0.0)
    for _ in range(by.failures):
        if breaker.state is State.CLOSED:
            breaker.failed(breaker.admit(), 0.0)
    assert breaker.state is State.OPEN


@pure(deadline=None)
@given(st.integers(2, 6), st.integers(0, 10))
def test_a_share_of_failures_above_a_tenth_opens_it_and_one_below_never_does(failures, shift):
    for every, opens in ((8, True), (12, False)):  # one of so many fails
        breaker = Breaker(Rules(failures, 1.0, 8.0))
        for at in range(shift, 5000):
            ticket = breaker.admit()
            if ticket is not None:
                tell(breaker, ticket, well=at % every != 0, now=float(at))
        assert (breaker.state is State.OPEN) == opens, every


def test_fewer_failures_than_asked_for_open_nothing():
    breaker = Breaker(RULES)
    for _ in range(RULES.failures - 1):
        breaker.failed(breaker.admit(), 0.0)
    assert breaker.admit() is not None


# ---- what is told late


def test_what_batches_still_waited_for_when_it_opened_changes_nothing():
    breaker = Breaker(RULES)
    early = [breaker.admit() for _ in range(6)]
    for ticket in early[:3]:
        breaker.failed(ticket, 0.0)
    due = breaker.probe_at
    breaker.failed(early[3], 0.9)
    breaker.succeeded(early[4], 0.9)
    assert (breaker.state, breaker.probe_at) == (State.OPEN, due)
    probe = breaker.probe(due)
    breaker.succeeded(early[5], due)
    assert breaker.state is State.HALF_OPEN
    breaker.succeeded(probe, due)
    assert breaker.state is State.CLOSED
    breaker.failed(probe, due)
    assert breaker.state is State.CLOSED


def test_a_probe_that_is_on_its_way_is_the_only_one():
    breaker = opened()
    assert breaker.probe(breaker.probe_at - 0.01) is None
    assert breaker.probe(1.0) is not None
    assert [breaker.probe(now) for now in (1.0, 2.0, 1e9)] == [None] * 3


# ---- pauses


def test_pauses_double_up_to_the_longest():
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(6):
        pauses.append(breaker.probe_at - now)
        now = breaker.probe_at
        breaker.failed(breaker.probe(now), now)
    assert pauses == [1, 2, 4, 8, 8, 8]


@pytest.mark.parametrize(("well_for", "pause"), [(0.5, 8.0), (4.5, 1.0)])
def test_one_that_fails_again_soon_is_left_alone_for_longer(well_for, pause):
    """A store that answers a probe and then none in time would otherwise be waited for again and again."""
    breaker, now = opened(), 0.0
    for _ in range(2):
        now = breaker.probe_at
        breaker.failed(breaker.probe(now), now)
    now = breaker.probe_at
    breaker.succeeded(breaker.probe(now), now)
    now += well_for
    for _ in range(RULES.failures):
        breaker.failed(breaker.admit(), now)
    assert breaker.probe_at - now == pause


# ---- any story, against a model that is written the slow way


class Story(RuleBasedStateMachine):
    """Threads ask and are answered in any order, probes come in time or not, at any pace."""

    @initialize(by=rules)
    def begin(self, by):
        self.by, self.breaker, self.now = by, Breaker(by), 0.0
        self.asked, self.probes = [], []
        self.level, self.open, self.failed_probes = 0.0, False, 0

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def a_batch_asks(self):
        ticket = self.breaker.admit()
        assert (ticket is None) == self.open
        if ticket is not None:
            self.asked.append((ticket, self.spell))

    @property
    def spell(self):
        return self.breaker._ticket

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), well=st.booleans())
    def a_batch_is_answered(self, data, well):
        ticket, spell = self.asked.pop(data.draw(st.integers(0, len(self.asked) - 1)))
        counts = not self.open and spell == self.spell
        tell(self.breaker, ticket, well=well, now=self.now)
        if counts:
            self.level = max(self.level - FORGIVEN, 0) if well else self.level + 1
            if self.level >= self.by.failures:
                self.open, self.failed_probes = True, 0

    @rule()
    def a_probe_is_asked_for(self):
        due = self.breaker.state is State.OPEN and self.now >= self.breaker.probe_at
        ticket = self.breaker.probe(self.now)
        assert (ticket is not None) == due
        if ticket is not None:
            self.probes.append(ticket)

    @precondition(lambda self: self.probes)
    @rule(well=st.booleans())
    def a_probe_is_answered(self, well):
        tell(self.breaker, self.probes.pop(), well=well, now=self.now)
        if well:
            self.open, self.level = False, 0.0
        else:
            self.failed_probes += 1

    @invariant()
    def it_is_as_the_model_says(self):
        if not hasattr(self, "by"):
            return
        assert len(self.probes) <= 1, "two probes at a time"
        assert (self.breaker.state is State.CLOSED) == (not self.open)
        assert (self.breaker.state is State.HALF_OPEN) == bool(self.probes)
        if self.breaker.state is State.OPEN:
            assert self.breaker.probe_at <= self.now + self.by.longest_pause, "asked again too late"


TestStory = Story.TestCase
TestStory.settings = pure(deadline=None)


# ---- the guard: threads, the probe beside the stream, what is told


class Partner:
    """Answers as it is told to. asks: what it was asked, and by which thread."""

    def __init__(self):
        self.says, self.asks, self.inside, self.most = None, [], 0, 0
        self.gate = threading.Event()
        self.gate.set()

    def ask(self, keys):
        self.asks.append((threading.current_thread().name, list(keys)))
        if threading.current_thread().name == "redis-probe":
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.gate.wait(10)
            self.inside -= 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says or [b"row"] * len(keys)

    @property
    def probes(self):
        return [keys for name, keys in self.asks if name == "redis-probe"]


QUICK = Rules(3, 0.01, 0.05)


@pytest.fixture
def partner():
    return Partner()


@pytest.fixture
def guard(partner):
    made = Guard(partner.ask, QUICK)
    yield made
    partner.gate.set()
    made.close()


def test_while_open_no_batch_asks_and_the_probe_is_one_at_a_time(partner, guard):
    partner.says = LATE
    partner.gate.clear()
    assert [guard.fetch([b"k"]) for _ in range(3)] == [None] * 3
    wait_until(lambda: partner.probes, 5, "a probe")
    before = len(partner.asks)
    threads = [threading.Thread(target=lambda: [guard.fetch([b"a", b"b"]) for _ in range(200)]) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(partner.asks) == before
    assert guard.reading().skipped == 4 * 200 * 2
    partner.gate.set()
    wait_until(lambda: len(partner.probes) > 5, 5, "more probes")
    assert partner.most == 1


def test_the_probe_asks_for_what_was_asked_in_vain_and_its_success_lets_batches_ask_again(partner, guard):
    partner.says = LATE
    for at in range(3):
        guard.fetch([b"k%d" % at, b"other"])
    wait_until(lambda: len(partner.probes) > 2, 5, "probes")
    partner.says = None
    wait_until(lambda: guard.reading().state is State.CLOSED, 5, "the closing")
    assert set(map(tuple, partner.probes)) == {(b"k2", b"other")}
    assert guard.fetch([b"x"]) == [b"row"]
    found = guard.reading()
    assert (found.why, found.transitions[State.OPEN], found.transitions[State.CLOSED]) == (
        "",
        found.transitions[State.HALF_OPEN],
        1,
    )
    assert found.failures == {"timeout": 3 + len(partner.probes) - 1}
    wait_until(lambda: "redis-probe" not in {one.name for one in threading.enumerate()}, 5, "the probe's end")


def test_a_change_of_state_is_one_line_and_batches_are_none(partner, guard, caplog):
    caplog.set_level(logging.INFO, "streamserve.redis")
    partner.says = LATE
    for _ in range(500):
        guard.fetch([b"k"])
    wait_until(lambda: len(partner.probes) > 4, 5, "probes")
    partner.says = Failure(Kind.LOADING, "Redis is loading the dataset in memory")
    seen = len(partner.probes)
    wait_until(lambda: len(partner.probes) > seen + 4, 5, "probes")
    partner.says = None
    wait_until(lambda: guard.reading().state is State.CLOSED, 5, "the closing")
    lines = [one.getMessage() for one in caplog.records if one.name == "streamserve.redis"]
    assert [line.partition(",")[0] for line in lines] == ["not asked any more", "still not asked", "answers again"]
    assert "(timeout: Timeout" in lines[0]
    assert "(loading: Redis is" in lines[1]
    assert lines[2].endswith("497 rows were defaults")


def test_single_failures_are_told_once_in_a_while(partner, guard, caplog):
    for at in range(50):
        partner.says = Failure(Kind.TIMEOUT, f"after {at} ms") if at % 20 == 0 else None
        guard.fetch([b"k"])
    assert guard.reading().state is State.CLOSED
    assert guard.reading().failures == {"timeout": 3}
    lines = [one for one in caplog.records if one.name == "streamserve.redis.single"]
    assert len(lines) <= 1


def test_a_fault_of_the_program_is_not_taken_for_an_outage(partner, guard):
    """A worker ends by it, with nothing committed, instead of going on with defaults for ever."""
    partner.says = TypeError("planted")
    with pytest.raises(TypeError, match="planted"):
        guard.fetch([b"k"])
    assert guard.reading().failures == {}


def test_a_fault_in_a_probe_reaches_the_next_batch(partner, guard):
    partner.says = LATE
    partner.gate.clear()
    for _ in range(3):
        guard.fetch([b"k"])
    wait_until(lambda: partner.probes, 5, "a probe")
    partner.says = TypeError("planted")
    partner.gate.set()

    def told():
        try:
            guard.fetch([b"k"])
        except TypeError:
            return True
        return False

    wait_until(told, 5, "the fault")


def test_a_closed_guard_probes_no_more(partner):
    guard = Guard(partner.ask, Rules(1, 30.0, 30.0))
    partner.says = LATE
    guard.fetch([b"k"])
    guard.close()
    wait_until(lambda: "redis-probe" not in {one.name for one in threading.enumerate()}, 5, "the probe's end")
    assert partner.probes == []


def test_threads_that_fail_and_succeed_at_will_leave_one_state_and_right_counts(partner):
    """Every failure is counted once, whoever told it; afterwards it closes."""
    turns, lock, given_ = itertools.count(), threading.Lock(), []

    def ask(keys):
        with lock:
            turn = next(turns)
            late = turn < 400 and turn % 7 < 4
            given_.append(late)
        time.sleep(0)  # lets another thread in, if one can come
        return LATE if late else [b"row"] * len(keys)

    guard = Guard(ask, Rules(2, 0.001, 0.004))
    threads = [threading.Thread(target=lambda: [guard.fetch([b"k"]) for _ in range(3000)]) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    wait_until(lambda: next(turns) > 400 and guard.reading().state is State.CLOSED, 10, "the closing")
    found = guard.reading()
    guard.close()
    assert found.failures["timeout"] == sum(given_)
    assert found.transitions[State.OPEN] == found.transitions[State.HALF_OPEN]
    assert guard.fetch([b"k"]) == [b"row"]
