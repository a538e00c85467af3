"""What holds of every step of the fold, and of whole logs: the laws of docs/control.md from the rollout on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import fold_laws  # noqa: F401  (those come first)
from fold_check import Log, of_log, of_step
from fold_reasons import holds, listed_signer, meant, stable_of

from streamserve.control.outcome import audit
from streamserve.control.state import Phase

CONSTANT = ("id", "candidate", "stable", "opened_at", "salt", "rules")


# ---- the rollout


@of_step
def opened_and_ended(seen):
    """A rollout is opened by prepare alone, and ended by promote and rollback alone; no id is opened twice."""
    old, new = seen.before.rollout, seen.after.rollout
    opened, ended = seen.accepted("prepare"), seen.accepted("promote", "rollback")
    return (
        (old is None and new is not None) == opened
        and (old is not None and new is None) == ended
        and seen.after.closed == (seen.before.closed | {old.id} if ended else seen.before.closed)
        and (new is None or new.id not in seen.after.closed)
    )


@of_step
def opened_at_rest(seen):
    """A rollout is opened as it was asked for, and at rest: nothing shifted, shadowed, approved or paused."""
    if not seen.accepted("prepare"):
        return True
    new, body = seen.after.rollout, seen.body
    asked = (body["rollout_id"], body["candidate"], stable_of(seen.before), seen.record.offset)
    at_rest = replace(
        new, phase=Phase.PREPARED, weight_bp=0, shifted=False, shadow_bp=0, shadow_where=None, approvals=()
    )
    salt = body.get("salt") or f"{seen.before.salt}/{new.id}"
    rules = seen.before.rules if body.get("rules") is None else meant(body["rules"])
    return (
        (new.id, new.candidate, new.stable, new.opened_at) == asked
        and (new.salt, repr(new.rules)) == (salt, repr(rules))
        and new == at_rest
    )


@of_step
def rollout_is_constant(seen):
    """Id, candidate, salt, rules and offset of an open rollout, and the stable version that it met, never change."""
    old, new = seen.before.rollout, seen.after.rollout
    return not (old and new) or all(getattr(old, name) == getattr(new, name) for name in CONSTANT)


@of_step
def only_a_shift_shifts(seen):
    """Only a shift brings a weight or rules into force, and the weight that it names; a candidate's revival
    ends both.
    """
    old, new = seen.before.rollout, seen.after.rollout
    if not (old and new):
        return True
    expected = (old.weight_bp, old.shifted)
    if seen.accepted("shift"):
        expected = (seen.body["weight_bp"], True)
    if seen.accepted("revive") and seen.body["version"] == old.candidate:
        expected = (0, False)
    return (new.weight_bp, new.shifted) == expected


@of_step
def still_while_paused(seen):
    """While a rollout is paused, or its candidate killed, no shift and no promotion is accepted."""
    moving = seen.accepted("shift", "promote")
    return not moving or seen.before.rollout.phase in (Phase.PREPARED, Phase.CANARY)


@of_step
def phases(seen):
    """A phase is KILLED just while the candidate is killed; CANARY means shifted; PAUSED ends by resume, kill or
    rollback.
    """
    old, new = seen.before.rollout, seen.after.rollout
    if not new:
        return True
    if (new.phase is Phase.KILLED) != (new.candidate in seen.after.killed):
        return False
    if new.phase in (Phase.PREPARED, Phase.CANARY) and (new.phase is Phase.CANARY) != new.shifted:
        return False
    if seen.accepted("resume"):
        return new.phase is not Phase.PAUSED
    if seen.accepted("pause"):
        return new.phase is Phase.PAUSED
    return not old or seen.accepted("shift", "kill", "revive") or new.phase is old.phase


@of_step
def stable_changes_pause(seen):
    """A rollout under which the stable version changes is paused, and so is one whose candidate is revived."""
    if not (seen.before.rollout and seen.after.rollout):
        return True
    revived = seen.accepted("revive") and seen.body["version"] == seen.before.rollout.candidate
    changed = stable_of(seen.before) != stable_of(seen.after)
    return not (changed or revived) or seen.after.rollout.phase in (Phase.PAUSED, Phase.KILLED)


@of_step
def shadows(seen):
    """Shadow is what the last `shadow` says, and ends with a kill of the candidate; approvals are those that
    were sent.
    """
    old, new = seen.before.rollout, seen.after.rollout
    if not (old and new):
        return True
    expected, approved = (old.shadow_bp, old.shadow_where), old.approvals
    if seen.accepted("shadow"):
        bp, where = seen.body["percent_bp"], seen.body.get("where")
        expected = (bp, tuple((path, tuple(where[path])) for path in sorted(where)) if where and bp else None)
    if seen.accepted("kill") and seen.body["version"] == new.candidate:
        expected = (0, None)
    if seen.accepted("approve"):
        approved = (*approved, seen.body["step"])
    return repr((new.shadow_bp, new.shadow_where)) == repr(expected) and new.approvals == approved


@of_step
def fields_are_known(seen):
    """Rules, and the part of the stream that is shadowed, name only fields that init lists."""
    rollout = seen.after.rollout
    wheres = [rule.where for rule in (*seen.after.rules, *(rollout.rules if rollout else ()))]
    wheres += [rollout.shadow_where] if rollout and rollout.shadow_where else []
    return {path for where in wheres for path, _ in where} <= set(seen.after.segments)


# ---- the terms


@of_step
def terms_by_command(seen):
    """Signing, its keys and the highest schema_version are changed by `keys` and `upgrade` alone, as they say."""
    old, new = seen.before, seen.after
    signing, keys, accepts = old.signing, old.keys, old.accepts
    if seen.accepted("keys"):
        signing, keys = seen.body["mode"], keys | {*seen.body.get("add", ())} - {*seen.body.get("remove", ())}
        keys -= {*seen.body.get("remove", ())}
    if seen.accepted("upgrade"):
        accepts = seen.body["accepts"]
    return (new.signing, new.keys, new.accepts) == (signing, keys, accepts) and accepts >= old.accepts


@of_step
def keys_are_left(seen):
    """While signing is required, a key is listed."""
    return seen.after.signing == "off" or bool(seen.after.keys)


@of_step
def signed(seen):
    """While signing is required, an accepted command is signed by a listed key; a forgery of one is never accepted."""
    if not seen.outcome.accepted:
        return True
    by, right = listed_signer(seen)
    return (right if by else seen.before.signing == "off") and seen.outcome.signed_by == by


@of_step
def version_is_taken(seen):
    """An accepted command's schema_version is at most the highest that was taken before it."""
    return not seen.outcome.accepted or seen.body.get("schema_version", 1) <= seen.before.accepts


# ---- whole logs


@of_log
def read_again(log):
    """The same log, read again, gives the same states and outcomes."""
    again = log.read(log.records, log.secrets, log.ability)
    return again == [(seen.after, seen.outcome) for seen in log.steps]


@of_log
def lesser_readers_agree(log):
    """A reader that lacks a secret, or a release's ability, agrees with all up to what it can't judge; there
    it holds.
    """
    missing = [name for name in log.secrets if any(name in seen.after.keys for seen in log.steps)]
    lesser = [({k: v for k, v in log.secrets.items() if k != name}, log.ability) for name in missing[:1]]
    if any(seen.after.accepts > 1 for seen in log.steps):
        lesser.append((log.secrets, 1))
    return all(_agrees(log, secrets, ability) for secrets, ability in lesser)


def _agrees(log: Log, secrets: Mapping[str, bytes], ability: int) -> bool:
    for seen, (after, said) in zip(log.steps, log.read(log.records, secrets, ability), strict=True):
        if holds(replace(seen, secrets=secrets, ability=ability)):
            return said.held and bool(after.held) and replace(after, held="") == replace(seen.before, held="")
        if (after, said) != (seen.after, seen.outcome):
            return False
    return True


@of_log
def nothing_leaks(log):
    """An outcome is JSON for the audit, and holds no secret; nor does its text, or a state's."""
    said = "".join(json.dumps(audit(seen.outcome), allow_nan=False, ensure_ascii=False) for seen in log.steps)
    said.encode()
    shown = said + repr([seen.outcome for seen in log.steps]) + repr(log.steps[-1].after)
    return not any(form in shown for one in log.secrets.values() for form in (one.decode(), one.hex(), repr(one)))
