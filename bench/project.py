"""A streamserve project of the benchmark's own: its folder, registry, schemas and topics."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic

from bench.measure import admin_client
from streamserve.cli import cli
from streamserve.dev import Endpoints
from streamserve.settings import Settings

ROOT = Path(__file__).parent.parent
RUN_LENGTH = 50  # events in a row for one partition: fuller produce batches, as a keyed stream has them


@dataclass(frozen=True)
class Project:
    """extra: environment given to the workers alone, so that settings can be compared."""

    folder: Path
    endpoints: Endpoints
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))),
            "STREAMSERVE_BOOTSTRAP": self.endpoints.bootstrap,
            "STREAMSERVE_REDIS_URL": self.endpoints.redis_url,
            "STREAMSERVE_HOME": str(self.folder / "home"),
            "STREAMSERVE_REGISTRY": str(self.folder / "registry"),
            "STREAMSERVE_SCHEMAS": str(self.schemas),
        }

    @property
    def schemas(self) -> Path:
        return self.folder / "schemas"

    @property
    def settings(self) -> Settings:
        return Settings.load().model_copy(
            update={
                "bootstrap": self.endpoints.bootstrap,
                "redis_url": self.endpoints.redis_url,
                "registry": self.folder / "registry",
                "schemas": self.schemas,
            }
        )

    def add_schema(self, name: str, schema: str) -> int:
        """Put an event schema into the folder; returns its pinned id."""
        self.schemas.mkdir(parents=True, exist_ok=True)
        index = self.schemas / "index.json"
        known = json.loads(index.read_text())["schemas"] if index.exists() else {}
        number = next((int(n) for n, one in known.items() if one["file"] == name), len(known) + 1)
        known[str(number)] = {"subject": f"bench-{name}", "file": name}
        (self.schemas / name).write_text(schema)
        index.write_text(json.dumps({"schemas": known}, indent=1))
        return number

    def run(self, *words: object) -> None:
        """A streamserve command, in this process: starting a new one takes longer than most of them.

        Raises:
            StreamserveError: it failed.
        """
        with _environment(self.environ), contextlib.redirect_stdout(io.StringIO()):
            cli.main([str(word) for word in words], standalone_mode=False)

    def put_in_force(self, topology: Path, model: Path, version: str, *options: object) -> None:
        """Topics, the version in the registry, and the command that makes workers score with it."""
        self.run("topics", "apply", topology)
        self.run("models", "add", topology, version, model, *options)
        self.run("topology", "init", topology, "--version", version, "--if-new")

    def child(self, module: str, *words: object, environ: Mapping[str, str] | None = None) -> dict[str, object]:
        """Run a module of the benchmark in a process of its own; the last line of its output is JSON."""
        command = [sys.executable, "-m", module, *map(str, words)]
        done = subprocess.run(
            command, cwd=self.folder, env={**self.environ, **(environ or {})}, stdout=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{module} ended with {done.returncode}\n{done.stdout}")
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found

    # ---- topics

    def topic(self, name: str, partitions: int = 6) -> str:
        """A new topic, or the one that is there."""
        admin = admin_client(self.endpoints.bootstrap)
        if name not in admin.list_topics(timeout=10).topics:
            for future in admin.create_topics([NewTopic(name, partitions, 1)]).values():
                future.result(10)
        return name

    def drop(self, *topics: str) -> None:
        """Delete topics: large ones would fill the disk."""
        admin = admin_client(self.endpoints.bootstrap)
        for future in admin.delete_topics(list(topics)).values():
            future.result(10)

    def forget(self, group: str) -> None:
        """Delete a group's offsets, so that the next run starts from the topic's beginning again."""
        admin = admin_client(self.endpoints.bootstrap)
        for future in admin.delete_consumer_groups([group]).values():
            future.result(10)

    def feed(self, topic: str, keys: Sequence[bytes | None], values: Sequence[bytes], count: int) -> None:
        """Send `count` events, over and over the same, uncompressed: stock Faust's client lacks the codecs."""
        producer = Producer(
            {
                "bootstrap.servers": self.endpoints.bootstrap,
                "linger.ms": 20,
                "queue.buffering.max.messages": 500_000,
                "queue.buffering.max.kbytes": 512 * 1024,
                "delivery.report.only.error": True,
            }
        )
        partitions, size = len(producer.list_topics(topic, 10).topics[topic].partitions), len(values)
        for at in range(count):
            while True:
                try:
                    producer.produce(topic, values[at % size], keys[at % size], at // RUN_LENGTH % partitions)
                    break
                except BufferError:
                    producer.poll(0.05)
        if producer.flush(120):
            raise RuntimeError(f"{topic}: the broker did not take all events")


def copy_schemas(project: Project) -> None:
    """The repository's own schemas with their index, to which `add_schema` adds."""
    shutil.copytree(ROOT / "schemas", project.schemas, dirs_exist_ok=True)


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
