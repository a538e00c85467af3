"""Carrying faults out: from outside by signals, and at exact places by arming a worker's points."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from chaos.fleet import Fleet, Worker, await_hit
from chaos.points import BRAKES
from chaos.schedule import CUTOVER, REVOKE, Fault, Kind
from chaos.world import World
from streamserve.dev.servers import KAFKA, REDIS

COMMANDS = 12  # not every one changes who scores what
OBEY_S = 3.0
HIT_S = 30.0  # a point is reached within a commit interval, or at the start of a worker that joins
DELAYS_S = {Kind.SLOW_MODEL: 0.3, Kind.SLOW_REDIS: 0.2}  # of each call
BRAKE = dict(zip((Kind.SLOW_MODEL, Kind.SLOW_REDIS), (brake.name for brake in BRAKES), strict=True))


@dataclass(frozen=True)
class Struck:
    """What was done. at_ns: when, since 1970. partitions: that were hit. note: what did not go as planned.

    replace: a worker is missing until the runner starts another. over_s: how long after `at_ns` the fault was over.
    """

    at_ns: int
    partitions: frozenset[int]
    replace: bool = False
    note: str = ""
    over_s: float = 0.0


class Injector:
    """Does what a fault says."""

    def __init__(self, world: World, fleet: Fleet, command: Callable[[], object]) -> None:
        self._world, self._fleet, self._command = world, fleet, command
        self._all = frozenset(range(world.options.partitions))

    def strike(self, fault: Fault) -> Struck:
        """Returns when the fault is over: what was stopped goes on, what was down is up."""
        struck = self._acts()[fault.kind](fault)
        return replace(struck, over_s=(time.time_ns() - struck.at_ns) / 1e9)

    def _acts(self) -> dict[Kind, Callable[[Fault], Struck]]:
        return {
            Kind.KILL: self._kill,
            Kind.STOP: self._stop,
            Kind.BROKER: lambda fault: self._down(fault, KAFKA),
            Kind.REDIS: lambda fault: self._down(fault, REDIS),
            Kind.JOIN: self._join,
            Kind.LEAVE: self._leave,
            Kind.SLOW_MODEL: self._brake,
            Kind.SLOW_REDIS: self._brake,
        }

    # ---- workers

    def _kill(self, fault: Fault) -> Struck:
        victim = self._fleet.pick(fault.pick)
        owned = self._owned(victim)
        at, note = time.time_ns(), ""
        if fault.point is not None:
            hit, _ = self._lure(victim, fault, "kill")
            at, note = (time.time_ns(), "the point was not reached") if hit is None else (hit, "")
        victim.process.kill()
        self._fleet.drop(victim)
        if fault.at_once:
            self._fleet.start()
        return Struck(at, owned, not fault.at_once, note)

    def _stop(self, fault: Fault) -> Struck:
        victim = self._fleet.pick(fault.pick)
        owned = self._owned(victim)
        hit, leaves, note = None, False, ""
        if fault.point is not None:
            hit, leaves = self._lure(victim, fault, "stop")
            note = "" if hit is not None else "the point was not reached"
        at = hit or time.time_ns()
        if hit is None and victim.runs:
            victim.process.send_signal(signal.SIGSTOP)
        time.sleep(max(at / 1e9 + fault.seconds - time.time(), 0))
        victim.process.send_signal(signal.SIGCONT)
        if fault.point is not None:
            victim.forget(fault.point)
        if leaves:
            code = self._fleet.drop(victim)
            self._fleet.start()
            note = note or (f"it left with exit code {code}" if code else "")
        return Struck(at, owned, note=note)

    def _lure(self, victim: Worker, fault: Fault, action: str) -> tuple[int | None, bool]:
        """Arm the fault's point and see to it that it is reached: when it was, and whether the worker must leave.

        Partitions are revoked when a worker joins; where there is no room for one, when the victim leaves.
        """
        assert fault.point is not None  # noqa: S101
        victim.arm(fault.point, f"{action} {fault.nth}")
        leaves = False
        if fault.point.startswith(REVOKE):
            if len(self._fleet.workers) < fault.workers:
                self._fleet.start()
            else:
                leaves = True
                victim.process.terminate()
        obeys = fault.point.startswith(CUTOVER)
        hit = self._await_obedience(victim, fault.point) if obeys else await_hit(victim, fault.point, HIT_S)
        victim.disarm(fault.point)
        return hit, leaves

    def _await_obedience(self, victim: Worker, point: str) -> int | None:
        for _ in range(COMMANDS):
            self._command()
            hit = await_hit(victim, point, OBEY_S)
            if hit is not None:
                return hit
        return None

    def _join(self, _: Fault) -> Struck:
        at = time.time_ns()
        self._fleet.start()
        return Struck(at, self._all)

    def _leave(self, fault: Fault) -> Struck:
        victim = self._fleet.pick(fault.pick)
        owned, at = self._owned(victim), time.time_ns()
        victim.process.terminate()
        code = self._fleet.drop(victim)
        return Struck(at, owned, note=f"exit code {code}" if code else "")

    def _brake(self, fault: Fault) -> Struck:
        at, name = time.time_ns(), BRAKE[fault.kind]
        slowed = list(self._fleet.workers.values())
        for one in slowed:
            one.arm(name, str(DELAYS_S[fault.kind]))
        time.sleep(fault.seconds)
        for one in slowed:
            one.disarm(name)
        return Struck(at, self._all)

    def _owned(self, worker: Worker) -> frozenset[int]:
        return self._world.broker.members().owned.get(worker.name, frozenset())

    # ---- services

    def _down(self, fault: Fault, name: str) -> Struck:
        at = self._world.strike(name)
        time.sleep(fault.seconds)
        self._world.revive(name)
        return Struck(at, self._all)
