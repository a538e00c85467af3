"""Feature rows in Redis: one MGET a micro-batch, within a deadline; an outage is an answer, not an exception."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.retry import Retry

from streamserve.adapters.redis_deadline import bounded, within
from streamserve.adapters.redis_faults import (
    ERRORS,
    OURS,
    UNREACHABLE,
    Failure,
    Kind,
    failure_of,
    lost,
    mend_of,
    mend_of_write,
)
from streamserve.adapters.redis_guard import Guard, Rows
from streamserve.errors import RedisError
from streamserve.features.breaker import Rules, StoreReading
from streamserve.features.rows import Answer
from streamserve.records import FeatureStatus
from streamserve.settings import Settings

# Keys that no row has: to read them takes the rights that rows take. Of two hash slots, so that a node of a cluster
# refuses them whichever slots it serves.
PROBES = (b"streamserve:probe", b"streamserve:probe:2")
WRITE_CHUNK = 2000  # rows a round trip of `load`
KINDS_OF_VALUES = {bytes, type(None)}
SUSPECT = (Kind.TIMEOUT, Kind.GONE, Kind.GARBLED)  # what befell one connection may have befallen the idle ones
NO_ANSWER = Answer(None, FeatureStatus.TIMEOUT)


class _Packer(HiredisRespSerializer):
    """Commands as redis-py packs them; an MGET without a look at the type of each key, which costs 0.3 us a key."""

    def pack(self, *args: Any) -> list[bytes]:
        found: list[bytes] = [hiredis.pack_command(args)] if args[0] == "MGET" else super().pack(*args)
        return found


class RedisStore:
    """A FeatureStore over one Redis server. Safe from several threads."""

    def __init__(self, settings: Settings) -> None:
        if not settings.redis_url:
            raise RedisError("no Redis is named, and no local one runs", mend=UNREACHABLE)
        options: dict[str, object] = {
            "socket_timeout": settings.store_timeout,
            "socket_connect_timeout": settings.store_timeout,
            "retry": Retry(NoBackoff(), 0),
            "command_packer": _Packer(),
            # Nothing of the third version is used, and its pushes may stretch timeouts
            "protocol": 2,
            **settings.redis,
            "decode_responses": False,  # rows are bytes
        }
        self._address = _without_password(settings.redis_url)
        self._timeout, self._start_timeout = settings.store_timeout, settings.start_timeout
        try:
            self._redis = redis.Redis.from_url(settings.redis_url, **options)
        except ValueError:  # its text may quote a part of the password
            raise RedisError(
                "STREAMSERVE_REDIS_URL is no Redis URL",
                mend="write it as redis://user:password@host:6379/0, with %2F for a / in the password",
            ) from None
        pool = self._redis.connection_pool
        pool.connection_class = bounded(pool.connection_class)
        rules = Rules(settings.store_failures, settings.store_pause, settings.store_pause_max)
        self._guard = Guard(self._ask, rules)

    def check(self) -> None:
        """Is it there, and does it let us read rows?

        Raises:
            RedisError: no, or it refuses us, or it is a node of a cluster.
        """
        try:
            with within(self._start_timeout):
                self._redis.mget(PROBES)
        except ERRORS as error:
            raise RedisError(f"Redis does not help: {_what(error)}", where=self._address, mend=mend_of(error)) from None
        except TypeError as error:  # redis-py makes its connections late, and tells of their options then
            raise RedisError(
                f"STREAMSERVE_REDIS does not fit: {error}", mend="see redis-py's connection options"
            ) from None

    def fetch(self, keys: Sequence[bytes]) -> Answer:
        rows = self._guard.fetch(keys)
        return NO_ANSWER if rows is None else Answer(rows)

    def reading(self) -> StoreReading:
        return self._guard.reading()

    def _ask(self, keys: Sequence[bytes]) -> Rows | Failure:
        """One MGET, within the store's timeout from its beginning to its end."""
        try:
            with within(self._timeout):
                rows = self._mget(keys)
            if type(rows) is list and len(rows) == len(keys) and KINDS_OF_VALUES.issuperset(map(type, rows)):
                return rows
            failure = Failure(Kind.GARBLED, f"it answered {len(keys)} keys with something else than as many values")
        except OURS:
            raise
        except ERRORS as error:
            failure = failure_of(error)
        if failure.kind in SUSPECT:
            self._redis.connection_pool.disconnect(inuse_connections=False)
        return failure

    def _mget(self, keys: Sequence[bytes]) -> Any:
        try:
            return self._redis.mget(keys)
        except redis.ConnectionError as error:
            if not lost(error):
                raise
        return self._redis.mget(keys)

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> int:
        """Write rows, each atomically; returns how many.

        Raises:
            RedisError: the server is gone, full or read-only; rows before it are written, all may be written again.
        """
        count = 0
        chunk: dict[bytes, bytes] = {}
        try:
            for key, row in rows:
                chunk[key] = row
                if len(chunk) == WRITE_CHUNK:
                    self._redis.mset(chunk)
                    count, chunk = count + len(chunk), {}
            if chunk:
                self._redis.mset(chunk)
        except redis.RedisError as error:
            raise RedisError(
                f"Redis took {count} rows and then refused: {_what(error)}",
                where=self._address,
                mend=mend_of_write(error),
            ) from None
        return count + len(chunk)

    def close(self) -> None:
        self._guard.close()
        self._redis.close()


def _what(error: BaseException) -> str:
    """Its text; redis-py cuts a reply's first word off, which the documentation of Redis goes by."""
    text = str(error) or type(error).__name__
    code = getattr(error, "status_code", None)
    return f"{code} {text}" if code and code != "ERR" else text


def _without_password(url: str) -> str:
    """Of an URL, what may be shown: passwords stand before the `@` or among the options."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
