"""Errors planted in the fold, one at a time: a line of its source is another one for a while."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from unittest import mock


def _read(text: str) -> Iterator[tuple[str, tuple[str, str, str]]]:
    for part in text.split("\n== ")[1:]:
        module = part.partition("\n")[0]
        for name, old, new in re.findall(r"^(\w.*)\n- (.*)\n\+ ?(.*)$", part, re.MULTILINE):
            yield name, (module, old, new)


PLANTED = dict(_read(Path(__file__).with_name("fold_planted.txt").read_text()))  # by what goes wrong


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """The fold with this error in it."""
    where, old, new = PLANTED[name]
    module = importlib.import_module(f"streamserve.control.{where}")
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{name}: {old!r} stands {source.count(old)} times in {module.__name__}"
    scratch = ModuleType("scratch")
    with mock.patch.dict(sys.modules, scratch=scratch):  # dataclasses look there
        exec(compile(source.replace(old, new), f"planted: {name}", "exec"), vars(scratch))  # noqa: S102  (it is ours)
    twins = dict(_functions(vars(scratch)))
    was = [(function, function.__code__) for place, function in _functions(vars(module)) if place in twins]
    changed = [(f, twins[f.__qualname__].__code__) for f, code in was if code != twins[f.__qualname__].__code__]
    assert changed, f"{name}: no function is another one"
    try:
        for function, code in changed:
            function.__code__ = code
        yield
    finally:
        for function, code in was:
            function.__code__ = code


def _functions(space) -> Iterator[tuple[str, FunctionType]]:
    """A module's functions, methods and properties, by their names."""
    for found in list(space.values()):
        if isinstance(found, type) and found.__module__ == space["__name__"]:
            for one in vars(found).values():
                inner = one.fget if isinstance(one, property) else getattr(one, "__func__", one)
                if isinstance(inner, FunctionType) and inner.__module__ == space["__name__"]:
                    yield inner.__qualname__, inner
        elif isinstance(found, FunctionType) and found.__module__ == space["__name__"]:
            yield found.__qualname__, found
