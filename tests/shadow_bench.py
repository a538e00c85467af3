"""Shadowing whose candidate, output and clock a test plays, and whose thread is the test's own."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from dataclasses import replace

import pyarrow as pa
from shadow_support import answered, shadow, stub
from test_pipeline import NOW, event

from streamserve.agents.isolated_child import _compare
from streamserve.agents.shadowing import Shadowing
from streamserve.errors import IsolatedError
from streamserve.pipeline.emit import TimestampLimits
from streamserve.pipeline.shadow_decision import PINNED_ID
from streamserve.simulate.offline import MemoryStore
from streamserve.testing import StubModel

BATCH = 4


def refuse_seven(x):
    if (x[:, 0] == 7).any():
        raise RuntimeError("not a seven")
    return x.sum(axis=1)


STUB = stub(StubModel({"in": 3}, {"y": 1}, refuse_seven))
DONE = Counter({"compared": 3, "failed": 1})  # of `batch()`
OUTCOMES = ("compared", "failed", "unanswered", "shed")


@functools.cache
def batch(rollout="r1", candidate="v9", count=BATCH, share_bp=10_000):
    """Events 5, 6, 7 and so on: of each four the candidate refuses one."""
    made = answered([event(5 + i % BATCH) for i in range(count)], shadow())
    return replace(made, shadow=shadow(share_bp, candidate, rollout))


class Fake:
    """A candidate that does as the bench says."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name, self.closed, self.asked = bench, name, False, 0
        self.sheets = []

    def tell(self, sheets):
        assert not self.closed
        assert not self.sheets
        self.asked += 1
        self.sheets = sheets

    def answer(self, seconds):
        assert not self.closed
        assert seconds == 5.0
        self.bench.act(self)
        sheets, self.sheets = self.sheets, []
        whole = pa.Table.from_batches(sheets).combine_chunks().to_batches()[0]
        return pa.Table.from_batches([_compare(whole, self.bench.version.scorer, PINNED_ID)])

    def close(self):
        self.closed = True


class Bench:
    """Shadowing, whose thread is the test's own, and all that it meets."""

    lost = 0

    def __init__(self, rows=10_000, size=1 << 30, version=STUB, store=None) -> None:
        self.now, self.wanted, self.version = 0.0, shadow(), version
        self.begun: list[Fake] = []
        self.begins: BaseException | None = None  # what the begin of a candidate raises
        self.act = lambda fake: None
        self.written = []
        self.writes: Exception | None = None
        self.closing = threading.Event()
        self.closed = None
        self.shadowing = Shadowing(
            lambda: self.wanted, self.begin, lambda name: version.plan, store or MemoryStore({}), self,
            topic="t.shadow-decisions", limits=TimestampLimits(), rows=rows, size=size, deadline=5.0,
            clock=lambda: self.now, now_ms=lambda: NOW,
        )  # fmt: skip

    def begin(self, name):
        if self.begins is not None:
            raise self.begins
        self.begun.append(Fake(self, name))
        return self.begun[-1]

    def write(self, out):
        if self.writes is not None:
            raise self.writes
        self.written.append(out)

    def close(self, seconds):
        self.closed = seconds

    def offer(self, *batches):
        for one in batches:
            self.shadowing.offer(one)

    def turn(self, *batches):
        self.offer(*batches)
        self.shadowing.turn(self.closing)

    def fail(self, error):
        """From now on, what a candidate answers."""

        def act(fake):
            fake.closed = isinstance(error, IsolatedError)  # as a real one that is gone
            raise error

        self.act = act

    def end(self):
        self.closing.set()
        self.shadowing.run(self.closing)

    @property
    def counts(self) -> Counter[str]:
        found = self.shadowing.tally()
        return Counter() if found is None else +Counter({name: getattr(found, name) for name in OUTCOMES})
