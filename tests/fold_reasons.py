"""Why a command may not be accepted: from the state before it and its bytes, by other code than the fold's."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from streamserve.control.commands import KINDS
from streamserve.control.fold import Outcome, Rejection, State
from streamserve.records import Rule

R = Rejection
ROLLOUT_KINDS = ("shadow", "shift", "promote", "rollback", "pause", "resume", "approve")


@dataclass(frozen=True)
class Record:
    """readable: an object of JSON, naming a topology. formed: as published, or would be were kind and version known."""

    offset: int
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    readable: bool = True
    formed: bool = True


@dataclass(frozen=True)
class Seen:
    """One record, and what a reader made of it. ability: the highest schema_version that the reader can do."""

    before: State
    record: Record
    after: State
    outcome: Outcome
    secrets: Mapping[str, bytes] = field(repr=False)
    ability: int = 1

    @cached_property
    def body(self):
        try:
            found = json.loads(self.record.value or b"")
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def kind(self):
        return self.body.get("kind") if isinstance(self.body.get("kind"), str) else None

    @property
    def foreign(self):
        return self.record.readable and self.body["topology"] != self.before.topology

    def accepted(self, *kinds: str) -> bool:
        return self.outcome.accepted and self.body["kind"] in kinds

    def accepted_but(self, kind: str) -> bool:
        return self.outcome.accepted and self.body["kind"] != kind


# ---- what follows from states and bytes


def stable_of(state: State) -> str:
    return [version for version in state.stables if version not in state.killed][-1]


def meant(rules) -> tuple[Rule, ...]:
    """Rules as a command writes them. To be compared as text: 1 is True in Python, and not in an event."""
    wheres = [tuple((path, tuple(one["where"][path])) for path in sorted(one["where"])) for one in rules]
    return tuple(
        Rule(one["name"], where, one["answer"] == "candidate") for one, where in zip(rules, wheres, strict=True)
    )


# ---- signatures


def listed_signer(seen: Seen) -> tuple[str | None, bool]:
    """The listed key that the record names as its signer, and whether the signature is right."""
    found = [value for name, value in seen.record.headers if name == "streamserve.signature"]
    if len(found) != 1 or not found[0] or b":" not in found[0]:
        return None, False
    name, _, digest = found[0].decode("latin-1").rpartition(":")
    if name not in seen.before.keys:
        return None, False
    if name not in seen.secrets:
        return name, False
    made = hmac.new(seen.secrets[name], seen.record.value, hashlib.sha256).hexdigest()
    return name, made == digest


def _signature(seen: Seen) -> set[Rejection]:
    by, right = listed_signer(seen)
    if by:
        return set() if right else {R.BAD_SIGNATURE}
    if seen.before.signing == "off":
        return set()
    found = [value for name, value in seen.record.headers if name == "streamserve.signature"]
    if not found:
        return {R.UNSIGNED}
    return {R.UNKNOWN_KEY} if len(found) == 1 and b":" in (found[0] or b"") else {R.BAD_SIGNATURE}


def holds(seen: Seen) -> bool:
    """Can this reader not judge the record, though others can?"""
    if seen.before.held:
        return True
    if seen.foreign or not seen.record.readable:
        return False
    by, _ = listed_signer(seen)
    if by and by not in seen.secrets:
        return True
    if not seen.record.formed or seen.kind != "upgrade" or reasons(seen):
        return False
    return seen.body["accepts"] > seen.ability


# ---- reasons


def reasons(seen: Seen) -> set[Rejection]:
    """Every reason that speaks against a record of this topology."""
    state, body = seen.before, seen.body
    if not seen.record.readable:
        return {R.MALFORMED}
    found = _signature(seen)
    version = body.get("schema_version", 1)
    if type(version) is int and version > state.accepts:
        return found | {R.UNSUPPORTED_VERSION} | (set() if seen.record.formed else {R.MALFORMED})
    if seen.kind not in KINDS:
        found.add(R.UNKNOWN_KIND)
    if not seen.record.formed:
        found.add(R.MALFORMED)
    if found & {R.UNKNOWN_KIND, R.MALFORMED}:
        return found
    return found | _timing(state, body) | (_asked(state, body) if state.initialised else set())


def _timing(state: State, body) -> set[Rejection]:
    init = body["kind"] == "init"
    checks = {
        R.REPLAYED: body["command_id"] in set(state.command_ids),
        R.NOT_INITIALISED: not state.epochs and not init,
        R.ALREADY_INITIALISED: bool(state.epochs) and init,
        R.STALE: body["kind"] != "kill" and body["expected_generation"] != state.generation,
        R.UNKNOWN_FIELD: init and _outside(body.get("segments", []), body.get("rules", [])),
    }
    return {reason for reason, true in checks.items() if true}


def _asked(state: State, body) -> set[Rejection]:
    kind = body["kind"]
    if kind == "prepare":
        return _prepare(state, body)
    if kind in ("kill", "revive"):
        return _version(state, body["version"], kill=kind == "kill")
    if kind == "keys":
        return _keys(state, body)
    if kind == "upgrade":
        return {R.NOTHING_CHANGES} if body["accepts"] <= state.accepts else set()
    return _rollout(state, body) if kind in ROLLOUT_KINDS else set()


def _prepare(state: State, body) -> set[Rejection]:
    candidate, rules = body["candidate"], body.get("rules")
    pinned = dict(state.manifests).get(candidate)
    checks = {
        R.BUSY: state.rollout is not None,
        R.ROLLOUT_USED: body["rollout_id"] in state.closed,
        R.ALREADY_STABLE: candidate == stable_of(state),
        R.KILLED: candidate in state.killed,
        R.MANIFEST_DIFFERS: pinned not in (None, "", body["manifest"]),
        R.UNKNOWN_FIELD: rules is not None and _outside(state.segments, rules),
    }
    return {reason for reason, true in checks.items() if true}


def _outside(segments, rules) -> bool:
    return not {path for rule in rules for path in rule["where"]} <= set(segments)


def _version(state: State, version: str, *, kill: bool) -> set[Rejection]:
    if version not in dict(state.manifests):
        return {R.UNKNOWN_VERSION}
    if not kill:
        return set() if version in state.killed else {R.NOT_KILLED}
    found = {R.ALREADY_KILLED} if version in state.killed else set()
    return found | ({R.NO_FALLBACK} if set(state.stables) <= {*state.killed, version} else set())


def _keys(state: State, body) -> set[Rejection]:
    add, remove = set(body.get("add", [])), set(body.get("remove", []))
    left = (state.keys | add) - remove
    checks = {
        R.KEY_NOT_LISTED: not remove <= state.keys,
        R.NO_KEY_LEFT: body["mode"] == "required" and not left,
        R.NOTHING_CHANGES: body["mode"] == state.signing and left == state.keys,
    }
    return {reason for reason, true in checks.items() if true}


def _rollout(state: State, body) -> set[Rejection]:
    kind, rollout = body["kind"], state.rollout
    if rollout is None or rollout.id != body["rollout_id"]:
        return {R.NO_ROLLOUT}
    killed, paused = rollout.candidate in state.killed, rollout.phase == "PAUSED"
    where = body.get("where") if body.get("percent_bp") else None
    same_shadow = (body.get("percent_bp"), _canonical(where)) == (rollout.shadow_bp, _canonical(rollout.shadow_where))
    same_weight = body.get("weight_bp") == rollout.weight_bp and (rollout.shifted or not rollout.rules)
    unchanged = {
        "pause": paused,
        "resume": not paused,
        "approve": body.get("step") in rollout.approvals,
        "shift": same_weight,
        "shadow": same_shadow,
    }
    checks = {
        R.KILLED: killed and kind != "rollback" and not (kind == "shadow" and not body["percent_bp"]),
        R.PAUSED: paused and kind in ("shift", "promote"),
        R.ALREADY_STABLE: kind == "shift" and rollout.candidate == stable_of(state),
        R.UNKNOWN_FIELD: where is not None and not set(where) <= set(state.segments),
        R.NOTHING_CHANGES: unchanged.get(kind, False),
    }
    return {reason for reason, true in checks.items() if true}


def _canonical(where) -> str:
    """By JSON, in which 1 is not true."""
    return json.dumps({path: list(values) for path, values in dict(where or {}).items()}, sort_keys=True)
