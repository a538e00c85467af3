"""Where the pipeline's CPU goes: the worker's own pipeline in one thread, without Kafka, against the real Redis.

    python -m bench.stages TOPOLOGY VERSION EVENTS_FILE ROWS EVENTS

Prints CPU microseconds an event by stage, as JSON. The stages' clock is the thread's CPU time.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

from bench.events import read_events
from streamserve import __version__
from streamserve.adapters.onnx import OnnxSession
from streamserve.adapters.redis_store import RedisStore
from streamserve.adapters.schema_ids import schema_ids
from streamserve.features.catalogue import Catalogue
from streamserve.models.registry import Registry
from streamserve.pipeline.decode import EventDecoder
from streamserve.pipeline.emit import TimestampLimits
from streamserve.pipeline.pipeline import Pipeline
from streamserve.pipeline.prediction import PINNED_ID
from streamserve.records import ControlView, RawBatch, RoutingEpoch
from streamserve.settings import Settings
from streamserve.simulate.load import load_schema
from streamserve.simulate.offline import raw_batch
from streamserve.simulate.versions import LoadedVersions
from streamserve.topology import load_topology

WARM = 5  # batches that are not counted


def pipeline(topology_file: Path, settings: Settings, rows: int) -> Pipeline:
    """As a worker assembles it, but for the clock."""
    topology = load_topology(topology_file)
    catalogue, schema, ids = Catalogue(topology), load_schema(settings, topology), schema_ids(settings)
    decoder = EventDecoder(
        schema,
        format=topology.source.format,
        paths=catalogue.paths(),
        event_time=topology.source.event_time,
        writers=ids if topology.source.format == "avro" else None,
    )
    versions = LoadedVersions(Registry(settings.registry), catalogue, schema, OnnxSession, warm_rows=(rows,))
    return Pipeline(
        catalogue,
        decoder,
        versions,
        RedisStore(settings),
        schema_id=PINNED_ID,
        limits=TimestampLimits(),
        release=__version__,
        clock_ns=time.thread_time_ns,
    )


def measure(made: Pipeline, batches: list[RawBatch], control: ControlView) -> dict[str, float]:
    """CPU microseconds an event by stage; "all" is the whole process's."""
    for batch in batches[:WARM]:
        made.process(batch, control, int(time.time() * 1000))
    spent: Counter[str] = Counter()
    started, events = time.process_time_ns(), 0
    for batch in batches:
        done = made.process(batch, control, int(time.time() * 1000))
        spent.update(done.times.wall if done.times is not None else {})
        events += len(batch)
    spent["all"] = time.process_time_ns() - started
    return {name: ns / events / 1000 for name, ns in spent.items()}


def main(topology_file: Path, version: str, events_file: Path, rows: int, events: int) -> dict[str, float]:
    settings = Settings.load()
    topology = load_topology(topology_file)
    keys, values = read_events(events_file, events)
    now = int(time.time() * 1000)
    batches = [
        raw_batch(
            topology.source.topic,
            values[at : at + rows],
            keys=keys[at : at + rows],
            timestamps=[now] * len(values[at : at + rows]),
            first_offset=at,
        )
        for at in range(0, len(values), rows)
    ]
    control = ControlView(topology.name, (RoutingEpoch(0, version),))
    return measure(pipeline(topology_file, settings, rows), batches, control)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))))
