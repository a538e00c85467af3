"""The scoring agent: micro-batches in, predictions out, in order, several in flight.

Batches are worked on by a few threads (decode, Redis and ONNX Runtime release the GIL) and sent by one, in the order
in which they were read. Whatever fails here that is not one event's fault stops the worker before anything of the
batch is committed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from streamserve.adapters.metrics import Sent
from streamserve.pipeline.pipeline import Pipeline
from streamserve.records import ControlView, OutputBatch, RawBatch

LOG = logging.getLogger("streamserve.scoring")


class Outlet(Protocol):
    """Where finished batches go: the intake, which owns what is in flight."""

    def send(self, batch: OutputBatch) -> None: ...

    def finished(self) -> None: ...


class Scoring:
    """Joins a batch topic to a pipeline and an outlet.

    Args:
        control: gives the control view in force; asked once a batch, when its work begins.
        record: told of every batch that was sent.
        on_failure: told of what stops the worker.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        outlet: Outlet,
        *,
        control: Callable[[], ControlView],
        record: Callable[[OutputBatch, Sent], None],
        on_failure: Callable[[BaseException], None],
        in_flight: int,
    ) -> None:
        self._pipeline, self._outlet = pipeline, outlet
        self._control, self._record, self._on_failure = control, record, on_failure
        self._workers = ThreadPoolExecutor(in_flight, "score")
        self._sender = ThreadPoolExecutor(1, "send")
        self._order: asyncio.Queue[Awaitable[OutputBatch]] = asyncio.Queue()

    async def agent(self, batches: AsyncIterable[RawBatch]) -> None:
        """The Faust agent's function."""
        sending = asyncio.ensure_future(self._send_in_order())
        loop = asyncio.get_running_loop()
        try:
            async for raw in batches:
                self._order.put_nowait(loop.run_in_executor(self._workers, self._process, raw))
        finally:
            sending.cancel()

    def _process(self, raw: RawBatch) -> OutputBatch:
        return self._pipeline.process(raw, self._control(), time.time_ns() // 1_000_000)

    def _send(self, batch: OutputBatch) -> Sent:
        started = time.monotonic_ns()
        self._outlet.send(batch)
        return Sent(at_ms=time.time_ns() // 1_000_000, took_ns=time.monotonic_ns() - started)

    async def _send_in_order(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            working = await self._order.get()
            try:
                batch = await working
                self._record(batch, await loop.run_in_executor(self._sender, self._send, batch))
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                LOG.debug("a batch failed", exc_info=True)
                self._on_failure(error)
                return
            self._outlet.finished()

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._sender.shutdown(wait=False, cancel_futures=True)
