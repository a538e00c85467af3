"""The streams that are tried: a topology in one format, its schemas, its models, and pools of good events."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from fuzz import avro_bytes, json_bytes, models, orders, valid
from fuzz.mutate import Sample, framed
from fuzz.store import OddStore
from streamserve import __version__
from streamserve.adapters.onnx import OnnxSession
from streamserve.features.catalogue import Catalogue
from streamserve.models.registry import Registry
from streamserve.pipeline.decode import EventDecoder
from streamserve.pipeline.emit import TimestampLimits
from streamserve.pipeline.pipeline import Pipeline, Result
from streamserve.pipeline.prediction import PINNED_ID
from streamserve.pipeline.schemas import EventSchema, parse_node
from streamserve.records import ControlView, RawBatch
from streamserve.simulate.adding import NewVersion, add_version
from streamserve.simulate.versions import LoadedVersions
from streamserve.topology import Topology, load_topology

ROOT = Path(__file__).parent.parent
Format = Literal["avro", "json"]
VERSIONS = ("v1", "v2")
POOL = 150  # good events a stream and writer
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
PIXELS = [[round(at * place % 97 / 97, 4) for at in range(784)] for place in range(1, 9)]
FLIGHTS = {
    "carrier": ["UA", "AA", "B6", "DL"], "origin": ["EWR", "JFK", "LGA"], "dest": ["IAH", "LAX", "MIA", "BOS"],
    "tailnum": [f"N{i}" for i in range(40)] + [None],
}  # fmt: skip
VOCABULARIES = {
    "flights": {name: FLIGHTS[name] for name in ("carrier", "origin", "dest")},
    "orders": {"kind": ["WEB", "SHOP", "PHONE"]},
}


@dataclass(frozen=True)
class Kind:
    """What a stream is made of. writers: schema text by id; readable: the ids that good events are written with."""

    topology: Callable[[Format], Topology]
    schema: str
    writers: Mapping[int, str]
    readable: Sequence[int]
    known: valid.Known
    model: Callable[[Path, int, int], Path]
    inputs: Callable[[Topology], Mapping[str, Sequence[str]]] = lambda _: {}


def _in_format(file: str) -> Callable[[Format], Topology]:
    def made(format: Format) -> Topology:
        base = load_topology(ROOT / "topologies" / file)
        source = base.source.model_copy(update={"format": format, "topic": f"{base.name}-{format}.events"})
        return base.model_copy(update={"name": f"{base.name}-{format}", "source": source})

    return made


def _schema(file: str) -> str:
    return (ROOT / "schemas" / file).read_text()


def _order_inputs(topology: Topology) -> Mapping[str, Sequence[str]]:
    whole, texts = ("code", "gift", "number"), ("note", "city")
    names = [name for name in Catalogue(topology).atoms if name not in (*whole, *texts)]
    return {"numbers": names, "whole": whole, "texts": texts}


def kinds() -> dict[str, Kind]:
    flight, digit = _schema("flight.avsc"), _schema("digit.avsc")
    order_texts = {i: text if isinstance(text, str) else json.dumps(text) for i, text in orders.WRITERS.items()}
    return {
        "flights": Kind(_in_format("flights.py"), flight, {1: flight}, (1,), FLIGHTS, models.trees),
        "orders": Kind(
            orders.topology, orders.SCHEMA, order_texts, (10, 10, 11, 12, 15), orders.KNOWN, models.mixed, _order_inputs
        ),
        "digits": Kind(_in_format("digits.py"), digit, {2: digit}, (2,), {"pixels": PIXELS}, models.net),
    }


def names(format: str) -> list[str]:
    """The streams in the order in which their batches come; the dear ones (784 numbers an event) seldom."""
    turn = ("flights", "orders", "flights", "orders", "digits")
    return [f"{kind}-{one}" for kind in turn for one in ("avro", "json") if format in (one, "both")]


class Writers:
    def __init__(self, texts: Mapping[int, str]) -> None:
        self._texts = texts

    def writer_schema(self, schema_id: int) -> str | None:
        return self._texts.get(schema_id)


class Watched(Pipeline):
    """The worker's pipeline; keeps what it knew of the last batch."""

    last: Result

    def run(self, raw: RawBatch, view: ControlView) -> Result:
        self.last = super().run(raw, view)
        return self.last


@dataclass
class Stream:
    """A stream ready to be given batches."""

    name: str
    topology: Topology
    pipeline: Watched
    versions: LoadedVersions
    store: OddStore
    pool: Sequence[Sample]
    ids: Sequence[int]
    process: Callable[..., Any] = field(init=False)  # of the pipeline, or of one with a planted fault

    def __post_init__(self) -> None:
        self.process = self.pipeline.process


def prepare(folder: Path) -> None:
    """Write the models of all streams, as versions of a registry for each."""
    for name, kind in kinds().items():
        for format in ("avro", "json"):
            topology = kind.topology(format)
            catalogue, schema = Catalogue(topology), EventSchema.parse(kind.schema)
            inputs = kind.inputs(topology)
            taken = inputs.get("numbers", list(catalogue.atoms))
            width = sum(catalogue.pick(one).width for one in taken)
            for seed, version in enumerate(VERSIONS):
                path = folder / f"{name}-{width}-{version}.onnx"
                if not path.exists():
                    kind.model(path, width, seed)
                vocabularies = {k: tuple(v) for k, v in VOCABULARIES.get(name, {}).items()}
                new = NewVersion(version, path, NOON, vocabularies, inputs)
                add_version(
                    Registry(folder / f"{name}-{format}"), catalogue, schema, new, load=OnnxSession, release=__version__
                )


def open_stream(name: str, folder: Path) -> Stream:
    """A stream over the models that `prepare` has written."""
    short, _, format = name.rpartition("-")
    kind = kinds()[short]
    topology = kind.topology("avro" if format == "avro" else "json")
    catalogue, schema = Catalogue(topology), EventSchema.parse(kind.schema)
    versions = LoadedVersions(Registry(folder / name), catalogue, schema, OnnxSession, warm_rows=(1,))
    for version in VERSIONS:
        versions.get(version)  # here, and not within the time of a batch
    store = OddStore({view.name: len(view.fields) for view in catalogue.views.values()})
    writers = Writers(kind.writers) if format == "avro" else None
    source = topology.source
    decoder = EventDecoder(
        schema, format=source.format, paths=catalogue.paths(), event_time=source.event_time, writers=writers
    )
    pipeline = Watched(
        catalogue,
        decoder,
        versions,
        store,
        schema_id=PINNED_ID,
        limits=TimestampLimits(),
        release=__version__,
        clock_ns=lambda: 0,
    )
    return Stream(name, topology, pipeline, versions, store, _pool(kind, topology), list(kind.writers))


def _pool(kind: Kind, topology: Topology) -> list[Sample]:
    random, format = Random(0), topology.source.format
    ids = kind.readable if format == "avro" else kind.readable[:1]
    writers = {i: parse_node(kind.writers[i]) for i in ids}
    found = []
    for schema_id in ids:
        writer = writers[schema_id]
        for _ in range(POOL):
            event = valid.event(writer, random, kind.known)
            if format == "avro":
                value = framed(schema_id, avro_bytes.encode(writer, event))
            else:
                value = json_bytes.encode(event)
            key = _at(event, topology.source.key)
            places = avro_bytes.places(writer, event)
            found.append(Sample(format, schema_id, writer, event, value, key, places))
    return found


def _at(event: Any, path: str | None) -> bytes | None:
    for step in path.split(".") if path else ():
        event = event.get(step) if isinstance(event, dict) else None
    return None if path is None or event is None else str(event).encode()
