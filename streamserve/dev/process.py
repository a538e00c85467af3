"""Processes of this machine, known by pid and start time, so that a recycled pid is never signalled.

Linux only: `/proc` tells the start time, a pidfd holds on to the process that was looked at.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Process:
    """One process: `started` is in clock ticks since boot, field 22 of `/proc/<pid>/stat`."""

    pid: int
    started: int

    @property
    def uptime(self) -> float:
        """Seconds since its start."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.started / os.sysconf("SC_CLK_TCK")


def look(pid: int) -> Process | None:
    """The process that has this pid now; None if there is none, or only its exit status is left."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # The command in parentheses may hold spaces and parentheses itself: count fields from behind it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else Process(pid, int(fields[19]))


def alive(process: Process) -> bool:
    return look(process.pid) == process


def open_pidfd(process: Process) -> int | None:
    """A pidfd that becomes readable when the process ends; None if it has ended. The caller closes it."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return None
    if alive(process):  # looked at after opening: from here on the fd means this process and no other
        return fd
    os.close(fd)
    return None


def send(process: Process, signum: signal.Signals) -> None:
    """Signal this very process; nothing if it has ended."""
    fd = open_pidfd(process)
    if fd is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signum)
    finally:
        os.close(fd)


def wait_gone(processes: Iterable[Process], seconds: float) -> list[Process]:
    """Wait until all have ended, at most `seconds` together. Returns those still there."""
    deadline = time.monotonic() + seconds
    left = []
    for process in processes:
        fd = open_pidfd(process)
        if fd is None:
            continue
        try:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                left.append(process)
        finally:
            os.close(fd)
    return left


def stop(processes: Sequence[Process], grace: float) -> None:
    """SIGTERM to all, SIGKILL to those that have not ended after `grace` seconds; returns when all have."""
    for process in processes:
        send(process, signal.SIGTERM)
    left = wait_gone(processes, grace)
    for process in left:
        send(process, signal.SIGKILL)
    wait_gone(left, 5.0)


def die_with_parent(parent: int, signum: signal.Signals = signal.SIGKILL) -> None:
    """In a child: the kernel sends it this signal when the parent ends, however that ends. Holds over an exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:  # the parent was gone before the request was in place
        os._exit(1)


def spawn_detached(argv: Sequence[str], environ: Mapping[str, str], log: Path) -> int:
    """Start a program in its own session, output to `log`, with default signals. Returns its pid.

    Not `subprocess`: nobody here waits for it, and an unwaited Popen warns when it is collected.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        argv[0],
        tuple(argv),
        environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD],
    )


def reap(pid: int) -> None:
    """Take the exit status of an own child that has ended, so that no zombie stays."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
