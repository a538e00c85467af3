"""Whoever sends commands while faults strike: ramps, switches, kills and revivals, and a few that must be rejected."""

from __future__ import annotations

import json
import random
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from chaos.law import Desk

CONTROL = "streamserve.control"
FLUSH_S = 200.0  # a broker that was killed comes back in that time
WRONG = 0.15  # of all commands
SHARES = (0, 2000, 10_000)  # of a shadow
WEIGHTS = (100, 500, 1000, 2000, 5000, 10_000, 0)


class Commander:
    """The only one who sends: it knows what the log holds.

    manifests: by version, the hash to pin. shadows: among the commands are those of a shadow.
    """

    def __init__(
        self,
        bootstrap: str,
        topology: str,
        manifests: Mapping[str, str],
        dice: random.Random,
        *,
        shadows: bool = True,
    ) -> None:
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 0, "log_level": 2}
        )
        self._topology, self._manifests, self._dice = topology, dict(manifests), dice
        self._desk = Desk(topology)
        self._rollouts, self._shadows = 0, shadows
        self._last = b""
        self.sent: Counter[str] = Counter()

    @property
    def desk(self) -> Desk:
        """What the log holds."""
        return self._desk

    def read(self, records: list[tuple[int, bytes | None]]) -> None:
        """What was written to the log."""
        self._desk.read(records)

    def act(self) -> str:
        """Send one command; returns its kind."""
        kind, value = self.choose()
        told: list[tuple[KafkaError | None, Message]] = []
        self._producer.produce(CONTROL, value, self._topology, partition=0, on_delivery=lambda *one: told.append(one))
        self._producer.flush(FLUSH_S)
        if not told or told[0][0] is not None:
            raise RuntimeError(f"a command could not be written: {told}")
        self.read([(told[0][1].offset(), value)])
        self.sent[kind] += 1
        return kind

    def choose(self) -> tuple[str, bytes]:
        """The next one: its kind and its bytes."""
        kind, value = self._wrong() if self._dice.random() < WRONG and self._last else self._right()
        self._last = value
        return kind, value

    def _wrong(self) -> tuple[str, bytes]:
        """Commands that everybody must reject alike."""
        stale = json.loads(self._right()[1])
        stale["expected_generation"] = self._desk.generation + 1
        stale["kind"] = "rollback" if stale["kind"] == "kill" else stale["kind"]
        stale.setdefault("rollout_id", "none")
        stale.pop("version", None)
        return self._dice.choice(
            [
                ("sent again", self._last),
                ("stale", json.dumps(stale).encode()),
                ("malformed", b'{"kind": "shift", "topology": "' + self._topology.encode() + b'"'),
            ]
        )

    def _right(self) -> tuple[str, bytes]:
        """One that fits."""
        kind, more = self._choose()
        return kind, self._encoded(kind, more)

    def _encoded(self, kind: str, more: dict[str, Any]) -> bytes:
        common = {
            "kind": kind, "command_id": str(uuid.UUID(int=self._dice.getrandbits(128))), "topology": self._topology,
            "actor": "chaos", "expected_generation": self._desk.generation,
        }  # fmt: skip
        return json.dumps({**common, **more}).encode()

    def _choose(self) -> tuple[str, dict[str, Any]]:
        desk, dice = self._desk, self._dice
        if desk.killed and dice.random() < 0.5:
            return "revive", {"version": dice.choice(sorted(desk.killed))}
        if desk.rollout is None:
            return self._open()
        mine = {"rollout_id": desk.rollout["id"]}
        if desk.rollout["candidate"] in {*desk.killed, desk.stable}:  # stable: what it fell back to
            return "rollback", mine
        if desk.rollout["paused"]:
            return dice.choice((("resume", mine), ("rollback", mine)))
        return self._move(mine)

    def _open(self) -> tuple[str, dict[str, Any]]:
        desk = self._desk
        if self._spare() and self._dice.random() < 0.25:
            return "kill", {"version": desk.stable}
        others = [v for v in sorted(self._manifests) if v != desk.stable and v not in desk.killed]
        if not others:
            return "revive", {"version": self._dice.choice(sorted(desk.killed))}
        version = self._dice.choice(others)
        self._rollouts += 1
        more = {"rollout_id": f"r{self._rollouts}", "candidate": version, "manifest": self._manifests[version]}
        return "prepare", more

    def _spare(self) -> bool:
        """Whether somebody is there to take over from stable."""
        return len(set(self._desk.stables) - self._desk.killed) > 1

    def _move(self, mine: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        rollout = self._desk.rollout
        assert rollout is not None  # noqa: S101
        weight = self._dice.choice([one for one in WEIGHTS if one != rollout["weight"]])
        shift = ("shift", {**mine, "weight_bp": weight})
        share = self._dice.choice([one for one in SHARES if one != rollout["shadow"]])
        shadow = ("shadow", {**mine, "percent_bp": share})
        if not rollout["shifted"]:
            return self._dice.choice((shift, shadow)) if self._shadows else shift
        return self._dice.choices(
            [
                shift,
                ("promote", mine),
                ("rollback", mine),
                ("kill", {"version": rollout["candidate"]}),
                ("pause", mine),
                shadow,
                ("kill", {"version": self._desk.stable}),
            ],
            [50, 15, 10, 15, 10, 10 * self._shadows, 5 * self._spare()],
        )[0]
