"""Versions are loaded ahead of their use, in a thread of their own, and freed when no partition can need them.

What the control log names is loaded as soon as it names it: the candidate of an open rollout, stable, and what stable
would fall back to. Loading checks hash and signature, warms the session and runs the golden set; the progress log is
told how it went. A candidate that can't be loaded is tried again from time to time; stable answers for it meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from streamserve.control.state import State
from streamserve.delivery.cutovers import still_needed
from streamserve.errors import StreamserveError
from streamserve.records import ControlView, TopicPartition

LOG = logging.getLogger("streamserve.versions")
AGAIN_S = 10.0  # between two tries of a version that could not be loaded
LOOK_S = 0.1


class Shelf(Protocol):
    """The versions of a worker."""

    def get(self, version: str) -> object: ...

    def loaded(self) -> frozenset[str]: ...

    def keep(self, versions: Collection[str]) -> frozenset[str]: ...


Say = Callable[[str, str, float], None]  # a version, why it can't be loaded or "", the seconds that it took


class Preparing:
    """One worker's. `turn` is one thread's; `failed` may be asked by any.

    Args:
        look: the state and view of now, and the first offset of each partition that is not committed.
        say: told of every try.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        shelf: Shelf,
        look: Callable[[], tuple[State, ControlView, Mapping[TopicPartition, int]]],
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shelf, self._look, self._say, self._clock = shelf, look, say, clock
        self._tried: dict[str, float] = {}
        self.failed: Mapping[str, str] = {}

    def run(self, closing: threading.Event) -> None:
        while not closing.wait(LOOK_S):
            self.turn()

    def serve(self) -> None:
        """Load what events may be routed to from the first one on. A candidate that only runs in shadow can wait."""
        while self._load_one(serving(*self._look())):
            pass

    def turn(self) -> bool:
        """Load one that is missing, the most urgent first; or free what is left over. True: there was one to load."""
        names = wanted(*self._look())
        self.failed = {name: why for name, why in self.failed.items() if name in names}
        if self._load_one(names):
            return True  # the logs may want something else by now
        if gone := self._shelf.keep(names):
            LOG.info("freed %s: no partition can need it any more", ", ".join(sorted(gone)))
        return False

    def _load_one(self, names: Collection[str]) -> bool:
        for name in names:
            if name not in self._shelf.loaded() and self._clock() >= self._tried.get(name, 0.0):
                self._load(name)
                return True
        return False

    def _load(self, name: str) -> None:
        began = self._clock()
        try:
            self._shelf.get(name)
        except Exception as error:  # noqa: BLE001  (whatever a version does, who serves goes on; it is told)
            self._tried[name] = self._clock() + AGAIN_S
            self.failed = {**self.failed, name: error.what if isinstance(error, StreamserveError) else repr(error)}
            LOG.warning("version %s can't be loaded, it is tried again in %.0f s: %s", name, AGAIN_S, error)
            self._say(name, str(error) or repr(error), self._clock() - began)
        else:
            self.failed = {other: why for other, why in self.failed.items() if other != name}
            LOG.info("version %s is loaded and warm, %.1f s", name, self._clock() - began)
            self._say(name, "", self._clock() - began)


def serving(state: State, view: ControlView, committed: Mapping[TopicPartition, int]) -> tuple[str, ...]:
    """Versions that an event may be routed to now, stable first.

    By the last epoch, and by those past ones that may yet route an event of the worker's partitions, be it one that is
    read again.
    """
    needed, numbers = [state.stable], still_needed(view, committed)
    for epoch in view.epochs:
        if epoch.number in numbers or epoch is view.epochs[-1]:
            named = (epoch.stable, epoch.candidate if epoch.weight_bp or epoch.rules else None)
            needed += [name for name in named if name and name not in epoch.killed]
    return tuple(dict.fromkeys(needed))


def wanted(state: State, view: ControlView, committed: Mapping[TopicPartition, int]) -> tuple[str, ...]:
    """What a worker has to have loaded, the most urgent first.

    What stable falls back to is kept warm: a kill is to be in force within milliseconds.
    """
    standing = [name for name in dict.fromkeys(reversed(state.stables)) if name not in state.killed]
    needed = standing[:2]
    if state.rollout is not None and state.rollout.candidate not in state.killed:
        needed.append(state.rollout.candidate)
    return tuple(dict.fromkeys((*needed, *serving(state, view, committed))))
