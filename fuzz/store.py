"""A feature store in memory: a row for nearly every key, and some of them odd. What a key has follows from the key."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from zlib import crc32

from fuzz import odd
from fuzz.valid import NOON_MS
from streamserve.features.rows import Answer
from streamserve.records import FeatureStatus

DAY_MS = 86_400_000
TIMES = (0, -1, 2**52, -(2**52), 2**63 - 1, -(2**63), NOON_MS - 1000 * DAY_MS, NOON_MS + 1000 * DAY_MS)


class OddStore:
    """fields: how many a view has, by name. outage: what the store says instead of rows; None: it answers."""

    def __init__(self, fields: Mapping[str, int]) -> None:
        self.outage: FeatureStatus | None = None
        self._fields = {name.encode(): count for name, count in fields.items()}

    def fetch(self, keys: Sequence[bytes]) -> Answer:
        if self.outage is not None:
            return Answer(None, self.outage)
        return Answer([self._row(key) for key in keys])

    def _row(self, key: bytes) -> bytes | None:
        fields, drawn = self._fields[key.split(b":", 2)[1]], crc32(key)
        kind, odder = drawn % 16, drawn >> 8
        if kind == 0:
            return None
        time = TIMES[odder % len(TIMES)] if kind in (1, 2) else NOON_MS - odder % 200 * DAY_MS
        values = [float((odder >> at) % 200) / 8 for at in range(fields)]
        if kind in (2, 3):
            values = [odd.FLOATS[(odder + at) % 12] for at in range(fields)]
        row = struct.pack(f"<q{fields}f", time, *values)
        if kind == 4:
            return row[: odder % len(row)]
        if kind == 5:
            return row + bytes(1 + odder % 9)
        return b"" if kind == 6 and odder % 4 == 0 else row
