"""JSON events, described by the same Avro schema as Avro ones, to the same columns.

The conventions are plain JSON's, not Avro's own JSON encoding: a union is null or the bare value; a time is a
number of its unit or an ISO 8601 text; an int may be written 3.0. What must not enter: Kafka, schema ids.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Never

import numpy as np
import pyarrow as pa
from pydantic_core import from_json

from streamserve.errors import SchemaError
from streamserve.pipeline.columns import FLOAT32_END, Column, Part, reject, whole
from streamserve.pipeline.schemas import Node, in_words, shown
from streamserve.records import Reject

Convert = Callable[[Any], Any]

_EXACT_FLOAT = 1 << 53  # above it a float that looks integral may stand for its neighbour
_RANGES = {"int": (-(1 << 31), (1 << 31) - 1), "long": (-(1 << 63), (1 << 63) - 1)}
_PER_SECOND = {"millis": 1_000, "micros": 1_000_000, "nanos": 1_000_000_000}
_CLOCK = r"(\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?"
_TIME = re.compile(_CLOCK, re.ASCII)
_MOMENT = re.compile(rf"(\d{{4}}-\d\d-\d\d)[Tt ]{_CLOCK}(Z|z|[+-]\d\d(?::?\d\d)?)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class DoesNotFitError(ValueError):
    """A value is none of its type. `path`: the fields and indices down to it."""

    def __init__(self, found: Any, expected: str) -> None:
        super().__init__(f"found {_named(found)}, expected {expected}")
        self.path = ""


class NotJsonError(ValueError):
    pass


def _named(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean {value}".lower()
        case dict() | list():
            return f"{'an object' if isinstance(value, dict) else 'an array'} of {len(value)}"
    return f"{'string' if isinstance(value, str) else 'number'} {_short(value)}"


def _short(value: Any) -> str:
    # repr() of an int of more than 4,300 digits raises, and json.loads already refused those.
    return shown(value).encode("ascii", "backslashreplace").decode()


def parse(value: bytes) -> dict[str, Any]:
    """The object that the bytes are. NotJsonError for anything else.

    The parser of pydantic takes two thirds of the time of Python's, which is the judge of all that the other refuses.
    """
    try:
        quick = from_json(value, allow_inf_nan=False)
        if type(quick) is dict:
            return quick
    except ValueError:
        pass
    return _judge(value)


def _judge(value: bytes) -> dict[str, Any]:
    try:
        found = json.loads(value.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise NotJsonError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise NotJsonError("nested too deep") from None
    except ValueError as error:
        raise NotJsonError(str(error)) from None
    if not isinstance(found, dict):
        raise NotJsonError(f"an event is an object, and this is {_named(found)}")
    return found


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


# ---- converters: a JSON value to what Avro's decoder would have given


def converter(node: Node) -> Convert:
    """Values of this type. Raises TypeError, naming the type, for what JSON has no plain form of."""
    inner, nullable = node.without_null()
    convert = _plain_converter(inner)
    return (lambda v: None if v is None else convert(v)) if nullable else convert


def _plain_converter(node: Node) -> Convert:  # noqa: PLR0911 (a return a kind)
    match node.kind:
        case "boolean":
            return _boolean
        case "int" | "long" if node.logical:
            return _time_converter(node)
        case "int" | "long":
            return _integer_converter(node)
        case "float" | "double":
            return _float_converter(node)
        case "string":
            return _text
        case "enum":
            return _enum_converter(node)
        case "array":
            return _array_converter(node)
        case "map":
            return _map_converter(node)
        case "record":
            return _record_converter(node)
    raise TypeError(in_words(node))


def _boolean(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise DoesNotFitError(value, "boolean")


def _integer_converter(node: Node) -> Convert:
    low, high = _RANGES[node.kind]
    words = in_words(node)

    def convert(value: Any) -> int:
        if type(value) is float and value.is_integer() and abs(value) <= _EXACT_FLOAT:
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise DoesNotFitError(value, words)
        return value

    return convert


def _float_converter(node: Node) -> Convert:
    limit = math.inf if node.kind == "double" else FLOAT32_END

    def convert(value: Any) -> float:
        try:
            number = float(value) if type(value) in (int, float) else math.nan
        except OverflowError:
            number = math.nan
        if not math.isfinite(number) or abs(number) >= limit:  # 1e999 is parsed as infinity
            raise DoesNotFitError(value, node.kind)
        return number

    return convert


def _text(value: Any) -> str:
    if isinstance(value, str):
        try:
            if value.isascii() or value.encode():
                return value
        except UnicodeEncodeError:
            raise DoesNotFitError(value, "text without lone surrogates") from None
    raise DoesNotFitError(value, "string")


def _enum_converter(node: Node) -> Convert:
    symbols, words = frozenset(node.symbols), in_words(node)

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in symbols:
            raise DoesNotFitError(value, words)
        return value

    return convert


def _array_converter(node: Node) -> Convert:
    one, words = converter(node.inner), in_words(node)

    def convert(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise DoesNotFitError(value, words)
        return [_inside(f"[{i}]", one, item) for i, item in enumerate(value)]

    return convert


def _map_converter(node: Node) -> Convert:
    one, words = converter(node.inner), in_words(node)

    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise DoesNotFitError(value, words)
        return {_inside("{key}", _text, k): _inside(f"[{_short(k)}]", one, v) for k, v in value.items()}

    return convert


def _record_converter(node: Node) -> Convert:
    parts = [(f, f.has_default or f.node.without_null()[1], converter(f.node)) for f in node.fields]
    words = in_words(node)

    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise DoesNotFitError(value, words)
        out = {}
        for f, optional, one in parts:
            if f.name in value:
                out[f.name] = _inside(f".{f.name}", one, value[f.name])
            elif optional:
                out[f.name] = f.default
            else:
                raise _absent(f".{f.name}", in_words(f.node))
        return out

    return convert


def _absent(step: str, words: str) -> DoesNotFitError:
    error = DoesNotFitError(None, words)
    error.args, error.path = (f"absent, and {words} has no default",), step
    return error


def _inside(step: str, convert: Convert, value: Any) -> Any:
    try:
        return convert(value)
    except DoesNotFitError as error:
        error.path = step + error.path
        raise


def _time_converter(node: Node) -> Convert:
    number = _integer_converter(node)
    low, high = _RANGES[node.kind]
    words = f"{node.logical}, a number or ISO 8601"
    unit = _PER_SECOND.get(node.logical.rpartition("-")[2], 0)
    if node.logical == "date":
        read = _days
    elif node.logical.startswith("time-"):
        read = lambda text: _since_midnight(text, unit)  # noqa: E731 (three readers of one shape)
    else:
        zoned = not node.logical.startswith("local")
        read = lambda text: _moment(text, unit, zoned=zoned)  # noqa: E731

    def convert(value: Any) -> int:
        if not isinstance(value, str):
            return int(number(value))
        try:
            found = read(value)
        except (ValueError, OverflowError) as error:
            raise DoesNotFitError(value, f"{words} ({error})") from None
        if not low <= found <= high:
            raise DoesNotFitError(value, words)
        return found

    return convert


def _days(text: str) -> int:
    return date.fromisoformat(text).toordinal() - _EPOCH.toordinal()


def _fraction(digits: str | None, unit: int) -> int:
    """Fractions of a second in the unit; what is finer is cut off, as in Java's conversions."""
    return int((digits or "0").ljust(9, "0")) * unit // 1_000_000_000


def _since_midnight(text: str, unit: int) -> int:
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError("no time of day")
    hour, minute, second, digits = found.groups()
    if int(hour) > 23 or int(minute) > 59 or int(second or 0) > 59:  # noqa: PLR2004 (a clock)
        raise ValueError("no time of day")
    return ((int(hour) * 60 + int(minute)) * 60 + int(second or 0)) * unit + _fraction(digits, unit)


def _moment(text: str, unit: int, *, zoned: bool) -> int:
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise ValueError("no moment")
    day, hour, minute, second, digits, zone = found.groups()
    if zoned and zone is None:
        raise ValueError("no zone")
    if not zoned and zone is not None:
        raise ValueError("a zone on a local time")
    whole = datetime.fromisoformat(f"{day}T{hour}:{minute}:{second or '00'}{(zone or 'Z').upper()}")
    seconds = (whole - _EPOCH) // timedelta(seconds=1)
    return seconds * unit + _fraction(digits, unit)


# ---- a batch


class JsonReader:
    """JSON values to columns. SchemaError at construction for a column that JSON has no plain form of."""

    def __init__(self, columns: Sequence[Column], where: str = "") -> None:
        self._columns = columns
        self._converts: list[Convert] = []
        for column in columns:
            try:
                self._converts.append(converter(column.node))
            except TypeError as error:
                what = f"Path {column.path!r} can't be read from JSON: {error} has no plain form there."
                mend = "Leave it unread, or send the events as Avro."
                raise SchemaError(what, where=where, mend=mend) from None

    def read_column(self, values: pa.BinaryArray) -> tuple[list[Part], list[Reject]]:
        return self.read(values.to_pylist())

    def read(self, values: Sequence[bytes | None]) -> tuple[list[Part], list[Reject]]:
        rows, events, rejects = list[int](), list[dict[str, Any]](), list[Reject]()
        for row, value in enumerate(values):
            if not value:
                rejects.append(reject(row, "Tombstone", "the record has no value"))
                continue
            try:
                events.append(parse(value))
                rows.append(row)
            except NotJsonError as error:
                rejects.append(reject(row, "NotJson", str(error)))
        arrays = [whole(column, events) for column in self._columns]
        if any(array is None for array in arrays):
            return self._look_closer(rows, events, arrays, rejects)
        return [Part(np.array(rows, np.int64), arrays)], rejects

    def _look_closer(
        self,
        rows: list[int],
        events: list[dict[str, Any]],
        arrays: list[pa.Array | None],
        rejects: list[Reject],
    ) -> tuple[list[Part], list[Reject]]:
        """Converts value by value the columns that did not come out whole."""
        misfits: dict[int, str] = {}
        built: list[list[Any]] = []
        for column, convert, array in zip(self._columns, self._converts, arrays, strict=True):
            built.append([None] * len(rows))
            for i, event in enumerate(events if array is None else ()):
                try:
                    built[-1][i] = pick(column, convert, event)
                except DoesNotFitError as error:
                    misfits.setdefault(i, f"{error.path.lstrip('.')}: {error}")
        rejects += [reject(rows[i], "DoesNotFit", message) for i, message in misfits.items()]
        good = [i for i in range(len(rows)) if i not in misfits]
        found = [
            column.build([values[i] for i in good]) if array is None else array.take(pa.array(good, pa.int64()))
            for column, values, array in zip(self._columns, built, arrays, strict=True)
        ]
        return [Part(np.array([rows[i] for i in good], np.int64), found)], rejects


def pick(column: Column, convert: Convert, event: Any) -> Any:
    """The converted value at the path of one event."""
    path = ""
    for at, f in enumerate(column.trail):
        if not isinstance(event, dict):
            error = DoesNotFitError(event, in_words(column.trail[at - 1].node))
            error.path = path
            raise error
        path += f".{f.name}"
        if f.name not in event:
            if f.has_default:
                return column.pick(f.default, at + 1)
            if f.node.without_null()[1]:
                return None
            raise _absent(path, in_words(f.node))
        event = event[f.name]
        if event is None and f.node.without_null()[1]:
            return None
    return _inside(path, convert, event)
