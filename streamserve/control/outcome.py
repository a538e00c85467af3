"""What became of one record of the control log, and its form for the audit topic (`streamserve.rollouts`)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from streamserve.control.commands import AnyCommand
from streamserve.records import RoutingEpoch, Rule

DETAIL = 300
LABELS = {"topology": 200, "kind": 60, "command_id": 200, "rollout_id": 200, "actor": 200, "reason": 2000}


class Rejection(enum.StrEnum):
    """Why a command was not accepted. In the order in which they are looked for."""

    MALFORMED = "MALFORMED"  # no JSON object, or not the published form
    UNSIGNED = "UNSIGNED"  # signing is required
    UNKNOWN_KEY = "UNKNOWN_KEY"  # signed by a key that is not listed
    BAD_SIGNATURE = "BAD_SIGNATURE"
    UNSUPPORTED_VERSION = "UNSUPPORTED_VERSION"  # a higher schema_version than the log was upgraded to
    UNKNOWN_KIND = "UNKNOWN_KIND"
    REPLAYED = "REPLAYED"  # the command_id was accepted before: a no-op
    NOT_INITIALISED = "NOT_INITIALISED"
    ALREADY_INITIALISED = "ALREADY_INITIALISED"
    STALE = "STALE"  # expected_generation is not the topology's
    BUSY = "BUSY"  # another rollout is open
    NO_ROLLOUT = "NO_ROLLOUT"  # this one is not open
    ROLLOUT_USED = "ROLLOUT_USED"  # one of this id has ended
    ALREADY_STABLE = "ALREADY_STABLE"  # the candidate is the stable version in force
    KILLED = "KILLED"  # the candidate is, and was not revived
    MANIFEST_DIFFERS = "MANIFEST_DIFFERS"  # from the one that is pinned for this version
    UNKNOWN_FIELD = "UNKNOWN_FIELD"  # a rule names one that is not among init's segments
    PAUSED = "PAUSED"
    UNKNOWN_VERSION = "UNKNOWN_VERSION"  # no accepted command ever named it
    ALREADY_KILLED = "ALREADY_KILLED"
    NOT_KILLED = "NOT_KILLED"
    NO_FALLBACK = "NO_FALLBACK"  # no stable version would be left to answer
    KEY_NOT_LISTED = "KEY_NOT_LISTED"  # and so can't be removed
    NO_KEY_LEFT = "NO_KEY_LEFT"  # to sign with, while signing is required
    NOTHING_CHANGES = "NOTHING_CHANGES"


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that every reader alike does not accept."""

    why: Rejection
    detail: str


@dataclass(frozen=True, slots=True)
class Hold:
    """A record that this reader can't judge, and others can: it may not go on."""

    detail: str


@dataclass(frozen=True, slots=True)
class Label:
    """Who sent what, as far as it can be read: of refused commands as well. Texts are cut to the form's lengths."""

    topology: str | None = None
    kind: str | None = None
    command_id: str | None = None
    rollout_id: str | None = None
    actor: str | None = None
    reason: str | None = None

    @classmethod
    def of(cls, body: Mapping[str, object]) -> Label:
        found = ((name, body.get(name), size) for name, size in LABELS.items())
        return cls(**{name: clean(text, size) for name, text, size in found if isinstance(text, str)})


UNLABELLED = Label()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record of the log. `detail` is for people.

    Neither accepted nor rejected nor held: it is another topology's, and nobody's affair here.
    generation: after it. epoch: what it put in force. signed_by: the listed key whose signature was checked, and right.
    """

    offset: int
    accepted: bool
    generation: int = 0
    command: AnyCommand | None = None
    rejection: Rejection | None = None
    detail: str = ""
    epoch: RoutingEpoch | None = None
    label: Label = UNLABELLED
    signed_by: str | None = None
    held: bool = False


def clean(text: str, size: int = DETAIL) -> str:
    """Cut, and fit for any log: JSON can say surrogates that UTF-8 can't."""
    return text[:size].encode(errors="backslashreplace").decode()[:size]


def audit(outcome: Outcome) -> dict[str, object]:
    """An outcome as JSON, for the audit. What a command says is in it in full; secrets never come near it."""
    label, command = outcome.label, outcome.command
    return {
        "offset": outcome.offset,
        "accepted": outcome.accepted,
        "held": outcome.held,
        **{name: getattr(label, name) for name in LABELS},
        "rejection": None if outcome.rejection is None else outcome.rejection.value,
        "detail": outcome.detail,
        "generation": outcome.generation,
        "signed_by": outcome.signed_by,
        "epoch": None if outcome.epoch is None else _epoch(outcome.epoch),
        "command": None if command is None else command.model_dump(mode="json"),
    }


def _epoch(epoch: RoutingEpoch) -> dict[str, object]:
    return {
        "number": epoch.number,
        "stable": epoch.stable,
        "candidate": epoch.candidate,
        "weight_bp": epoch.weight_bp,
        "salt": epoch.salt,
        "rollout_id": epoch.rollout_id,
        "rules": [_rule(rule) for rule in epoch.rules],
        "killed": sorted(epoch.killed),
        "instead_of": epoch.instead_of,
    }


def _rule(rule: Rule) -> dict[str, object]:
    where = {path: list(values) for path, values in rule.where}
    return {"name": rule.name, "where": where, "answer": "candidate" if rule.candidate else "stable"}
