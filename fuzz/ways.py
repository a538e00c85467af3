"""The compiled way and the Python way through the pipeline: both must serve, and give the same bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

from streamserve.features import packed
from streamserve.pipeline import avro_packed, record_packed

Way = Literal["compiled", "python"]
WAYS: tuple[Way, Way] = ("compiled", "python")
ROOMS = (avro_packed, packed, record_packed)
_libraries = tuple(room.library for room in ROOMS)


def is_built() -> bool:
    """Whether there is a compiled way; where not, both are the Python one."""
    return all(library() is not None for library in _libraries)


@contextlib.contextmanager
def through(way: Way) -> Iterator[None]:
    before = [room.library for room in ROOMS]
    if way == "python":
        for room in ROOMS:
            room.library = lambda: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for room, library in zip(ROOMS, before, strict=True):
            room.library = library  # type: ignore[attr-defined]
