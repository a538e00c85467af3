"""What `predictions tail` and `shadow tail` share: records of a topic, read and shown as they come."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from streamserve.cli.common import quiet_pipe, settings
from streamserve.errors import ConfigError
from streamserve.simulate.explain import FramedReader, UnreadableError, jsonable

if TYPE_CHECKING:
    from streamserve.adapters.reading import Record, Start, TopicReader

Row = dict[str, Any]
OPTIONS = (
    click.option(
        "--from",
        "position",
        default="-10",
        show_default=True,
        help="beginning, end, -N (the last N records) or an ISO time (UTC where it names no zone).",
    ),
    click.option("--limit", type=click.IntRange(min=1), help="Stop after this many."),
    click.option("--json", "as_json", is_flag=True, help="A JSON object a line, with all fields."),
    click.option(
        "--follow/--no-follow",
        default=True,
        show_default=True,
        help="Wait for more, or stop at the end that the topic has now.",
    ),
)


@dataclass(frozen=True, slots=True)
class Tail:
    """What somebody's options come to."""

    start: Start
    limit: int | None
    as_json: bool
    follow: bool

    def show(
        self,
        topic: str,
        fits: Callable[[Row], bool],
        columns: Sequence[str],
        cells: Callable[[Row], Sequence[str]],
    ) -> None:
        """The records that fit. Order is kept within each partition."""
        from streamserve.adapters.kafka import Clients
        from streamserve.adapters.reading import TopicReader
        from streamserve.adapters.schema_ids import schema_ids

        found = settings()
        decoder = FramedReader(schema_ids(found))
        with quiet_pipe(), TopicReader(Clients(found), topic) as reader:
            rows = islice(filter(fits, _read(self._records(reader), decoder)), self.limit)
            if self.as_json:
                for row in rows:
                    click.echo(json.dumps(jsonable(row), ensure_ascii=False))
            else:
                _list(rows, columns, cells)

    def _records(self, reader: TopicReader) -> Iterator[Record]:
        if self.start.kind == "last":
            newest = sorted(reader.backlog(self.start), key=lambda record: record.timestamp)
            yield from newest[max(0, len(newest) - self.start.value) :]
        else:
            yield from reader.backlog(self.start)
        if self.follow:
            yield from reader.follow()


def tail_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which records, handed over as the argument `tail`."""

    @functools.wraps(command)
    def run(*args: Any, position: str, limit: int | None, as_json: bool, follow: bool, **more: Any) -> Any:
        from streamserve.adapters.reading import Start

        return command(*args, tail=Tail(Start.parse(position), limit, as_json, follow), **more)

    for option in reversed(OPTIONS):
        run = option(run)
    return run


def _read(records: Iterator[Record], decoder: FramedReader) -> Iterator[Row]:
    for record in records:
        try:
            yield decoder.read(record.value)
        except UnreadableError as error:
            click.echo(f"{record.place} can't be read: {error}", err=True)


def conditions(texts: Iterable[str], aliases: Mapping[str, str], example: str) -> list[tuple[str, str]]:
    """Field and value of each FIELD=VALUE.

    Raises:
        ConfigError: it is none.
    """
    found = []
    for text in texts:
        name, sep, value = text.partition("=")
        if not sep or not name:
            raise ConfigError(f"--where {text!r} is no FIELD=VALUE", mend=f"e.g. --where {example}")
        found.append((aliases.get(name, name), value))
    return found


def value_of(row: Row, name: str, maps: Mapping[str, str], what: str) -> str:
    """A field as text; empty for null. maps: fields whose entries are named too, by the word before their dot.

    Raises:
        ConfigError: there is no such field.
    """
    word, dot, entry = name.partition(".")
    if dot and word in maps:
        return str((row.get(maps[word]) or {}).get(entry, ""))
    if name not in row:
        plain = [field for field in row if not isinstance(row[field], dict)]
        mend = f"the fields are {', '.join([*plain, *(f'{word}.<name>' for word in maps)])}"
        raise ConfigError(f"--where {name}: {what} have no such field", mend=mend)
    value = jsonable(row[name])
    return "" if value is None else str(value)


def _list(rows: Iterator[Row], names: Sequence[str], cells: Callable[[Row], Sequence[str]]) -> None:
    columns = GrowingColumns(names)
    for number, row in enumerate(rows):
        found = cells(row)
        if number == 0:
            columns.fit(found)
            click.echo(click.style(columns.line(names), dim=True))
        click.echo(columns.line(found))


class GrowingColumns:
    """Aligned columns of a list whose end is not known: a column is as wide as its widest cell so far."""

    def __init__(self, names: Sequence[str]) -> None:
        self._widths = [len(name) for name in names]

    def fit(self, cells: Sequence[str]) -> None:
        self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, cells, strict=True)]

    def line(self, cells: Sequence[str]) -> str:
        self.fit(cells)
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)).rstrip()


def text_of(row: Row, name: str) -> str:
    """A field's cell."""
    value = row.get(name)
    return "-" if value is None else str(value)
