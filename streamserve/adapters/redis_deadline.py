"""Connections to Redis that keep to a deadline, whatever the server does.

redis-py's timeouts are for one socket operation: a server that sends a byte every 200 ms holds an ask of 250 ms for
minutes, each address of a host has a timeout of its own, and a name server that hangs has none. Inside
`within(seconds)` all that a thread does on such a connection ends when the seconds are over: connecting, handshake,
sending, reading.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


class _Due(threading.local):
    at: float = math.inf  # of this thread, on the monotonic clock


_due = _Due()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """What this thread does meanwhile on a bounded connection raises TimeoutError once the seconds are over."""
    before, _due.at = _due.at, min(_due.at, time.monotonic() + seconds)
    try:
        yield
    finally:
        _due.at = before


def _left(limit: float | None) -> float | None:
    """Seconds for the next operation, None for no limit.

    Raises:
        TimeoutError: there are none left.
    """
    if _due.at == math.inf:
        return limit
    left = _due.at - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left if limit is None else min(left, limit)


class _Socket:
    """A connected socket whose reads and writes take no longer than is left."""

    def __init__(self, sock: Any) -> None:
        self._sock, self._limit = sock, sock.gettimeout()

    def settimeout(self, seconds: float | None) -> None:
        self._limit = seconds

    def gettimeout(self) -> float | None:
        limit: float | None = self._limit
        return limit

    def recv_into(self, *args: Any) -> Any:
        return self._timed(self._sock.recv_into, *args)

    def recv(self, *args: Any) -> Any:
        return self._timed(self._sock.recv, *args)

    def sendall(self, data: Any) -> None:
        self._timed(self._sock.sendall, data)  # Python takes the timeout for the whole of it

    def _timed(self, operation: Callable[..., Any], *args: Any) -> Any:
        self._sock.settimeout(_left(self._limit))
        return operation(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Bounded:
    """Mixed into a connection class of redis-py."""

    def _connect(self) -> _Socket:
        connect: Callable[[], Any] = super()._connect  # type: ignore[misc]  # of the class that it is mixed into
        return _Socket(connect() if _due.at == math.inf else _abandoning(connect))


def _abandoning(connect: Callable[[], Any]) -> Any:
    """Connect in a thread that is left alone when time is over: to look a name up can't be interrupted.

    Raises:
        TimeoutError: it took longer than is left. A connection that still comes is closed.
    """
    lock, done = threading.Lock(), threading.Event()
    made: list[Any] = []
    failed: list[Exception] = []
    given_up = False

    def run() -> None:
        try:
            sock = connect()
        except Exception as error:  # noqa: BLE001  (raised again below, in the thread that asked)
            failed.append(error)
        else:
            with lock:
                made.append(sock)
                if given_up:
                    sock.close()
        done.set()

    left = _left(None)
    threading.Thread(target=run, name="redis-connect", daemon=True).start()
    done.wait(left)
    with lock:
        given_up = not made
    if failed:
        raise failed[0]
    if given_up:
        raise TimeoutError("timed out")
    return made[0]


def bounded(connection: type[Any]) -> type[Any]:
    """A connection class of redis-py (TCP, TLS, Unix) that keeps to deadlines."""
    return type(connection.__name__, (_Bounded, connection), {})
