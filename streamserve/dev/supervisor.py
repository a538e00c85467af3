"""The process above Kafka and Redis: `python -m streamserve.dev.supervisor <spec as JSON>`.

It starts what the spec plans, writes each service's state file, and then only watches. It ends when none of
its services is left. A service ends when somebody signals it, when the supervisor gets SIGTERM, when the
owner process ends, when its state file goes away (the home was deleted), or with the supervisor, even by
SIGKILL. A service in a container is a process here too, which ends with the container, and the other way round.
It restarts nothing: a service that dies stays visible as stopped, with its log.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from streamserve.dev.docker import Compose
from streamserve.dev.launch import STOP_SECONDS, read_spec
from streamserve.dev.place import State, try_lock
from streamserve.dev.process import die_with_parent, look, open_pidfd, stop

if TYPE_CHECKING:
    from streamserve.dev.place import Place
    from streamserve.dev.process import Process
    from streamserve.dev.servers import Plan

_LOOK_MS = 1000  # how often the state files are looked at; all else wakes the loop by itself
_RETRY_MS = 50

log = logging.getLogger("streamserve.dev.supervisor")


@dataclass
class _Child:
    state: State
    popen: subprocess.Popen[bytes]
    fd: int


class _Supervisor:
    def __init__(self, place: Place, owner: Process | None) -> None:
        self.place, self.owner = place, owner
        self.children: dict[str, _Child] = {}
        self.terminate = False
        self.poller = select.poll()
        # A signal that arrives just before poll() must still wake it: the handler's byte waits in the pipe.
        self.wake, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write)
        signal.signal(signal.SIGTERM, self._on_term)
        self.poller.register(self.wake, select.POLLIN)
        self.owner_fd = -1
        self.orphaned = False
        if owner is not None:
            fd = open_pidfd(owner)
            self.orphaned = fd is None
            if fd is not None:
                self.owner_fd = fd
                self.poller.register(fd, select.POLLIN)

    def _on_term(self, *_: object) -> None:
        self.terminate = True

    def start(self, plan: Plan) -> None:
        path = self.place.log(plan.name)
        if path.exists():
            path.replace(path.with_suffix(".log.1"))
        with path.open("wb") as output:
            popen = subprocess.Popen(
                plan.argv,
                cwd=plan.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  (this process has one thread)
            )
        process, me = look(popen.pid), look(os.getpid())
        if process is None or me is None:
            log.error("%s ended at once", plan.name)
            popen.wait()
            return
        state = State(plan.name, plan.port, process, me, self.owner, plan.docker)
        fd = os.pidfd_open(popen.pid)
        self.poller.register(fd, select.POLLIN)
        self.children[plan.name] = _Child(state, popen, fd)
        self.place.write(state)
        log.info("%s started, pid %d, port %d", plan.name, popen.pid, plan.port)

    def watch(self) -> None:
        while self.children:
            ready = {fd for fd, _ in self.poller.poll(_RETRY_MS if self.orphaned else _LOOK_MS)}
            if self.owner_fd in ready:
                self.poller.unregister(self.owner_fd)
                self.orphaned = True
            self._reap()
            if self.terminate:
                self._end(list(self.children), "SIGTERM")
            self._end([name for name in self.children if not self._is_mine(name)], "its state file is gone")
            if self.orphaned:
                self._leave_owner()

    def _is_mine(self, name: str) -> bool:
        written = self.place.read_raw(name)
        return written is not None and written.process == self.children[name].state.process

    def _leave_owner(self) -> None:
        """Under the lock: an `up` that runs now either takes the services over or waits for their end."""
        try:
            with (self.place.root / "lock").open("w") as lock:
                if not try_lock(lock.fileno()):
                    return
                self.orphaned = False
                states = [self.place.read_raw(name) for name in list(self.children)]
                owned = [state.name for state in states if state is not None and state.owner == self.owner]
                self._end(owned, "its owner has ended")
        except FileNotFoundError:
            self._end(list(self.children), "its home is gone")

    def _end(self, names: list[str], why: str) -> None:
        if names:
            log.info("stopping %s: %s", ", ".join(names), why)
            stop([self.children[name].state.process for name in names], STOP_SECONDS)
            self._reap()

    def _reap(self) -> None:
        for name, child in list(self.children.items()):
            status = child.popen.poll()
            if status is None:
                continue
            log.info("%s ended with status %d", name, status)
            if child.state.docker and status < 0:  # killed before it could do so itself
                Compose(self.place, name).remove()
            if self._is_mine(name):
                self.place.state_file(name).unlink(missing_ok=True)
            self.poller.unregister(child.fd)
            os.close(child.fd)
            del self.children[name]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    place, plans, owner = read_spec(sys.argv[1])
    supervisor = _Supervisor(place, owner)
    for plan in plans:
        supervisor.start(plan)
    supervisor.watch()


if __name__ == "__main__":
    main()
