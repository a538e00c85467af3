"""What every contestant finds: the flights in a topic, three views in Redis, one model, and its matrices on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from confluent_kafka.admin import AdminClient, NewTopic

from streamserve.adapters.kafka import Clients
from streamserve.adapters.onnx import OnnxSession
from streamserve.adapters.replay import Replay
from streamserve.adapters.schema_ids import schema_ids
from streamserve.demo.data import write_demo_files
from streamserve.demo.model import train_version
from streamserve.demo.views import view_tables
from streamserve.features.catalogue import Catalogue
from streamserve.features.rows import key_prefix
from streamserve.models.plan import FeaturePlan
from streamserve.models.registry import Registry
from streamserve.settings import Settings
from streamserve.simulate.load import load_schema
from streamserve.simulate.offline import MemoryStore, Offline, raw_batch
from streamserve.simulate.recorded import RecordedEvents, to_avro
from streamserve.simulate.versions import open_version
from streamserve.simulate.view_files import view_rows
from streamserve.topology import load_topology

ROOT = Path(__file__).parent.parent
NAME = "bench"
TOPIC = "bench.flights"
VERSION = "v1"
CHUNK = 2000


@dataclass(frozen=True)
class World:
    folder: Path
    settings: Settings
    topology: Path
    events: int
    model: Path
    matrix: Path

    def environ(self, group: str, output: str) -> dict[str, str]:
        """For contestants that are not streamserve."""
        return {
            **os.environ,
            "BENCH_FOLDER": str(self.folder),
            "BENCH_BOOTSTRAP": self.settings.bootstrap or "",
            "BENCH_REDIS": self.settings.redis_url or "",
            "BENCH_TOPIC": TOPIC,
            "BENCH_OUTPUT": output,
            "BENCH_GROUP": group,
            "BENCH_LOG": str(self.folder / "contestant.log"),
        }

    def streamserve(self) -> dict[str, str]:
        return {
            **os.environ,
            "BENCH_LOG": str(self.folder / "worker.log"),
            "STREAMSERVE_BOOTSTRAP": self.settings.bootstrap or "",
            "STREAMSERVE_REDIS_URL": self.settings.redis_url or "",
            "STREAMSERVE_HOME": str(self.folder / "home"),
            "STREAMSERVE_REGISTRY": str(self.folder / "registry"),
            "STREAMSERVE_SCHEMAS": str(ROOT / "schemas"),
        }

    def run(self, *words: object) -> None:
        command = [sys.executable, "-m", "streamserve", *map(str, words)]
        subprocess.run(command, env=self.streamserve(), check=True, stdout=subprocess.DEVNULL)


def prepare(folder: Path, settings: Settings, repeats: int) -> World:
    """Data, views, model and topics; everything that is measured starts after this."""
    folder.mkdir(parents=True, exist_ok=True)
    flights, _ = write_demo_files(folder)
    for name, table in view_tables().items():
        pq.write_table(table, folder / f"{name}.parquet")
    settings = settings.model_copy(update={"registry": folder / "registry", "schemas": ROOT / "schemas"})
    topology = folder / "topology.py"
    topology.write_text(
        "from pathlib import Path\n"
        "from streamserve.topology import load_topology\n"
        f"base = load_topology(Path({str(ROOT / 'topologies' / 'flights.py')!r}))\n"
        f"source = base.source.model_copy(update={{'topic': {TOPIC!r}}})\n"
        f"topology = base.model_copy(update={{'name': {NAME!r}, 'source': source}})\n"
        "del base\n"
    )
    found = load_topology(topology)
    catalogue, schema = Catalogue(found), load_schema(settings, found)
    world = World(
        folder, settings, topology, repeats * _count(flights), folder / f"{VERSION}.onnx", folder / "matrix.npy"
    )
    world.run("topics", "apply", topology)
    world.run("features", "load", topology, *(f"{v.name}={folder / v.name}.parquet" for v in found.views))
    if VERSION not in Registry(settings.registry).versions(found.model):
        train_version(catalogue, schema, folder, VERSION)
        world.run(
            "models", "add", topology, VERSION, world.model, "--vocabularies", folder / f"{VERSION}.vocabularies.json"
        )
    world.run("topology", "init", topology, "--version", VERSION, "--if-new")
    _write_matrix(world, catalogue, schema, flights)
    _write_careful(world, catalogue)
    # Uncompressed: the Kafka client of stock Faust lacks the codecs in a plain installation
    clients = Clients(settings.model_copy(update={"kafka": {"compression.type": "none"}}))
    Replay(clients, found, schema, schema_ids(settings)).run(flights, loops=repeats)
    return world


def _count(path: Path) -> int:
    return pq.ParquetFile(path).metadata.num_rows


def _write_matrix(world: World, catalogue: Catalogue, schema: object, flights: Path) -> None:
    """The matrices that the model is fed, for the floor: the same rows through the same pipeline."""
    if world.matrix.exists():
        return
    manifest, _ = open_version(Registry(world.settings.registry), catalogue.topology.model, VERSION, OnnxSession)
    rows: dict[bytes, bytes] = {}
    for view in catalogue.views.values():
        rows.update(view_rows(view, world.folder / f"{view.name}.parquet"))
    offline = Offline(catalogue, schema, MemoryStore(rows), writers=schema_ids(world.settings))
    plan = FeaturePlan.of(manifest, catalogue)
    parts = []
    for batch in RecordedEvents(flights, schema).batches(CHUNK):
        raw = raw_batch(TOPIC, to_avro(batch, schema, 1))
        parts.append(offline.matrix(raw, plan)[1].inputs["features"])
    np.save(world.matrix, np.concatenate(parts))


def _write_careful(world: World, catalogue: Catalogue) -> None:
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
        "vocabularies": json.loads((world.folder / f"{VERSION}.vocabularies.json").read_text()),
        "schema": str(ROOT / "schemas" / "flight.avsc"),
        "model": str(world.model),
    }
    (world.folder / "careful.json").write_text(json.dumps(about))


def fresh_topic(world: World, name: str) -> str:
    admin = AdminClient({"bootstrap.servers": world.settings.bootstrap})
    for future in admin.create_topics([NewTopic(name, 6, 1)]).values():
        future.result(10)
    return name


def forget_group(world: World, group: str) -> None:
    """So that the next run starts from the topic's beginning again."""
    admin = AdminClient({"bootstrap.servers": world.settings.bootstrap})
    for future in admin.delete_consumer_groups([group]).values():
        future.result(10)
