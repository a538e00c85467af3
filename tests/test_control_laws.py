"""Promise: what docs/control.md says of every fold of the control log holds of random logs, and is not said in vain."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from fold_check import OF_LOGS, OF_STEPS, Broken
from fold_planted import PLANTED, planted
from fold_sequences import many

from streamserve.control.commands import KINDS
from streamserve.control.fold import Rejection

COUNT = int(os.environ.get("CONTROL_LOGS", "300"))  # python tests/fold_sequences.py 100000 for as many as you like
ENOUGH = 600  # logs in which a planted error must show
LAWS = [*OF_STEPS, *OF_LOGS]
BROKEN: dict[str, set[str]] = {}  # laws, by what was planted


def test_random_logs_break_no_law_and_try_every_command_and_every_reason():
    said = many(COUNT)
    assert {f"accepted {kind}" for kind in KINDS} <= set(said)
    assert set(Rejection) <= set(said)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_breaks_a_law(name):
    with planted(name), pytest.raises(Broken) as found:
        many(ENOUGH)
    BROKEN[name] = found.value.laws
    assert str(found.value).startswith("seed ")


def test_every_law_finds_something():
    if set(BROKEN) != set(PLANTED):
        pytest.skip("asked for without all that is planted")
    assert {law.__name__ for law in LAWS} == set().union(*BROKEN.values())


def test_what_was_planted_is_gone_again():
    assert many(20)


def test_the_laws_are_those_of_the_documentation():
    text = (Path(__file__).parent.parent / "docs" / "control.md").read_text()
    listed = re.findall(r"^(\d+)\. ((?:.+\n)(?:   .+\n)*)", text.partition("## What always holds")[2], re.MULTILINE)
    assert [int(number) for number, _ in listed] == list(range(1, len(LAWS) + 1))
    assert [" ".join(said.split()) for _, said in listed] == [" ".join(law.__doc__.split()) for law in LAWS]
