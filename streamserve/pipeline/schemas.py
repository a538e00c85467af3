"""The topology's event schema: Avro text parsed once into nodes, and what each path is as a column.

Everything that later reads an event (the Avro decoder, the JSON decoder, a topology's checks) walks these
nodes and never the JSON again. What must not enter: bytes of events, Arrow arrays, the ids of a registry.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from streamserve.errors import SchemaError
from streamserve.pipeline.columns import LOGICAL, arrow_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
MAX_NESTING = 100  # of a schema, and of one event: the vendors' readers recurse on the C stack

_KNOWN_LOGICAL = frozenset({*LOGICAL, ("string", "uuid"), ("bytes", "decimal"), ("fixed", "decimal")})


class WriterSchemas(Protocol):
    """Who knows the schema that an event was written with: a pinned index, or a registry's client."""

    def writer_schema(self, schema_id: int) -> str | None:
        """The Avro text of this id; None where nobody knows it."""
        ...


@dataclass(frozen=True)
class ColumnType:
    """What one path of the event schema is, once it is a column.

    nullable: some step on the way to it may be null.
    avro: the type in words, for messages ("null | double").
    """

    arrow: pa.DataType
    nullable: bool
    avro: str


@dataclass(slots=True, eq=False)
class Field:
    name: str
    node: Node
    aliases: tuple[str, ...] = ()
    has_default: bool = False
    default: Any = None  # as the schema's JSON has it


@dataclass(slots=True, eq=False)
class Node:
    """One type of an Avro schema. A named type is one object, however often it is used: there are cycles."""

    kind: str
    logical: str = ""
    precision: int = 0
    scale: int = 0
    size: int = 0
    name: str = ""
    aliases: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    symbol_default: str | None = None
    fields: list[Field] = field(default_factory=list)
    item: Node | None = None  # of an array or a map
    branches: list[Node] = field(default_factory=list)

    @property
    def inner(self) -> Node:
        """The items of an array, the values of a map."""
        if self.item is None:
            raise TypeError(f"{self.kind} has no items")
        return self.item

    def without_null(self) -> tuple[Node, bool]:
        """(T, True) of a union of null and one T; otherwise (self, False)."""
        kinds = [branch.kind for branch in self.branches]
        if len(kinds) == 2 and kinds.count("null") == 1:  # noqa: PLR2004 (null and one other)
            return self.branches[1 - kinds.index("null")], True
        return self, False

    def below(self) -> list[Node]:
        items = [] if self.item is None else [self.item]
        return [*items, *self.branches, *(f.node for f in self.fields)]

    def find(self, name: str) -> Field | None:
        return next((f for f in self.fields if f.name == name), None)


class _Parser:
    def __init__(self) -> None:
        self.named: dict[str, Node] = {}

    def node(self, raw: object, space: str, depth: int = 0) -> Node:
        if depth > MAX_NESTING:
            raise ValueError(f"types are nested more than {MAX_NESTING} deep")
        if isinstance(raw, str):
            return self._by_name(raw, space)
        if isinstance(raw, list):
            return self._union([self.node(branch, space, depth + 1) for branch in raw])
        if not isinstance(raw, dict):
            raise ValueError(f"{shown(raw)} is not a type")  # noqa: TRY004 (mapped to a SchemaError by parse_node)
        kind = raw.get("type")
        if kind in ("record", "error"):
            return self._record(raw, space, depth)
        if kind in ("enum", "fixed"):
            return self._flat(raw, str(kind), space)
        if kind in ("array", "map"):
            inner = raw.get("items" if kind == "array" else "values")
            return Node(str(kind), item=self.node(inner, space, depth + 1))
        found = self.node(kind, space, depth + 1)
        return _with_logical(Node(found.kind), raw) if found.kind in PRIMITIVES and not found.logical else found

    def _by_name(self, raw: str, space: str) -> Node:
        if raw in PRIMITIVES:
            return Node(raw)
        full = raw if "." in raw or not space else f"{space}.{raw}"
        found = self.named.get(full) or self.named.get(raw)
        if found is None:
            raise ValueError(f"type {shown(raw)} is not defined before it is used")
        return found

    def _union(self, branches: list[Node]) -> Node:
        if any(branch.kind == "union" for branch in branches) or not branches:
            raise ValueError("a union must have branches, and none of them a union")
        return Node("union", branches=branches)

    def _declare(self, raw: dict[str, Any], kind: str, space: str) -> tuple[Node, str]:
        name = raw.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"a {kind} has no name")
        own = raw.get("namespace", space) if "." not in name else name.rpartition(".")[0]
        full = name if "." in name or not own else f"{own}.{name}"
        if full in self.named:
            raise ValueError(f"type {shown(full)} is defined twice")
        aliases = tuple(alias if "." in alias or not own else f"{own}.{alias}" for alias in raw.get("aliases", ()))
        self.named[full] = Node(kind, name=full, aliases=aliases)
        return self.named[full], str(own)

    def _flat(self, raw: dict[str, Any], kind: str, space: str) -> Node:
        node, _ = self._declare(raw, kind, space)
        if kind == "fixed":
            node.size = raw.get("size", -1)
            if type(node.size) is not int or node.size < 0:
                raise ValueError(f"fixed {node.name} has no size")
            return _with_logical(node, raw)
        node.symbols = tuple(raw.get("symbols", ()))
        node.symbol_default = raw.get("default")
        if not node.symbols or not all(isinstance(symbol, str) for symbol in node.symbols):
            raise ValueError(f"enum {node.name} has no symbols")
        return node

    def _record(self, raw: dict[str, Any], space: str, depth: int) -> Node:
        node, own = self._declare(raw, "record", space)
        fields = raw.get("fields")
        if not isinstance(fields, list):
            raise ValueError(f"record {node.name} has no fields")  # noqa: TRY004 (mapped by parse_node)
        for one in fields:
            if not isinstance(one, dict) or not isinstance(one.get("name"), str) or "type" not in one:
                raise ValueError(f"a field of {node.name} has no name or no type")
            if node.find(one["name"]):
                raise ValueError(f"record {node.name} has two fields {shown(one['name'])}")
            inner = self.node(one["type"], own, depth + 1)
            aliases = tuple(one.get("aliases", ()))
            node.fields.append(Field(one["name"], inner, aliases, "default" in one, one.get("default")))
        return node


def _with_logical(node: Node, raw: dict[str, Any]) -> Node:
    """As the specification wants it, a logical type that is unknown or invalid is ignored."""
    logical = raw.get("logicalType", "")
    if (node.kind, logical) not in _KNOWN_LOGICAL:
        return node
    if logical == "decimal":
        precision, scale = raw.get("precision", 0), raw.get("scale", 0)
        if type(precision) is not int or type(scale) is not int or not 0 <= scale <= precision or not precision:
            return node
        node.precision, node.scale = precision, scale
    node.logical = logical
    return node


def shown(value: object) -> str:
    """A value in a message: never more than 60 characters of it."""
    text = repr(value[:60] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004


def parse_node(text: str) -> Node:
    """The nodes of an Avro schema. ValueError says what is wrong with it, whatever that is."""
    try:
        return _Parser().node(json.loads(text), "")
    except RecursionError:
        raise ValueError("types are nested too deep") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"is not an Avro schema ({error})") from None


def emit(node: Node, keep: Callable[[Node, Field], bool]) -> Any:
    """The node as Avro JSON with only some fields, bare of docs and of logical types.

    Without logical types fastavro returns the integers that were written: a timestamp of 2**62 stays a number
    where its own datetime would raise OverflowError.
    """
    seen: set[str] = set()

    def one(node: Node) -> Any:
        if node.name in seen:
            return node.name
        if node.kind == "union":
            return [one(branch) for branch in node.branches]
        out: dict[str, Any] = {"type": node.kind}
        if node.name:
            seen.add(node.name)
            out |= {"name": node.name, "aliases": list(node.aliases)}
        if node.item is not None:
            out["items" if node.kind == "array" else "values"] = one(node.item)
        return out | own(node) if len(out) > 1 else node.kind

    def own(node: Node) -> dict[str, Any]:
        if node.kind == "record":
            return {"fields": [one_field(node, f) for f in node.fields if keep(node, f)]}
        if node.kind == "enum":
            default = {} if node.symbol_default is None else {"default": node.symbol_default}
            return {"symbols": list(node.symbols), **default}
        return {"size": node.size} if node.kind == "fixed" else {}

    def one_field(record: Node, f: Field) -> dict[str, Any]:
        out = {"name": f.name, "type": one(f.node), "aliases": list(live_aliases(record, f))}
        return out | ({"default": f.default} if f.has_default else {})

    return one(node)


def live_aliases(record: Node, f: Field) -> tuple[str, ...]:
    """The aliases that are no other field's name or alias.

    A reader that was pruned of the other field would let the alias take what was written for that one.
    """
    others = {name for o in record.fields if o is not f for name in (o.name, *o.aliases)}
    return tuple(alias for alias in f.aliases if alias not in others)


def _undocumented(raw: Any) -> Any:
    if isinstance(raw, list):
        return [_undocumented(one) for one in raw]
    if not isinstance(raw, dict):
        return raw
    return {key: value if key == "default" else _undocumented(value) for key, value in raw.items() if key != "doc"}


def in_words(node: Node) -> str:
    match node.kind:
        case "union":
            return " | ".join(in_words(branch) for branch in node.branches)
        case "enum":
            return f"enum[{','.join(node.symbols)}]"
        case "array" | "map":
            return f"{node.kind}<{in_words(node.inner)}>"
        case "record":
            names = ", ".join(f.name for f in node.fields)
            return f"record {node.name}({names})"
    return node.logical or node.kind


@dataclass(frozen=True, eq=False)
class EventSchema:
    """The topology's own (reader) schema.

    name: the record's full name. text: the schema as compact JSON without docs.
    """

    name: str
    text: str
    root: Node
    where: str = ""

    @classmethod
    def parse(cls, text: str, *, where: str = "") -> EventSchema:
        """Reads Avro schema JSON; SchemaError where it is none, or not of a record."""
        try:
            root = parse_node(text)
        except json.JSONDecodeError as error:
            raise SchemaError(f"The event schema is not JSON: {error}", where=where, mend="Mend the file.") from None
        except ValueError as error:
            mend = "See the Avro specification, section Schema Declaration."
            raise SchemaError(f"The event schema is not valid Avro: {error}.", where=where, mend=mend) from None
        if root.kind != "record":
            mend = "Make the outermost type a record: its fields are what features are made of."
            raise SchemaError(f"The event schema is {in_words(root)}, not a record.", where=where, mend=mend)
        return cls(root.name, json.dumps(_undocumented(json.loads(text)), separators=(",", ":")), root, where)

    def trail(self, path: str) -> tuple[list[Field], bool]:
        """The fields from the root to the path, and whether a step of it may be null."""
        record, trail, nullable = self.root, list[Field](), False
        steps = path.split(".")
        for at, step in enumerate(steps):
            found = record.find(step)
            if found is None:
                raise self._unknown(path, ".".join(steps[:at]), step, record)
            trail.append(found)
            node, may_be_null = found.node.without_null()
            nullable |= may_be_null
            if at + 1 < len(steps) and node.kind != "record":
                inner = ".".join(steps[: at + 1])
                what = f"Path {path!r} goes through {inner!r}, which is {in_words(node)}, not a record."
                raise SchemaError(what, where=self.where, mend=f"Read {inner!r} itself, or a path of a record.")
            record = node
        return trail, nullable

    def column_type(self, path: str) -> ColumnType:
        """What the path is as a column; SchemaError where there is no such path, or no such column type."""
        trail, nullable = self.trail(path)
        node = trail[-1].node
        try:
            return ColumnType(arrow_type(node), nullable, in_words(node))
        except ValueError as error:
            mend = "Leave it unread (it may stay in the schema), or give it a type of its own."
            raise SchemaError(f"Path {path!r} can't be read: {error}.", where=self.where, mend=mend) from None

    def paths(self) -> list[str]:
        """All paths that end at something other than a record, in the order of the schema."""

        def below(record: Node, prefix: str, above: tuple[Node, ...]) -> Iterator[str]:
            for f in record.fields:
                node, _ = f.node.without_null()
                if node.kind != "record":
                    yield prefix + f.name
                elif node not in above:
                    yield from below(node, f"{prefix}{f.name}.", (*above, node))

        return list(below(self.root, "", (self.root,)))

    def _unknown(self, path: str, inside: str, step: str, record: Node) -> SchemaError:
        names = [f.name for f in record.fields]
        close = difflib.get_close_matches(step, names, n=3) or [p for p in self.paths() if p.rpartition(".")[2] == step]
        prefix = f"{inside}." if inside and close and close[0] in names else ""
        hint = f"Did you mean {' or '.join(repr(prefix + c) for c in close)}? " if close else ""
        what = f"The event schema {self.name} has no path {path!r}."
        mend = f"{hint}{inside or 'The event'} has: {', '.join(names)}."
        return SchemaError(what, where=self.where, mend=mend)
