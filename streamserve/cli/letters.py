"""What the commands on dead letters share: which letters are meant, and how their bytes are shown."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from streamserve.errors import ConfigError
from streamserve.records import Stage
from streamserve.settings import instant_ms
from streamserve.simulate.letters import UNKNOWN, Selection, parse_ranges

if TYPE_CHECKING:
    from streamserve.adapters.reading import Start

SHOWN_BYTES = 24
LINE = 16  # bytes of a line of a dump
OPTIONS = (
    click.option(
        "--stage",
        "stages",
        multiple=True,
        type=click.Choice([*(stage.value for stage in Stage), UNKNOWN]),
        help=f"Only of this stage ({UNKNOWN}: without grounds); several may be given.",
    ),
    click.option(
        "--error", "errors", multiple=True, help="Only of this error, e.g. Undecodable; several may be given."
    ),
    click.option(
        "--from",
        "--since",
        "position",
        default="beginning",
        show_default=True,
        help="beginning, -N (of each partition) or an ISO time (UTC where it names no zone): when it became a letter.",
    ),
    click.option("--until", help="An ISO time; what became a letter then or later is left out."),
    click.option(
        "--partition",
        "partitions",
        multiple=True,
        type=click.IntRange(min=0),
        help="Only of this partition of the dead-letters topic; several may be given.",
    ),
    click.option(
        "--offsets",
        metavar="A-B",
        help="Only these offsets of --partition in the dead-letters topic, both ends included: A-B, A-, -B or A. "
        "Of several partitions: P:A-B,P:A-B.",
    ),
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What somebody's options come to. given: there were any."""

    start: Start
    selection: Selection
    given: bool


def letter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose letters, handed over as the argument `chosen`."""

    @functools.wraps(command)
    def run(
        *args: Any,
        stages: tuple[str, ...],
        errors: tuple[str, ...],
        position: str,
        until: str | None,
        partitions: tuple[int, ...],
        offsets: str | None,
        **more: Any,
    ) -> Any:
        from streamserve.adapters.reading import Start

        start = Start.parse(position)
        since = start.value if start.kind == "time" else None
        ranges = parse_ranges(partitions, offsets)
        selection = Selection(frozenset(stages), frozenset(errors), since, until_ms(until), ranges)
        return command(*args, chosen=Chosen(start, selection, selection != Selection() or start.kind == "last"), **more)

    for option in reversed(OPTIONS):
        run = option(run)
    return run


def until_ms(text: str | None) -> int | None:
    try:
        return None if text is None else instant_ms(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no ISO time", mend="e.g. --until 2026-01-31T06:00:00Z") from None


def excerpt(value: bytes | None) -> str:
    """The first bytes: as text where they are printable, otherwise as hex; a tombstone as nothing."""
    if value is None:
        return "(no value)"
    first, more = value[:SHOWN_BYTES], "..." if len(value) > SHOWN_BYTES else ""
    text = first.decode("ascii", "replace")
    return (text if text.isascii() and text.isprintable() else first.hex(" ")) + more


def text_of(value: bytes) -> str | None:
    """The bytes as text, if that is what they are: UTF-8, and nothing in it that moves a terminal's cursor."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if text.replace("\n", "").replace("\t", "").isprintable() else None


def harmless(text: str) -> str:
    """What came from an event in a line of a terminal: whatever is not printable is spelled out."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "replace").decode() for one in text)


def dump(value: bytes) -> str:
    """Offset, bytes as hex, and what of them is ASCII."""
    lines = []
    for at in range(0, len(value), LINE):
        some = value[at : at + LINE]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in some)  # noqa: PLR2004
        lines.append(f"{at:08x}  {some.hex(' '):{3 * LINE}} {shown}")
    return "\n".join(lines)


def base64_of(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()
