"""Promise: the tree of errors in the docstring is the tree, and each error says what, where and how to mend."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import streamserve
from streamserve import errors
from streamserve.errors import StreamserveError


def drawn():
    """Name and parent of each class in the docstring's tree."""
    found, above = {}, []
    for line in errors.__doc__.splitlines():
        if not line.startswith("    "):
            continue
        name = line.lstrip(" │├└─").split()[0]
        depth = line.index(name) // 4
        above[depth - 1 :] = [name]
        found[name] = above[depth - 2] if depth > 1 else "Exception"
    return found


def below(kind):
    return [one for child in kind.__subclasses__() for one in (child, *below(child))]


def test_the_tree_that_is_drawn_is_the_tree():
    mine = [kind for kind in (StreamserveError, *below(StreamserveError)) if kind.__module__ == errors.__name__]
    assert drawn() == {kind.__name__: kind.__mro__[1].__name__ for kind in mine}


def test_a_rooms_own_error_is_a_leaf_of_one_that_is_drawn():
    for module in pkgutil.walk_packages(streamserve.__path__, "streamserve."):
        if not module.name.startswith("streamserve.native.") and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for kind in below(StreamserveError):
        if kind.__module__.startswith("streamserve.") and kind.__module__ != errors.__name__:
            assert kind.__mro__[1].__module__ == errors.__name__, f"{kind} is a branch: draw it"


def test_what_where_and_mend_stand_in_its_text():
    error = StreamserveError("it broke", where="file:3", mend="mend it")
    assert str(error) == "it broke\n  where: file:3\n  mend:  mend it"
    assert str(StreamserveError("it broke")) == "it broke"


@pytest.mark.parametrize("kind", [StreamserveError, *below(StreamserveError)], ids=lambda kind: kind.__name__)
def test_an_exit_code_tells_the_branch_and_is_none_of_the_shells(kind):
    assert 1 <= kind.exit_code < 64
    branch = next((one for one in kind.__mro__ if StreamserveError in one.__bases__), StreamserveError)
    assert kind.exit_code == branch.exit_code
