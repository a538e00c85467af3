"""Values to Arrow columns: the canonical type of each Avro type, and what brings all decoders to it.

Both Avro paths and JSON end here, so a column can't depend on the way that its rows took. What must not
enter: bytes of events, schema ids, a decision about which way an event takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamserve.errors import SchemaError
from streamserve.features.buffers import numbers, valid
from streamserve.records import Reject, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streamserve.pipeline.schemas import EventSchema, Field, Node
    from streamserve.records import Int64s

MAX_DECIMAL_DIGITS = 38  # decimal128
DAY_MS = 86_400_000
MAX_MESSAGE = 300  # of a reject: it travels in a header of the dead letter

LOGICAL: dict[tuple[str, str], pa.DataType] = {
    ("int", "date"): pa.date32(),
    ("int", "time-millis"): pa.time32("ms"),
    ("long", "time-micros"): pa.time64("us"),
    ("long", "timestamp-millis"): pa.timestamp("ms", "UTC"),
    ("long", "timestamp-micros"): pa.timestamp("us", "UTC"),
    ("long", "timestamp-nanos"): pa.timestamp("ns", "UTC"),
    ("long", "local-timestamp-millis"): pa.timestamp("ms"),
    ("long", "local-timestamp-micros"): pa.timestamp("us"),
    ("long", "local-timestamp-nanos"): pa.timestamp("ns"),
}
_BITS = {
    pa.int64(): frozenset(type for (kind, _), type in LOGICAL.items() if kind == "long"),
    pa.int32(): frozenset(type for (kind, _), type in LOGICAL.items() if kind == "int"),
}
_PLAIN: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.utf8(),
    "enum": pa.utf8(),
    "bytes": pa.binary(),
    "fixed": pa.binary(),
}


def arrow_type(node: Node, *, logical: bool = True) -> pa.DataType:
    """The canonical Arrow type; without logical types, what is underneath them (int32, int64, binary).

    Raises ValueError for what no column can hold.
    """

    def one(node: Node, above: tuple[Node, ...]) -> pa.DataType:
        node, _ = node.without_null()
        if node in above:
            raise ValueError(f"record {node.name} holds itself")
        match node.kind:
            case "union" | "null":
                raise ValueError("of the unions, only null and one other type make a column")
            case "array":
                return pa.list_(one(node.inner, (*above, node)))
            case "map":
                return pa.map_(pa.utf8(), one(node.inner, (*above, node)))
            case "record":
                return pa.struct([pa.field(f.name, one(f.node, (*above, node))) for f in node.fields])
        if node.logical == "decimal" and logical:
            if node.precision > MAX_DECIMAL_DIGITS:
                raise ValueError(f"a decimal of {node.precision} digits; at most {MAX_DECIMAL_DIGITS} fit")
            return pa.decimal128(node.precision, node.scale)
        plain = _PLAIN[node.kind]
        return LOGICAL.get((node.kind, node.logical), plain) if logical else plain

    return one(node, ())


def reject(row: int, error: str, message: str) -> Reject:
    return Reject(row, Stage.DECODE, error, message if len(message) <= MAX_MESSAGE else message[:297] + "...")


@dataclass(frozen=True, eq=False)
class Column:
    """One path that is asked for: its fields from the root down, and its canonical type."""

    path: str
    trail: tuple[Field, ...]
    type: pa.DataType

    @property
    def node(self) -> Node:
        return self.trail[-1].node

    def pick(self, record: Any, start: int = 0) -> Any:
        """The value at the path in a decoded event, or in the default of a field on the way."""
        for f in self.trail[start:]:
            if record is None:
                return None
            record = record.get(f.name, f.default)
        return record

    def build(self, values: Sequence[Any]) -> pa.Array:
        """The column. Raises one of `MISFITS` where a value is none of its type."""
        adapt = adapter(self.node)
        return pa.array(values if adapt is None else [adapt(v) for v in values], self.type)


class Asked:
    """The columns that are asked for, and which fields of the topology's schema they need."""

    def __init__(self, schema: EventSchema, paths: Iterable[str]) -> None:
        self.schema = schema
        self.columns = [self._column(path) for path in sorted(set(paths))]
        self._kept: set[int] = set()
        for column in self.columns:
            self._kept |= {id(f) for f in column.trail}
            self._keep_below(column.node)

    def _column(self, path: str) -> Column:
        column = Column(path, tuple(self.schema.trail(path)[0]), self.schema.column_type(path).arrow)
        for at, f in enumerate(column.trail):
            if f.has_default:
                try:
                    column.build([column.pick(f.default, at + 1)])
                except MISFITS as error:
                    what = f"The default of {f.name!r}, for path {path!r}, does not fit: {error}."
                    raise SchemaError(what, where=self.schema.where, mend="Mend the default.") from None
        return column

    def _keep_below(self, node: Node) -> None:
        self._kept |= {id(f) for f in node.fields}
        for one in node.below():
            self._keep_below(one)

    def keep(self, _record: Node, f: Field) -> bool:
        return id(f) in self._kept


@dataclass(frozen=True)
class FastColumn:
    """How one column comes out of a batch that was decoded straight to Arrow.

    steps: the indices down the structs; where the writer lacks the field, those to the record that lacks it.
    casts: the types on the way to the canonical one, and whether a value must fit exactly.
    text: pyruhvro lets invalid UTF-8 through, so strings are checked.
    fill: the default, one value long, where the writer lacks the field.
    """

    steps: tuple[int, ...]
    casts: tuple[tuple[pa.DataType, bool], ...] = ()
    text: bool = False
    fill: pa.Array | None = None

    def bare(self, source: pa.Array | None) -> FastColumn:
        """Without the casts that change nothing: each costs 4 us a batch."""
        type, kept = None if source is None else source.type, []
        for one in self.casts:
            kept += [one] if one[0] != type else []
            type = one[0]
        return replace(self, casts=tuple(kept))

    def take(self, source: pa.Array | None, rows: int) -> pa.Array:
        """The column; `source` is what the steps lead to. Raises one of `MISFITS`."""
        if self.fill is not None:
            zeros = pa.array(np.zeros(rows, np.int64))
            return self.fill.take(zeros if source is None else pc.if_else(source.is_valid(), zeros, None))
        array: Any = source
        if self.text:
            array.validate(full=True)
        for type, safe in self.casts:
            # Numbers that are a time are the same bits: 1 us a batch against 12 of a cast.
            same = array.type in _BITS and type in _BITS[array.type]
            array = array.view(type) if same else array.cast(type, safe=safe)
        return array


MISFITS = (pa.ArrowException, OverflowError, ValueError, TypeError, KeyError, AttributeError)


def adapter(node: Node) -> Callable[[Any], Any] | None:
    """What a decoded value must go through before Arrow takes it exactly; None: it is ready."""
    node, _ = node.without_null()
    match node.kind:
        case "float" | "double":
            return _float  # Arrow refuses integers above 2**53 as floats, which promotion must round
        case "bytes" | "fixed":
            scale = node.scale
            return (lambda v: _decimal(v, scale)) if node.logical == "decimal" else _bytes
        case "record":
            return _record_adapter(node)
        case "array" | "map":
            return _items_adapter(node)
    return None


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _bytes(value: Any) -> bytes | None:
    """Avro JSON writes a default of bytes as text, one code point a byte."""
    return value.encode("latin-1") if isinstance(value, str) else value


def _decimal(value: Any, scale: int) -> Decimal | None:
    raw = _bytes(value)
    if raw is None:
        return None
    unscaled = int.from_bytes(raw, "big", signed=True)
    # Python refuses to spell out 4,300 digits, and Arrow more than the precision: both are misfits.
    return Decimal((int(unscaled < 0), tuple(map(int, str(abs(unscaled)))), -scale))


def _record_adapter(node: Node) -> Callable[[Any], Any]:
    parts = [(f.name, f.default, adapter(f.node)) for f in node.fields]

    def record(value: Any) -> Any:
        if value is None:
            return None
        picked = ((name, value.get(name, default), adapt) for name, default, adapt in parts)
        return {name: one if adapt is None else adapt(one) for name, one, adapt in picked}

    return record


def _items_adapter(node: Node) -> Callable[[Any], Any] | None:
    inner = adapter(node.inner)
    if node.kind == "map":
        return lambda v: None if v is None else [(k, o if inner is None else inner(o)) for k, o in v.items()]
    if inner is None:
        return None
    return lambda v: None if v is None else [inner(o) for o in v]


_KINDS: dict[str, set[type]] = {
    "boolean": {bool},
    "int": {int},
    "long": {int},
    "float": {int, float},
    "double": {int, float},
    "string": {str},
    "enum": {str},
    "record": {dict},
    "array": {list},
}
FLOAT32_END = 3.4028235677973366e38  # from here on a float32 is infinite


def whole(column: Column, events: Sequence[Any]) -> pa.Array | None:
    """The column of JSON objects, if all values are plainly of its type; None: they need a look one by one.

    For 19 columns this takes 8 us an event, and a converter called for each value 22.
    """
    try:
        values = events
        for f in column.trail:
            values = _step(f, values)
        if column.node.without_null()[0].kind == "array":
            return _number_lists(column, values)
        array = column.build(values)
    except MISFITS:
        return None
    kind = column.node.without_null()[0].kind
    if kind in ("float", "double") and not pc.all(pc.is_finite(array), min_count=0).as_py():
        return None
    return array


def _number_lists(column: Column, lists: Sequence[list[Any] | None]) -> pa.Array:
    """Lists of numbers, all finite, as a column: 70 us a list of 784, where a converter for each number takes 400.

    Raises one of `MISFITS` where they need a look one by one.
    """
    inner = column.node.without_null()[0].inner
    flat = list(chain.from_iterable(one for one in lists if one is not None))
    if inner.kind not in ("float", "double") or not set(map(type, flat)) <= {float, int}:
        raise TypeError("not plainly numbers")
    doubles = np.array(flat, np.float64)
    largest = np.abs(doubles).max(initial=0)  # NaN, if there is one
    if not largest < (FLOAT32_END if inner.kind == "float" else math.inf):
        raise TypeError("too large, or not finite")
    starts = np.cumsum([0, *(0 if one is None else len(one) for one in lists)], dtype=np.int32)
    null = pa.array([one is None for one in lists])
    items = pa.array(doubles).cast(column.type.value_type, safe=False)
    return pa.ListArray.from_arrays(pa.array(starts), items, type=column.type, mask=null)


def _step(f: Field, values: Sequence[Any]) -> list[Any]:
    node, nullable = f.node.without_null()
    name, default = f.name, f.default
    if nullable or f.has_default:
        found = [None if value is None else value.get(name, default) for value in values]
    else:
        found = [None if value is None else value[name] for value in values]
    kinds = set(map(type, found)) - {type(None)}
    if not kinds <= _KINDS.get(node.kind, set()) or (not nullable and found.count(None) != values.count(None)):
        raise TypeError(f"not plainly {node.kind}")
    if node.kind == "enum" and not set(found) <= {None, *node.symbols}:
        raise TypeError(f"not plainly {node.kind}")
    return found


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a batch, decoded: one array a column, in the order of the columns."""

    rows: Int64s
    arrays: list[pa.Array]


def build_rows(
    columns: Sequence[Column], rows: Sequence[int], picked: Sequence[Sequence[Any]]
) -> tuple[Part, dict[int, tuple[str, str]]]:
    """Columns of decoded values, picked[c][i] being that of column c in row rows[i].

    Returns what fits, and for each row that does not: the path, and what Arrow says of it.
    """
    misfits: dict[int, tuple[str, str]] = {}
    arrays = []
    for column, values in zip(columns, picked, strict=True):
        try:
            arrays.append(column.build(values))
        except MISFITS:
            _find_misfits(column, rows, values, misfits)
    if not misfits:
        return Part(np.array(rows, np.int64), arrays), misfits
    good = [i for i, row in enumerate(rows) if row not in misfits]
    kept, none = build_rows(columns, [rows[i] for i in good], [[values[i] for i in good] for values in picked])
    return kept, misfits | none


def _find_misfits(
    column: Column, rows: Sequence[int], values: Sequence[Any], misfits: dict[int, tuple[str, str]]
) -> None:
    for row, value in zip(rows, values, strict=True):
        try:
            column.build([value])
        except MISFITS as error:
            misfits.setdefault(row, (column.path, str(error)))


def join_parts(columns: Sequence[Column], parts: Sequence[Part]) -> Part:
    """All parts as one, its rows ascending."""
    filled = [part for part in parts if len(part.rows)]
    if not filled:
        return Part(np.zeros(0, np.int64), [pa.array([], column.type) for column in columns])
    if len(filled) == 1:
        return filled[0]
    rows = np.concatenate([part.rows for part in filled])
    order = np.argsort(rows, kind="stable")
    arrays = [pa.concat_arrays([part.arrays[c] for part in filled]) for c in range(len(columns))]
    if (order[1:] > order[:-1]).all():
        return Part(rows, arrays)
    return Part(rows[order], [array.take(pa.array(order)) for array in arrays])


def is_time(type: pa.DataType) -> bool:
    """Whether a column of this type can say when an event happened."""
    return bool(pa.types.is_timestamp(type) or pa.types.is_date32(type) or pa.types.is_int64(type))


def event_times(column: pa.Array, otherwise: Int64s) -> Int64s:
    """Milliseconds since 1970 of each row (rounded down), and `otherwise` where the column is null."""
    type = column.type
    values = numbers(column, np.int32 if pa.types.is_date32(type) else np.int64).astype(np.int64)
    if pa.types.is_date32(type):
        values = values * DAY_MS
    elif pa.types.is_timestamp(type) and type.unit != "ms":
        values = values // (1_000 if type.unit == "us" else 1_000_000)
    there = valid(column)
    return values if there is None else np.where(there, values, otherwise)
