"""`streamserve predictions`: what a topology's workers say, as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from streamserve.cli.common import quiet_pipe, settings, topology_argument
from streamserve.cli.verify import verify
from streamserve.errors import ConfigError
from streamserve.simulate.explain import FramedReader, UnreadableError, iso, jsonable
from streamserve.topology import Topology

if TYPE_CHECKING:
    from streamserve.adapters.reading import Record, Start, TopicReader

Prediction = dict[str, Any]
COLUMNS = ("prediction", "event", "event time", "scores", "decision", "version", "variant", "reason", "features")
ALIASES = {"version": "model_version", "event": "event_id", "epoch": "control_epoch", "rollout": "rollout_id"}
VIEW = "status."  # --where status.<view>=MISSING


@click.group()
def predictions() -> None:
    """Look at predictions, and verify them."""


predictions.add_command(verify)


@predictions.command()
@topology_argument
@click.option(
    "--from",
    "position",
    default="-10",
    show_default=True,
    help="beginning, end, -N (the last N records) or an ISO time (UTC where it names no zone).",
)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line, with all fields.")
@click.option(
    "--follow/--no-follow",
    default=True,
    show_default=True,
    help="Wait for more, or stop at the end that the topic has now.",
)
@click.option(
    "--where",
    "wheres",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Only these, e.g. version=v2, decision=late, reason=FALLBACK, status.plane=MISSING; "
    "given several times, all must hold.",
)
def tail(
    topology: Topology, position: str, limit: int | None, as_json: bool, follow: bool, wheres: tuple[str, ...]
) -> None:
    """Show the predictions of TOPOLOGY_FILE: the last ten, and then each as it comes.

    Only views that were not PRESENT are shown under "features". Order is kept within each partition.
    """
    from streamserve.adapters.kafka import Clients
    from streamserve.adapters.reading import Start, TopicReader
    from streamserve.adapters.schema_ids import schema_ids

    start, wanted = Start.parse(position), [_condition(text) for text in wheres]
    found = settings()
    decoder = FramedReader(schema_ids(found))
    with quiet_pipe(), TopicReader(Clients(found), topology.topic("predictions")) as reader:
        chosen = islice(_chosen(_records(reader, start, follow=follow), decoder, wanted), limit)
        if as_json:
            for prediction in chosen:
                click.echo(json.dumps(jsonable(prediction), ensure_ascii=False))
        else:
            _show(chosen)


def _records(reader: TopicReader, start: Start, *, follow: bool) -> Iterator[Record]:
    if start.kind == "last":
        newest = sorted(reader.backlog(start), key=lambda record: record.timestamp)
        yield from newest[max(0, len(newest) - start.value) :]
    else:
        yield from reader.backlog(start)
    if follow:
        yield from reader.follow()


def _chosen(
    records: Iterator[Record], decoder: FramedReader, wanted: Sequence[tuple[str, str]]
) -> Iterator[Prediction]:
    for record in records:
        try:
            prediction = decoder.read(record.value)
        except UnreadableError as error:
            click.echo(f"{record.place} can't be read: {error}", err=True)
            continue
        if all(_value(prediction, name) == value for name, value in wanted):
            yield prediction


def _condition(text: str) -> tuple[str, str]:
    name, sep, value = text.partition("=")
    if not sep or not name:
        raise ConfigError(f"--where {text!r} is no FIELD=VALUE", mend="e.g. --where decision=late")
    return ALIASES.get(name, name), value


def _value(prediction: Prediction, name: str) -> str:
    """A field as text; empty for null."""
    if name.startswith(VIEW):
        views, view = prediction.get("feature_status") or {}, name.removeprefix(VIEW)
        return str(views.get(view, ""))
    if name not in prediction:
        plain = [field for field in prediction if not isinstance(prediction[field], dict)]
        raise ConfigError(
            f"--where {name}: predictions have no such field", mend=f"the fields are {', '.join(plain)}, status.<view>"
        )
    value = jsonable(prediction[name])
    return "" if value is None else str(value)


def _show(predictions: Iterator[Prediction]) -> None:
    columns = GrowingColumns(COLUMNS)
    for number, prediction in enumerate(predictions):
        cells = _cells(prediction)
        if number == 0:
            columns.fit(cells)
            click.echo(click.style(columns.line(COLUMNS), dim=True))
        click.echo(columns.line(cells))


class GrowingColumns:
    """Aligned columns of a list whose end is not known: a column is as wide as its widest cell so far."""

    def __init__(self, names: Sequence[str]) -> None:
        self._widths = [len(name) for name in names]

    def fit(self, cells: Sequence[str]) -> None:
        self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, cells, strict=True)]

    def line(self, cells: Sequence[str]) -> str:
        self.fit(cells)
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)).rstrip()


def _cells(prediction: Prediction) -> tuple[str, ...]:
    def text(name: str) -> str:
        value = prediction.get(name)
        return "-" if value is None else str(value)

    time = prediction.get("event_time")
    scores = prediction.get("scores") or {}
    statuses = prediction.get("feature_status") or {}
    return (
        text("prediction_id"),
        text("event_id"),
        "-" if time is None else iso(time),
        " ".join(f"{name}={score:.6g}" for name, score in scores.items()),
        text("decision"),
        text("model_version"),
        text("variant"),
        text("reason"),
        " ".join(f"{view}:{status}" for view, status in statuses.items() if status != "PRESENT"),
    )
