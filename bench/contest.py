"""The contest: the same flights, views and model for ONNX Runtime alone, streamserve, a careful loop, and stock Faust.

    python bench/contest.py [--rounds 3] [--repeats 4] [--json FILE]

Contestants are interleaved (forwards in odd rounds, backwards in even ones), each in a process of its own, against one
broker and one Redis on this machine. CPU is the client process's, from the first tenth of its output to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from measure import Cost, Progress, rss_mib, watch
from world import NAME, VERSION, World, forget_group, fresh_topic, prepare

from streamserve.adapters.onnx import OnnxSession
from streamserve.dev import reset, services
from streamserve.settings import Settings

HERE = Path(__file__).parent
BATCH = 2000
DEADLINE_S = 240.0


@dataclass(frozen=True)
class Contestant:
    name: str
    events: int
    run: Callable[[World, int], Cost]


def floor(world: World, events: int) -> Cost:
    """ONNX Runtime alone, on the same matrices, one thread."""
    matrix = np.load(world.matrix)
    session = OnnxSession(world.model)
    parts = [matrix[at : at + BATCH] for at in range(0, len(matrix), BATCH)]
    for part in parts[:20]:
        session.run({"features": part}, ["probabilities"])
    started, cpu, done = time.monotonic(), time.process_time(), 0
    while done < events:
        for part in parts:
            session.run({"features": part}, ["probabilities"])
            done += len(part)
    return Cost(done, time.monotonic() - started, time.process_time() - cpu, rss_mib(os.getpid()))


def streamserve(world: World, events: int) -> Cost:
    """A worker, as a user starts it."""
    progress = Progress(world.settings.bootstrap or "", f"{NAME}.predictions")
    command = [sys.executable, "-m", "streamserve", "worker", str(world.topology), "--web-port", "0"]
    try:
        return _run(command, world.streamserve(), progress, events)
    finally:
        progress.close()
        forget_group(world, f"streamserve.{NAME}")


def script(name: str) -> Callable[[World, int], Cost]:
    """One of the contestants beside this file."""

    def run(world: World, events: int) -> Cost:
        group = f"{name}-{uuid.uuid4().hex[:8]}"
        output = fresh_topic(world, f"bench.out.{group}")
        progress = Progress(world.settings.bootstrap or "", output)
        try:
            return _run([sys.executable, str(HERE / f"{name}.py")], world.environ(group, output), progress, events)
        finally:
            progress.close()

    return run


def _run(command: list[str], environ: dict[str, str], progress: Progress, events: int) -> Cost:
    log = Path(environ["BENCH_LOG"])
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environ, stdout=stream, stderr=stream)
    try:
        return watch(process.pid, progress, events, DEADLINE_S)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def contest(world: World, rounds: int, faust_events: int, loop_events: int) -> dict[str, list[Cost]]:
    entries = [
        Contestant("ONNX Runtime alone", world.events, floor),
        Contestant("streamserve", world.events, streamserve),
        Contestant("careful loop", min(loop_events, world.events), script("plain_loop")),
        Contestant("stock Faust", min(faust_events, world.events), script("stock_faust")),
    ]
    found: dict[str, list[Cost]] = {entry.name: [] for entry in entries}
    for number in range(rounds):
        for entry in entries if number % 2 == 0 else entries[::-1]:
            cost = entry.run(world, entry.events)
            found[entry.name].append(cost)
            print(
                f"round {number + 1}  {entry.name:<20} {cost.rate:>9,.0f}/s  {cost.us:7.2f} us  {cost.rss:5.0f} MiB",
                flush=True,
            )
    return found


def table(found: dict[str, list[Cost]]) -> str:
    """Medians, with minimum and maximum; the ratio of CPU to the floor."""
    base = statistics.median(cost.us for cost in found["ONNX Runtime alone"])
    lines = ["| contestant | events/s | CPU, us an event | times the floor | RSS, MiB |", "|---|---|---|---|---|"]
    for name, costs in found.items():
        rates, us = [c.rate for c in costs], [c.us for c in costs]
        lines.append(
            f"| {name} | {statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) "
            f"| {statistics.median(us):.2f} ({min(us):.2f} to {max(us):.2f}) "
            f"| {statistics.median(us) / base:.2f} | {statistics.median(c.rss for c in costs):.0f} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, str]:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    libraries = ("streamserve", "onnxruntime", "confluent-kafka", "pyarrow", "pyruhvro", "faust-streaming", "fastavro")
    return {
        "cpu": f"{os.cpu_count()} x {model}",
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=4, help="times the 336,776 flights")
    parser.add_argument("--loop-events", type=int, default=300_000)
    parser.add_argument("--faust-events", type=int, default=15_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder = Path(".streamserve/bench").resolve()
    reset(folder / "services")  # what an earlier run left in the topics would be read again
    with services(folder / "services", progress=print) as found:
        settings = Settings.load().model_copy(update={"bootstrap": found.bootstrap, "redis_url": found.redis_url})
        world = prepare(folder, settings, given.repeats)
        costs = contest(world, given.rounds, given.faust_events, given.loop_events)
    print(table(costs))
    if given.json:
        body = {
            "machine": machine(),
            "version": VERSION,
            "runs": {name: [vars(c) | {"rate": c.rate, "us": c.us} for c in runs] for name, runs in costs.items()},
        }
        given.json.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
