"""The compiled way and the Python way through the pipeline: both must serve, and give the same bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

from streamserve.pipeline import record_packed

Way = Literal["compiled", "python"]
WAYS: tuple[Way, Way] = ("compiled", "python")
_library = record_packed.library


def is_built() -> bool:
    """Whether there is a compiled way; where not, both are the Python one."""
    return _library() is not None


@contextlib.contextmanager
def through(way: Way) -> Iterator[None]:
    before = record_packed.library
    if way == "python":
        record_packed.library = lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        record_packed.library = before
