"""`streamserve dead-letters`: the events that a topology could not score, and why."""

from __future__ import annotations

import base64
import heapq
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import click
from rich.table import Table
from rich.text import Text

from streamserve.cli.common import out, print_whole, quiet_pipe, settings, topology_argument
from streamserve.pipeline.emit import HEADER
from streamserve.simulate.explain import iso
from streamserve.topology import Topology

if TYPE_CHECKING:
    from streamserve.adapters.reading import Record

SHOWN_BYTES = 24


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter, its grounds read from the headers that the worker added."""

    record: Record
    grounds: dict[str, str]

    @classmethod
    def of(cls, record: Record) -> Self:
        named = {
            name.removeprefix(HEADER): (value or b"").decode("utf-8", "replace")
            for name, value in record.headers
            if name.startswith(HEADER)
        }
        return cls(record, named)

    @property
    def stage(self) -> str:
        return self.grounds.get("stage", "?")

    @property
    def error(self) -> str:
        return self.grounds.get("error", "?")

    @property
    def source(self) -> str:
        return "-".join(self.grounds.get(f"source.{part}", "?") for part in ("topic", "partition", "offset"))

    @property
    def source_time(self) -> str | None:
        stamp = self.grounds.get("source.timestamp", "")
        return iso(int(stamp)) if stamp.isdecimal() else None


@click.group()
def dead_letters() -> None:
    """Look at events that could not be scored."""


@dead_letters.command("list")
@topology_argument
@click.option("--stage", help="Only of this stage: decode, enrich, route, score or emit.")
@click.option("--error", help="Only of this error, e.g. Undecodable.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many to show, of the newest."
)
@click.option(
    "--from",
    "position",
    default="beginning",
    show_default=True,
    help="beginning, -N (of each partition) or an ISO time (UTC where it names no zone).",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line; key and value as base64.")
def list_(topology: Topology, stage: str | None, error: str | None, limit: int, position: str, as_json: bool) -> None:
    """List the dead letters of TOPOLOGY_FILE, the newest last, and count them by stage and error.

    The counts are of all that fit the filters, not only of those that are shown.
    """
    from streamserve.adapters.kafka import Clients
    from streamserve.adapters.reading import Start, TopicReader

    start, counts = Start.parse(position), Counter[tuple[str, str]]()
    with quiet_pipe(), TopicReader(Clients(settings()), topology.topic("dead-letters")) as reader:
        letters = (Letter.of(record) for record in reader.backlog(start))
        newest = _newest(
            (one for one in letters if stage in (None, one.stage) and error in (None, one.error)), limit, counts
        )
        if as_json:
            for letter in newest:
                click.echo(json.dumps(_plain(letter), ensure_ascii=False))
        elif newest:
            print_whole(out(), _table(newest))
        click.echo(_summary(counts, len(newest)), err=as_json)


def _newest(letters: Iterable[Letter], limit: int, counts: Counter[tuple[str, str]]) -> list[Letter]:
    """The newest of them in their order; only as many as are shown are held."""
    heap: list[tuple[int, int, int, Letter]] = []
    for letter in letters:
        counts[letter.stage, letter.error] += 1
        record = letter.record
        # partition and offset decide between equal times, so that letters themselves are never compared
        heapq.heappush(heap, (record.timestamp, record.partition, record.offset, letter))
        if len(heap) > limit:
            heapq.heappop(heap)
    return [entry[3] for entry in sorted(heap, key=lambda entry: entry[:3])]


def _table(letters: Iterable[Letter]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "error", "message", "source", "source time"):
        table.add_column(name, overflow="fold")
    table.add_column("bytes", justify="right")
    table.add_column("begins with", overflow="fold")
    for letter in letters:
        value = letter.record.value
        cells = (
            letter.stage,
            letter.error,
            letter.grounds.get("message", ""),
            letter.source,
            letter.source_time or "-",
        )
        size = "-" if value is None else str(len(value))
        table.add_row(*(Text(cell) for cell in cells), size, Text(excerpt(value)))
    return table


def excerpt(value: bytes | None) -> str:
    """The first bytes: as text where they are printable, otherwise as hex; a tombstone as nothing."""
    if value is None:
        return "(no value)"
    first, more = value[:SHOWN_BYTES], "..." if len(value) > SHOWN_BYTES else ""
    text = first.decode("ascii", "replace")
    return (text if text.isascii() and text.isprintable() else first.hex(" ")) + more


def _plain(letter: Letter) -> dict[str, object]:
    record = letter.record
    return {
        "stage": letter.stage,
        "error": letter.error,
        "message": letter.grounds.get("message"),
        "source": letter.source,
        "source_timestamp": letter.source_time,
        "release": letter.grounds.get("release"),
        "record": record.place,
        "timestamp": iso(record.timestamp),
        "key": _base64(record.key),
        "value": _base64(record.value),
    }


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _summary(counts: Counter[tuple[str, str]], shown: int) -> str:
    if not counts:
        return "no dead letters"
    kinds = ", ".join(f"{stage}/{error} {count:,}" for (stage, error), count in counts.most_common())
    total = counts.total()
    return f"{total:,} dead letters: {kinds}" + (f" (the newest {shown} are shown)" if shown < total else "")
