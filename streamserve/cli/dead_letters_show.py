"""`streamserve dead-letters show`: one letter in whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from streamserve.cli.common import out, print_whole, quiet_pipe, settings, topology_argument
from streamserve.cli.letters import Chosen, base64_of, dump, harmless, letter_options, text_of
from streamserve.errors import ConfigError, StreamserveError
from streamserve.simulate.explain import FramedReader, UnreadableError, iso, jsonable, read_event
from streamserve.simulate.letters import MARKER, Letter, Position, position_of
from streamserve.topology import Topology

if TYPE_CHECKING:
    from streamserve.adapters.reading import TopicReader
    from streamserve.settings import Settings

SHOWN = 512  # bytes of a value, and characters of one that is text
SHOWN_HEADER = 200
GROUNDS = ("stage", "error", "message", "release")


@click.command()
@topology_argument
@click.argument("letter", metavar="[LETTER]", required=False)
@letter_options
@click.option(
    "--raw",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the event's value to this file, byte for byte, and nothing else; - is standard output.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object; key, value and headers' values as base64.")
def show(topology: Topology, letter: str | None, chosen: Chosen, raw: Path | None, as_json: bool) -> None:
    """Show one dead letter of TOPOLOGY_FILE in whole: why, its key, headers and value, and its event if it can be read.

    LETTER is PARTITION-OFFSET in the dead-letters topic, as `list` shows it, also with the topic before it. Without
    it the newest is shown that fits the filters. By its source position a letter is found with `streamserve explain`.
    """
    found = settings()
    one = _find(topology, letter, chosen, found)
    if raw is not None:
        _write(one, raw)
        return
    event = _event(topology, one, found)
    with quiet_pipe():
        if as_json:
            click.echo(json.dumps(_plain(one, event), ensure_ascii=False, indent=2))
        else:
            _show(one, event, topology)


def _find(topology: Topology, text: str | None, chosen: Chosen, found: Settings) -> Letter:
    from streamserve.adapters.kafka import Clients
    from streamserve.adapters.reading import TopicReader

    topic = topology.topic("dead-letters")
    position = None if text is None else _position(text, topic, topology.source.topic)
    if position is not None and chosen.given:
        raise ConfigError("a letter is named, and filters are given too", mend="leave one of both out")
    with TopicReader(Clients(found), topic) as reader:
        if position is None:
            return _newest(reader, chosen, topology)
        try:
            return Letter.of(reader.at(*position))
        except ConfigError as error:
            raise ConfigError(error.what, where=error.where, mend=_listing(topology)) from None


def _position(text: str, topic: str, source: str) -> Position:
    position = position_of(text, topic) or position_of(f"{topic}-{text}", topic)
    if position is not None:
        return position
    mend = f"write PARTITION-OFFSET as `dead-letters list` shows it, e.g. 0-12 or {topic}-0-12"
    if position_of(text, source) is not None:
        mend = f"that is a position of the source topic: `streamserve explain <topology file> {text}` finds its letter"
    raise ConfigError(f"{text!r} names no letter of {topic}", mend=mend)


def _newest(reader: TopicReader, chosen: Chosen, topology: Topology) -> Letter:
    letters = map(Letter.of, reader.between(chosen.selection.narrow(reader.spans(chosen.start))))
    fitting = (one for one in letters if chosen.selection.holds(one))
    found = max(fitting, key=lambda one: (one.record.timestamp, *one.position), default=None)
    if found is None:
        raise ConfigError("no dead letter fits", where=reader.topic, mend=_listing(topology))
    return found


def _listing(topology: Topology) -> str:
    return f"`streamserve dead-letters list <topology file of {topology.name}>` shows which there are"


def _write(letter: Letter, path: Path) -> None:
    value = letter.record.value
    if value is None:
        raise ConfigError(
            f"{letter.record.place} has no value: it is a tombstone", mend="leave --raw out to see its key and headers"
        )
    if str(path) == "-":
        with quiet_pipe():
            sys.stdout.buffer.write(value)
        return
    try:
        path.write_bytes(value)
    except OSError as error:
        raise ConfigError(
            f"the file can't be written: {error.strerror}", where=str(path), mend="name a file that can be"
        ) from None
    click.echo(f"{len(value):,} bytes of {letter.record.place} written to {path}", err=True)


def _event(topology: Topology, letter: Letter, found: Settings) -> dict[str, Any] | str:
    """The event as far as it can be read, or why not."""
    from streamserve.adapters.schema_ids import schema_ids

    try:
        reader = FramedReader(schema_ids(found))
        return read_event(topology.source, letter.record.value, reader)
    except UnreadableError as error:
        return str(error)
    except StreamserveError as error:
        return error.what


# ---- as JSON


def _plain(letter: Letter, event: dict[str, Any] | str) -> dict[str, Any]:
    record = letter.record
    return {
        "record": record.place,
        "timestamp": iso(record.timestamp),
        "grounds": dict(letter.grounds),
        "replayable": letter.origin is not None,
        "key": base64_of(record.key),
        "headers": [{"name": name, "value": base64_of(value)} for name, value in _own(letter)],
        "value": base64_of(record.value),
        "event": None if isinstance(event, str) else jsonable(event),
        "event_fault": event if isinstance(event, str) else None,
    }


def _own(letter: Letter) -> list[tuple[str, bytes | None]]:
    """The headers that the event had; of somebody else's record all."""
    origin = letter.origin
    return list(letter.record.headers if origin is None else origin.headers)


# ---- for people


def _show(letter: Letter, event: dict[str, Any] | str, topology: Topology) -> None:
    console, record = out(), letter.record
    console.print(Text(record.place, style="bold"))
    print_whole(console, _facts(letter, topology))
    headers = _own(letter)
    if headers:
        console.print()
        print_whole(
            console, _pairs("header", "value", [(name, _bytes(value, SHOWN_HEADER)) for name, value in headers])
        )
    console.print()
    if record.value is None:
        console.print("no value: a tombstone")
    else:
        console.print(f"value, {len(record.value):,} bytes", style="bold", highlight=False)
        console.print(Text(_shown(record.value)))
    console.print()
    if isinstance(event, str):
        console.print(Text(f"the event can't be read: {harmless(event)}"))
    elif topology.source.format == "avro":
        print_whole(console, _pairs("field", "of the event", [(n, str(jsonable(v))) for n, v in event.items()]))


def _facts(letter: Letter, topology: Topology) -> Table:
    record, origin = letter.record, letter.origin
    rows = [("became a letter", iso(record.timestamp))]
    if origin is None:
        rows.append(("grounds", "none that a worker wrote: somebody else's record, which is never replayed"))
    rows += [(name, letter.grounds[name]) for name in GROUNDS if name in letter.grounds]
    if origin is not None:
        rows.append(("source", f"{letter.source}, of {letter.source_time or 'no time'}"))
        foreign = origin.topic != topology.source.topic
        rows += [("", f"not a record of {topology.source.topic}: never replayed there")] * foreign
    before = [(value or b"").decode(errors="replace") for name, value in record.headers if name == MARKER]
    rows += [("replayed from", place) for place in before]
    rows.append(("key", _bytes(record.key, SHOWN_HEADER)))
    return _pairs("", "", rows, header=False)


def _pairs(left: str, right: str, rows: list[tuple[str, str]], *, header: bool = True) -> Table:
    table = Table(box=None, pad_edge=False, show_header=header, header_style="bold")
    table.add_column(left, no_wrap=True)
    table.add_column(right, overflow="fold")
    for name, text in rows:
        table.add_row(Text(harmless(name)), Text(harmless(text)))
    return table


def _bytes(value: bytes | None, most: int) -> str:
    if value is None:
        return "null"
    if not value:
        return "empty"
    text, more = text_of(value[:most]), f"... ({len(value):,} bytes)" if len(value) > most else ""
    return (value[:most].hex(" ") if text is None else text) + more


def _shown(value: bytes) -> str:
    if not value:
        return "(empty)"
    text = text_of(value)
    if text is not None:
        rest = f"\n... {len(text) - SHOWN:,} more characters; --raw FILE writes all" if len(text) > SHOWN else ""
        return text[:SHOWN] + rest
    rest = f"\n... {len(value) - SHOWN:,} more bytes; --raw FILE writes all" if len(value) > SHOWN else ""
    return dump(value[:SHOWN]) + rest
