"""What can go wrong with Redis: each error's kind, for metrics and logs, and how a person mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import redis
from redis import exceptions as said

UNREACHABLE = "start one with `streamserve dev up`, or set STREAMSERVE_REDIS_URL to a Redis that runs"

# What redis-py raises out of an ask because of what the server did. Beside its own errors: the system's; ValueError
# (broken numbers, redirects and UTF-8), RecursionError and MemoryError of replies that no Redis gives (`*2147483647`).
# Whatever else comes (TypeError, AttributeError, ...) is a fault of the program, and stops the worker.
ERRORS = (redis.RedisError, OSError, ValueError, RecursionError, MemoryError)
OURS = said.DataError  # redis-py's refusal of what it is given, before anything is sent


class Kind(Enum):
    TIMEOUT = "timeout"  # no answer in time
    GONE = "gone"  # no connection, or a lost one
    LOADING = "loading"  # started, and not ready: it loads its rows, or a replica its primary's
    DENIED = "denied"  # password or rights
    CLUSTER = "cluster"  # a node of a cluster: rows lie elsewhere
    REFUSED = "refused"  # any other error that it answers with
    GARBLED = "garbled"  # no reply of Redis


@dataclass(frozen=True, slots=True)
class Failure:
    """An ask in vain."""

    kind: Kind
    text: str


_KINDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Kind], ...] = (
    ((redis.TimeoutError, TimeoutError), Kind.TIMEOUT),
    ((said.BusyLoadingError, said.MasterDownError), Kind.LOADING),
    ((said.AuthenticationError, said.AuthorizationError, said.NoPermissionError), Kind.DENIED),
    ((said.AskError, said.ClusterError, said.ClusterCrossSlotError, said.TryAgainError), Kind.CLUSTER),
    (said.InvalidResponse, Kind.GARBLED),
    ((redis.ConnectionError, OSError), Kind.GONE),
    (redis.RedisError, Kind.REFUSED),
)


def kind_of(error: BaseException) -> Kind:
    return next((kind for errors, kind in _KINDS if isinstance(error, errors)), Kind.GARBLED)


def failure_of(error: BaseException) -> Failure:
    return Failure(kind_of(error), str(error) or type(error).__name__)


def lost(error: BaseException) -> bool:
    """The connection broke. Nothing was answered: to ask once more on a fresh one does no harm."""
    return type(error) is redis.ConnectionError


_READ = {
    Kind.LOADING: "wait until it has loaded its rows, and repeat",
    Kind.CLUSTER: "a batch's rows are read by one MGET, which no cluster answers: point STREAMSERVE_REDIS_URL at a "
    "Redis without cluster mode (one primary, with or without replicas)",
    Kind.TIMEOUT: f"raise STREAMSERVE_STORE_TIMEOUT if it is far away; if it does not run, {UNREACHABLE}",
    Kind.REFUSED: "see its documentation for this error, mend it there, and repeat",
    Kind.GARBLED: "what answers there does not speak Redis's protocol: check host, port, and rediss:// for TLS",
    Kind.GONE: UNREACHABLE,
}


def mend_of(error: BaseException) -> str:
    """For who starts a worker or reads."""
    kind = kind_of(error)
    if isinstance(error, said.NoPermissionError):
        return "grant the user what docs/operations.md lists: ~streamserve:* +mget, and +mset to load rows"
    if kind is Kind.DENIED:
        return "check the user and password in STREAMSERVE_REDIS_URL"
    return _READ[kind]


def mend_of_write(error: BaseException) -> str:
    """For who loads rows: those that were written stay, and all may be written again."""
    if isinstance(error, said.OutOfMemoryError):
        return (
            "raise its maxmemory, or delete rows that no version reads any more "
            "(streamserve:<view>:<fingerprint>:*), then load again"
        )
    if isinstance(error, said.ReadOnlyError):
        return "this is a replica: point STREAMSERVE_REDIS_URL at its primary, then load again"
    if str(error).startswith("MISCONF"):
        return "its disk is full or can't be written (see its log): mend that, then load again"
    if isinstance(error, said.NoPermissionError) or kind_of(error) in (Kind.DENIED, Kind.CLUSTER):
        return mend_of(error)
    return "mend Redis, then load again"
