"""A filter for the log of clients that repeat themselves: in an outage each client tells each failed connection."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

EVERY_S = 30.0
_VARIES = re.compile(r"\[thrd:[^]]*\]|\[[^]]*#\w+-\d+\]|\d+")  # threads, client instances, counts and times


class Repeats(logging.Filter):
    """Lets a message through once in `every` seconds; the next one says how many like it were left out.

    Messages are alike where they differ in numbers and client instances alone.
    """

    def __init__(self, every: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every, self._clock = every, clock
        self._told: dict[str, tuple[float, int]] = {}  # message: (when it was last told, how many were left out since)

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        key = _VARIES.sub("", text.rpartition("]: ")[2])
        now = self._clock()
        last, left_out = self._told.get(key, (-self._every, 0))
        if now - last < self._every:
            self._told[key] = last, left_out + 1
            return False
        self._told[key] = now, 0
        if left_out:
            record.msg, record.args = f"{text} ({left_out} more like it since)", ()
        return True
