"""What holds of every step of the fold: the first laws of docs/control.md, of records, epochs and versions.

Each law's docstring is its sentence there, and a test keeps the two equal. Laws look at states and at the bytes of the
log with means of their own: what follows from a state is worked out here anew, not asked of it.
"""

from __future__ import annotations

from dataclasses import replace

from fold_check import of_step
from fold_reasons import holds, meant, reasons, stable_of

from streamserve.control.outcome import DETAIL, Outcome, Rejection
from streamserve.control.state import State
from streamserve.records import RoutingEpoch

ORDER = [reason for reason in Rejection if reason is not Rejection.MALFORMED]
ORDER.insert(ORDER.index(Rejection.UNKNOWN_KIND) + 1, Rejection.MALFORMED)  # of the form, when the kind is known
ROUTING = ("init", "shift", "promote", "rollback", "kill", "revive")


# ---- any record


@of_step
def total(seen):
    """Whatever bytes and headers come, a step gives a state and an outcome, and raises nothing."""
    return isinstance(seen.after, State) and isinstance(seen.outcome, Outcome)  # the driver sees what is raised


@of_step
def one_answer(seen):
    """A record is accepted, or rejected with one reason, or makes the reader hold, or is another topology's."""
    said = seen.outcome
    answers = [said.accepted, said.rejection is not None, said.held, said.detail == "of another topology"]
    return answers.count(True) == 1 and said.offset == seen.record.offset and said.generation == seen.after.generation


@of_step
def told(seen):
    """What is not accepted has a detail for people: at most 300 characters, and all of them can be written."""
    return seen.outcome.accepted or 0 < len(seen.outcome.detail.encode().decode()) <= DETAIL


@of_step
def no_change_unless_accepted(seen):
    """A record that is not accepted changes nothing; one that makes the reader hold changes `held` alone."""
    if seen.outcome.accepted:
        return True
    if seen.outcome.held and not seen.before.held:
        return bool(seen.after.held) and replace(seen.after, held="") == seen.before
    return seen.after == seen.before


@of_step
def hold_is_for_good(seen):
    """A reader that holds accepts nothing and rejects nothing, for good."""
    return not seen.before.held or (seen.outcome.held and seen.after is seen.before)


@of_step
def others_are_let_be(seen):
    """A record of another topology is not accepted, not rejected, and makes nobody hold."""
    if seen.before.held or not seen.foreign:
        return True
    return not (seen.outcome.accepted or seen.outcome.held or seen.outcome.rejection)


@of_step
def counted(seen):
    """An accepted command is one generation and one command_id more, and that id was not known before."""
    if not seen.outcome.accepted:
        return True
    one, before, after = seen.body["command_id"], set(seen.before.command_ids), set(seen.after.command_ids)
    return one not in before and after == before | {one} and len(after) == seen.after.generation == len(before) + 1


@of_step
def compare_and_set(seen):
    """An accepted command names the generation before it, unless it is a kill."""
    return not seen.accepted_but("kill") or seen.body["expected_generation"] == seen.before.generation


@of_step
def reasons_are_true(seen):
    """The reason of a rejection is the first of the list above that is true of the state before the command."""
    return seen.outcome.rejection is None or seen.outcome.rejection is min(reasons(seen), key=ORDER.index)


@of_step
def without_reason_accepted(seen):
    """A command against which no reason speaks is accepted: above all a kill, and the rollback of an open rollout."""
    if seen.before.held or seen.foreign or seen.outcome.accepted or reasons(seen):
        return True
    return seen.outcome.held and holds(seen)


@of_step
def against_reason_not_accepted(seen):
    """A command against which a reason speaks is not accepted."""
    return not seen.outcome.accepted or (not reasons(seen) and not holds(seen))


# ---- epochs


def in_force(state: State) -> RoutingEpoch:
    """The routing that a state means, by the words of the specification."""
    stable, rollout = stable_of(state), state.rollout
    instead = state.stables[-1] if state.stables[-1] in state.killed else None
    if rollout is None or not rollout.shifted or rollout.candidate == stable:
        return RoutingEpoch(-1, stable, None, 0, state.salt, None, (), state.killed, instead)
    return RoutingEpoch(
        -1, stable, rollout.candidate, rollout.weight_bp, rollout.salt, rollout.id, rollout.rules, state.killed, instead
    )


@of_step
def epochs_are_appended(seen):
    """Epochs are only appended, at most one by a command, with its offset as number; numbers grow."""
    old, new = seen.before.epochs, seen.after.epochs
    made = new[len(old) :]
    return (
        new[: len(old)] == old
        and [epoch.number for epoch in made] == [seen.record.offset] * len(made)
        and made == (() if seen.outcome.epoch is None else (seen.outcome.epoch,))
        and (not old or not made or old[-1].number < made[0].number)
    )


@of_step
def epochs_differ(seen):
    """No epoch is like the one before it but for its number: there is no cutover without a change."""
    epochs = seen.after.epochs
    return not seen.outcome.epoch or len(epochs) < 2 or replace(epochs[-2], number=epochs[-1].number) != epochs[-1]


@of_step
def routing_kinds(seen):
    """Init, shift, promote, kill and revive make an epoch, a rollback one if its rollout is in the last,
    others none.
    """
    if not seen.outcome.accepted:
        return seen.outcome.epoch is None
    kind = seen.body["kind"]
    if kind == "rollback":
        return bool(seen.outcome.epoch) == (seen.before.epochs[-1].rollout_id == seen.body["rollout_id"])
    return bool(seen.outcome.epoch) == (kind in ROUTING)


@of_step
def epoch_is_the_state(seen):
    """The last epoch is what the state says: stable, what that stands in for, the kills, the rollout if it was
    shifted.
    """
    return not seen.after.epochs or replace(seen.after.epochs[-1], number=-1) == in_force(seen.after)


@of_step
def no_killed_version_answers(seen):
    """An epoch has a stable version, which is not killed and not its candidate, and all kills that are in force."""
    epoch = seen.outcome.epoch
    return epoch is None or (
        bool(epoch.stable)
        and epoch.stable not in epoch.killed
        and epoch.candidate != epoch.stable
        and epoch.killed == seen.after.killed
        and (epoch.candidate is not None or (not epoch.weight_bp and not epoch.rules and not epoch.rollout_id))
    )


# ---- versions


@of_step
def kills_latch(seen):
    """A killed version stays killed until it is revived: kill adds it, revive takes it, nothing else touches it."""
    expected = set(seen.before.killed)
    if seen.accepted("kill"):
        expected.add(seen.body["version"])
    if seen.accepted("revive"):
        expected.remove(seen.body["version"])
    return seen.after.killed == expected


@of_step
def stables_are_appended(seen):
    """What was stable stays known: init writes the first, a promotion appends its candidate, nothing else does."""
    expected = seen.before.stables
    if seen.accepted("init"):
        expected = (seen.body["stable"],)
    if seen.accepted("promote"):
        expected = (*expected, seen.before.rollout.candidate)
    return seen.after.stables == expected


@of_step
def manifests_are_pinned(seen):
    """A version's manifest, once pinned, never changes, and no version is forgotten."""
    after = dict(seen.after.manifests)
    kept = all(after.get(version) == sha256 for version, sha256 in seen.before.manifests if sha256)
    new = {"init": "stable", "prepare": "candidate"}.get(seen.kind) if seen.outcome.accepted else None
    named = {version for version, _ in seen.before.manifests} | ({seen.body[new]} if new else set())
    pinned = not new or not seen.body.get("manifest") or after[seen.body[new]] == seen.body["manifest"]
    return kept and pinned and set(after) == named and len(after) == len(seen.after.manifests)


@of_step
def versions_are_listed(seen):
    """`versions()` has each version that an epoch, the rollout or the history of stables names, with its manifest."""
    if not seen.outcome.accepted:
        return True
    rollout, epochs = seen.after.rollout, seen.after.epochs
    named = {*seen.after.stables, *(one.stable for one in epochs), *(one.candidate for one in epochs if one.candidate)}
    named |= {rollout.candidate} if rollout else set()
    found = seen.after.versions()
    return set(found) == named and all(dict(seen.after.manifests)[one] == found[one] for one in found)


@of_step
def init_once(seen):
    """Init is the first accepted command, and the only one of its kind; what it said of salt, fields and rules
    stays.
    """
    if seen.outcome.accepted and (seen.body["kind"] == "init") != (seen.before.generation == 0):
        return False
    said = [getattr(seen.after, name) for name in ("model", "fingerprint", "salt", "segments", "rules")]
    if not seen.accepted("init"):
        return said == [getattr(seen.before, name) for name in ("model", "fingerprint", "salt", "segments", "rules")]
    body = seen.body
    fields, rules = tuple(body.get("segments", ())), meant(body.get("rules", ()))
    return repr(said) == repr([body["model"], body.get("fingerprint", ""), body.get("salt", ""), fields, rules])
