"""One process' share of the batches, one after the other: put through, held against the promises, told about."""

from __future__ import annotations

import faulthandler
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from fuzz import planted, streams
from fuzz.batches import Batch, make, save
from fuzz.minimise import minimise
from fuzz.promises import BrokenPromiseError, hold

Tell = Callable[[dict[str, object]], None]
MIB = 1 << 20
WARM = 20_000  # inputs after which memory is what it is; a quarter of a short run


@dataclass(frozen=True)
class Task:
    """inputs: of this lane. lane: of so many `lanes`. only: a batch's number; -1: all. replay: a file of a batch.

    limit: seconds that a batch may take. growth: MiB that the process may grow by once it is warm.
    """

    models: str
    findings: str
    format: str
    seed: int
    inputs: int
    lane: int = 0
    lanes: int = 1
    only: int = -1
    replay: str = ""
    limit: float = 30.0
    growth: int = 250
    planted: str = ""


class Streams:
    """Opened when they are first asked for."""

    def __init__(self, task: Task) -> None:
        self._task, self._open = task, dict[str, streams.Stream]()
        self._order = streams.names(task.format)

    def numbers(self) -> Iterator[int]:
        """The batches of a lane: whole rounds of all streams."""
        if self._task.only >= 0:
            return iter([self._task.only])
        return (n for n in count() if n // len(self._order) % self._task.lanes == self._task.lane)

    def name(self, number: int) -> str:
        return self._order[number % len(self._order)]

    def get(self, name: str) -> streams.Stream:
        if name not in self._open:
            self._open[name] = streams.open_stream(name, Path(self._task.models))
            planted.plant(self._task.planted, self._open[name])
        return self._open[name]


class Watchdog:
    """Ends the process, with every thread's stack on stderr, where a batch takes too long; even one stuck in C."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True)

    def __exit__(self, *_: object) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()


def run(task: Task, tell: Tell) -> bool:
    """Whether every promise held. Tells of each batch before and after it, and of the first finding."""
    opened, memory = Streams(task), Memory(task)
    done = 0
    for number in opened.numbers():
        stream = opened.get(opened.name(number))
        tell({"kind": "begin", "number": number})
        with Watchdog(task.limit):
            batch = make(stream, task.seed, number)
            started = time.monotonic()
            found = failure(stream, batch)
            seconds = time.monotonic() - started
        if found is not None:
            with Watchdog(10 * task.limit):
                tell(_finding(task, stream, batch, found))
            return False
        done += len(batch.inputs)
        about = {"stream": stream.name, "number": number, "counts": failure.counts, "seconds": seconds}
        tell({"kind": "end", **about, "rss": rss_mib()})
        if (grown := memory.look(done)) is not None:
            tell({"kind": "finding", "promise": "memory", "number": number, "row": -1, "stream": "", "what": grown})
            return False
        if done >= task.inputs:
            break
    return True


class _Failure:
    """What a batch breaks, if anything; `counts` are of the last one that held."""

    counts: dict[str, int]

    def __call__(self, stream: streams.Stream, batch: Batch, *, whole: bool = False) -> tuple[str, int, str] | None:
        try:
            self.counts = dict(hold(stream, batch, whole=whole))
        except BrokenPromiseError as error:
            return error.promise, error.row, str(error)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  (a panic of Rust is no Exception, and a finding as well)
            return "exception", -1, f"{type(error).__name__}: {error}"
        return None


failure = _Failure()


def _finding(task: Task, stream: streams.Stream, batch: Batch, found: tuple[str, int, str]) -> dict[str, object]:
    promise, row, what = found

    def still(fewer: Batch) -> bool:
        again = failure(stream, fewer, whole=promise == "neighbours")
        return again is not None and again[0] == promise

    small = minimise(batch, row, still)
    path = Path(task.findings) / f"{batch.stream}-{batch.seed}-{batch.number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    save(small, path, f"{promise}: {what}"[:500])
    about = {"promise": promise, "number": batch.number, "row": row, "stream": batch.stream, "what": what[:2000]}
    return {"kind": "finding", **about, "file": str(path), "rows": len(small.inputs), "of": len(batch.inputs)}


# ---- memory


class Memory:
    def __init__(self, task: Task) -> None:
        self._task, self._warm = task, min(WARM, task.inputs // 4)
        self._base = 0.0

    def look(self, done: int) -> str | None:
        """What is wrong with the memory after so many inputs."""
        now = rss_mib()
        if done <= self._warm or not self._base:
            self._base = max(self._base, now)
        if now - self._base <= self._task.growth:
            return None
        return (
            f"{now:.0f} MiB after {done:,} inputs, {self._base:.0f} MiB when warm: it may grow by {self._task.growth}"
        )


def rss_mib() -> float:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
