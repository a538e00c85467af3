"""The workload of the contest: the real flights, three views, one model; and the same with uniformly drawn keys.

The flights' own keys are few and skewed, so that caches help whoever has one. The uniform variant draws tail numbers
and routes from 120,000 each, anew in every repetition.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.events import write_events
from bench.project import ROOT, Project
from streamserve.adapters.onnx import OnnxSession
from streamserve.adapters.schema_ids import schema_ids
from streamserve.demo.data import write_demo_files
from streamserve.demo.model import train_version
from streamserve.demo.views import view_tables
from streamserve.features.catalogue import Catalogue
from streamserve.features.rows import key_prefix
from streamserve.models.plan import FeaturePlan
from streamserve.models.registry import Registry
from streamserve.pipeline.schemas import EventSchema
from streamserve.simulate.load import load_schema
from streamserve.simulate.offline import MemoryStore, Offline, raw_batch
from streamserve.simulate.recorded import RecordedEvents, keys_of, to_avro
from streamserve.simulate.versions import open_version
from streamserve.simulate.view_files import view_rows
from streamserve.topology import load_topology

VERSION = "v1"
KEYS = 120_000  # of planes, and of routes, in the uniform variant
ORIGINS = ("EWR", "JFK", "LGA")
CHUNK = 2000
SAMPLE = 50_000  # events in the file of a world that feeds none


@dataclass(frozen=True)
class World:
    """matrix: what the model is fed, float32 [events, 33]. sample: one repetition of the events, encoded."""

    project: Project
    name: str
    topology: Path
    events: int
    model: Path
    matrix: Path
    sample: Path
    about: Path

    @property
    def topic(self) -> str:
        return f"{self.name}.events"

    @property
    def exactly_once(self) -> Path:
        """The same topology, its delivery exactly once."""
        return self.topology.with_name("exactly_once.py")

    @property
    def careful(self) -> dict[str, str]:
        """The environment of the contestants that are not streamserve."""
        return {"BENCH_SCORER": "bench.loops.flights", "BENCH_ABOUT": str(self.about)}


def prepare(
    project: Project, name: str, events: int, *, uniform: bool = False, partitions: int | None = None, **words: object
) -> World:
    """Data, views, model and topics; everything that is measured starts after this.

    events: 0 feeds none. partitions, words: of the topology, where it is to differ from the demo's.
    """
    folder = project.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    flights, _ = write_demo_files(project.folder)
    tables = view_tables()
    _write_views(project.folder, tables)
    topology = _write_topology(folder, name, partitions, words)
    catalogue, schema = Catalogue(load_topology(topology)), load_schema(project.settings, load_topology(topology))
    model = project.folder / f"{VERSION}.onnx"
    if not model.exists():  # from the real flights, whatever is served
        train_version(catalogue, schema, project.folder, VERSION)
    if uniform:
        _write_views(folder, uniform_views(tables))
    project.run("topics", "apply", topology)
    where = folder if uniform else project.folder
    project.run("features", "load", topology, *(f"{view}={where / view}.parquet" for view in tables))
    if VERSION not in Registry(project.settings.registry).versions(catalogue.topology.model):
        vocabularies = project.folder / f"{VERSION}.vocabularies.json"
        project.run("models", "add", topology, VERSION, model, "--vocabularies", vocabularies)
    project.run("topology", "init", topology, "--version", VERSION, "--if-new")
    recorded = pq.read_table(flights).slice(0, events or SAMPLE)
    world = World(
        project, name, topology, events, model, folder / "matrix.npy", folder / "sample.arrow", folder / "about.json"
    )
    first = _encode(draw(recorded, 0) if uniform else recorded, world, schema)
    write_events(world.sample, *first)
    if events:
        _write_matrix(world, catalogue, schema, first[1][:events], where)
        _write_about(world, catalogue)
    for number, at in enumerate(range(0, events, len(recorded))):
        keys, values = _encode(draw(recorded, number), world, schema) if uniform and number else first
        project.feed(world.topic, keys, values, min(len(values), events - at))
    return world


def draw(flights: pa.Table, seed: int) -> pa.Table:
    """The flights under tail numbers and routes that are drawn uniformly from 120,000 each."""
    random, count = np.random.default_rng(seed), len(flights)
    columns = {
        "tailnum": [f"U{n:06}" for n in random.integers(0, KEYS, count).tolist()],
        "origin": [ORIGINS[n] for n in random.integers(0, len(ORIGINS), count).tolist()],
        "dest": [f"D{n:05}" for n in random.integers(0, KEYS // len(ORIGINS), count).tolist()],
    }
    for name, values in columns.items():
        at = flights.schema.get_field_index(name)
        flights = flights.set_column(at, flights.schema.field(name), pa.array(values, pa.string()))
    return flights


def uniform_views(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Rows for every key that `draw` may draw: those of real planes and routes, over and over."""
    random = np.random.default_rng(1)
    keys = {
        "plane": {"tailnum": [f"U{n:06}" for n in range(KEYS)]},
        "route": {
            "origin": [ORIGINS[n % len(ORIGINS)] for n in range(KEYS)],
            "dest": [f"D{n // len(ORIGINS):05}" for n in range(KEYS)],
        },
    }
    found = dict(tables)
    for view, columns in keys.items():
        rows = tables[view].take(pa.array(random.integers(0, len(tables[view]), KEYS)))
        for name, values in columns.items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.string()))
        found[view] = rows
    return found


def _write_views(folder: Path, tables: dict[str, pa.Table]) -> None:
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")


def _write_topology(folder: Path, name: str, partitions: int | None, words: Mapping[str, object]) -> Path:
    source = {"topic": f"{name}.events", **({} if partitions is None else {"partitions": partitions})}
    for file, delivery in (("topology.py", "at_least_once"), ("exactly_once.py", "exactly_once")):
        (folder / file).write_text(
            "from pathlib import Path\n"
            "from streamserve.topology import load_topology\n"
            f"base = load_topology(Path({str(ROOT / 'topologies' / 'flights.py')!r}))\n"
            f"source = base.source.model_copy(update={source!r})\n"
            "topology = base.model_copy(\n"
            f"    update={{'name': {name!r}, 'source': source, 'delivery': {delivery!r}, 'drift': None, **{words!r}}}\n"
            ")\n"
            "del base\n"
        )
    return folder / "topology.py"


def _encode(table: pa.Table, world: World, schema: EventSchema) -> tuple[list[bytes | None], list[bytes]]:
    number = schema_ids(world.project.settings).id_of(f"{world.topic}-value", schema.text)
    path = world.topology.parent / "events.parquet"
    pq.write_table(table, path)
    keys: list[bytes | None] = []
    values: list[bytes] = []
    for batch in RecordedEvents(path, schema).batches():
        keys += keys_of(batch, "tailnum")
        values += to_avro(batch, schema, number)
    return keys, values


def _write_matrix(world: World, catalogue: Catalogue, schema: EventSchema, values: list[bytes], views: Path) -> None:
    """The matrices that the model is fed, for the floor: the same rows through the same pipeline."""
    settings = world.project.settings
    manifest, _ = open_version(Registry(settings.registry), catalogue.topology.model, VERSION, OnnxSession)
    rows: dict[bytes, bytes] = {}
    for view in catalogue.views.values():
        rows.update(view_rows(view, views / f"{view.name}.parquet"))
    offline = Offline(catalogue, schema, MemoryStore(rows), writers=schema_ids(settings))
    plan = FeaturePlan.of(manifest, catalogue)
    parts = [
        offline.matrix(raw_batch(world.topic, values[at : at + CHUNK]), plan)[1].inputs["features"]
        for at in range(0, len(values), CHUNK)
    ]
    np.save(world.matrix, np.concatenate(parts))


def _write_about(world: World, catalogue: Catalogue) -> None:
    about = {
        "prefixes": {name: key_prefix(view) for name, view in catalogue.views.items()},
        "views": {
            name: (
                view.key,
                len(view.fields),
                int(view.max_age.total_seconds() * 1000) if view.max_age else 2**60,
                view.defaults().tolist(),
            )
            for name, view in catalogue.views.items()
        },
        "vocabularies": json.loads((world.project.folder / f"{VERSION}.vocabularies.json").read_text()),
        "schema": str(ROOT / "schemas" / "flight.avsc"),
        "model": str(world.model),
    }
    world.about.write_text(json.dumps(about))
