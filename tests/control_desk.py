"""What tests of the control log share: an operator's desk, and releases that can do more than this one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from streamserve.control import commands, fold, terms
from streamserve.control.commands import (
    Approve,
    Init,
    Kill,
    Pause,
    Prepare,
    Promote,
    Resume,
    Rollback,
    Shadow,
    Shift,
)
from streamserve.control.fold import State, step
from streamserve.control.sending import encode
from streamserve.records import RoutingEpoch, Rule

SHA = {version: version[1] * 64 for version in ("v1", "v2", "v3", "v4")}
CANDIDATE_RULE = {"name": "staff", "where": {"plan.tier": ["staff", 7, True]}, "answer": "candidate"}
STABLE_RULE = {"name": "germans", "where": {"country": ["de", "at"], "age": [1]}, "answer": "stable"}


@contextlib.contextmanager
def able(schema_version: int) -> Iterator[None]:
    """A release that can do commands up to this version; those of later versions look like the first here."""
    forms = dict.fromkeys(range(1, schema_version + 1), commands.FORMS[1])
    with mock.patch.object(terms, "SCHEMA_VERSION", schema_version), mock.patch.object(fold, "FORMS", forms):
        yield


class Desk:
    """An operator's: each command goes out with what was read by then."""

    def __init__(self, *, init=True) -> None:
        self.state, self.offset, self.said = State("t"), -1, None
        if init:
            self.send(
                Init, model="m", stable="v1", manifest=SHA["v1"], salt="s", segments=["plan.tier", "country", "age"]
            )
            assert self.said.accepted

    def send(self, form, **what):
        self.offset += 1
        body = {"command_id": f"c{self.offset}", "topology": "t"}
        if form is not Kill:
            body["expected_generation"] = self.state.generation
        if form in (Prepare, Shadow, Shift, Promote, Rollback, Pause, Resume, Approve):
            body["rollout_id"] = "r1"
        value, headers = encode(form(**{**body, **what}))
        self.state, self.said = step(self.state, self.offset, value, headers)
        return self.said.rejection

    def prepare(self, candidate="v2", **more):
        return self.send(Prepare, **{"candidate": candidate, "manifest": SHA[candidate], **more})

    @classmethod
    def at_canary(cls):
        """v2 at 5%, with rules."""
        desk = cls()
        desk.prepare(rules=[CANDIDATE_RULE, STABLE_RULE])
        desk.ok(Shift, weight_bp=500)
        return desk

    def ok(self, form, **what):
        assert self.send(form, **what) is None
        assert self.said.accepted

    @property
    def epoch(self) -> RoutingEpoch:
        return self.state.epochs[-1]


RULES = (
    Rule("staff", (("plan.tier", ("staff", 7, True)),), candidate=True),
    Rule("germans", (("age", (1,)), ("country", ("de", "at"))), candidate=False),
)
CANARY = RoutingEpoch(2, "v1", "v2", 500, "s/r1", "r1", RULES)
