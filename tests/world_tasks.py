"""Threads, locks and clocks of the simulated world: a thread is a greenlet, which runs until it would wait.

Product code runs as it is: `stand_in` puts these in place of `threading` and `time` in the modules that wait. Whoever
waits goes back to the scheduler, which alone decides who runs next. Each process has its own clock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import Self
from unittest import mock

from greenlet import GreenletExit, getcurrent, greenlet

PATIENT_S = 0.5  # a limit beyond this ends no wait for somebody: a fault does, or a world in which nothing else goes on


class Process:
    """What one worker's tasks share. now: its clock, seconds. dead: it does nothing any more."""

    def __init__(self, name: str) -> None:
        self.name, self.now, self.dead = name, 0.0, False
        self.task: Task  # of its `Thread.start`


class Running:
    """Whose code runs just now."""

    process: Process | None = None


class Task(greenlet):
    """until: what it waits for; None: nothing but its turn. deadline: when it waits no longer."""

    until: Callable[[], object] | None = None
    deadline = float("inf")
    patient = False
    resting = False  # between two turns

    def __init__(self, process: Process, target: Callable[[], object], hub: greenlet) -> None:
        super().__init__(target, hub)
        self.process = process

    def ready(self) -> bool:
        return self.until is None or bool(self.until()) or self.process.now >= self.deadline

    def can_hurry(self) -> bool:
        """It waits for nobody, or not for long."""
        return self.ready() or not (self.patient or self.deadline == float("inf"))

    def hurry(self) -> bool:
        """Let a short wait pass; False: it waits for somebody."""
        if not self.can_hurry():
            return False
        if not self.ready():
            self.process.now = self.deadline
        return True

    def run_on(self) -> None:
        Running.process = self.process
        self.switch()

    def end(self) -> None:
        """The process is gone: whatever its code does on its way out reaches nobody."""
        self.process.dead = True
        Running.process = self.process
        if self:
            self.throw(GreenletExit)


def pause(
    until: Callable[[], object] | None = None, limit: float | None = None, *, nap: bool = False, resting: bool = False
) -> bool:
    """Wait for the scheduler, and for a condition; False: the limit (seconds) passed first.

    nap: the limit is what is waited for. resting: nothing is begun that would have to be ended.
    """
    task = getcurrent()
    assert isinstance(task, Task), "the scheduler itself may not wait"
    if not task.process.dead:
        task.resting = resting
        task.until, task.patient = until, not nap and limit is not None and limit > PATIENT_S
        task.deadline = float("inf") if limit is None else task.process.now + max(limit, 0.0)
        task.parent.switch()
    if task.process.dead:
        raise GreenletExit
    task.deadline = float("inf")
    return until is None or bool(until())


class Condition:
    """`with` does nothing: nobody is interrupted but where they wait."""

    def __enter__(self) -> None:
        """As above."""

    def __exit__(self, *_: object) -> None:
        """As above."""

    def wait_for(self, condition: Callable[[], object], timeout: float | None = None) -> bool:
        return bool(condition()) or pause(condition, timeout)

    def notify_all(self) -> None:
        """Conditions are looked at anew each time."""


class Lock:
    """A reentrant one, which is held across waits."""

    def __init__(self) -> None:
        self.owner: greenlet | None = None
        self._depth = 0

    def __enter__(self) -> None:
        me = getcurrent()
        while self.owner is not None and self.owner is not me:
            pause(lambda: self.owner is None)
        self.owner, self._depth = me, self._depth + 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self.owner = None


class Event:
    def __init__(self) -> None:
        self._on = False

    def is_set(self) -> bool:
        return self._on

    def set(self) -> None:
        self._on = True

    def wait(self, timeout: float | None = None) -> bool:
        return self._on or pause(self.is_set, timeout, nap=True)


class Thread:
    """Its `start` gives the process its task."""

    def __init__(self, target: Callable[[], object], **_: object) -> None:
        self._target = target

    def start(self) -> None:
        assert Running.process is not None
        Running.process.task = Task(Running.process, self._target, getcurrent())


class Pool:
    """One job after the other."""

    def __init__(self, *_: object) -> None:
        self.map = map

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to end."""


def _now() -> float:
    assert Running.process is not None
    return Running.process.now


CLOCK = SimpleNamespace(
    monotonic=_now,
    monotonic_ns=lambda: int(_now() * 1e9),
    sleep=lambda seconds: pause(lambda: False, seconds, nap=True),
)
THREADS = SimpleNamespace(Condition=Condition, RLock=Lock, Lock=Lock, Event=Event, Thread=Thread)


@contextlib.contextmanager
def stand_in(places: Mapping[ModuleType, Mapping[str, object]]) -> Iterator[None]:
    """The world's threads and clock, and what else is said, in these modules' place of the real ones."""
    with contextlib.ExitStack() as stack:
        for module, more in places.items():
            names = {"threading": THREADS, "time": CLOCK, "ThreadPoolExecutor": Pool}
            for name, instead in {**{n: one for n, one in names.items() if hasattr(module, n)}, **more}.items():
                stack.enter_context(mock.patch.object(module, name, instead))
        yield
