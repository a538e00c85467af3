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

from streamserve.features.buffers import Mask, Texts, as_text, numbers, valid
from streamserve.features.catalogue import Atom, Catalogue
from streamserve.features.rows import StoredRows
from streamserve.features.timeparts import part_of, wall_clock
from streamserve.records import EventBatch
from streamserve.topology import DerivedFeature, PartsFeature, VectorFeature, View

Fault = tuple[str, str]  # a stable name of the error, and a message
Faults = Mapping[int, Fault]  # by row of the EventBatch
MISSING_CODE, UNSEEN_CODE, FIRST_CODE = 0, 1, 2
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
        self._clocks: dict[tuple[str, str], NDArray[np.int64]] = {}  # by path and zone
        self._codes: dict[tuple[str, tuple[str, ...]], Column] = {}

    def column(self, name: str, pins: Mapping[str, View] = NO_PINS) -> Column:
        """A feature that needs no vocabulary; a category comes as the event has it.

        pins: views as the asking version pins them, by name; two versions share what they pin alike.
        """
        key: tuple[str | int, ...] = (name, *(id(pins.get(view)) for view in self._catalogue.views_of(name)))
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
            text = self._texts.of(feature.path)
            known = _places(vocabulary)
            codes = [known.get(value, UNSEEN_CODE) for value in text.values]
            table = np.array([*codes, MISSING_CODE], np.int32)  # code -1, a null, reads the last
            self._codes[key] = Column(table[text.codes])
        return self._codes[key]

    def default(self, name: str) -> float | str | None:
        """What a null of this feature becomes; None: nothing was said."""
        atom = self._catalogue.atoms.get(name)
        default = getattr(atom.feature, "default", None) if atom is not None else None
        return "" if default is None and atom is not None and atom.feature.kind == "category" else default

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
        array = self.events.columns.column(feature.path)
        key = (feature.path, feature.tz)
        if key not in self._clocks:
            self._clocks[key] = wall_clock(array, feature.tz)
        return Column(part_of(self._clocks[key], array, part))

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
    if not _is_flat(array.type):
        return Column(array.to_numpy(zero_copy_only=False), valid(array))
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    if pa.types.is_temporal(array.type):
        array = array.view(pa.int64() if array.type.bit_width == 64 else pa.int32())  # noqa: PLR2004
    there = valid(array)
    if pa.types.is_boolean(array.type):
        values = array.fill_null(False).to_numpy(zero_copy_only=False)
    else:
        values = numbers(array, array.type.to_pandas_dtype())
        if there is not None:
            values = np.where(there, values, values.dtype.type(0))
    return Column(values, there)


def _is_flat(kind: pa.DataType) -> bool:
    """Whether its values are numbers, or are turned into numbers."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_temporal(kind)
    )


@lru_cache(maxsize=1024)
def _places(vocabulary: tuple[str, ...]) -> Mapping[str, int]:
    return {value: place + FIRST_CODE for place, value in enumerate(vocabulary)}
