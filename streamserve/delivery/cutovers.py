"""Which partitions have yet to obey a command. Pure.

The control log says what is to be in force; the progress log says from which offset on each partition obeys. An owner
closes the gap: for every partition of its own that is behind, it writes a cutover to the newest routing epoch. Epochs
in between are passed over, as if they had been in force for no event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from streamserve.records import ControlView, Cutover, RoutingEpoch, TopicPartition


@dataclass(frozen=True, slots=True)
class Due:
    """epoch: to be in force on these partitions. recall: what is routed and not yet sent is to be routed again."""

    epoch: int
    partitions: frozenset[TopicPartition]
    recall: bool


def due(
    epochs: Sequence[RoutingEpoch],
    cutovers: Mapping[TopicPartition, Sequence[Cutover]],
    owned: Iterable[TopicPartition],
) -> Due | None:
    """What the owner of these partitions has to write now; None: they obey."""
    newest = epochs[-1].number
    reached = {place: in_force(epochs, cutovers, place) for place in owned}
    behind = frozenset(place for place, epoch in reached.items() if epoch < newest)
    if not behind:
        return None
    since = min(reached[place] for place in behind)
    kills = (now.number for before, now in pairwise(epochs) if not now.killed <= before.killed)
    return Due(newest, behind, recall=any(number > since for number in kills))


def starts(due: Due, view: ControlView, routed: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """Where each partition begins to obey: where nothing was routed yet, and no lower than its last cutover.

    routed: of each partition, the first offset that was not routed.
    """
    found = {}
    for place in sorted(due.partitions):
        last = view.cutovers.get(place, ())[-1:]
        found[place] = max(routed[place], last[0].offset if last else 0)
    return found


def still_needed(view: ControlView, committed: Mapping[TopicPartition, int]) -> frozenset[int]:
    """The control epochs that may yet route an event: those in force anywhere at or above what is committed."""
    found = set()
    for place, offset in committed.items():
        cuts = view.cutovers.get(place, ())
        below = [cut.epoch for cut in cuts if cut.offset <= offset]
        found.add(below[-1] if below else view.epochs[0].number)
        found.update(cut.epoch for cut in cuts if cut.offset > offset)
    return frozenset(found)


def in_force(
    epochs: Sequence[RoutingEpoch], cutovers: Mapping[TopicPartition, Sequence[Cutover]], place: TopicPartition
) -> int:
    """The control epoch at a partition's end; it may be one that is not among `epochs` yet."""
    cuts = cutovers.get(place)
    return cuts[-1].epoch if cuts else epochs[0].number
