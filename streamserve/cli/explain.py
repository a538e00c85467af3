"""`streamserve explain`: one prediction, from its event to its score, computed again and compared."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from streamserve.cli.common import out, print_whole, quiet_pipe, settings, topology_argument
from streamserve.simulate.explain import (
    FramedReader,
    Recomputed,
    Recomputing,
    UnreadableError,
    iso,
    jsonable,
    read_event,
    source_position,
)
from streamserve.simulate.letters import Letter
from streamserve.topology import Topology

if TYPE_CHECKING:
    from rich.console import Console

    from streamserve.adapters.kafka import Clients
    from streamserve.adapters.reading import Record, Search
    from streamserve.adapters.schema_ids import SchemaIds
    from streamserve.models.manifest import Manifest
    from streamserve.settings import Settings

EARLIER_MS = 1000  # predictions carry their events' timestamps; a little earlier costs little
BEYOND = 20_000  # records after a hit that may hold it once more: a commit interval's worth
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOT_FOUND = 1


@dataclass
class Story:
    """All that was found out; what is None was not found, or not looked for."""

    prediction_id: str
    source: Record
    event: dict[str, Any] | None = None
    fault: str | None = None  # why the event can't be read
    prediction: dict[str, Any] | None = None
    record: Record | None = None  # which holds the prediction
    copies: int = 0
    looked_at: int = 0
    complete: bool = True
    dead_letter: Letter | None = None
    manifest: Manifest | None = None
    recomputed: Recomputed | None = None

    @property
    def found(self) -> bool:
        return self.prediction is not None or self.dead_letter is not None


@click.command()
@topology_argument
@click.argument("prediction_id")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option(
    "--scan",
    type=click.IntRange(min=1),
    default=2_000_000,
    show_default=True,
    help="How many predictions to look through at most, from the event's time on and then from the beginning.",
)
def explain(topology: Topology, prediction_id: str, as_json: bool, scan: int) -> None:
    """Explain a prediction of TOPOLOGY_FILE: its event, features, version and score.

    PREDICTION_ID is <source topic>-<partition>-<offset>, as predictions carry it. The score is computed again from
    the source record, by the version that the prediction names and with the feature rows as they are now, and
    compared bit by bit. Exit code 1 if there is neither a prediction nor a dead letter.
    """
    found = settings()
    story = _tell(topology, prediction_id, found, scan)
    with quiet_pipe():
        if as_json:
            click.echo(json.dumps(_plain(story), ensure_ascii=False, indent=2))
        else:
            _show(out(), story)
    if not story.found:
        raise click.exceptions.Exit(NOT_FOUND)


# ---- finding out


def _tell(topology: Topology, prediction_id: str, found: Settings, scan: int) -> Story:
    from streamserve.adapters.kafka import Clients
    from streamserve.adapters.reading import TopicReader
    from streamserve.adapters.schema_ids import schema_ids

    partition, offset = source_position(prediction_id, topology.source.topic)
    clients, ids = Clients(found), schema_ids(found)
    reader = FramedReader(ids)
    with TopicReader(clients, topology.source.topic) as source:
        story = Story(prediction_id, source.at(partition, offset))
    try:
        story.event = read_event(topology.source, story.source.value, reader)
    except UnreadableError as error:
        story.fault = str(error)
    _find_prediction(story, clients, topology, reader, scan)
    if story.prediction is not None:
        _recompute(story, topology, found, ids)
    else:
        _find_dead_letter(story, clients, topology, scan)
    return story


def _look(story: Story, clients: Clients, topic: str, matches: Any, scan: int) -> Search:
    from streamserve.adapters.reading import TopicReader, search

    # A record of the future has its prediction stamped near the present
    since = min(story.source.timestamp, int(time.time() * 1000)) - EARLIER_MS
    with TopicReader(clients, topic) as reader:
        found = search(reader, since, matches, most=scan, beyond=BEYOND)
    story.looked_at += found.looked_at
    story.complete &= found.complete
    return found


def _find_prediction(story: Story, clients: Clients, topology: Topology, reader: FramedReader, scan: int) -> None:
    wanted = story.prediction_id.encode()

    def matches(record: Record) -> bool:
        if record.value is None or wanted not in record.value:
            return False  # without decoding: 0.1 us instead of 15
        return _prediction(record, reader).get("prediction_id") == story.prediction_id

    copies = _look(story, clients, topology.topic("predictions"), matches, scan).found
    story.copies = len(copies)
    if copies:
        # Delivered at least once: of several the highest control epoch counts, then the latest
        story.record = max(copies, key=lambda copy: (_prediction(copy, reader)["control_epoch"], copy.offset))
        story.prediction = _prediction(story.record, reader)


def _prediction(record: Record, reader: FramedReader) -> dict[str, Any]:
    try:
        return reader.read(record.value)
    except UnreadableError:
        return {}


def _find_dead_letter(story: Story, clients: Clients, topology: Topology, scan: int) -> None:
    def matches(record: Record) -> bool:
        return Letter.of(record).source == story.prediction_id

    letters = _look(story, clients, topology.topic("dead-letters"), matches, scan).found
    if letters:
        story.record, story.copies = letters[-1], len(letters)
        story.dead_letter = Letter.of(letters[-1])


def _recompute(story: Story, topology: Topology, found: Settings, ids: SchemaIds) -> None:
    from streamserve.adapters.onnx import OnnxSession
    from streamserve.adapters.redis_store import RedisStore
    from streamserve.features.catalogue import Catalogue
    from streamserve.models.registry import Registry
    from streamserve.simulate.load import load_schema
    from streamserve.simulate.offline import MemoryStore, raw_batch
    from streamserve.simulate.versions import open_version

    assert story.prediction is not None  # noqa: S101
    prediction, record = story.prediction, story.source
    version = open_version(Registry(found.registry), prediction["model"], prediction["model_version"], OnnxSession)
    story.manifest = version[0]
    store = RedisStore(found) if topology.views else None
    if store is not None:
        store.check()
    again = Recomputing(Catalogue(topology), load_schema(found, topology), store or MemoryStore({}), ids, version)
    raw = raw_batch(
        record.topic,
        [record.value],
        keys=[record.key],
        timestamps=[record.timestamp],
        first_offset=record.offset,
        partition=record.partition,
    )
    story.recomputed = again.of(raw, prediction)
    if store is not None:
        store.close()


# ---- as JSON


def _plain(story: Story) -> dict[str, Any]:
    source, again, letter = story.source, story.recomputed, story.dead_letter
    return {
        "prediction_id": story.prediction_id,
        "source": {
            "topic": source.topic,
            "partition": source.partition,
            "offset": source.offset,
            "timestamp": iso(source.timestamp) if source.timestamp >= 0 else None,
            "key": None if source.key is None else source.key.decode("utf-8", "replace"),
        },
        "event": jsonable(story.event),
        "event_fault": story.fault,
        "prediction": jsonable(story.prediction),
        "record": None if story.record is None else story.record.place,
        "copies": story.copies,
        "looked_at": story.looked_at,
        "looked_at_all": story.complete,
        "dead_letter": None if letter is None else dict(letter.grounds),
        "recomputed": None if again is None else again.plain(),
        "manifest": None if story.manifest is None else _plain_manifest(story.manifest),
    }


def _plain_manifest(manifest: Manifest) -> dict[str, Any]:
    told = manifest.model_dump(mode="json", include={"model", "version", "created", "release", "training", "decision"})
    return {**told, "sha256": manifest.file.sha256}


# ---- for people


def _show(console: Console, story: Story) -> None:
    source = story.source
    console.print(f"[bold]{escape(story.prediction_id)}[/]", highlight=False)
    key = "none" if source.key is None else source.key.decode("utf-8", "replace")
    when = iso(source.timestamp) if source.timestamp >= 0 else "no time"
    console.print(f"source record of {when}, key {escape(key)}", highlight=False)
    if story.event is not None:
        print_whole(console, _pairs("event", _flat(story.event)))
    else:
        console.print(f"[red]the event can't be read: {escape(story.fault or '')}[/]")
    if story.prediction is not None and story.recomputed is not None and story.manifest is not None:
        _show_prediction(console, story, story.prediction)
        _show_recomputed(console, story.recomputed, story.prediction)
        print_whole(console, _pairs("manifest", _facts(story.manifest)))
    elif story.dead_letter is not None:
        print_whole(console, _pairs("dead letter", story.dead_letter.grounds))
    else:
        rest = "which is all there is" if story.complete else "and there are more: raise --scan"
        console.print(
            f"[yellow]no prediction and no dead letter[/] of it among {story.looked_at:,} records, {rest}; "
            "it may not be scored yet, or what was said of it was deleted by retention",
            highlight=False,
        )


def _show_prediction(console: Console, story: Story, prediction: dict[str, Any]) -> None:
    shown = ("model", "model_version", "variant", "reason", "rollout_id", "control_epoch", "scored_at")
    told = {name: prediction.get(name) for name in shown}
    place = "" if story.record is None else story.record.place
    told["record"] = place + (f", the last of {story.copies} copies" if story.copies > 1 else "")
    print_whole(console, _pairs("prediction", told))


def _show_recomputed(console: Console, again: Recomputed, prediction: dict[str, Any]) -> None:
    if again.reject is not None:
        console.print(f"[red]it can't be scored now: {escape(again.reject)}[/]")
    if again.views:
        print_whole(console, _views(again))
    if again.features:
        print_whole(console, _features(again))
    if again.scores:
        print_whole(console, _scores(again, prediction))
    if again.equal:
        console.print("[green]the score is the recorded one, bit for bit[/]")
    elif again.reject is None:
        console.print("[yellow]the score is not the recorded one[/]")
        for ground in again.grounds:
            console.print(f"  - {escape(ground)}", highlight=False)


def _views(again: Recomputed) -> Table:
    table = _table("view", "key", "status now", "when scored", "row's age at the event")
    for view in again.views:
        key = "/".join("null" if part is None else part for part in view.key)
        status = Text(view.status.name, style="yellow" if view.differs else "")
        table.add_row(view.name, Text(key), status, view.recorded or "-", _age(view.age_ms))
    return table


def _features(again: Recomputed) -> Table:
    table = _table("input", "", "feature", "kind", "value", "model's input")
    statuses = {view.name: view.status.name for view in again.views}
    for one in again.features:
        status = statuses.get(one.view or "", "PRESENT")
        value = _in_type(one.value, "float32") if one.view else _short(one.value)
        kind = one.kind if status == "PRESENT" else f"{one.kind} {status}"
        table.add_row(one.input, str(one.position), one.name, kind, Text(value), Text(_in_type(one.fed, one.dtype)))
    return table


def _scores(again: Recomputed, prediction: dict[str, Any]) -> Table:
    table = _table("score", "recorded", "now", "bits")
    for pair in again.scores:
        bits = Text("equal", style="green") if pair.equal else Text("differ", style="yellow")
        table.add_row(pair.name, _number(pair.recorded), _number(pair.recomputed), bits)
    if prediction.get("decision") is not None or again.decision is not None:
        same = prediction.get("decision") == again.decision
        recorded = prediction.get("decision") or "none"
        table.add_row("decision", recorded, again.decision or "none", "" if same else Text("differ", style="yellow"))
    return table


def _facts(manifest: Manifest) -> dict[str, Any]:
    training = manifest.training
    window = " to ".join(iso(t) if t else "?" for t in (training.start, training.end))
    return {
        "version": f"{manifest.model} {manifest.version}, made {iso(manifest.created)} by release {manifest.release}",
        "trained on": window if training.start or training.end else None,
        "rows": training.rows,
        "metrics": " ".join(f"{name}={value:.6g}" for name, value in training.metrics.items()) or None,
        "notes": training.notes or None,
        "file": f"sha256 {manifest.file.sha256[:16]}..., as the manifest says",
    }


def _pairs(title: str, values: Mapping[str, Any]) -> Table:
    table = _table(title, "")
    for name, value in values.items():
        if value is not None:
            table.add_row(Text(name), Text(_short(jsonable(value))))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _flat(event: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested records as paths; nulls as the word, so that they are seen."""
    found: dict[str, Any] = {}
    for name, value in event.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = "null" if value is None else value
    return found


def _short(value: object) -> str:
    text = value if isinstance(value, str) else "null" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:117] + "..."  # noqa: PLR2004


def _in_type(value: object, dtype: str) -> str:
    """Floats as short as their type allows: 39.92 of float32, not 39.91999816894531."""
    if isinstance(value, float) and dtype.startswith("float"):
        return str(np.dtype(dtype).type(value))
    return _short(value)


def _number(value: float | None) -> str:
    return "-" if value is None else repr(value)


def _age(age_ms: int | None) -> str:
    if age_ms is None:
        return "no row"
    size, word = abs(age_ms), "" if age_ms >= 0 else " after the event"
    if size >= DAY_MS:
        return f"{size / DAY_MS:.1f} days{word}"
    return f"{size / HOUR_MS:.1f} hours{word}" if size >= HOUR_MS else f"{size / 1000:.1f} s{word}"
