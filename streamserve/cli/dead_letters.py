"""`streamserve dead-letters`: the events that a topology could not score, and why."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from streamserve.cli.common import out, print_whole, quiet_pipe, settings, topology_argument
from streamserve.cli.dead_letters_replay import replay
from streamserve.cli.dead_letters_show import show
from streamserve.cli.letters import Chosen, base64_of, excerpt, harmless, letter_options
from streamserve.simulate.explain import iso
from streamserve.simulate.letters import Letter
from streamserve.topology import Topology


@click.group()
def dead_letters() -> None:
    """Look at events that could not be scored, and send them again."""


dead_letters.add_command(show)
dead_letters.add_command(replay)


@dead_letters.command("list")
@topology_argument
@letter_options
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many to show, of the newest."
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line; key and value as base64.")
def list_(topology: Topology, chosen: Chosen, limit: int, as_json: bool) -> None:
    """List the dead letters of TOPOLOGY_FILE, the newest last, and count them by stage and error.

    The counts are of all that fit the filters, not only of those that are shown. "letter" is the partition and the
    offset in the dead-letters topic, as `show` takes them.
    """
    from streamserve.adapters.kafka import Clients
    from streamserve.adapters.reading import TopicReader

    topic, counts = topology.topic("dead-letters"), Counter[tuple[str, str]]()
    with quiet_pipe(), TopicReader(Clients(settings()), topic) as reader:
        spans = chosen.selection.narrow(reader.spans(chosen.start))
        letters = (Letter.of(record) for record in reader.between(spans))
        newest = _newest((one for one in letters if chosen.selection.holds(one)), limit, counts)
        if as_json:
            for letter in newest:
                click.echo(json.dumps(_plain(letter, topic), ensure_ascii=False))
        elif newest:
            print_whole(out(), _table(newest, topic))
        click.echo(_summary(counts, len(newest)), err=as_json)


def _newest(letters: Iterable[Letter], limit: int, counts: Counter[tuple[str, str]]) -> list[Letter]:
    """The newest of them in their order; only as many as are shown are held."""
    heap: list[tuple[int, int, int, Letter]] = []
    for letter in letters:
        counts[letter.stage, letter.error] += 1
        # partition and offset decide between equal times, so that letters themselves are never compared
        heapq.heappush(heap, (letter.record.timestamp, *letter.position, letter))
        if len(heap) > limit:
            heapq.heappop(heap)
    return [entry[3] for entry in sorted(heap, key=lambda entry: entry[:3])]


def _table(letters: list[Letter], topic: str) -> Table:
    table = Table(box=None, pad_edge=False)
    replays = [letter.replays(topic) for letter in letters]
    for name in ("letter", "stage", "error", "message", "source", "source time"):
        table.add_column(name, overflow="fold")
    if any(replays):
        table.add_column("replayed from", overflow="fold")
    table.add_column("bytes", justify="right")
    table.add_column("begins with", overflow="fold")
    for letter, before in zip(letters, replays, strict=True):
        value = letter.record.value
        cells = [
            _spelled(letter.position),
            letter.stage,
            letter.error,
            letter.grounds.get("message", ""),
            letter.source,
            letter.source_time or "-",
        ]
        if any(replays):
            cells.append(" ".join(map(_spelled, before)))
        size = "-" if value is None else str(len(value))
        table.add_row(*(Text(harmless(cell)) for cell in cells), size, Text(excerpt(value)))
    return table


def _spelled(position: tuple[int, int]) -> str:
    return f"{position[0]}-{position[1]}"


def _plain(letter: Letter, topic: str) -> dict[str, Any]:
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
        "replayed_from": [f"{topic}-{_spelled(before)}" for before in letter.replays(topic)],
        "key": base64_of(record.key),
        "value": base64_of(record.value),
    }


def _summary(counts: Counter[tuple[str, str]], shown: int) -> str:
    if not counts:
        return "no dead letters"
    kinds = ", ".join(f"{stage}/{error} {count:,}" for (stage, error), count in counts.most_common())
    total = counts.total()
    return f"{total:,} dead letters: {kinds}" + (f" (the newest {shown} are shown)" if shown < total else "")
