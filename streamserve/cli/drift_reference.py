"""Drift references, and PSI as others define it: events through a version's own features and model."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rich.table import Table

from streamserve.cli.common import out, print_whole, settings, topology_argument
from streamserve.cli.progress import progress
from streamserve.errors import ConfigError, DriftError
from streamserve.simulate.explain import jsonable
from streamserve.topology import Topology

if TYPE_CHECKING:
    from streamserve.drift.measures import Measure
    from streamserve.drift.reference import Reference
    from streamserve.models.registry import Registry
    from streamserve.records import RawBatch
    from streamserve.settings import Settings
    from streamserve.simulate.recorded import RecordedEvents
    from streamserve.simulate.referring import Scoring

ROWS = 50_000  # of a reference, at most: its own error is no more than that of a window of as many
BATCH = 2_000


@click.command()
@topology_argument
@click.argument("version")
@click.option("--events", type=click.Path(path_type=Path), help="Training data: a .parquet, .avro or .jsonl of events.")
@click.option(
    "--from",
    "since",
    help="Or events of the source topic: beginning, -N (the last N of each partition) or an ISO time.",
)
@click.option("--until", help="Up to this ISO time of the topic's records, which is not among them.")
@click.option("--rows", type=click.IntRange(min=1_000), default=ROWS, show_default=True, help="Events at most.")
@click.option("--bins", type=click.IntRange(2, 50), default=10, show_default=True, help="Bins of a number.")
@click.option("--like", metavar="VERSION", help="With the bins of this one, so that both can be compared in a window.")
@click.option("--replace", is_flag=True, help="In place of the reference that VERSION has.")
def reference(
    topology: Topology,
    version: str,
    events: Path | None,
    since: str | None,
    until: str | None,
    rows: int,
    bins: int,
    like: str | None,
    replace: bool,
) -> None:
    """Build the drift reference of VERSION, from training data or from the source topic.

    Features are computed by the worker's own code, with the view rows that Redis holds now. Bins are frozen, limits are
    calibrated by simulation for the windows and alerts of TOPOLOGY_FILE, and all is kept beside the version. Workers
    take it up within a second. With drift=Drift(segment=...) the most frequent values of that field have counts and
    limits of their own, each of which takes as long to calibrate as the whole.
    """
    from streamserve.models.registry import Registry
    from streamserve.simulate.referring import Counted, build_reference
    from streamserve.simulate.tallying import REFERENCE

    if (events is None) == (since is None):
        raise ConfigError("name where events come from", mend="--events FILE, or --from TIME of the source topic")
    found = settings()
    registry = Registry(found.registry)
    registry.manifest(topology.model, version)
    if registry.attached(topology.model, version, REFERENCE) is not None and not replace:
        raise DriftError(
            f"{topology.model} {version} has a drift reference already",
            where=str(registry.folder(topology.model, version) / REFERENCE),
            mend="windows of two references can't be compared; to build another one in its place: --replace",
        )
    bins_of, scoring = _measures(registry, topology, like), _scoring(topology, found, version)
    with (
        _events(topology, found, events, since, until, rows) as (batches, source, total),
        progress(total, "events", "read") as tell,
    ):
        gathered = scoring.gather(batches, source, tell)
    counted, now = Counted.of(gathered, bins, bins_of), dt.datetime.now(dt.UTC)
    with progress(counted.many, "measures", "calibrated") as tell:
        made = build_reference(scoring, counted, source=source, created=now, tell=tell)
    path = registry.attach(topology.model, version, REFERENCE, made.to_bytes())
    _show(made, path)


@click.command()
@topology_argument
@click.argument("version")
@click.option("--events", type=click.Path(path_type=Path), required=True, help="A .parquet, .avro or .jsonl of events.")
@click.option("--against", type=click.Path(path_type=Path), required=True, help="Other events, to compare with them.")
@click.option(
    "--rows", type=click.IntRange(min=1_000), default=ROWS, show_default=True, help="Events at most, of each."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object: by measure, by definition.")
def definitions(topology: Topology, version: str, events: Path, against: Path, rows: int, as_json: bool) -> None:
    """Compute the PSI of the same events as other libraries define it, to move thresholds over.

    Of each number that VERSION is fed, and of its scores. The definitions stand in docs/drift.md.
    """
    from streamserve.drift.definitions import DEFINITIONS, psi_of_samples

    found = settings()
    scoring = _scoring(topology, found, version)
    sides = []
    for file in (events, against):
        with (
            _events(topology, found, file, None, None, rows) as (batches, source, total),
            progress(total, "events", "read") as tell,
        ):
            numbers = scoring.gather(batches, source, tell).samples()
        sides.append({key: values.astype(np.float64) for key, values in numbers.items()})
    told = {
        key: {name: psi_of_samples(how, values, sides[1][key]) for name, how in DEFINITIONS.items()}
        for key, values in sides[0].items()
    }
    if as_json:
        click.echo(json.dumps(jsonable(told)))
        return
    table = Table("measure", *DEFINITIONS, box=None, pad_edge=False)
    for key, by in told.items():
        table.add_row(key.removeprefix("feature:"), *(f"{value:.4f}" for value in by.values()))
    print_whole(out(), table)


def _scoring(topology: Topology, found: Settings, version: str) -> Scoring:
    from streamserve.adapters.onnx import OnnxSession
    from streamserve.adapters.redis_store import RedisStore
    from streamserve.adapters.schema_ids import schema_ids
    from streamserve.features.catalogue import Catalogue
    from streamserve.models.registry import Registry
    from streamserve.pipeline.decode import EventDecoder
    from streamserve.simulate.load import load_schema
    from streamserve.simulate.offline import MemoryStore
    from streamserve.simulate.referring import Scoring
    from streamserve.simulate.versions import open_version

    registry, catalogue = Registry(found.registry), Catalogue(topology)
    manifest, session = open_version(registry, topology.model, version, OnnxSession)
    decoder = EventDecoder(
        load_schema(found, topology),
        format=topology.source.format,
        paths=catalogue.paths(),
        event_time=topology.source.event_time,
        writers=schema_ids(found) if topology.source.format == "avro" else None,
    )
    store = RedisStore(found) if topology.views else MemoryStore({})
    if isinstance(store, RedisStore):
        store.check()
    return Scoring(catalogue, decoder, manifest, registry.manifest_sha256(topology.model, version), session, store)


def _measures(registry: Registry, topology: Topology, version: str | None) -> tuple[Measure, ...]:
    from streamserve.simulate.tallying import read_reference

    if version is None:
        return ()
    found = read_reference(registry, topology.model, version)
    if found is None:
        raise DriftError(
            f"{topology.model} {version} has no drift reference", mend="build that one first, or leave --like out"
        )
    return found.measures


@contextmanager
def _events(
    topology: Topology, found: Settings, events: Path | None, since: str | None, until: str | None, rows: int
) -> Iterator[tuple[Iterator[RawBatch], str, int | None]]:
    """Batches, where they come from in words, and how many events they are if that is known."""
    if events is not None:
        from streamserve.simulate.load import load_schema
        from streamserve.simulate.recorded import RecordedEvents

        file = RecordedEvents(events, load_schema(found, topology))
        total = None if file.count is None else min(rows, file.count)
        yield _of_file(topology, found, file, rows), events.name, total
        return
    from streamserve.adapters.kafka import Clients
    from streamserve.adapters.reading import Start, TopicReader

    with TopicReader(Clients(found), topology.source.topic) as reader:
        spans = reader.spans(Start.parse(since or ""))
        if until is not None:
            ends = reader.spans(Start.parse(until))
            spans = {p: (first, min(end, ends[p][0])) for p, (first, end) in spans.items()}
        share = -(-rows // max(1, len(spans)))
        spans = {p: (first, min(end, first + share)) for p, (first, end) in spans.items()}
        total = sum(max(0, end - first) for first, end in spans.values())
        source = f"topic {topology.source.topic} from {since}" + (f" until {until}" if until else "")
        yield reader.batches(spans, BATCH), source, total


def _of_file(topology: Topology, found: Settings, file: RecordedEvents, rows: int) -> Iterator[RawBatch]:
    """Evenly spread over the file where it tells how long it is, else its first ones."""
    from streamserve.adapters.schema_ids import schema_ids
    from streamserve.simulate.load import load_schema
    from streamserve.simulate.offline import raw_batch
    from streamserve.simulate.recorded import to_avro, to_json

    count, seen, taken = file.count, 0, 0
    schema, avro = load_schema(found, topology), topology.source.format == "avro"
    number = schema_ids(found).id_of(f"{topology.source.topic}-value", schema.text) if avro else 0
    for batch in file.batches(BATCH):
        at = np.arange(seen, seen + len(batch))
        kept = np.flatnonzero((at + 1) * rows // count > at * rows // count) if count and count > rows else at - seen
        kept = kept[: rows - taken]
        seen, taken = seen + len(batch), taken + len(kept)
        if not len(kept):
            continue
        chosen = batch.take(kept)
        values = to_avro(chosen, schema, number) if avro else to_json(chosen)
        yield raw_batch(topology.source.topic, values, timestamps=[0] * len(values), first_offset=seen)
        if taken >= rows:
            return


def _show(made: Reference, path: Path) -> None:
    from streamserve.simulate.referring import FEWEST

    table = Table("measure", "kind", "bins", "no value", "limit of PSI at 1,000", "at 10,000", box=None, pad_edge=False)
    for measure in made.measures:
        special = sum(measure.counts[: measure.first_value])
        limits = [made.calibration.at(measure.key, n).limit * (1 / n + 1 / measure.rows) for n in (1_000, 10_000)]
        share = f"{special / measure.rows:.2%}" if measure.first_value and special else ""
        table.add_row(measure.key, measure.kind, str(len(measure.bins)), share, *(f"{limit:.4f}" for limit in limits))
    console = out()
    print_whole(console, table)
    if made.segment is not None:
        rows = ((one.value, sum(one.counts[0])) for one in made.segments)
        told = ", ".join(f"{value} ({many:,})" for value, many in rows) or f"no value has {FEWEST:,} events"
        console.print(f"windows of their own by {made.segment}: {told}", highlight=False, markup=False)
    console.print(f"{made.rows:,} events of {made.source}; {made.fingerprint[:12]}, {path}", highlight=False)
