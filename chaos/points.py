"""Exact places in a worker's code, and the one table that names them: product code has no word of this.

A point is a method of the product, before or after it runs. The runner arms it with a file named like the point; at the
nth call from then on the worker kills or stops its own process there, so that no other thread of it goes on either.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

AT_LEAST_ONCE, EXACTLY_ONCE = "at_least_once", "exactly_once"
ADAPTERS = "streamserve.adapters"
TENURE = f"{ADAPTERS}.tenure"
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
HIT = ".hit"  # the armed file's new name once its point is reached; holds the time


@dataclass(frozen=True)
class Point:
    """Before or after a call of `owner.method` in `module`."""

    name: str
    when: Literal["before", "after"]
    module: str
    owner: str
    method: str


@dataclass(frozen=True)
class Brake:
    """A method that waits, while a file named like the brake is there, for as many seconds as the file says."""

    name: str
    module: str
    owner: str
    method: str


# What each delivery guarantee does at its commit; the places where a crash could lose or repeat something
REVOKES = (
    Point("in-revoke", "before", TENURE, "Tenure", "_on_revoke"),
    Point("in-revoke-settled", "after", TENURE, "Tenure", "_give_up"),
)
# A command is about to be obeyed; and it is written down from where on, and nothing was routed by it yet
CUTOVERS = (
    Point("in-cutover", "before", f"{ADAPTERS}.ownership", "Ownership", "cut_over"),
    Point("in-cutover-written", "after", f"{ADAPTERS}.ownership", "Ownership", "cut_over"),
)
POINTS: dict[str, tuple[Point, ...]] = {
    AT_LEAST_ONCE: (
        Point("before-produce", "before", f"{ADAPTERS}.at_least_once", "AtLeastOnceEmitter", "send"),
        Point("after-produce", "after", f"{ADAPTERS}.at_least_once", "AtLeastOnceEmitter", "send"),
        Point("before-commit", "after", f"{ADAPTERS}.at_least_once", "AtLeastOnceEmitter", "barrier"),
        Point("in-commit", "after", f"{ADAPTERS}.member", "Member", "commit"),
        *REVOKES,
        *CUTOVERS,
    ),
    EXACTLY_ONCE: (
        Point("before-produce", "before", f"{ADAPTERS}.exactly_once", "ExactlyOnceEmitter", "send"),
        Point("after-produce", "after", f"{ADAPTERS}.exactly_once", "ExactlyOnceEmitter", "send"),
        Point("before-commit", "before", f"{ADAPTERS}.exactly_once", "ExactlyOnceEmitter", "commit"),
        Point("in-commit", "after", f"{ADAPTERS}.exactly_once", "ExactlyOnceEmitter", "_send_offsets"),
        Point("after-commit", "after", f"{ADAPTERS}.exactly_once", "ExactlyOnceEmitter", "commit"),
        *REVOKES,
        *CUTOVERS,
    ),
}
BRAKES = (
    Brake("slow-model", "streamserve.adapters.onnx", "OnnxSession", "run"),
    Brake("slow-redis", "streamserve.adapters.redis_store", "RedisStore", "fetch"),
)


class UnknownPlaceError(Exception):
    """The table names something that the product has no more."""


def points_of(delivery: str) -> tuple[Point, ...]:
    """Raises UnknownPlaceError where none are known: a run without them would prove less than it says."""
    found = POINTS.get(delivery, ())
    if not found:
        raise UnknownPlaceError(f"no failpoints are known for {delivery}: name its commit's steps in {__name__}")
    return found


def install(folder: Path, points: Iterable[Point], brakes: Iterable[Brake] = BRAKES) -> None:
    """Wrap the methods. Files in `folder` arm them.

    Raises:
        UnknownPlaceError: one of them is not in the product.
    """
    for point in points:
        _wrap(point, Trigger(folder / point.name).reached, point.when)
    for brake in brakes:
        _wrap(brake, functools.partial(wait, folder / brake.name), "before")


def _wrap(place: Point | Brake, act: Callable[[], None], when: str) -> None:
    try:
        owner = getattr(importlib.import_module(place.module), place.owner)
        original = vars(owner)[place.method]
    except (ImportError, AttributeError, KeyError):
        raise UnknownPlaceError(
            f"{place.name}: {place.module}.{place.owner}.{place.method} is not there: mend the table in {__name__}"
        ) from None

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            act()
        result = original(*args, **kwargs)
        if when == "after":
            act()
        return result

    setattr(owner, place.method, wrapped)


class Trigger:
    """An armed file says what to do and at which call: `kill 2`."""

    def __init__(self, file: Path) -> None:
        self._file, self._calls, self._lock = file, 0, threading.Lock()

    def reached(self) -> None:
        """The point was reached: count the call, and strike when it is the one."""
        with self._lock:
            try:
                action, nth = self._file.read_text().split()
            except FileNotFoundError:
                self._calls = 0
                return
            self._calls += 1
            if self._calls < int(nth):
                return
            self._calls = 0
            # The time is told before: afterwards there is nobody to tell it
            self._file.write_text(str(time.time_ns()))
            self._file.rename(self._file.with_suffix(HIT))
        os.kill(os.getpid(), SIGNALS[action])


def wait(file: Path) -> None:
    """While the file is there: as long as it says."""
    try:
        time.sleep(float(file.read_text()))
    except FileNotFoundError:
        return
