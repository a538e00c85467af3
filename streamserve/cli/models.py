"""`streamserve models`: the registry of model versions."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from streamserve import __version__
from streamserve.adapters.onnx import OnnxSession
from streamserve.adapters.redis_store import RedisStore
from streamserve.cli.common import out, settings, topology_argument
from streamserve.errors import ConfigError
from streamserve.features.catalogue import Catalogue
from streamserve.features.rows import FeatureStore
from streamserve.models.manifest import Training
from streamserve.models.registry import Registry
from streamserve.models.signature import describe
from streamserve.pipeline.schemas import EventSchema
from streamserve.records import RawBatch
from streamserve.settings import Settings
from streamserve.simulate.adding import NewVersion, add_version
from streamserve.simulate.load import load_schema
from streamserve.simulate.offline import MemoryStore, raw_batch
from streamserve.simulate.recorded import RecordedEvents, to_json
from streamserve.topology import Topology

_Read = TypeVar("_Read")
VOCABULARIES: TypeAdapter[Mapping[str, tuple[str, ...]]] = TypeAdapter(dict[str, tuple[str, ...]])


@click.group()
def models() -> None:
    """Add model versions to the registry, and look at them."""


@models.command()
@topology_argument
@click.argument("version")
@click.argument("model_file", type=click.Path(path_type=Path))
@click.option("--vocabularies", type=click.Path(path_type=Path), help='JSON: {"feature": ["value", ...], ...}.')
@click.option("--training", type=click.Path(path_type=Path), help="JSON: start, end, rows, metrics, libraries, notes.")
@click.option("--golden", type=click.Path(path_type=Path), help="Events for the golden set: .parquet, .avro, .jsonl.")
@click.option(
    "--golden-rows",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    help="Of these events, the first so many.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=FEATURE,...",
    help="Features of a model input, in order.",
)
def add(
    topology: Topology,
    version: str,
    model_file: Path,
    vocabularies: Path | None,
    training: Path | None,
    golden: Path | None,
    golden_rows: int,
    inputs: tuple[str, ...],
) -> None:
    """Add MODEL_FILE (ONNX) to the registry as VERSION of TOPOLOGY_FILE's model.

    Its signature is compared with the topology's features. The golden set is scored with the view rows that Redis
    holds now; each worker scores it again before it serves the version.
    """
    found = settings()
    catalogue, schema = Catalogue(topology), load_schema(found, topology)
    if not model_file.is_file():
        raise ConfigError("there is no such model file", where=str(model_file), mend="name an ONNX file")
    new = NewVersion(
        version=version,
        model_file=model_file,
        vocabularies=_read(vocabularies, VOCABULARIES) if vocabularies else {},
        inputs=dict(_input(given) for given in inputs),
        training=_read(training, TypeAdapter(Training)) if training else Training(),
        created=dt.datetime.now(dt.UTC),
    )
    manifest, folder = add_version(
        Registry(found.registry),
        catalogue,
        schema,
        new,
        load=OnnxSession,
        release=__version__,
        golden=_golden(found, topology, schema, golden, golden_rows) if golden else None,
    )
    out().print(
        f"{manifest.model} {version}: {len(manifest.feature_names)} features, "
        f"sha256 {manifest.file.sha256[:12]}..., {folder}"
    )


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_(as_json: bool) -> None:
    """The versions in the registry, oldest first."""
    registry = Registry(settings().registry)
    table = Table("model", "version", "added", "features", "trained on", "metrics", box=None, pad_edge=False)
    for model in registry.models():
        for version in registry.versions(model):
            manifest = registry.manifest(model, version)
            if as_json:
                click.echo(json.dumps(manifest.model_dump(mode="json")))
                continue
            spent = manifest.training
            window = f"{spent.start:%Y-%m-%d} to {spent.end:%Y-%m-%d}" if spent.start and spent.end else ""
            metrics = ", ".join(f"{name} {value:.4g}" for name, value in spent.metrics.items())
            count = str(len(manifest.feature_names))
            table.add_row(model, version, f"{manifest.created:%Y-%m-%d %H:%M}", count, window, metrics)
    if not as_json:
        out().print(table)


@models.command()
@click.argument("model")
@click.argument("version")
def show(model: str, version: str) -> None:
    """The manifest of a version, every file's hash checked."""
    registry = Registry(settings().registry)
    manifest = registry.manifest(model, version)
    for ref in (
        manifest.file,
        *([manifest.golden] if manifest.golden else []),
        *manifest.attachments.values(),
    ):
        registry.file(manifest, ref)
    for label, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in tensors:
            click.echo(f"# {label} {tensor.name}: {describe(tensor)}")
    click.echo(manifest.model_dump_json(indent=2))


def _read(path: Path, adapter: TypeAdapter[_Read]) -> _Read:
    try:
        return adapter.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"the file can't be read: {error.strerror}", where=str(path), mend="name a file that exists"
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{place or 'the file'}: {first['msg']}", where=str(path), mend="see --help") from None


def _input(given: str) -> tuple[str, tuple[str, ...]]:
    name, sep, features = given.partition("=")
    if not sep or not features:
        raise ConfigError(f"--input {given!r} is not NAME=FEATURE,FEATURE", mend="e.g. --input X=distance,hour")
    return name, tuple(features.split(","))


def _golden(
    found: Settings, topology: Topology, schema: EventSchema, path: Path, rows: int
) -> tuple[RawBatch, FeatureStore]:
    """The first rows of a file as JSON events, stamped with the time of the golden set: none."""
    batch = next(RecordedEvents(path, schema).batches(rows), None)
    if batch is None or not len(batch):
        raise ConfigError("the file holds no event", where=str(path), mend="give some events for the golden set")
    store: FeatureStore = MemoryStore({})
    if topology.views:
        redis = RedisStore(found)
        redis.check()
        store = redis
    return raw_batch(topology.source.topic, to_json(batch), timestamps=np.zeros(len(batch), np.int64).tolist()), store
