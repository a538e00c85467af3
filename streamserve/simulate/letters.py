"""Dead letters read back: their grounds, the event as it was in its source, and which of them somebody means.

What `emit` wrote is taken apart here. Nothing is read from a topic and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from streamserve.errors import ConfigError
from streamserve.headers import Header
from streamserve.pipeline.emit import HEADER
from streamserve.simulate.explain import iso

MARKER = HEADER + "replayed-from"  # of a replayed event: the dead letter that it came of, one for each replay
FIRST_GROUND = HEADER + "stage"  # what a worker adds begins with it
SOURCE = HEADER + "source."
DIGITS = 18  # of a number that fits into 64 bits, whatever its digits are
UNKNOWN = "?"  # the stage and the error of a record without grounds
FOREVER = 2**63 - 1

Range = tuple[int, int]  # the first offset, and the one after the last
Position = tuple[int, int]  # partition, offset


class Kept(Protocol):
    """A record as it lies in its topic. timestamp: milliseconds since 1970; -1: none. place: of all topics."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[Header]: ...
    @property
    def place(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a dead letter's event was, and the headers that it had there. timestamp: as of a record."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    headers: tuple[Header, ...]

    @classmethod
    def of(cls, headers: Sequence[Header]) -> Self | None:
        """None: these are not the headers of a dead letter that a worker wrote.

        Names that begin with `streamserve.` may be the event's own: what the worker added is what stands from the
        last stage on.
        """
        at = max((at for at, (name, _) in enumerate(headers) if name == FIRST_GROUND), default=None)
        if at is None or not all(name.startswith(HEADER) for name, _ in headers[at:]):
            return None
        added = dict(headers[at:])
        topic = (added.get(SOURCE + "topic") or b"").decode(errors="replace")
        partition, offset, timestamp = (_number(added.get(SOURCE + n)) for n in ("partition", "offset", "timestamp"))
        if not topic or partition is None or offset is None or timestamp is None or min(partition, offset) < 0:
            return None
        return cls(topic, partition, offset, timestamp, tuple(headers[:at]))


def _number(text: bytes | None) -> int | None:
    plain = (text or b"").decode(errors="replace")
    return int(plain) if _digits(plain.removeprefix("-")) else None


@dataclass(frozen=True, slots=True)
class Letter:
    """A record of a dead-letters topic, its grounds read from the headers that the worker added."""

    record: Kept
    grounds: Mapping[str, str]

    @classmethod
    def of(cls, record: Kept) -> Self:
        named = {
            name.removeprefix(HEADER): (value or b"").decode("utf-8", "replace")
            for name, value in record.headers
            if name.startswith(HEADER)
        }
        return cls(record, named)

    @property
    def stage(self) -> str:
        return self.grounds.get("stage", UNKNOWN)

    @property
    def error(self) -> str:
        return self.grounds.get("error", UNKNOWN)

    @property
    def source(self) -> str:
        return "-".join(self.grounds.get(f"source.{part}", UNKNOWN) for part in ("topic", "partition", "offset"))

    @property
    def source_time(self) -> str | None:
        stamp = self.grounds.get("source.timestamp", "")
        return iso(int(stamp)) if stamp.isdecimal() else None

    @property
    def position(self) -> Position:
        return self.record.partition, self.record.offset

    @property
    def origin(self) -> Origin | None:
        """None: this is no dead letter, but somebody else's record."""
        return Origin.of(self.record.headers)

    def replays(self, topic: str) -> list[Position]:
        """The letters of this dead-letters topic that the event was replayed from, the first replay first."""
        marks = (value or b"" for name, value in self.record.headers if name == MARKER)
        return [found for mark in marks if (found := position_of(mark.decode(errors="replace"), topic))]


def position_of(text: str, topic: str) -> Position | None:
    """Partition and offset of `<topic>-<partition>-<offset>`; None: it is no such place."""
    if not text.startswith(topic + "-"):
        return None
    partition, _, offset = text[len(topic) + 1 :].partition("-")
    return (int(partition), int(offset)) if _digits(partition) and _digits(offset) else None


def replay_headers(letter: Letter, origin: Origin) -> list[Header]:
    """Those of the event that a replay writes: its own as they were, and where it came from."""
    return [*origin.headers, (MARKER, letter.record.place.encode())]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters somebody means; what is empty or None holds for all.

    since, until: milliseconds since 1970, of the letter and not of its event; until is not among them.
    ranges: offsets of the dead-letters topic, by partition.
    """

    stages: Collection[str] = frozenset()
    errors: Collection[str] = frozenset()
    since: int | None = None
    until: int | None = None
    ranges: Mapping[int, Range] = field(default_factory=dict)

    def holds(self, letter: Letter) -> bool:
        stamp = letter.record.timestamp
        return (
            (not self.stages or letter.stage in self.stages)
            and (not self.errors or letter.error in self.errors)
            and (self.since is None or stamp >= self.since)
            and (self.until is None or stamp < self.until)
            and self._within(letter.position)
        )

    def _within(self, position: Position) -> bool:
        if not self.ranges:
            return True
        first, end = self.ranges.get(position[0], (0, 0))
        return first <= position[1] < end

    def narrow(self, spans: Mapping[int, Range]) -> dict[int, Range]:
        """What of these spans has to be read.

        Raises:
            ConfigError: there is no such partition.
        """
        if not self.ranges:
            return dict(spans)
        unknown = sorted(set(self.ranges) - set(spans))
        if unknown:
            raise ConfigError(
                f"the dead-letters topic has no partition {unknown[0]}, it has {len(spans)}",
                mend=f"name one of 0 to {len(spans) - 1}",
            )
        here = ((p, spans[p], self.ranges[p]) for p in spans if p in self.ranges)
        return {p: (max(span[0], mine[0]), min(span[1], mine[1])) for p, span, mine in here}


def parse_ranges(partitions: Sequence[int], text: str | None) -> dict[int, Range]:
    """Offsets by partition, both ends among them: `A-B`, `A-`, `-B` or `A` of the one partition that is named, or
    `P:A-B,P:A-B` where none is.

    Raises:
        ConfigError: it is none of these, or it does not say of which partition.
    """
    if text is None:
        return dict.fromkeys(partitions, (0, FOREVER))
    if ":" not in text and len(partitions) == 1:
        return {partitions[0]: _range(text, text)}
    found: dict[int, Range] = {}
    for part in text.split(","):
        named, _, offsets = part.strip().rpartition(":")
        if partitions or not _digits(named) or int(named) in found:
            raise ConfigError(
                f"--offsets {text} does not say once of which partition",
                mend="--partition 0 --offsets 100-199 for one, --offsets 0:100-199,1:50- for several",
            )
        found[int(named)] = _range(offsets, text)
    return found


def spell_ranges(ends: Mapping[int, Range]) -> str:
    """As `--offsets` takes them."""
    return ",".join(f"{p}:{first}-{'' if end == FOREVER else end - 1}" for p, (first, end) in sorted(ends.items()))


def _range(text: str, whole: str) -> Range:
    first, dash, last = text.strip().partition("-")
    if (first or last) and all(not part or _digits(part) for part in (first, last)):
        begin = int(first or 0)
        found = begin, FOREVER if dash and not last else int(last or first) + 1
        if begin < found[1]:
            return found
    raise ConfigError(
        f"{text!r} of --offsets {whole} are no offsets, expected A-B, A-, -B or A",
        mend="e.g. 100-199 for a hundred, 100- for all from 100 on, 100 for one",
    )


def _digits(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= DIGITS
