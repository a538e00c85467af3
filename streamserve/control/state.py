"""What is in force of one topology, as the commands up to an offset left it: values, and what follows from them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace

from streamserve.control.names import NO_NAMES, Names
from streamserve.records import ControlView, Cutover, RoutingEpoch, Rule, Scalar, Shadow, TopicPartition

Where = tuple[tuple[str, tuple[Scalar, ...]], ...]  # as in Rule


class Phase(enum.StrEnum):
    PREPARED = "PREPARED"  # open; stable answers for everything
    CANARY = "CANARY"  # weight and rules are in force
    PAUSED = "PAUSED"  # what is in force stays as it is: no shift, no promotion
    KILLED = "KILLED"  # the candidate is killed: nothing but a rollback, or its revival


class Signing(enum.StrEnum):
    OFF = "off"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Rollout:
    """One that is open.

    stable: in force when it was opened, at offset `opened_at`. shifted: weight and rules are in force; from the first
        shift on, and not any more after its candidate was revived. shadow_where: the part of the stream that
        `shadow_bp` is of; None: all. approvals: steps of its plan, in the order of their approval.
    """

    id: str
    candidate: str
    stable: str
    opened_at: int
    salt: str
    rules: tuple[Rule, ...] = ()
    phase: Phase = Phase.PREPARED
    weight_bp: int = 0
    shifted: bool = False
    shadow_bp: int = 0
    shadow_where: Where | None = None
    approvals: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """One topology, after the commands up to an offset.

    generation: how many commands were accepted. epochs: the routing epochs, in order; the last one is in force.
    salt, segments, rules: of init. stables: what init and each promotion made stable, in order. closed: ids of rollouts
    that ended. manifests: every version that a command named, with the sha256 of its manifest ("" if init gave none).
    held: why this reader may not go on, for people; "" while it may.
    """

    topology: str
    model: str = ""
    fingerprint: str = ""
    salt: str = ""
    segments: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    generation: int = 0
    epochs: tuple[RoutingEpoch, ...] = ()
    command_ids: Names = NO_NAMES
    manifests: tuple[tuple[str, str], ...] = ()
    stables: tuple[str, ...] = ()
    killed: frozenset[str] = frozenset()
    rollout: Rollout | None = None
    closed: frozenset[str] = frozenset()
    signing: Signing = Signing.OFF
    keys: frozenset[str] = frozenset()
    accepts: int = 1  # not this release's highest: all begin alike
    held: str = ""

    @property
    def initialised(self) -> bool:
        return bool(self.epochs)

    @property
    def stable(self) -> str:
        """The version in force: the last one that was made stable and is not killed. Empty before init, never after."""
        return next((version for version in reversed(self.stables) if version not in self.killed), "")

    @property
    def instead_of(self) -> str | None:
        """The version that stable stands in for, since that was killed."""
        return self.stables[-1] if self.stables[-1] in self.killed else None

    def manifest(self, version: str) -> str | None:
        """What is pinned for it; "" if nothing is; None: no command ever named it."""
        return dict(self.manifests).get(version)

    def versions(self) -> dict[str, str]:
        """Every version that an epoch, the open rollout or the history of stables names, with its pinned manifest."""
        named = {*self.stables, *(name for epoch in self.epochs for name in (epoch.stable, epoch.candidate) if name)}
        if self.rollout is not None:
            named.add(self.rollout.candidate)
        return {version: sha256 for version, sha256 in self.manifests if version in named}

    def view(self, cutovers: Mapping[TopicPartition, tuple[Cutover, ...]] | None = None) -> ControlView:
        return ControlView(self.topology, self.epochs, cutovers or {}, self.generation, self.shadow())

    def shadow(self) -> Shadow | None:
        """What the open rollout shadows; a killed candidate, and one that stable fell back to, do not."""
        found = self.rollout
        if found is None or not found.shadow_bp or found.candidate in (self.stable, *self.killed):
            return None
        return Shadow(found.candidate, found.id, found.shadow_bp, found.shadow_where, self.segments)

    def routing(self, number: int) -> RoutingEpoch:
        """What this state routes by, as the epoch of that number.

        A rollout is in it from its first shift on; not while its candidate is what stable fell back to.
        """
        stable, rollout = self.stable, self.rollout
        alone = RoutingEpoch(number, stable, salt=self.salt, killed=self.killed, instead_of=self.instead_of)
        if rollout is None or not rollout.shifted or rollout.candidate == stable:
            return alone
        return replace(
            alone,
            candidate=rollout.candidate,
            weight_bp=rollout.weight_bp,
            salt=rollout.salt,
            rollout_id=rollout.id,
            rules=rollout.rules,
        )
