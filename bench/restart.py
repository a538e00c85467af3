"""A planned restart, as partitions see it: of two members, one is told to stop, and later started again.

The same is done to two plain clients with the same group settings, that do nothing but answer: their pause is what the
group protocol takes. A pause is the longest time for which a partition's answers stay away, at a consumer of committed
records.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from confluent_kafka import KafkaException

from bench.contest import ONCE, STREAMSERVE, Results, Tell
from bench.flights import World
from bench.generator import TICK_S
from bench.latency import AHEAD_S, DRAIN_S, child, expect_ready, finish
from bench.measure import PAUSE, admin_client
from bench.workers import process
from streamserve.dev.probe import free_ports

PLAIN = "plain client"
RATE = 1_000.0
LEAVE_S, JOIN_S, SECONDS = 5.0, 12.0, 25.0
SHARED_S = 60.0  # until both have partitions
MEMBERS = 2


@dataclass(frozen=True)
class Member:
    """How one is started. group: of both."""

    command: Sequence[str]
    group: str


def restart(world: World, rounds: int, tell: Tell) -> Results:
    """Each kind so many times."""
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        for name in (PLAIN, STREAMSERVE, ONCE):
            one = once(world, member(world, name))
            found.setdefault(name, []).append(one)
            said = "  ".join(f"{key} {value:,.0f}" for key, value in one.items())
            tell(f"round {number + 1}  {name:<26} {said}")
    return {"runs": found}


def member(world: World, name: str) -> Member:
    """A worker, or a plain client in a group of its own."""
    if name == PLAIN:
        group = f"bench-member-{uuid.uuid4().hex[:8]}"
        words = (world.project.endpoints.bootstrap, world.topic, f"{world.name}.predictions", group)
        return Member((sys.executable, "-m", "bench.loops.member", *words), group)
    topology = world.topology if name == STREAMSERVE else world.exactly_once
    command = (sys.executable, "-m", "streamserve", "worker", str(topology), "--web-port")
    return Member(command, f"streamserve.{world.name}")


def once(world: World, one: Member) -> dict[str, float]:
    """Milliseconds of the longest pause after one left, and after it was started again; what was lost or repeated."""
    arrivals, count = world.topology.parent / "arrivals.npy", int(RATE * SECONDS)
    bootstrap = world.project.endpoints.bootstrap
    words = (bootstrap, f"{world.name}.predictions", 0, count, arrivals, AHEAD_S + SECONDS + DRAIN_S)
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as leaving:
        stack.enter_context(_started(world, one, 0))
        leaving.enter_context(_started(world, one, 1))
        _wait_until_shared(world, one.group)
        checker = child(world, "bench.checker", *words)
        stack.callback(checker.wait)
        stack.callback(checker.kill)
        expect_ready(checker)
        start_ns = time.monotonic_ns() + int(AHEAD_S * 1e9)
        generator = child(world, "bench.generator", bootstrap, world.topic, world.sample, RATE, 0, count, start_ns)
        _until(start_ns, LEAVE_S)
        leaving.close()
        left = (time.monotonic_ns() - start_ns) / 1e9
        _until(start_ns, JOIN_S)
        stack.enter_context(_started(world, one, 1))
        finish(generator)
        checked = finish(checker)
    world.project.forget(one.group)
    seen = np.load(arrivals)
    partitions = len(admin_client(bootstrap).list_topics(world.topic, 10).topics[world.topic].partitions)
    pauses = pauses_s(seen, start_ns, partitions)
    return {
        "leave_ms": _longest(pauses, LEAVE_S, JOIN_S) * 1e3,
        "join_ms": _longest(pauses, JOIN_S, math.inf) * 1e3,
        "stop_ms": (left - LEAVE_S) * 1e3,
        "missing": checked["missing"],
        "repeated": checked["repeated"],
    }


def pauses_s(arrivals: np.ndarray, start_ns: int, partitions: int) -> np.ndarray:
    """Seconds from the start to the end of each pause, and its length: [N, 2], over all partitions."""
    run = max(math.ceil(RATE * TICK_S), 1)
    partition = np.arange(len(arrivals)) // run % partitions
    found = []
    for p in range(partitions):
        times = np.sort(arrivals[(partition == p) & (arrivals > 0)])
        found.append(np.stack([(times[1:] - start_ns) / 1e9, np.diff(times) / 1e9], 1))
    return np.concatenate(found)


def _longest(pauses: np.ndarray, start: float, end: float) -> float:
    """The longest pause that ends between the two moments."""
    return float(pauses[(pauses[:, 0] >= start) & (pauses[:, 0] < end), 1].max())


def _started(world: World, one: Member, number: int) -> contextlib.AbstractContextManager[object]:
    words = [*one.command, *([str(free_ports(1)[0])] if one.command[-1] == "--web-port" else [])]
    return process(words, _environ(world), world.project.folder / f"member-{number}.log")


def _environ(world: World) -> Mapping[str, str]:
    """Each run begins where the topic ends."""
    return {**world.project.environ, **world.project.extra, "STREAMSERVE_START": "latest"}


def _wait_until_shared(world: World, group: str) -> None:
    """Until both members have partitions.

    Raises:
        RuntimeError: they did not come to it.
    """
    admin, limit = admin_client(world.project.endpoints.bootstrap), time.monotonic() + SHARED_S
    while time.monotonic() < limit:
        with contextlib.suppress(KafkaException):  # the group is not there yet
            [asked] = admin.describe_consumer_groups([group]).values()
            members = asked.result(10).members
            if len(members) == MEMBERS and all(m.assignment and m.assignment.topic_partitions for m in members):
                return
        PAUSE.wait(0.2)
    raise RuntimeError(f"{group} did not come to two members with partitions")


def _until(start_ns: int, seconds: float) -> None:
    PAUSE.wait(max(start_ns / 1e9 + seconds - time.monotonic(), 0))
