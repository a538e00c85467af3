"""Fewer inputs that still break the same promise."""

from __future__ import annotations

import time
from collections.abc import Callable

from fuzz.batches import Batch


def minimise(
    batch: Batch, row: int, broken: Callable[[Batch], bool], *, tries: int = 200, seconds: float = 60.0
) -> Batch:
    """A batch of some of the inputs; the whole where none of its parts does it, or time is up.

    row: the one to blame, if known: it is tried by itself first.
    """
    deadline, left = time.monotonic() + seconds, tries

    def fails(places: list[int]) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and time.monotonic() < deadline and broken(batch.take(places))

    if row >= 0 and fails([row]):
        return batch.take([row])
    places = list(range(len(batch.inputs)))
    chunk = len(places) // 2
    while chunk >= 1:
        at = 0
        while at < len(places):
            fewer = places[:at] + places[at + chunk :]
            if fewer and fails(fewer):
                places = fewer
            else:
                at += chunk
        chunk //= 2
    return batch.take(places)
