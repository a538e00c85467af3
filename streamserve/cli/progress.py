"""What long commands share: how far they are, and a Ctrl-C that still lets them finish what they began."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY_S = 3.0  # between two lines of progress where there is no terminal
INTERRUPTED = 130


@contextlib.contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; a second one interrupts as usual."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def progress(total: int | None, what: str, done: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, otherwise a line now and then; both on stderr. what, done: "events", "sent"."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Lines(console, total, what, done)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}/s"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task, started = bar.add_task("", total=total, rate="0"), time.monotonic()
        next_at = 0.0

        def show(count: int) -> None:
            nonlocal next_at
            elapsed = time.monotonic() - started
            if elapsed >= next_at:
                next_at = elapsed + 0.1
                bar.update(task, completed=count, rate=f"{count / max(elapsed, 1e-9):,.0f}")

        yield show


class _Lines:
    def __init__(self, console: Console, total: int | None, what: str, done: str) -> None:
        self._console, self._total, self._what, self._done = console, total, what, done
        self._last = (time.monotonic(), 0)

    def __call__(self, count: int) -> None:
        now, (at, before) = time.monotonic(), self._last
        if now - at < EVERY_S:
            return
        self._last = (now, count)
        of = "" if self._total is None else f" of {self._total:,}"
        rate = (count - before) / (now - at)
        self._console.print(f"{count:,}{of} {self._what} {self._done} ({rate:,.0f} {self._what}/s)")
