"""What drift costs an event, how much its counts are beside the events, and how soon a window is told.

The first by the same events through a worker without and with a reference, in turns. The rest live: events at a rate,
in windows of their records' time, so that a window is over when the clock says so.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

from bench.contest import STREAMSERVE, Contestant, Results, Tell, as_results, in_rounds
from bench.flights import VERSION, World
from bench.latency import SETTLE_RATE, Window, offer
from bench.measure import PAUSE
from bench.shadow import from_the_end
from bench.workers import drain, workers
from streamserve.adapters.drift_topics import read_windows
from streamserve.adapters.kafka import Clients
from streamserve.adapters.reading import Start, TopicReader
from streamserve.models.registry import Registry
from streamserve.simulate.tallying import REFERENCE

WITH = "streamserve, with drift"
RATE = 10_000.0
WINDOW_S = 15
# A year of flights passes in some five seconds: of weeks there would be a dozen a second, which no stream has
LONG = "Drift(window=dt.timedelta(days=60))"
LIVE = f"Drift(window=dt.timedelta(seconds={WINDOW_S}))"


def drift(world: World, rounds: int, settle: float, seconds: float, tell: Tell) -> Results:
    """seconds: of the live part."""
    refer(world)
    counted = _variant(world, "with_drift.py", LONG)
    entries = [
        Contestant(STREAMSERVE, world.events, lambda n: drain(world.project, world.topology, world.name, n)),
        Contestant(WITH, world.events, lambda n: drain(world.project, counted, world.name, n)),
    ]
    found = in_rounds(entries, rounds, tell)
    return {**as_results(found), "live": live(world, settle, seconds, tell)}


def refer(world: World) -> None:
    """A drift reference of the version, from the real flights."""
    registry, model = Registry(world.project.settings.registry), "flight-delay"
    if registry.attached(model, VERSION, REFERENCE) is None:
        flights = world.project.folder / "flights.parquet"
        world.project.run("drift", "reference", world.topology, VERSION, "--events", flights)


def _variant(world: World, name: str, drift: str, source: str = "") -> Path:
    """The topology with drift. source: further changes of its source."""
    file, text = world.topology.with_name(name), world.topology.read_text()
    text = text.replace("'drift': None", f"'drift': {drift}").replace("'topic':", f"{source}'topic':")
    file.write_text(f"import datetime as dt\nfrom streamserve.topology import Drift\n{text}")
    return file


def live(world: World, settle: float, seconds: float, tell: Tell) -> Results:
    """Windows of the records' own time, at a rate."""
    file = _variant(world, "live.py", LIVE, "'event_time': None, ")
    clients = Clients(world.project.settings)
    project, began = from_the_end(world), time.time() * 1000
    with workers(project, file) as [worker]:
        while not worker.owns:
            PAUSE.wait(0.1)
        offer(world, worker, Window(SETTLE_RATE, 0, settle))
        panes, events = (_ends(clients, topic) for topic in (f"{world.name}.panes", world.topic))
        offer(replace(world, project=project), worker, Window(RATE, 0, seconds))
        counts = _bytes(clients, f"{world.name}.panes", panes)
        source = _bytes(clients, world.topic, events)
    told = read_windows(clients, f"{world.name}.drift", Start("beginning"))
    appended = _times(clients, f"{world.name}.panes")
    # The part before told windows of 2013, and the first of these are from before the rate was steady
    ours = [one for one in told if one["revision"] == 0 and one["start"] > began]
    steady = [one for one in ours if one["rows"] > RATE * WINDOW_S / 2]
    fresh = [(one["told_at"] - one["end"]) / 1000 for one in steady]
    found = {
        "seconds": seconds,
        "panes_bytes": counts,
        "source_bytes": source,
        "share": counts / source,
        "told_s": fresh,
        "after_watermark_s": [(one["told_at"] - appended[one["panes_to"] - 1]) / 1000 for one in steady],
        "complete": all(one["complete"] for one in told),
    }
    world.project.forget(f"streamserve.{world.name}")
    told_s = f"{statistics.median(fresh):.2f} s after it, {max(fresh):.2f} at most"
    tell(f"counts are {counts / source:.2%} of the events' bytes; a window is told {told_s}")
    return found


def _ends(clients: Clients, topic: str) -> dict[int, int]:
    with TopicReader(clients, topic) as reader:
        return {partition: end for partition, (_, end) in reader.spans(Start("end")).items()}


def _times(clients: Clients, topic: str) -> dict[int, int]:
    """When each record came to the broker, by its offset."""
    with TopicReader(clients, topic) as reader:
        return {one.offset: one.timestamp for one in reader.backlog(Start("beginning"))}


def _bytes(clients: Clients, topic: str, since: dict[int, int]) -> int:
    """Of keys and values, as they were before compression."""
    with TopicReader(clients, topic) as reader:
        spans = {partition: (since[partition], end) for partition, (_, end) in reader.spans(Start("end")).items()}
        return sum(len(one.key or b"") + len(one.value or b"") for one in reader.between(spans))
