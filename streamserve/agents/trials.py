"""Candidates under guard: each scores in threads of its own, for so long and no longer; stable never waits beyond."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from streamserve.models.plan import FeaturePlan
from streamserve.pipeline.candidates import Finish, Trial
from streamserve.pipeline.pipeline import LoadedVersion
from streamserve.records import FeatureMatrix, Int64s, Scores
from streamserve.simulate.versions import LoadedVersions


class LateError(TimeoutError):
    """The candidate did not answer within its deadline."""


class BusyError(RuntimeError):
    """All threads of the candidate are still at earlier batches that nobody waits for any more."""


class Trials:
    """A worker's versions: stable's as they are, candidates under guard; one that is not loaded is not waited for.

    Args:
        deadline: seconds that a candidate has for its rows of a batch.
        threads: batches that are worked on at once.
    """

    def __init__(self, versions: LoadedVersions, deadline: float, threads: int) -> None:
        self._versions, self._deadline, self._threads = versions, deadline, threads
        self._guard: Guard | None = None
        self._lock = threading.Lock()

    def get(self, version: str) -> LoadedVersion:
        """Loaded now if it is not: without it there is no answer."""
        return self._versions.get(version)

    def trial(self, version: str) -> Trial | None:
        """A candidate, if it is loaded."""
        found = self._versions.ready(version)
        if found is None:
            return None
        with self._lock:
            if self._guard is None or self._guard.version is not found:
                # One at most is tried at a time; the threads of the one before end with their last batch
                if self._guard is not None:
                    self._guard.close()
                self._guard = Guard(found, self._deadline, self._threads)
            return self._guard


Task = tuple[FeatureMatrix, Int64s, "Future[Scores]"]


class Guard:
    """A `Trial`. Its threads are daemons: one that never comes back must not keep the process from ending."""

    def __init__(
        self, version: LoadedVersion, deadline: float, threads: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.version, self._deadline, self._clock = version, deadline, clock
        self._free = threading.Semaphore(threads)
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"try-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def plan(self) -> FeaturePlan:
        return self.version.plan

    def begin(self, matrix: FeatureMatrix, raw_rows: Int64s) -> Finish:
        """Begin in another thread. The deadline counts from here."""
        if not self._free.acquire(blocking=False):
            raise BusyError("no thread of the candidate is free")
        until, future = self._clock() + self._deadline, Future[Scores]()
        self._tasks.put((matrix, raw_rows, future))
        return lambda: self._wait(future, until)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            matrix, raw_rows, future = task
            try:
                future.set_result(self.version.scorer.score(matrix, raw_rows))
            except BaseException as error:  # noqa: BLE001  (handed to whoever waits)
                future.set_exception(error)
            finally:
                self._free.release()
            del task, matrix, raw_rows, future

    def _wait(self, future: Future[Scores], until: float) -> Scores:
        try:
            return future.result(max(until - self._clock(), 0.0))
        except TimeoutError:
            if not future.done():
                raise LateError(f"the candidate took more than {self._deadline:g} s") from None
            raise

    def close(self) -> None:
        """Whoever is at work may finish; nothing waits for it."""
        for _ in self._threads:
            self._tasks.put(None)
