"""Promise: nobody waits for a shadowing candidate, and each event that it was offered is counted, once."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from conftest import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from shadow_bench import BATCH, DONE, STUB, Bench, batch
from shadow_support import answered, decision, shadow, under
from test_pipeline import NOW, OTHER, ROWS, THREE, event, pipeline, raw

from streamserve.agents import shadowing
from streamserve.agents.isolated import DiedError, HungError
from streamserve.agents.shadowing import AGAIN_S, GATHER_ROWS, TOGETHER, WELL_S
from streamserve.errors import ModelMissingError
from streamserve.pipeline.emit import HOUR_MS
from streamserve.records import RoutingEpoch
from streamserve.simulate.offline import MemoryStore


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Nothing is waited for in these tests but for what they wait for themselves."""
    monkeypatch.setattr(shadowing, "GATHER_S", 0)
    monkeypatch.setattr(shadowing, "IDLE_S", 0)


# ---- what is offered


def test_no_more_rows_wait_than_there_is_room_for_and_the_rest_is_shed_and_counted():
    bench = Bench(rows=10)
    bench.offer(batch(), batch(), batch(), batch(count=2), batch(count=1))
    assert bench.shadowing.waiting == 10
    assert bench.counts == {"shed": 5}
    bench.turn()
    assert bench.shadowing.waiting == 0
    bench.offer(batch())
    assert (bench.shadowing.waiting, bench.counts["shed"]) == (4, 5)


def test_no_more_bytes_wait_than_there_is_room_for_but_for_one_batch():
    size = batch().nbytes
    assert size > 400
    assert batch(count=8).nbytes > 1.5 * size
    for room, fitting in ((1, 1), (2 * size - 1, 1), (2 * size, 2), (3 * size, 3)):
        bench = Bench(size=room)
        for _ in range(2):
            before = bench.counts["shed"]
            bench.offer(*(batch() for _ in range(5)))
            assert bench.shadowing.waiting == fitting * BATCH
            assert bench.counts["shed"] - before == (5 - fitting) * BATCH
            bench.turn()  # all that waits, and there is the same room again


def test_an_offer_waits_for_nothing_while_the_candidate_hangs():
    bench, gate, inside = Bench(rows=40), threading.Event(), threading.Event()

    def hang(_):
        inside.set()
        assert gate.wait(30)

    bench.act = hang
    asking = threading.Thread(target=bench.turn, args=(batch(),))
    asking.start()
    assert inside.wait(30)
    told = []
    offering = threading.Thread(target=lambda: (bench.offer(*(batch() for _ in range(20))), told.append(bench.counts)))
    offering.start()
    offering.join(20)
    assert told == [{"shed": 40}]
    assert bench.shadowing.waiting == 40
    gate.set()
    asking.join(20)
    assert bench.counts == DONE + Counter(shed=40)


def test_batches_that_wait_are_asked_about_together_up_to_so_many():
    bench = Bench(rows=10**6)
    bench.turn(*(batch() for _ in range(3)))
    assert bench.begun[0].asked == 1
    bench.turn(batch(count=GATHER_ROWS - 1), batch(count=1), batch(count=1))
    assert (bench.begun[0].asked, bench.shadowing.waiting) == (3, 0)
    bench.turn(batch(), batch(count=GATHER_ROWS + 1), batch())
    assert (bench.begun[0].asked, bench.shadowing.waiting) == (6, 0), "one too large for that goes alone"
    bench.turn(*(batch(count=GATHER_ROWS) for _ in range(5)))
    assert (bench.begun[0].asked, bench.shadowing.waiting) == (10, GATHER_ROWS)
    bench.turn()
    assert (bench.begun[0].asked, bench.shadowing.waiting) == (11, 0)
    assert sum(bench.counts.values()) == sum(len(out) for out in bench.written) == 22 + 7 * GATHER_ROWS
    bench.turn(batch(count=TOGETHER + 1))
    assert (bench.begun[0].asked, bench.shadowing.waiting) == (12, 0)


def test_the_next_is_asked_about_before_what_was_answered_is_written():
    bench, story = Bench(rows=10**6), []
    bench.turn()
    fake = bench.begun[0]
    tell, answer, write = fake.tell, fake.answer, bench.write
    fake.tell = lambda sheets: (story.append("tell"), tell(sheets))[1]
    fake.answer = lambda seconds: (story.append("answer"), answer(seconds))[1]
    bench.write = lambda out: (story.append("write"), write(out))[1]
    bench.turn(*(batch(count=GATHER_ROWS) for _ in range(3)))
    assert story == ["tell", "answer", "tell", "write", "answer", "tell", "write", "answer", "write"]


def broken(answer):
    """Its values end before they begin."""
    offsets = pa.py_buffer(np.array([0, 900, 5, 9, 10], np.int32))
    values = pa.BinaryArray.from_buffers(pa.binary(), 4, [None, offsets, pa.py_buffer(bytes(10))])
    return pa.table({"value": values}).replace_schema_metadata(answer.schema.metadata)


@pytest.mark.parametrize("wrong", [lambda answer: answer[1:], broken])
def test_an_answer_that_does_not_fit_is_not_written_and_its_candidate_is_ended(wrong):
    bench = Bench()
    bench.turn()
    fake, answer = bench.begun[0], bench.begun[0].answer
    fake.answer = lambda seconds: wrong(answer(seconds))
    bench.turn(batch())
    assert (bench.counts, bench.written, fake.closed) == (Counter(unanswered=4), [], True)


def test_what_was_answered_is_written_though_the_next_can_not_be_asked_about():
    bench = Bench(rows=10**6)
    bench.turn()
    fake, tell = bench.begun[0], bench.begun[0].tell

    def gone(sheets):
        if fake.asked:
            fake.closed = True
            raise DiedError("gone")
        tell(sheets)

    fake.tell = gone
    bench.turn(batch(count=GATHER_ROWS), batch())
    assert bench.counts == Counter(compared=GATHER_ROWS * 3 // 4, failed=GATHER_ROWS // 4, unanswered=4)


def test_what_is_written_bears_the_key_of_its_event_and_a_time_that_the_topic_takes():
    bench = Bench()
    stamps = [NOW, NOW - 5, -1, NOW + 3 * HOUR_MS]
    made = answered([event(i) for i in range(4)], shadow(), stamps=stamps)
    bench.turn(made)
    (out,) = bench.written
    assert (out.topic, out.headers) == ("t.shadow-decisions", None)
    assert out.keys.to_pylist() == made.columns.events.raw.keys.to_pylist() == [b"key0", b"key1", None, b"key3"]
    assert [decision(value)["event_id"] for value in out.values.to_pylist()] == ["e0", "e1", "e2", "e3"]
    assert out.timestamps.tolist()[:3] == [NOW, NOW - 5, NOW]
    assert NOW < out.timestamps[3] < NOW + HOUR_MS


def test_what_is_written_of_a_part_of_a_batch_bears_the_keys_of_that_part():
    bench = Bench()
    made = answered([event(i) for i in range(12)], shadow(5000))
    assert 0 < len(made) < 12
    bench.turn(made)
    (out,) = bench.written
    numbers = [int(decision(value)["event_id"][1:]) for value in out.values.to_pylist()]
    assert numbers == made.answers[0][1].rows.tolist() != list(range(len(made)))
    assert out.keys.to_pylist() == [None if i % 3 == 2 else f"key{i}".encode() for i in numbers]


def test_what_was_answered_before_it_died_is_compared_and_the_rest_is_not():
    """What two stable versions said is asked about in two messages."""
    bench = Bench()
    other = pipeline().process(raw([event(i) for i in range(5)]), under(shadow(), RoutingEpoch(3, "v3")), NOW).shadowed

    def die(fake):
        if fake.asked > 1:
            fake.closed = True
            raise DiedError("gone")

    bench.act = die
    bench.turn(batch(), other)
    assert bench.counts == DONE + Counter(unanswered=5)


def test_only_what_stable_did_not_ask_for_is_asked_of_a_store_of_its_own():
    store = MemoryStore(ROWS)
    bench = Bench(version=THREE, store=store)
    bench.turn(answered([event(i) for i in range(5)], shadow()))
    assert {key.split(b":")[1] for key in store.asked} == {OTHER.name.encode()}
    assert bench.counts == {"compared": 5}
    bench = Bench(version=STUB, store=store)
    store.asked.clear()
    bench.turn(batch())
    assert store.asked == {}


# ---- the candidate's life


def begins(bench: Bench, until: float) -> list[float]:
    """When candidates are begun, over so many seconds of an unending stream."""
    found, end = list[float](), bench.now + until
    while bench.now < end:
        before = len(bench.begun)
        bench.turn(batch())
        found += [bench.now] * (len(bench.begun) - before)
        bench.now += 0.25
    return found


@pytest.mark.parametrize("start", [0.0, 1e6])
def test_one_that_goes_is_begun_again_after_pauses_that_grow_to_a_limit(start):
    bench = Bench()
    bench.now = start
    bench.fail(DiedError("its process was ended by SIGSEGV"))
    found = begins(bench, 400)
    pauses = np.diff(found).tolist()
    assert pauses[:6] == [1, 2, 4, 8, 16, 32]
    assert set(pauses[6:]) == {AGAIN_S[1]}
    assert bench.counts["unanswered"] == 400 * 4 * BATCH, "what comes in a pause is counted as well"
    told = bench.shadowing.tally()
    assert (told.running, told.why) == (False, "its process was ended by SIGSEGV")
    bench.act = lambda fake: None
    begins(bench, AGAIN_S[1] + 1)
    assert (bench.shadowing.tally().running, bench.shadowing.tally().why) == (True, "")
    begins(bench, WELL_S + AGAIN_S[1])
    bench.fail(HungError("it did not answer in time"))
    found = begins(bench, 2)
    assert len(found) == 1, "the first pause again, since it was well for long"


ODD = [OSError("no more processes"), MemoryError(), ModelMissingError("gone"), DiedError("at once"), KeyError("x")]


@pytest.mark.parametrize("error", ODD)
def test_one_that_can_not_be_begun_is_tried_again_and_nobody_else_is_troubled(error):
    bench = Bench()
    bench.begins = error
    bench.turn(batch())
    assert bench.counts == {"unanswered": BATCH}
    assert bench.shadowing.tally().why
    bench.begins, bench.now = None, 1.0
    bench.turn(batch())
    assert bench.counts == DONE + Counter(unanswered=BATCH)


@pytest.mark.parametrize("error", [*ODD, pa.ArrowInvalid("nonsense"), HungError("late")])
def test_one_that_does_not_answer_is_ended_and_begun_again(error):
    bench = Bench()
    bench.fail(error)
    bench.turn(batch(), batch())
    assert bench.counts == {"unanswered": 2 * BATCH}
    bench.act = lambda fake: None
    bench.now = 1.0
    bench.turn(batch())
    assert len(bench.begun) == 2
    assert bench.begun[0].closed
    assert bench.counts == DONE + Counter(unanswered=2 * BATCH)


def test_records_that_can_not_be_written_are_counted_once():
    bench = Bench()
    bench.writes = OSError("no")
    bench.turn(batch(), batch())
    assert bench.counts == {"unanswered": 2 * BATCH}


def test_another_that_is_wanted_takes_its_place_and_counts_anew():
    bench = Bench()
    bench.turn(batch())
    bench.wanted = shadow(candidate="v8", rollout="r2")
    bench.turn(batch("r2", "v8"))
    assert [(one.name, one.closed) for one in bench.begun] == [("v9", True), ("v8", False)]
    assert bench.counts == DONE
    assert bench.shadowing.tally().shadow == bench.wanted


def test_another_rollout_does_not_pay_for_the_one_before():
    bench = Bench()
    bench.fail(DiedError("gone"))
    begins(bench, 20)
    bench.act, bench.wanted = (lambda fake: None), shadow(candidate="v8", rollout="r2")
    bench.turn(batch("r2", "v8"))
    assert bench.counts == DONE
    bench.fail(DiedError("gone"))
    bench.turn(batch("r2", "v8"))
    assert np.diff([bench.now, *begins(bench, 1.5)]).tolist() == [1.0]


def test_what_is_left_of_a_rollout_is_not_counted_with_the_next():
    """Nor does it take back what was counted there: shedding goes on while the old one's batches wait."""
    bench = Bench(rows=2 * BATCH)
    bench.turn(batch())
    bench.offer(batch(), batch())
    bench.wanted = shadow(rollout="r2")
    bench.offer(batch("r2"))
    assert bench.counts == {"shed": BATCH}
    bench.turn()
    assert bench.counts == {"shed": BATCH}
    bench.turn(batch("r2"))
    assert bench.counts == DONE + Counter(shed=BATCH)


def test_none_that_is_wanted_ends_it_once_what_waited_was_compared():
    bench = Bench()
    bench.turn(batch())
    assert bench.shadowing.tally().running
    bench.wanted = None
    bench.turn(batch())
    assert not bench.begun[0].closed
    bench.turn()
    assert bench.begun[0].closed
    assert not bench.shadowing.tally().running
    assert bench.counts == DONE + DONE


def test_another_share_is_told_of_at_once_be_there_events_or_not():
    bench = Bench()
    bench.turn(batch())
    bench.wanted = shadow(3000)
    bench.turn()
    assert bench.shadowing.tally().shadow.share_bp == 3000
    assert (bench.counts, len(bench.begun)) == (DONE, 1)


# ---- the end


def test_what_waits_at_the_end_is_compared_for_a_moment_longer_and_then_counted():
    bench = Bench(rows=10**6)
    bench.turn()
    bench.act = lambda fake: setattr(bench, "now", bench.now + 0.6)
    bench.offer(*(batch(count=GATHER_ROWS) for _ in range(5)))
    bench.end()
    assert bench.begun[0].asked == 2
    assert sum(bench.counts.values()) == 5 * GATHER_ROWS
    assert bench.counts["unanswered"] == 3 * GATHER_ROWS
    assert (bench.begun[0].closed, bench.closed, bench.shadowing.waiting) == (True, 1.0, 0)


def test_no_candidate_is_begun_at_the_end():
    bench = Bench()
    bench.offer(batch())
    bench.end()
    assert (bench.begun, bench.counts) == ([], {"unanswered": BATCH})


def test_it_runs_until_it_is_told_to_end():
    bench = Bench()
    running = threading.Thread(target=bench.shadowing.run, args=(bench.closing,))
    running.start()
    for _ in range(3):
        bench.offer(batch())
        wait_until(lambda: bench.shadowing.waiting == 0)
    bench.closing.set()
    running.join(20)
    assert not running.is_alive()
    assert sum(bench.counts.values()) == 3 * BATCH


ROLLOUTS = {"r1": "v9", "r2": "v9", "r3": "v8"}
BATCHES = {(name, count): batch(name, of, count) for name, of in ROLLOUTS.items() for count in (1, 4, 9)}
TROUBLE = [None, None, DiedError("gone"), HungError("late"), ValueError("nonsense")]
steps = st.one_of(
    st.tuples(st.just("offer"), st.sampled_from(list(BATCHES))),
    st.tuples(st.just("wanted"), st.sampled_from([None, *ROLLOUTS])),
    st.tuples(st.just("answers"), st.sampled_from(TROUBLE)),
    st.tuples(st.just("begins"), st.sampled_from([None, None, OSError("no"), DiedError("no")])),
    st.tuples(st.just("writes"), st.sampled_from([None, None, OSError("no")])),
    st.tuples(st.just("later"), st.sampled_from([0.5, 3.0, 200.0])),
    st.tuples(st.just("turn"), st.none()),
)


def act(bench: Bench, step: str, what) -> None:
    match step:
        case "offer":
            bench.offer(BATCHES[what])
        case "wanted":
            bench.wanted = None if what is None else shadow(candidate=ROLLOUTS[what], rollout=what)
        case "answers" if what is None:
            bench.act = lambda fake: None
        case "answers":
            bench.fail(what)
        case "begins" | "writes":
            setattr(bench, step, what)
        case "later":
            bench.now += what
        case "turn":
            bench.turn()


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(steps, max_size=40), st.sampled_from([9, 20, 1000]), st.sampled_from([1, 20_000, 1 << 30]))
def test_every_event_that_is_offered_ends_in_one_count(steps_, rows, size):
    bench, offered = Bench(rows, size), Counter[str]()
    for step, what in steps_:
        if step == "offer":
            offered[what[0]] += what[1]
        act(bench, step, what)
        assert bench.shadowing.waiting <= max(rows, 9)
    bench.end()
    assert all(one.closed for one in bench.begun)
    for rollout, candidate in ROLLOUTS.items():
        bench.wanted = shadow(candidate=candidate, rollout=rollout)
        told = bench.shadowing.tally()
        if not offered[rollout]:
            continue
        assert told.shadow.rollout_id == rollout
        assert sum(bench.counts.values()) == offered[rollout]
        assert told.agreed <= told.decided <= told.compared
