"""The scoring agent: micro-batches in, predictions out, in order, several in flight.

Batches are worked on by a few threads (decode, Redis and ONNX Runtime release the GIL), each of which sends its own
when its turn comes: in the order in which they were read. Whatever fails here that is not one event's fault stops the
worker before anything of the batch is committed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from streamserve.adapters.metrics import Sent
from streamserve.pipeline.pipeline import Pipeline
from streamserve.pipeline.shadow import Shadowed
from streamserve.records import OutputBatch, Routed

LOG = logging.getLogger("streamserve.scoring")


class Outlet(Protocol):
    """Where finished batches go: the intake, which owns what is in flight."""

    def send(self, batch: OutputBatch) -> None: ...

    def finished(self) -> None: ...


class Scoring:
    """Joins a batch topic to a pipeline and an outlet.

    Args:
        record: told of every batch that was sent.
        beside: handed what a candidate is to score as well; waits for nothing.
        on_failure: told of what stops the worker.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        outlet: Outlet,
        *,
        record: Callable[[OutputBatch, Sent], None],
        on_failure: Callable[[BaseException], None],
        in_flight: int,
        beside: Callable[[Shadowed], None],
    ) -> None:
        self._pipeline, self._outlet = pipeline, outlet
        self._record, self._on_failure, self._beside = record, on_failure, beside
        self._workers = [ThreadPoolExecutor(1, f"score-{number}") for number in range(in_flight)]
        self._load = [0] * in_flight  # batches of each
        self._turn = threading.Condition()
        self._taken = self._sent = 0
        self._failed = False

    async def agent(self, batches: AsyncIterable[Routed]) -> None:
        """The Faust agent's function."""
        async for batch in batches:
            with self._turn:
                number, self._taken = self._taken, self._taken + 1
                # The first of the least busy: under a light load it is always the same, and its caches are warm
                worker = min(range(len(self._load)), key=self._load.__getitem__)
                self._load[worker] += 1
            self._workers[worker].submit(self._work, worker, number, batch)

    def _work(self, worker: int, number: int, routed: Routed) -> None:
        """A batch from its bytes to the client's queue, in one thread: each hand-over would cost 0.3 ms."""
        try:
            batch = self._pipeline.process(routed.raw, routed.view, time.time_ns() // 1_000_000)
            with self._turn:
                self._turn.wait_for(lambda: self._failed or self._sent == number)
                if self._failed:
                    return
            self._send(batch)
        except BaseException as error:
            LOG.debug("a batch failed", exc_info=True)
            with self._turn:
                self._failed = True
                self._turn.notify_all()
            self._on_failure(error)
            return
        with self._turn:
            self._sent += 1
            self._load[worker] -= 1
            self._turn.notify_all()
        self._outlet.finished()

    def _send(self, batch: OutputBatch) -> None:
        started = time.monotonic_ns()
        self._outlet.send(batch)
        self._record(batch, Sent(at_ms=time.time_ns() // 1_000_000, took_ns=time.monotonic_ns() - started))
        if isinstance(batch.shadowed, Shadowed):
            self._beside(batch.shadowed)

    def close(self) -> None:
        """Nothing more is sent; whoever waits for its turn gives up."""
        with self._turn:
            self._failed = True
            self._turn.notify_all()
        for worker in self._workers:
            worker.shutdown(wait=False, cancel_futures=True)
