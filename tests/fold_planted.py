"""Errors planted in the fold, one at a time: a line of its source is another one for a while."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from planting import planted_in


def _read(text: str) -> Iterator[tuple[str, tuple[str, str, str]]]:
    for part in text.split("\n== ")[1:]:
        module = part.partition("\n")[0]
        for name, old, new in re.findall(r"^(\w.*)\n- (.*)\n\+ ?(.*)$", part, re.MULTILINE):
            yield name, (module, old, new)


PLANTED = dict(_read(Path(__file__).with_name("fold_planted.txt").read_text()))  # by what goes wrong


def planted(name: str) -> AbstractContextManager[None]:
    """The fold with this error in it."""
    where, old, new = PLANTED[name]
    return planted_in(f"streamserve.control.{where}", old, new, name)
