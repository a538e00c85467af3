"""Which version should have answered each event, and why: worked out from the two logs by the protocol's words.

Written for the runner, event by event where that is plainest. It shares no code with what it checks: neither the folds,
nor the router, nor the hash.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xxhash

from chaos.columns import Inputs, Ints

Record = tuple[int, bytes | None]  # offset, value
STABLE, CANDIDATE = "STABLE", "CANDIDATE"


@dataclass(frozen=True)
class Epoch:
    """What a command put in force. instead_of: the version that was killed, which stable stands in for."""

    number: int
    stable: str
    candidate: str | None
    weight: int
    salt: str
    rollout: str | None
    killed: frozenset[str]
    instead_of: str | None


@dataclass
class Desk:
    """The control log so far, in the plainest form."""

    topology: str
    generation: int = 0
    ids: set[str] = field(default_factory=set)
    stables: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    killed: set[str] = field(default_factory=set)
    rollout: dict[str, Any] | None = None
    ended: set[str] = field(default_factory=set)
    salt: str = ""
    epochs: list[Epoch] = field(default_factory=list)
    accepted: int = 0
    rejected: int = 0

    @property
    def stable(self) -> str:
        return [v for v in self.stables if v not in self.killed][-1]

    def read(self, records: Iterable[Record]) -> None:
        for offset, value in records:
            try:
                command = json.loads(value or b"")
            except ValueError:
                self.rejected += 1
                continue
            if not isinstance(command, dict) or command.get("topology") != self.topology:
                self.rejected += not isinstance(command, dict)
                continue
            if self._obey(command):
                self.accepted += 1
                self.generation += 1
                self.ids.add(command["command_id"])
                self._put_in_force(offset)
            else:
                self.rejected += 1

    def _obey(self, said: dict[str, Any]) -> bool:
        """Whether it is accepted; if so, it is carried out."""
        kind = said["kind"]
        if said["command_id"] in self.ids:
            return False
        if kind != "kill" and said["expected_generation"] != self.generation:
            return False
        return bool(getattr(self, f"_{kind}")(said))

    def _init(self, said: dict[str, Any]) -> bool:
        if self.stables:
            return False
        self.stables, self.salt = [said["stable"]], said.get("salt", "")
        self.known.add(said["stable"])
        return True

    def _prepare(self, said: dict[str, Any]) -> bool:
        name, version = said["rollout_id"], said["candidate"]
        if self.rollout or name in self.ended or version == self.stable or version in self.killed:
            return False
        salt = said.get("salt") or f"{self.salt}/{name}"
        self.rollout = {
            "id": name, "candidate": version, "salt": salt, "weight": 0, "shifted": False, "paused": False, "shadow": 0,
        }  # fmt: skip
        self.known.add(version)
        return True

    def _mine(self, said: dict[str, Any]) -> bool:
        return self.rollout is not None and self.rollout["id"] == said["rollout_id"]

    def _flows(self) -> bool:
        assert self.rollout is not None  # noqa: S101
        return not self.rollout["paused"] and self.rollout["candidate"] not in self.killed

    def _shift(self, said: dict[str, Any]) -> bool:
        if not self._mine(said) or not self._flows() or said["weight_bp"] == self.rollout["weight"]:
            return False
        if self.rollout["candidate"] == self.stable:
            return False
        self.rollout |= {"weight": said["weight_bp"], "shifted": True}
        return True

    def _shadow(self, said: dict[str, Any]) -> bool:
        """Of the whole stream: who answers does not depend on it."""
        if not self._mine(said) or said["percent_bp"] == self.rollout["shadow"] or said.get("where"):
            return False
        if said["percent_bp"] and self.rollout["candidate"] in self.killed:
            return False
        self.rollout["shadow"] = said["percent_bp"]
        return True

    def _promote(self, said: dict[str, Any]) -> bool:
        if not self._mine(said) or not self._flows():
            return False
        self.stables.append(self.rollout["candidate"])
        return self._end()

    def _rollback(self, said: dict[str, Any]) -> bool:
        return self._mine(said) and self._end()

    def _end(self) -> bool:
        self.ended.add(self.rollout["id"])
        self.rollout = None
        return True

    def _kill(self, said: dict[str, Any]) -> bool:
        version = said["version"]
        left = [v for v in self.stables if v not in self.killed and v != version]
        if version in self.killed or version not in self.known or not left:
            return False
        was = self.stable
        self.killed.add(version)
        if self.rollout and self.rollout["candidate"] == version:
            self.rollout["shadow"] = 0
        if self.rollout and self.stable != was:
            self.rollout["paused"] = True
        return True

    def _revive(self, said: dict[str, Any]) -> bool:
        if said["version"] not in self.killed:
            return False
        was = self.stable
        self.killed.discard(said["version"])
        if self.rollout and self.rollout["candidate"] == said["version"]:
            self.rollout |= {"weight": 0, "shifted": False, "paused": True}
        if self.rollout and self.stable != was:
            self.rollout["paused"] = True
        return True

    def _pause(self, said: dict[str, Any]) -> bool:
        return self._set_pause(said, on=True)

    def _resume(self, said: dict[str, Any]) -> bool:
        return self._set_pause(said, on=False)

    def _set_pause(self, said: dict[str, Any], *, on: bool) -> bool:
        if not self._mine(said) or self.rollout["candidate"] in self.killed or self.rollout["paused"] == on:
            return False
        self.rollout["paused"] = on
        return True

    def _put_in_force(self, offset: int) -> None:
        """An epoch, if anything about who answers is different from the last one."""
        r = self.rollout
        shown = r is not None and r["shifted"] and r["candidate"] != self.stable
        epoch = Epoch(
            offset, self.stable, r["candidate"] if shown else None, r["weight"] if shown else 0,
            r["salt"] if shown else self.salt, r["id"] if shown else None, frozenset(self.killed),
            self.stables[-1] if self.stables[-1] in self.killed else None,
        )  # fmt: skip
        if not self.epochs or replace(epoch, number=self.epochs[-1].number) != self.epochs[-1]:
            self.epochs.append(epoch)


def cutovers(records: Iterable[Record], topology: str) -> dict[int, list[tuple[int, int]]]:
    """By partition: (control epoch, first offset), of those that count."""
    claims: dict[int, list[int]] = {}  # of each partition, all of them; those that ended stand as -1
    found: dict[int, list[tuple[int, int]]] = {}
    for offset, value in records:
        said = json.loads(value or b"{}")
        if said.get("topology") != topology:
            continue
        for p in said.get("partitions", ()):
            claims.setdefault(p, []).append(offset)
        if said["kind"] == "released":
            for p, epoch in said["owner_epochs"].items():
                mine = claims.get(int(p), [])
                ended = mine.index(epoch) if epoch in mine else -1
                mine[: ended + 1] = [-1] * (ended + 1)
        elif said["kind"] == "cutover":
            for p, start in said["offsets"].items():
                _cut(found.setdefault(int(p), []), claims.get(int(p), [-1])[-1], said, p, start)
    return found


def _cut(before: list[tuple[int, int]], owner: int, said: dict[str, Any], p: str, start: int) -> None:
    grows = not before or (said["epoch"] > before[-1][0] and start >= before[-1][1])
    if owner == said["owner_epochs"][p] and grows:
        before.append((said["epoch"], start))


@dataclass(frozen=True)
class Expected:
    """Of each input: the control epoch, who answers, as what and why; and who does if a candidate falls back."""

    epochs: Ints
    versions: np.ndarray
    variants: np.ndarray
    reasons: np.ndarray
    stables: np.ndarray


def expected(inputs: Inputs, epochs: list[Epoch], cuts: dict[int, list[tuple[int, int]]]) -> Expected:
    """Event by event."""
    by_number = {epoch.number: epoch for epoch in epochs}
    rows = []
    keys = inputs.keys.to_pylist()
    for partition, offset, key in zip(inputs.partitions.tolist(), inputs.offsets.tolist(), keys, strict=True):
        number = epochs[0].number
        for epoch, start in cuts.get(partition, []):
            if start <= offset:
                number = epoch
        rows.append((number, *answer(by_number[number], key)))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Expected(columns[0].astype(np.int64), *columns[1:])


def answer(epoch: Epoch, key: bytes | None) -> tuple[str, str, str, str]:
    """The version, the variant and the reason; and stable's version."""
    plain = "KILLED" if epoch.instead_of else "SPLIT" if epoch.candidate else "STATIC"
    if epoch.candidate and key is not None:
        bucket = xxhash.xxh64_intdigest(epoch.salt.encode() + key) % 10_000
        if bucket < epoch.weight:
            if epoch.candidate in epoch.killed:
                return epoch.stable, STABLE, "KILLED", epoch.stable
            return epoch.candidate, CANDIDATE, "SPLIT", epoch.stable
    return epoch.stable, STABLE, plain, epoch.stable
