"""A set of names that only grows, as a value: a log is folded into as many sets as it has commands."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Names(AbstractSet[str]):
    """Sets of falling size, no two alike: to add a name copies log n of them on average.

    With one frozenset, which is copied whole, 10,000 commands took 4 s to fold, and 20,000 four times as long.
    """

    parts: tuple[frozenset[str], ...] = ()

    def with_one(self, name: str) -> Names:
        parts, new = self.parts, frozenset((name,))
        while parts and len(parts[-1]) <= len(new):
            parts, new = parts[:-1], parts[-1] | new
        return Names((*parts, new))

    def __contains__(self, name: object) -> bool:
        return any(name in part for part in self.parts)

    def __iter__(self) -> Iterator[str]:
        return (name for part in self.parts for name in part)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __hash__(self) -> int:
        return self._hash()

    def __repr__(self) -> str:
        return f"Names({len(self)})"


NO_NAMES = Names()
