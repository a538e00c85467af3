"""Route: which version answers for each event, and why, from the event and the control view alone.

In an epoch with a candidate the rules are asked first; an event that is in none goes by the bucket of its key, and
without a key to stable. Whom an event is given to is not always who answers: for a version that was killed stable does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from streamserve.records import (
    HELD,
    Assignment,
    ControlView,
    EventBatch,
    Indices,
    Reason,
    RoutingEpoch,
    Variant,
)
from streamserve.rollouts.buckets import buckets
from streamserve.rollouts.targeting import decide

Kind = TypeVar("Kind", bound=np.generic)
Outcome = tuple[str, Variant, Reason]
WAYS = 4  # of an event through its epoch: given to stable or the candidate, by the split or by a rule


def route(events: EventBatch, view: ControlView) -> Assignment:
    """Assign every event of a batch by the routing epoch in force at its offset. Pure.

    Raises:
        ValueError: an event is held, and should not have come here.
    """
    epochs, at = _in_force(events, view)
    way, count = None if at is None else at * WAYS, len(events)
    if any(epoch.candidate for epoch in epochs):
        ways = _ways(events, epochs, at)
        way = ways if way is None else way + ways
    outcomes = [outcome for epoch in epochs for outcome in _outcomes(epoch)]
    versions = tuple(dict.fromkeys([*(epoch.stable for epoch in epochs), *(name for name, _, _ in outcomes)]))
    rollouts = tuple(dict.fromkeys(epoch.rollout_id for epoch in epochs))
    return Assignment(
        versions=versions,
        rollouts=rollouts,
        version=_each([versions.index(name) for name, _, _ in outcomes], way, count, np.int32),
        stable=_each([versions.index(epoch.stable) for epoch in epochs], at, count, np.int32),
        variant=_each([variant for _, variant, _ in outcomes], way, count, np.uint8),
        reason=_each([reason for _, _, reason in outcomes], way, count, np.uint8),
        rollout=_each([rollouts.index(epoch.rollout_id) for epoch in epochs], at, count, np.int32),
        control_epoch=_each([epoch.number for epoch in epochs], at, count, np.int64),
    )


def _in_force(events: EventBatch, view: ControlView) -> tuple[Sequence[RoutingEpoch], Indices | None]:
    """The epochs in force in a batch, and which of them each event is in; None: there is one."""
    raw, rows = events.raw, events.rows
    whole = len(rows) == len(raw)
    partitions, offsets = (raw.partitions, raw.offsets) if whole else (raw.partitions[rows], raw.offsets[rows])
    sole = view.sole_epoch(raw.topic, partitions, offsets)
    if sole is not None and sole != HELD:
        return [view.epochs[sole]], None
    index = view.epochs_at(raw.topic, partitions, offsets)
    present = np.unique(index)
    if HELD in present:
        row = index.argmin()
        where = f"{raw.topic}-{partitions[row]}-{offsets[row]}"
        raise ValueError(f"{where} is held: the routing epoch of its cutover was not read yet")
    return [view.epochs[place] for place in present.tolist()], np.searchsorted(present, index)


def _ways(events: EventBatch, epochs: Sequence[RoutingEpoch], at: Indices | None) -> Indices:
    """Whom each event is given to, in the words of `targeting.decide`; what no rule decided, by its bucket."""
    raw, rows = events.raw, events.rows
    within = np.zeros(len(rows), np.bool_)
    for salt in {epoch.salt for epoch in epochs if epoch.candidate and epoch.weight_bp}:
        weights = [epoch.weight_bp if epoch.candidate and epoch.salt == salt else 0 for epoch in epochs]
        found = buckets(raw.keys, salt, None if len(rows) == len(raw) else rows)
        within |= found < _each(weights, at, len(rows), np.int32)
    ways = within.view(np.uint8)
    # By identity: epochs of one rollout share their rules, and equal ones need not mean the same (1 == True)
    for rules in {id(epoch.rules): epoch.rules for epoch in epochs if epoch.candidate and epoch.rules}.values():
        said = decide(rules, events)
        if at is not None:
            said *= np.array([bool(epoch.candidate) and epoch.rules is rules for epoch in epochs])[at]
        ways = np.where(said, said, ways)
    return ways.astype(np.intp)  # what an index is cast to each time that it is used


def _outcomes(epoch: RoutingEpoch) -> tuple[Outcome, ...]:
    """Who answers, and why, by the way of an event."""
    instead = epoch.instead_of is not None
    if not epoch.candidate:
        return ((epoch.stable, Variant.STABLE, Reason.KILLED if instead else Reason.STATIC),) * WAYS
    found = list[Outcome]()
    for reason in (Reason.SPLIT, Reason.TARGETING):
        found.append((epoch.stable, Variant.STABLE, Reason.KILLED if instead else reason))
        killed = epoch.candidate in epoch.killed
        heir = (epoch.stable, Variant.STABLE, Reason.KILLED)
        found.append(heir if killed else (epoch.candidate, Variant.CANDIDATE, reason))
    return tuple(found)


def _each(values: Sequence[int], at: Indices | None, count: int, kind: type[Kind]) -> NDArray[Kind]:
    """What is so of each event, from what is so of each epoch or way."""
    return np.full(count, values[0], kind) if at is None else np.array(values, kind)[at]
