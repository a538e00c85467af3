"""How soon a command is in force, how long a partition is held for it, and what a switch of versions costs in latency.

Times are those of the broker's log: from the append of the command to that of the last partition's cutover. A cutover
is obeyed once its worker has read it back, some milliseconds later: that is in what the worker says it was held for.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.contest import Results, Tell
from bench.flights import World
from bench.latency import AHEAD_S, DRAIN_S, SETTLE_RATE, Window, child, expect_ready, finish, offer
from bench.measure import PAUSE
from bench.schedule import latencies_ms, percentiles
from bench.shadow import add, from_the_end
from bench.workers import Worker, workers
from streamserve.adapters.control_sender import ControlDesk
from streamserve.adapters.kafka import Clients
from streamserve.adapters.reading import Start, TopicReader
from streamserve.control.commands import Kill, Prepare, Promote, Revive, Rollback, Shift
from streamserve.models.registry import Registry

RATE = 10_000.0
PACE_S = 0.4  # from one command to the next
SHIFTS_A_KILL = 4
HELD = re.compile(r"control epoch (\d+) holds from .*, ([0-9.]+) s$", re.MULTILINE)
AROUND_S = 10.0  # of events, whose p99 a switch may move
PREPARED_S, SHIFTED_S, END_S = 20.0, 35.0, 45.0  # in the run of a switch


def commands(world: World, count: int, rounds: int, settle: float, tell: Tell) -> Results:
    """count: of shifts and kills. rounds: of switches."""
    for version in ("twin", "other"):
        add(world, version, world.model)
    with workers(from_the_end(world), world.topology) as [worker]:
        while not worker.owns:
            PAUSE.wait(0.1)
        offer(world, worker, Window(SETTLE_RATE, 0, settle))
        effects = _effects(world, worker, count, tell)
        switches = [_switch(world, version, tell) for version in (("other", "twin") * rounds)[:rounds]]
    world.project.forget(f"streamserve.{world.name}")
    return {"effects": effects, "switches": switches, "rate": RATE}


class Operator:
    """Sends commands, and remembers the epochs that came of them."""

    def __init__(self, world: World) -> None:
        self._world, self.clients = world, Clients(world.project.settings)
        self._desk = ControlDesk(self.clients, world.name)
        self.epochs: dict[str, list[int]] = {"shift": [], "kill": []}

    @property
    def stable(self) -> str:
        return self._desk.state.stable

    def send(self, form: type[Any], **more: object) -> None:
        state = self._desk.state
        if state.rollout is not None and form in (Shift, Promote, Rollback):
            more["rollout_id"] = state.rollout.id
        outcome = self._desk.send(
            form(
                command_id=str(uuid.uuid4()),
                topology=self._world.name,
                expected_generation=state.generation,
                actor="bench",
                **more,
            )
        )
        if outcome.epoch is not None:
            self.epochs.setdefault(form.__name__.lower(), []).append(outcome.epoch.number)

    def prepare(self, candidate: str) -> None:
        """Open a rollout, without waiting for anybody."""
        sha256 = Registry(self._world.project.settings.registry).manifest_sha256("flight-delay", candidate)
        self.send(Prepare, rollout_id=str(uuid.uuid4()), candidate=candidate, manifest=sha256)

    def close(self) -> None:
        self._desk.close()


@contextlib.contextmanager
def offered(world: World, seconds: float) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Events at RATE for the length of a block: when they begin, and (after the block) when each was answered."""
    arrivals, count = world.topology.parent / "arrivals.npy", int(RATE * seconds)
    bootstrap, limit = world.project.endpoints.bootstrap, AHEAD_S + seconds + DRAIN_S
    checker = child(world, "bench.checker", bootstrap, f"{world.name}.predictions", 0, count, arrivals, limit)
    seen = np.zeros(count, np.int64)
    try:
        expect_ready(checker)
        start_ns = time.monotonic_ns() + int(AHEAD_S * 1e9)
        generator = child(world, "bench.generator", bootstrap, world.topic, world.sample, RATE, 0, count, start_ns)
        yield start_ns, seen
        finish(generator)
        finish(checker)
        seen[:] = np.load(arrivals)
    finally:
        checker.kill()
        checker.wait()


def _effects(world: World, worker: Worker, count: int, tell: Tell) -> dict[str, object]:
    """Shifts, and a kill with its revival every so often, under load."""
    operator = Operator(world)
    operator.prepare("twin")
    while not worker.metric("streamserve_partitions_owned") or "twin" not in _loaded(operator.clients, world.name):
        PAUSE.wait(0.2)
    with offered(world, count * PACE_S * 1.6 + 5) as (start_ns, _):
        _until(start_ns, 2.0)
        for number in range(count):
            if number % (SHIFTS_A_KILL + 1) < SHIFTS_A_KILL:
                operator.send(Shift, weight_bp=100 + number)
            else:
                operator.send(Kill, version="twin")
                PAUSE.wait(PACE_S)
                operator.send(Revive, version="twin")
                operator.send(Rollback)
                operator.prepare("twin")
                PAUSE.wait(PACE_S)
            PAUSE.wait(PACE_S)
    operator.send(Rollback)
    operator.close()
    found = _took(operator.clients, world)
    told = {
        name: [found[epoch] for epoch in epochs]
        for name, epochs in operator.epochs.items()
        if name in ("shift", "kill")
    }
    log = (world.project.folder / "worker-0.log").read_text()
    held = [float(seconds) * 1e3 for _, seconds in HELD.findall(log)]
    for name, times in {**told, "held": held}.items():
        tell(f"{name:<6} {len(times)} times: " + "  ".join(f"{at} {ms:.0f} ms" for at, ms in _spread(times).items()))
    return {**told, "held": held}


def _loaded(clients: Clients, name: str) -> set[str]:
    from streamserve.adapters.control_sender import workers as living

    return {version for one in living(clients, name) for version in one.versions}


def _took(clients: Clients, world: World) -> dict[int, float]:
    """By epoch: milliseconds from the command's append to the last partition's first cutover to it or a later one."""
    with TopicReader(clients, "streamserve.control") as reader:
        sent = {record.offset: record.timestamp for record in reader.backlog(Start.parse("beginning"))}
        partitions = clients.partitions(clients.admin(), world.topic)
    reached: dict[int, dict[int, int]] = {}
    with TopicReader(clients, "streamserve.progress") as reader:
        for record in reader.backlog(Start.parse("beginning")):
            said = json.loads(record.value or b"{}")
            if said.get("kind") == "cutover" and said.get("topology") == world.name:
                for partition in map(int, said["offsets"]):
                    reached.setdefault(partition, {})[said["epoch"]] = record.timestamp
    found = {}
    for epoch, at in sent.items():
        first = [min((t for e, t in cuts.items() if e >= epoch), default=0) for cuts in reached.values()]
        if len(first) == partitions and all(first):
            found[epoch] = float(max(first) - at)
    return found


def _switch(world: World, version: str, tell: Tell) -> dict[str, float]:
    """p99 of ten seconds at rest, around the loading of another version, and around the switch to it."""
    operator = Operator(world)
    if operator.stable == version:
        version = "twin" if version == "other" else "other"
    with offered(world, END_S) as (start_ns, arrivals):
        _until(start_ns, PREPARED_S)
        operator.prepare(version)
        _until(start_ns, SHIFTED_S)
        operator.send(Shift, weight_bp=10_000)
    operator.send(Promote)
    operator.close()
    late = latencies_ms(arrivals, start_ns, RATE)

    def around(second: float) -> float:
        first = int((second - AROUND_S / 2) * RATE)
        return percentiles(late[first : first + int(AROUND_S * RATE)])["p99"]

    found = {"rest": around(9.0), "loading": around(PREPARED_S), "switch": around(SHIFTED_S)}
    tell("p99  " + "  ".join(f"{name} {ms:.1f} ms" for name, ms in found.items()))
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    return percentiles(np.array(values, np.float64)) if values else {}


def _until(start_ns: int, seconds: float) -> None:
    PAUSE.wait(max(start_ns / 1e9 + seconds - time.monotonic(), 0))
