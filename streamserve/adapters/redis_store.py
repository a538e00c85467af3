"""Feature rows in Redis: one MGET a micro-batch, within a deadline; an outage is an answer, not an exception."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from streamserve.errors import RedisError
from streamserve.features.rows import Answer
from streamserve.records import FeatureStatus
from streamserve.settings import Settings

LOG = logging.getLogger("streamserve.redis")
UNREACHABLE = "start one with `streamserve dev up`, or set STREAMSERVE_REDIS_URL to a Redis that runs"
PROBE = b"streamserve:probe"  # a key that no row has: to read it takes the rights that rows take
WRITE_CHUNK = 2000  # rows a round trip of `load`


class RedisStore:
    """A FeatureStore over one Redis server. Safe from several threads."""

    def __init__(self, settings: Settings) -> None:
        if not settings.redis_url:
            raise RedisError("no Redis is named, and no local one runs", mend=UNREACHABLE)
        options: dict[str, object] = {
            "socket_timeout": settings.store_timeout,
            "socket_connect_timeout": settings.store_timeout,
            "retry": Retry(NoBackoff(), 0),
            **settings.redis,
        }
        self._address = _without_password(settings.redis_url)
        self._start_timeout = settings.start_timeout
        try:
            self._redis = redis.Redis.from_url(settings.redis_url, **options)
        except ValueError:  # its text may quote a part of the password
            raise RedisError(
                "STREAMSERVE_REDIS_URL is no Redis URL",
                mend="write it as redis://user:password@host:6379/0, with %2F for a / in the password",
            ) from None

    def check(self) -> None:
        """Is it there, and does it let us read rows?

        Raises:
            RedisError: no, or it refuses us.
        """
        try:
            self._redis.mget([PROBE])
        except redis.RedisError as error:
            raise RedisError(f"Redis does not help: {error}", where=self._address, mend=_mend(error)) from None
        except TypeError as error:  # redis-py makes its connections late, and tells of their options then
            raise RedisError(
                f"STREAMSERVE_REDIS does not fit: {error}", mend="see redis-py's connection options"
            ) from None

    def fetch(self, keys: Sequence[bytes]) -> Answer:
        try:
            rows: Any = self._redis.mget(keys)
            return Answer(rows)
        except redis.TimeoutError:
            LOG.warning("no answer in time for %d rows; defaults are used", len(keys))
        except redis.RedisError as error:
            LOG.warning("%s; defaults are used for %d rows", error, len(keys))
        return Answer(None, FeatureStatus.TIMEOUT)

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
                f"Redis took {count} rows and then refused: {error}",
                where=self._address,
                mend=_mend(error) if isinstance(error, redis.exceptions.NoPermissionError) else "mend Redis and repeat",
            ) from None
        return count + len(chunk)

    def close(self) -> None:
        self._redis.close()


def _mend(error: redis.RedisError) -> str:
    if isinstance(error, redis.exceptions.NoPermissionError):
        return "grant the user what docs/operations.md lists: ~streamserve:* +mget, and +mset to load rows"
    if isinstance(error, redis.AuthenticationError) or "NOAUTH" in str(error):
        return "check the user and password in STREAMSERVE_REDIS_URL"
    return UNREACHABLE


def _without_password(url: str) -> str:
    """Of an URL, what may be shown: passwords stand before the `@` or among the options."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
