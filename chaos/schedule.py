"""The schedule of a run: which faults, in which order, where and for how long; told by a seed alone. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

FEWEST, MOST = 2, 3  # workers: one must be left to take over, and three share the partitions unevenly
SESSION_S = 6.0  # after which a silent worker is taken for dead
STOPS_S = ((1.0, 5.0), (SESSION_S + 0.5, 9.0), (9.0, 15.0))  # shorter than the session, just past it, far past it
CUTOVER = "in-cutover"  # points of this name are reached only when a command comes
REVOKE = "in-revoke"  # points of this name are reached only when the group moves partitions


class Kind(StrEnum):
    """What befalls the world."""

    KILL = "worker killed"
    STOP = "worker stopped"
    BROKER = "broker killed"
    REDIS = "redis killed"
    JOIN = "worker joins"
    LEAVE = "worker leaves"
    SLOW_MODEL = "slow model"
    SLOW_REDIS = "slow redis"


@dataclass(frozen=True)
class Fault:
    """One fault.

    pick: which of the workers that are up, as a share of their number. seconds: how long it lasts. point: the place in
    the worker's code where it strikes, at the nth call from now on; None: wherever the worker is. at_once: a dead
    worker is replaced at once, not only when others have its partitions. workers: how many there are afterwards.
    """

    kind: Kind
    pick: float
    seconds: float = 0.0
    point: str | None = None
    nth: int = 1
    at_once: bool = True
    workers: int = FEWEST

    def __str__(self) -> str:
        said: str = self.kind.value
        if self.point is not None:
            said += f" {self.point}" + (f" ({self.nth})" if self.nth > 1 else "")
        return said + (f" for {self.seconds:.1f} s" if self.seconds else "")

    def as_dict(self) -> dict[str, object]:
        """For the JSON file."""
        return asdict(self)


# How often each kind is among the cards of one deal; of kills and stops, how many are at a point
DEAL = {
    Kind.KILL: 7,
    Kind.STOP: 4,
    Kind.BROKER: 3,
    Kind.REDIS: 2,
    Kind.JOIN: 1,
    Kind.LEAVE: 1,
    Kind.SLOW_MODEL: 1,
    Kind.SLOW_REDIS: 1,
}
POINTED = {Kind.KILL: 5, Kind.STOP: 2}


def schedule(
    dice: random.Random,
    count: int,
    points: Sequence[str],
    deal: Mapping[Kind, int] = DEAL,
    workers: int = FEWEST,
) -> list[Fault]:
    """So many faults. Kinds are dealt like cards, so that a run of twenty has every one of them.

    Args:
        points: the places that a kill or a stop can land at, taken in turn by either.
        workers: that there are to begin with.
    """
    cards, places = _cards(dice, deal), {kind: _in_turn(dice, points) for kind in POINTED}
    found = list[Fault]()
    while len(found) < count:
        kind, pointed = next(cards)
        if kind in (Kind.JOIN, Kind.LEAVE):  # whichever of the two there is room for
            kind = Kind.LEAVE if workers == MOST else Kind.JOIN
        point = next(places[kind]) if pointed and points else None
        fault = _fault(dice, kind, point, workers)
        workers = fault.workers
        found.append(fault)
    return found


def _fault(dice: random.Random, kind: Kind, point: str | None, workers: int) -> Fault:
    pick, nth, at_once = dice.random(), dice.choice((1, 1, 2, 3)), dice.random() < 0.7
    seconds = {
        Kind.STOP: lambda: dice.uniform(*dice.choice(STOPS_S)),
        Kind.BROKER: lambda: dice.uniform(0.0, 4.0),
        Kind.REDIS: lambda: dice.uniform(0.0, 4.0),
        Kind.SLOW_MODEL: lambda: dice.uniform(1.0, 4.0),
        Kind.SLOW_REDIS: lambda: dice.uniform(1.0, 4.0),
    }.get(kind, lambda: 0.0)()
    if point is not None and point.startswith((REVOKE, CUTOVER)):
        nth = 1
    after = workers
    if kind is Kind.LEAVE:
        after -= 1
    elif kind is Kind.JOIN or (point is not None and point.startswith(REVOKE) and workers < MOST):
        after += 1  # a worker joins, so that partitions are revoked from the others
    return Fault(kind, pick, round(seconds, 1), point, nth if point else 1, at_once, after)


def _cards(dice: random.Random, deal: Mapping[Kind, int]) -> Iterator[tuple[Kind, bool]]:
    deck = [(kind, number < POINTED.get(kind, 0)) for kind, times in deal.items() for number in range(times)]
    while True:
        dice.shuffle(deck)
        yield from deck


def _in_turn(dice: random.Random, points: Sequence[str]) -> Iterator[str]:
    """Every point before any comes again."""
    order = list(points)
    while order:
        dice.shuffle(order)
        yield from order
