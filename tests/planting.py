"""An error planted in a module for a while: a line of its source is another one, and its functions run by it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from unittest import mock


@contextlib.contextmanager
def planted_in(place: str, old: str, new: str, name: str) -> Iterator[None]:
    """place: the module. name: of the error, for whoever sees that it can't be planted."""
    module = importlib.import_module(place)
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{name}: {old!r} stands {source.count(old)} times in {place}"
    scratch = ModuleType("scratch")
    with mock.patch.dict(sys.modules, scratch=scratch):  # dataclasses look there
        exec(compile(source.replace(old, new), f"planted: {name}", "exec"), vars(scratch))  # noqa: S102  (it is ours)
    twins = dict(_functions(vars(scratch)))
    was = [(f, f.__code__) for at, f in _functions(vars(module)) if at in twins and f.__code__ != twins[at].__code__]
    assert was, f"{name}: no function is another one"
    try:
        for function, _ in was:
            function.__code__ = twins[function.__qualname__].__code__
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
