"""Batches are worked on side by side and sent in their order; one that fails stops those after it."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest
from conftest import wait_until

from streamserve.agents.scoring import Scoring


class Bench:
    """A scoring agent whose batches are numbers. `gates[n]`: what the work on batch n waits for."""

    def __init__(self, in_flight: int = 3) -> None:
        self.gates: dict[int, threading.Event] = {}
        self.began: list[tuple[int, str]] = []
        self.sent: list[int] = []
        self.failures: list[BaseException] = []
        self.finished_count = 0
        self.broken: set[int] = set()
        self.scoring = Scoring(
            SimpleNamespace(process=self.process),
            SimpleNamespace(send=lambda batch: self.sent.append(batch.raw), finished=self.finished),
            record=lambda batch, sent: None,
            on_failure=self.failures.append,
            in_flight=in_flight,
            beside=lambda shadowed: None,
        )

    def process(self, raw, view, now_ms):
        self.began.append((raw, threading.current_thread().name))
        if raw in self.gates:
            assert self.gates[raw].wait(20)
        if raw in self.broken:
            raise RuntimeError(f"batch {raw}")
        return SimpleNamespace(raw=raw, shadowed=None)

    def finished(self) -> None:
        self.finished_count += 1

    def feed(self, batches) -> None:
        async def stream():
            for one in batches:
                yield SimpleNamespace(raw=one, view=None)

        asyncio.run(self.scoring.agent(stream()))


@pytest.fixture
def bench():
    made = Bench()
    yield made
    for gate in made.gates.values():
        gate.set()
    made.scoring.close()


def test_batches_are_sent_in_their_order_however_long_each_takes(bench):
    bench.gates = {0: threading.Event(), 4: threading.Event()}
    bench.feed(range(9))
    wait_until(lambda: len(bench.began) >= 3)
    assert not bench.sent, "the first is not done"
    bench.gates[0].set()
    wait_until(lambda: bench.sent == [0, 1, 2, 3])
    bench.gates[4].set()
    wait_until(lambda: bench.finished_count == 9)
    assert bench.sent == list(range(9))
    assert not bench.failures


def test_nothing_is_sent_after_a_batch_that_failed(bench):
    bench.gates, bench.broken = {1: threading.Event()}, {1}
    bench.feed(range(6))
    wait_until(lambda: bench.sent == [0])
    bench.gates[1].set()
    wait_until(lambda: bench.failures)
    wait_until(lambda: {raw for raw, _ in bench.began} >= {0, 1, 2})
    assert [str(error) for error in bench.failures] == ["batch 1"]
    assert bench.sent == [0]
    assert bench.finished_count == 1


def test_one_batch_at_a_time_is_always_worked_on_by_the_same_thread(bench):
    for number in range(12):
        bench.feed([number])
        wait_until(lambda number=number: bench.finished_count == number + 1)
    assert len({thread for _, thread in bench.began}) == 1


def test_a_batch_goes_to_a_thread_that_is_idle(bench):
    """More in flight than threads for once: afterwards nobody queues behind another while a thread is idle."""
    bench.gates = {number: threading.Event() for number in range(8)}
    bench.feed(range(4))
    wait_until(lambda: len(bench.began) == 3)
    for number in (0, 1, 2):
        bench.gates[number].set()
    wait_until(lambda: bench.sent == [0, 1, 2] and len(bench.began) == 4)
    bench.feed([4, 5])
    wait_until(lambda: len(bench.began) == 6)
    assert len({thread for raw, thread in bench.began if raw >= 3}) == 3


def test_who_waits_for_a_turn_gives_up_when_the_worker_closes(bench):
    bench.gates = {0: threading.Event(), 2: threading.Event()}
    bench.feed(range(4))
    wait_until(lambda: len(bench.began) == 3)
    bench.scoring.close()
    for gate in bench.gates.values():
        gate.set()
    threads = [one for one in threading.enumerate() if one.name.startswith("score-")]
    for one in threads:
        one.join(10)
        assert not one.is_alive()
    assert not bench.sent
    assert not bench.failures
