"""Avro bodies one by one: a strict walk over the bytes, fastavro with schema resolution; and what resolves.

This is the slow path (about 50 us an event), and the judge of what is an event: `decode` sends here whatever
its fast path refuses. What must not enter: the Confluent header, Kafka, a registry, Arrow.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fastavro
from fastavro.read import SchemaResolutionError
from fastavro.schema import SchemaParseException

from streamserve.pipeline.framing import HEADER_FIELDS
from streamserve.pipeline.schemas import MAX_NESTING, Field, Node, emit, in_words, live_aliases, shown

MAX_VOIDS = 1_000  # items without bytes (array<null>) in one event: ten bytes can claim 2**62 of them
LONG_BYTES = 10
MAX_TYPES = 50_000  # of a schema with each use of a named type counted
MAX_WIRE_TYPES = 2_000  # named types are written out at each use for pyruhvro: may double at every level
MAX_UNION = 100  # pyruhvro counts branches in an i8


class UndecodableError(ValueError):
    """The bytes are no value of the schema that they claim. `path`: the fields down to the fault."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.path: list[str] = []

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.what}" if self.path else self.what


class IncompatibleError(ValueError):
    """The writer's schema can't be read as the topology's."""


# ---- the strict walk: what fastavro would take on trust


@dataclass(slots=True)
class _Walk:
    depth: int = 0
    voids: int = 0


Skip = Callable[[bytes, int, _Walk], int]


def read_long(body: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint of at most ten bytes, modulo 2**64 as both vendors have it; and where it ends."""
    raw = shift = 0
    for end in range(at, at + LONG_BYTES):
        if end >= len(body):
            raise UndecodableError(f"the event ends at byte {len(body)} within a number")
        byte = body[end]
        raw |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 (the bit that says: more follows)
            raw &= (1 << 64) - 1
            return (raw >> 1) ^ -(raw & 1), end + 1
        shift += 7
    raise UndecodableError(f"the number at byte {at} is longer than {LONG_BYTES} bytes")


def walker(root: Node) -> Callable[[bytes], None]:
    """Checks that bytes begin with a value of this type, before fastavro sees them.

    fastavro alone takes branch -1 for the last one and a boolean of 7 for true, builds 2**62 nulls for a
    ten-byte event, and recurses on the C stack as deep as the event says. Bytes after the value are allowed,
    as Confluent's own deserialisers do.
    """
    skip = _skipper(root, {})
    return lambda body: (skip(body, 0, _Walk()), None)[1]


def _skipper(node: Node, known: dict[int, Skip]) -> Skip:  # noqa: PLR0911 (a return a kind)
    match node.kind:
        case "null":
            return lambda _body, at, _walk: at
        case "int" | "long":
            return lambda body, at, _walk: read_long(body, at)[1]
        case "float" | "double" | "fixed":
            return _skip_fixed({"float": 4, "double": 8}.get(node.kind, node.size))
        case "boolean":
            return _skip_boolean
        case "string" | "bytes":
            return _skip_sized
        case "enum":
            return _skip_enum(len(node.symbols))
        case "union":
            return _skip_union([_skipper(branch, known) for branch in node.branches])
        case "record":
            return _skip_record(node, known)
    return _skip_blocks(node, known)


def _take(body: bytes, at: int, size: int) -> int:
    if not 0 <= size <= len(body) - at:
        raise UndecodableError(f"{size} bytes are claimed at byte {at}, {len(body) - at} are left")
    return at + size


def _skip_fixed(size: int) -> Skip:
    return lambda body, at, _walk: _take(body, at, size)


def _skip_boolean(body: bytes, at: int, _walk: _Walk) -> int:
    end = _take(body, at, 1)
    if body[at] > 1:
        raise UndecodableError(f"byte {at} is {body[at]}, and a boolean is 0 or 1")
    return end


def _skip_sized(body: bytes, at: int, _walk: _Walk) -> int:
    size, at = read_long(body, at)
    return _take(body, at, size)


def _skip_enum(symbols: int) -> Skip:
    def skip(body: bytes, at: int, _walk: _Walk) -> int:
        index, end = read_long(body, at)
        if not 0 <= index < symbols:
            raise UndecodableError(f"symbol {index} at byte {at} of an enum of {symbols}")
        return end

    return skip


def _skip_union(branches: list[Skip]) -> Skip:
    def skip(body: bytes, at: int, walk: _Walk) -> int:
        index, end = read_long(body, at)
        if not 0 <= index < len(branches):
            raise UndecodableError(f"branch {index} at byte {at} of a union of {len(branches)}")
        return branches[index](body, end, walk)

    return skip


def _skip_record(node: Node, known: dict[int, Skip]) -> Skip:
    if id(node) in known:
        return known[id(node)]
    fields: list[tuple[str, Skip]] = []

    def skip(body: bytes, at: int, walk: _Walk) -> int:
        _deeper(walk)
        name = ""
        try:
            for name, one in fields:  # noqa: B007 (the name is for the message)
                at = one(body, at, walk)
        except UndecodableError as error:
            error.path.insert(0, name)
            raise
        walk.depth -= 1
        return at

    known[id(node)] = skip
    fields += [(f.name, _skipper(f.node, known)) for f in node.fields]
    return skip


def _deeper(walk: _Walk) -> None:
    walk.depth += 1
    if walk.depth > MAX_NESTING:
        raise UndecodableError(f"nested more than {MAX_NESTING} deep")


def is_void(node: Node, above: tuple[Node, ...] = ()) -> bool:
    """Whether a value of this type takes no bytes at all."""
    if node.kind == "record":
        return node not in above and all(is_void(f.node, (*above, node)) for f in node.fields)
    return node.kind == "null" or (node.kind == "fixed" and node.size == 0)


# Numbers in a row, by powers of two: what a loop in Python takes 0.5 us each for
_NUMBERS = [re.compile(rb"(?>[\x80-\xff]{0,%d}+[\x00-\x7f]){%d}+" % (LONG_BYTES - 1, 1 << n)) for n in range(11)]


def _pass_numbers(body: bytes, at: int, count: int) -> tuple[int, int]:
    while count:
        power = min(count.bit_length(), len(_NUMBERS)) - 1
        found = _NUMBERS[power].match(body, at)
        if found is None:
            break
        at, count = found.end(), count - (1 << power)
    return at, count


def _passer(item: Node) -> Callable[[bytes, int, int], tuple[int, int]]:
    """Passes over good items at one go, as many as it can: given a place and a count, returns both as they are then.

    Whoever is left is looked at one by one, and says what is wrong.
    """
    if item.kind in ("int", "long"):
        return _pass_numbers
    size = {"float": 4, "double": 8, "fixed": item.size}.get(item.kind, 0)

    def skip(body: bytes, at: int, count: int) -> tuple[int, int]:
        there = min((len(body) - at) // size, count) if size else 0
        return at + there * size, count - there

    return skip


def _skip_blocks(node: Node, known: dict[int, Skip]) -> Skip:
    item, keyed, ahead = _skipper(node.inner, known), node.kind == "map", _passer(node.inner)
    void = not keyed and is_void(node.inner)

    def skip(body: bytes, at: int, walk: _Walk) -> int:
        _deeper(walk)
        while True:
            count, at = read_long(body, at)
            if count == 0:
                walk.depth -= 1
                return at
            if count < 0:
                # The size of the block follows. Both vendors read past it without a look, so a lying one
                # counts as much as an honest one; and both take -2**63 items for none.
                _, at = read_long(body, at)
                count = -count if count > -(1 << 63) else 0
            if void:
                walk.voids += count
                if walk.voids > MAX_VOIDS:
                    raise UndecodableError(f"more than {MAX_VOIDS} items that take no bytes")
                continue
            if not keyed:
                at, count = ahead(body, at, count)
            for _ in range(count):
                at = item(body, _skip_sized(body, at, walk) if keyed else at, walk)

    return skip


# ---- the slow path


class SlowReader:
    """Bodies to Python values of the topology's schema, one by one."""

    def __init__(self, writer: Node, reader: Node, keep: Callable[[Node, Field], bool]) -> None:
        self._check = walker(writer)
        try:
            self._writer = fastavro.parse_schema(emit(writer, lambda _record, _field: True))
            self._reader = fastavro.parse_schema(emit(reader, keep))
        except (SchemaParseException, ValueError, TypeError, KeyError, RecursionError) as error:
            raise IncompatibleError(f"fastavro refuses a schema: {shown(str(error))}") from None

    def read(self, body: bytes) -> Any:
        """The event as a dict. UndecodableError or IncompatibleError where it is none."""
        self._check(body)
        try:
            return fastavro.schemaless_reader(io.BytesIO(body), self._writer, self._reader)
        except SchemaResolutionError as error:
            raise IncompatibleError(shown_end(str(error))) from None
        except UnicodeDecodeError as error:
            raise UndecodableError(f"a string is not UTF-8 ({error.reason})") from None
        except MemoryError:
            raise  # says nothing about the event
        except Exception as error:  # noqa: BLE001 (a vendor's surprise costs one event, not the batch)
            raise UndecodableError(f"{type(error).__name__}: {shown(str(error))}") from None


def refuse_bomb(root: Node) -> None:
    """Refuses a schema that doubles at every level: forty records of two nulls each are 2**40 values."""
    sizes: dict[int, int] = {}

    def size(node: Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 1  # where it holds itself; an event of it is bounded by its bytes
            sizes[id(node)] = 1 + sum(size(one) for one in node.below())
        return sizes[id(node)]

    if size(root) > MAX_TYPES:
        raise IncompatibleError(f"the writer's schema has more than {MAX_TYPES} types, written out")


def shown_end(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:100]} ... {text[-90:]}"  # noqa: PLR2004


# ---- resolution, as far as it can be told from the schemas alone

_PROMOTIONS = {
    ("int", "long"), ("int", "float"), ("int", "double"), ("long", "float"), ("long", "double"),
    ("float", "double"), ("string", "bytes"), ("bytes", "string"),
}  # fmt: skip


def find_written(writer: Node, reader: Node, f: Field) -> tuple[int, Field] | None:
    """The writer's field that a reader's field takes its values from, by name or by alias."""
    names = (f.name, *live_aliases(reader, f))
    found = [(i, w) for i, w in enumerate(writer.fields) if w.name in names]
    if len(found) > 1:
        raise IncompatibleError(f"the writer has {' and '.join(w.name for _, w in found)} for {f.name}")
    return found[0] if found else None


def check(writer: Node, reader: Node, keep: Callable[[Node, Field], bool], path: str = "") -> None:
    """Raises IncompatibleError where no event of this writer could be read.

    What only some events show (a null for what may not be null, a symbol that the topology does not know) is
    left to the event. Two different logical types are refused: fastavro and Java would hand milliseconds to a
    reader of microseconds.
    """
    seen: set[tuple[int, int]] = set()

    def one(writer: Node, reader: Node, path: str) -> None:
        if (id(writer), id(reader)) in seen:
            return
        seen.add((id(writer), id(reader)))
        (writer, _), (reader, _) = writer.without_null(), reader.without_null()
        if "union" in (writer.kind, reader.kind):
            return
        same = writer.kind == reader.kind and named_alike(writer, reader) and writer.size == reader.size
        if not same and (writer.kind, reader.kind) not in _PROMOTIONS:
            raise IncompatibleError(_differ(writer, reader, path))
        if writer.logical and reader.logical and _meaning(writer) != _meaning(reader):
            raise IncompatibleError(_differ(writer, reader, path))
        if writer.item is not None and reader.item is not None:
            one(writer.item, reader.item, f"{path}[]")
        for f in (f for f in reader.fields if keep(reader, f)):
            inner = f"{path}.{f.name}".lstrip(".")
            written = find_written(writer, reader, f)
            if written is not None:
                one(written[1].node, f.node, inner)
            elif not f.has_default:
                raise IncompatibleError(f"{inner}: the writer has no such field, and the topology's has no default")

    one(writer, reader, path)


def _differ(writer: Node, reader: Node, path: str) -> str:
    return f"{path or 'the event'}: written as {in_words(writer)[:100]}, read as {in_words(reader)[:100]}"


def _meaning(node: Node) -> tuple[str, int, int]:
    return node.logical, node.precision, node.scale


def named_alike(writer: Node, reader: Node) -> bool:
    """Named types match by their short name or by an alias, as the specification and fastavro have it."""
    short = writer.name.rpartition(".")[2]
    return short == reader.name.rpartition(".")[2] or writer.name in reader.aliases


def identical(writer: Node, reader: Node) -> bool:
    """The same type throughout, the logical types included. Neither may hold itself."""
    return (
        (writer.kind, _meaning(writer), writer.symbols, writer.name.rpartition(".")[2])
        == (reader.kind, _meaning(reader), reader.symbols, reader.name.rpartition(".")[2])
        and [f.name for f in writer.fields] == [f.name for f in reader.fields]
        and len(writer.below()) == len(reader.below())
        and all(map(identical, writer.below(), reader.below()))
    )


# ---- what pyruhvro is given


class NotFastError(Exception):
    """This writer schema, or a column of it, is not for pyruhvro."""


def wire_schema(root: Node) -> str:
    """A schema of the same bytes for pyruhvro: no logical types, no references, int as long."""
    numbers = itertools.count()

    def one(node: Node, above: tuple[Node, ...]) -> Any:
        number = next(numbers)
        if number > MAX_WIRE_TYPES or node in above:
            raise NotFastError("a schema that holds itself, or is too large written out")
        above = (*above, node)
        match node.kind:
            case "null" | "boolean" | "int" | "long" | "float" | "double" | "string":
                return "long" if node.kind == "int" else node.kind
            case "enum":
                return {"type": "enum", "name": f"E{number}", "symbols": list(node.symbols)}
            case "union" if len(node.branches) <= MAX_UNION:
                return [one(branch, above) for branch in node.branches]
            case "record" if node.fields:
                fields = [{"name": f.name, "type": one(f.node, above)} for f in node.fields]
                return {"type": "record", "name": f"R{number}", "fields": fields}
            case "array" if not is_void(node.inner):  # a loop of 2**62 items in Rust can't be stopped
                return {"type": "array", "items": one(node.inner, above)}
            case "map":
                return {"type": "map", "values": one(node.inner, above)}
        raise NotFastError(f"pyruhvro can't read {in_words(node)}")

    event = one(root, ())
    for i, f in enumerate(event["fields"]):
        f["name"] = f"f{i}"
    return json.dumps({**event, "fields": [*HEADER_FIELDS, *event["fields"]]})
