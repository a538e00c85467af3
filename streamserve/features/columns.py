"""The columns of a catalogue over one batch, each computed once however many versions ask for it.

A column is a numpy array with an optional mask of what is there; integers stay integers, so that a 60-bit id that
goes into an int64 input keeps its bits. What can't be computed for one event is a reject of that event alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamserve.features import packed
from streamserve.features.buffers import Coded, Mask, Texts, as_text, bits, numbers, valid
from streamserve.features.catalogue import Atom, Catalogue
from streamserve.features.rows import FeatureStore, StoredRows
from streamserve.features.timeparts import PACKED, Clock, packed_parts, wall_clock
from streamserve.records import EventBatch
from streamserve.topology import DerivedFeature, PartsFeature, VectorFeature, View

Fault = tuple[str, str]  # a stable name of the error, and a message
Faults = Mapping[int, Fault]  # by row of the EventBatch
MISSING_CODE, UNSEEN_CODE, FIRST_CODE = 0, 1, 2
BOOLEAN = pa.bool_().id
# What holds the values of a column of fixed width; times are whole numbers in their own unit
DTYPES = {
    kind.id: np.dtype(as_.to_pandas_dtype())
    for as_, kinds in {
        pa.int8(): [pa.int8()],
        pa.int16(): [pa.int16()],
        pa.int32(): [pa.int32(), pa.date32(), pa.time32("ms")],
        pa.int64(): [pa.int64(), pa.date64(), pa.time64("us"), pa.timestamp("ms"), pa.duration("ms")],
        pa.uint8(): [pa.uint8()],
        pa.uint16(): [pa.uint16()],
        pa.uint32(): [pa.uint32()],
        pa.uint64(): [pa.uint64()],
        pa.float16(): [pa.float16()],
        pa.float32(): [pa.float32()],
        pa.float64(): [pa.float64()],
    }.items()
    for kind in kinds
}
NO_FAULTS: Faults = MappingProxyType({})
NO_PINS: Mapping[str, View] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Column:
    """values: [rows] or, of a vector, [rows, length]. valid: what is not null; None: all of it.

    faults: the rows for which there is no value, and why; only versions that read this column reject them.
    """

    values: NDArray[np.generic]
    valid: Mask | None = None
    faults: Faults = field(default_factory=lambda: NO_FAULTS)


class BatchColumns:
    """The features of one batch, computed on demand and kept for its other versions."""

    def __init__(self, catalogue: Catalogue, events: EventBatch, texts: Texts, stored: StoredRows) -> None:
        self.events = events
        self._texts = texts
        self.stored = stored
        self._catalogue = catalogue
        self._done: dict[tuple[str | int, ...], Column] = {}
        self._clocks: dict[tuple[str, str], Clock] = {}  # by path and zone
        self._codes: dict[tuple[str, tuple[str, ...]], Column] = {}

    def with_more(self, views: Sequence[View], store: FeatureStore) -> BatchColumns:
        """The same with the rows of more views, for which the store is asked. What is computed here is not again."""
        more = StoredRows(views, self.events, self._texts, store)
        found = BatchColumns(self._catalogue, self.events, self._texts, self.stored.beside(more))
        found._done, found._clocks, found._codes = dict(self._done), self._clocks, self._codes
        return found

    def column(self, name: str, pins: Mapping[str, View] = NO_PINS) -> Column:
        """A feature that needs no vocabulary; a category comes as the event has it.

        pins: views as the asking version pins them, by name; two versions share what they pin alike.
        """
        key: tuple[str | int, ...] = (name, *[id(pins.get(view)) for view in self._catalogue.views_of(name)])
        done = self._done.get(key)
        if done is None:
            done = self._done[key] = self._compute(self._catalogue.atoms.get(name), name, pins)
        return done

    def stored_at(self, name: str, pins: Mapping[str, View] = NO_PINS) -> tuple[View | None, int]:
        """The view, as pinned, that a stored feature is a field of, and its place there; no view for others."""
        atom = self._catalogue.atoms.get(name)
        if atom is None or atom.feature.kind != "stored":
            return None, 0
        view = pins.get(atom.feature.view.name, atom.feature.view)
        return view, view.fields.index(atom.part)

    def field_of(self, name: str) -> tuple[str, float] | None:
        """The event path that a feature is read from as it stands, and what a null of it becomes; None: of others."""
        atom = self._catalogue.atoms.get(name)
        if atom is None:
            return name, np.nan
        if atom.feature.kind != "field":
            return None
        return atom.feature.path, np.nan if atom.feature.default is None else atom.feature.default

    def numbers(self, fields: packed.Fields) -> Column | None:
        """Fields of numbers side by side as float32, null as `field_of` says; None: they must be had one by one."""
        lib = packed.library()
        found = None if lib is None else self._texts.packed(lib).numbers(fields)
        return None if found is None else Column(found)

    def is_category(self, name: str) -> bool:
        atom = self._catalogue.atoms.get(name)
        return atom is not None and atom.feature.kind == "category"

    def text(self, name: str) -> Column:
        """A category as the text that a vocabulary would hold, for an input of strings."""
        feature = self._catalogue.pick(name).feature
        assert feature.kind == "category"  # noqa: S101
        return to_column(as_text(self.events.columns.column(feature.path)))

    def codes(self, name: str, vocabulary: tuple[str, ...]) -> Column:
        """A category under a version's vocabulary, int32: 0 missing, 1 unseen, 2.. by place."""
        key = (name, vocabulary)
        if key not in self._codes:
            feature = self._catalogue.pick(name).feature
            assert feature.kind == "category"  # noqa: S101
            self._codes[key] = Column(self._code(feature.path, vocabulary))
        return self._codes[key]

    def coded(self, path: str, words: tuple[str, ...]) -> NDArray[np.int32]:
        """A text of the events by its place among some words: 0 missing, 1 none of them, 2.. by place."""
        return self._code(path, words)

    def default(self, name: str) -> float | str | None:
        """What a null of this feature becomes; None: nothing was said."""
        atom = self._catalogue.atoms.get(name)
        default = getattr(atom.feature, "default", None) if atom is not None else None
        return "" if default is None and atom is not None and atom.feature.kind == "category" else default

    def _code(self, path: str, vocabulary: tuple[str, ...]) -> NDArray[np.int32]:
        lib, found = packed.library(), None
        if lib is not None:
            found = self._texts.packed(lib).codes(path, packed.words(lib, vocabulary))
        return _codes(self._texts.coded(path), vocabulary) if found is None else found

    def _compute(self, atom: Atom | None, name: str, pins: Mapping[str, View]) -> Column:
        if atom is None:
            return to_column(self.events.columns.column(name))
        feature = atom.feature
        if feature.kind == "stored":
            view, place = self.stored_at(name, pins)
            assert view is not None  # noqa: S101
            return Column(self.stored.view(view).values[:, place])
        if feature.kind == "parts":
            return self._time_part(feature, atom.part)
        if feature.kind == "vector":
            return self._vector(feature)
        if feature.kind == "derived":
            return self._derived(feature, pins)
        return to_column(self.events.columns.column(feature.path))

    def _time_part(self, feature: PartsFeature, part: str) -> Column:
        lib, together = packed.library(), [one for one in feature.parts if one in PACKED]
        if lib is not None and part in together:
            found = packed_parts(self._texts.packed(lib), feature.path, feature.tz, together)
            if found is not None:
                for place, one in enumerate(together):
                    self._done[feature.prefix + one,] = Column(found[:, place])
                return self._done[feature.prefix + part,]
        key = (feature.path, feature.tz)
        if key not in self._clocks:
            self._clocks[key] = wall_clock(self.events.columns.column(feature.path), feature.tz)
        return Column(self._clocks[key].part(part))

    def _vector(self, feature: VectorFeature) -> Column:
        """float32 [rows, length]; a null element is NaN, a list of another length rejects its event."""
        column = self.events.columns.column(feature.path)
        lengths = pc.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False)
        wrong = lengths != feature.length
        faults = {}
        for row in np.flatnonzero(wrong).tolist():
            found = "null" if lengths[row] < 0 else f"{lengths[row]} values"
            faults[row] = "WrongLength", f"{feature.path}: found {found}, expected {feature.length}"
        good = column.filter(pa.array(~wrong)) if wrong.any() else column
        flat = good.flatten().cast(pa.float32(), safe=False)
        values = np.full((len(column), feature.length), np.nan, np.float32)
        values[~wrong] = flat.to_numpy(zero_copy_only=False).reshape(-1, feature.length)
        return Column(values, faults=faults)

    def _derived(self, feature: DerivedFeature, pins: Mapping[str, View]) -> Column:
        sources = [self.column(name, pins) for name in feature.of]
        arguments = [_argument(source) for source in sources]
        faults = {row: fault for source in reversed(sources) for row, fault in source.faults.items()}
        rows = np.arange(len(self.events))
        out = np.full(len(rows), np.nan)
        for part, values in run_by_halves(lambda at: _call(feature, arguments, at), rows):
            if isinstance(values, Exception):
                why = f"{feature.name}: {type(values).__name__}: {values}"
                faults.setdefault(int(part[0]), ("DerivedFailed", why))
            else:
                out[part] = values
        return Column(out, faults=faults)


def run_by_halves(
    run: Callable[[NDArray[np.intp]], NDArray[np.generic]], rows: NDArray[np.intp]
) -> Sequence[tuple[NDArray[np.intp], NDArray[np.generic] | Exception]]:
    """Run over all rows; where it fails, over each half, down to the single rows that are to blame."""
    if not len(rows):
        return []
    try:
        return [(rows, run(rows))]
    except Exception as error:  # noqa: BLE001  (whatever user code or a model raises is the event's reject)
        if len(rows) == 1:
            return [(rows, error)]
        middle = len(rows) // 2
        return [*run_by_halves(run, rows[:middle]), *run_by_halves(run, rows[middle:])]


def _call(
    feature: DerivedFeature, arguments: Sequence[NDArray[np.generic]], rows: NDArray[np.intp]
) -> NDArray[np.generic]:
    with np.errstate(all="ignore"):
        values = np.asarray(feature.function(*(a[rows] for a in arguments)))
    if values.shape != rows.shape:
        raise ValueError(f"returned shape {values.shape} for {len(rows)} rows")
    return values.astype(np.float64)


def _argument(column: Column) -> NDArray[np.generic]:
    """What a derived function is given: float64 with NaN for null, or objects with None."""
    values = column.values
    if values.dtype == object:
        return values
    numbers = values.astype(np.float64)
    if column.valid is not None:
        numbers[~column.valid] = np.nan
    return numbers


def to_column(array: pa.Array) -> Column:
    """An Arrow column as numpy: numbers and booleans in their own type, strings and what is nested as objects."""
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    there, kind = valid(array), array.type.id
    if kind == BOOLEAN:
        flags = bits(array.buffers()[1], array)
        return Column(flags if there is None else flags & there, there)
    if kind not in DTYPES:
        return Column(array.to_numpy(zero_copy_only=False), there)
    values = numbers(array, DTYPES[kind])
    return Column(values if there is None else np.where(there, values, values.dtype.type(0)), there)


def _codes(text: Coded, vocabulary: tuple[str, ...]) -> NDArray[np.int32]:
    known = _places(vocabulary)
    codes = [known.get(value, UNSEEN_CODE) for value in text.values]
    table = np.array([*codes, MISSING_CODE], np.int32)  # code -1, a null, reads the last
    return table[text.codes]


@lru_cache(maxsize=1024)
def _places(vocabulary: tuple[str, ...]) -> Mapping[str, int]:
    return {value: place + FIRST_CODE for place, value in enumerate(vocabulary)}
