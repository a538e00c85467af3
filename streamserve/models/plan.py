"""How one version turns the columns of a batch into its model's inputs: a manifest made ready to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamserve.errors import SignatureError
from streamserve.features.catalogue import Catalogue, view_fingerprint
from streamserve.features.columns import BatchColumns, Column, Fault
from streamserve.features.packed import Fields
from streamserve.models.manifest import Input, Manifest
from streamserve.models.signature import holds
from streamserve.topology import View

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class _Run:
    """Features that are put into the input at one go: one, fields [start, stop) of a view, or fields of numbers."""

    names: tuple[str, ...]
    view: View | None = None
    start: int = 0
    stop: int = 0
    fields: tuple[tuple[str, float], ...] = ()  # as of `BatchColumns.field_of`
    told: Fields | None = None  # the same as C is told of them


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """Inputs, vocabularies and views of one version."""

    inputs: tuple[Input, ...]
    vocabularies: Mapping[str, tuple[str, ...]]
    views: tuple[View, ...]
    _pins: Mapping[str, View] = field(init=False, repr=False, compare=False)
    _runs: dict[str, tuple[_Run, ...]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pins", {view.name: view for view in self.views})

    @classmethod
    def of(cls, manifest: Manifest, catalogue: Catalogue) -> FeaturePlan:
        """The plan of a manifest, each of its features compared with this worker's catalogue.

        Raises:
            SignatureError: the topology file means something else by a feature than the version does.
        """
        for name, pin in manifest.features.items():
            atom = catalogue.atoms.get(name)
            if atom is None or atom.fingerprint != pin.fingerprint:
                found = "no such feature" if atom is None else f"{dict(atom.definition)}"
                raise SignatureError(
                    f"feature {name!r} of {manifest.model} {manifest.version}: "
                    f"found {found} in the topology file, expected {dict(pin.definition)}",
                    where=catalogue.topology.name,
                    mend="run the topology file that the version was added with, or add the version anew",
                )
        views = []
        for pinned in manifest.views:
            here = catalogue.views.get(pinned.name)
            if here is None or view_fingerprint(here) != pinned.fingerprint:
                raise SignatureError(
                    f"view {pinned.name!r} of {manifest.model} {manifest.version}: found "
                    + ("no such view" if here is None else f"key {here.key}, fields {here.fields}")
                    + f" in the topology file, expected key {pinned.key}, fields {pinned.fields}",
                    where=catalogue.topology.name,
                    mend="keep the view as it was beside the new one (under another name) while versions use it",
                )
            views.append(pinned.view())
        return cls(manifest.inputs, manifest.vocabularies, tuple(views))

    def fill(self, columns: BatchColumns) -> tuple[dict[str, Array], dict[int, Fault]]:
        """The model's inputs over all events of the batch, and the rows for which this version has none."""
        faults: dict[int, Fault] = {}
        with np.errstate(over="ignore", invalid="ignore"):
            return {given.name: self._fill(given, columns, faults) for given in self.inputs}, faults

    def _fill(self, given: Input, columns: BatchColumns, faults: dict[int, Fault]) -> Array:
        if given.dtype == "string":
            found = [(name, self._column(name, given, columns)) for name in given.features]
            _note_faults([column for _, column in found], faults)
            return _shape(_texts(found, columns), given)
        blocks = [block for run in self._runs_of(given, columns) for block in self._blocks(run, given, columns)]
        _note_faults([column for _, column in blocks], faults)
        widths = [1 if column.values.ndim == 1 else column.values.shape[1] for _, column in blocks]
        out = np.empty((len(columns.events), sum(widths)), np.dtype(given.dtype))
        start = 0
        for (name, column), width in zip(blocks, widths, strict=True):
            _put(out[:, start : start + width], name, column, given, columns, faults)
            start += width
        return _shape(out, given)

    def _runs_of(self, given: Input, columns: BatchColumns) -> tuple[_Run, ...]:
        """The features of an input, those taken together that can be: see `_Run`."""
        runs = self._runs.get(given.name)
        if runs is None:
            found: list[_Run] = []
            for name in given.features:
                run = self._run_of(name, given, columns)
                together = _together(found[-1], run) if found else None
                if together is None:
                    found.append(run)
                else:
                    found[-1] = together
            runs = self._runs[given.name] = tuple(map(_told, found))
        return runs

    def _run_of(self, name: str, given: Input, columns: BatchColumns) -> _Run:
        if given.dtype.startswith("float"):
            view, place = columns.stored_at(name, self._pins)
            if view is not None:
                return _Run((name,), view, place, place + 1)
        field_ = columns.field_of(name) if given.dtype == "float32" and name not in self.vocabularies else None
        return _Run((name,), fields=() if field_ is None else (field_,))

    def _blocks(self, run: _Run, given: Input, columns: BatchColumns) -> list[tuple[str, Column]]:
        if run.view is not None:
            return [(run.names[0], Column(columns.stored.view(run.view).values[:, run.start : run.stop]))]
        block = None if run.told is None else columns.numbers(run.told)
        if block is not None:
            return [(run.names[0], block)]
        return [(name, self._column(name, given, columns)) for name in run.names]

    def _column(self, name: str, given: Input, columns: BatchColumns) -> Column:
        if name in self.vocabularies:
            coded = given.dtype != "string"
            return columns.codes(name, self.vocabularies[name]) if coded else columns.text(name)
        if given.dtype == "string" and columns.is_category(name):
            return columns.text(name)
        return columns.column(name, self._pins)


def _together(last: _Run, run: _Run) -> _Run | None:
    """Two runs as one, where the second goes on where the first ends."""
    names = last.names + run.names
    if run.view is not None and last.view is run.view and last.stop == run.start:
        return _Run(names, run.view, last.start, run.stop)
    if run.fields and last.fields:
        return _Run(names, fields=last.fields + run.fields)
    return None


def _told(run: _Run) -> _Run:
    return replace(run, told=Fields(run.fields)) if run.fields else run


def _note_faults(columns: Sequence[Column], faults: dict[int, Fault]) -> None:
    for column in columns:
        for row, fault in column.faults.items():
            faults.setdefault(row, fault)


def _texts(found: Sequence[tuple[str, Column]], columns: BatchColumns) -> Array:
    """Text columns side by side, objects [rows, n]; a null is the feature's default."""
    out = np.empty((len(columns.events), len(found)), object)
    for place, (name, column) in enumerate(found):
        values = column.values.astype(object) if column.values.dtype != object else column.values
        out[:, place] = values
        if column.valid is not None:
            out[~column.valid, place] = columns.default(name)
    return out


def _put(
    target: Array, name: str, column: Column, given: Input, columns: BatchColumns, faults: dict[int, Fault]
) -> None:
    """Write a column into its place in the input, in the input's type, without a silent change of value.

    numpy's warnings of casts are off where this is called.
    """
    values = column.values if column.values.ndim == 2 else column.values[:, None]  # noqa: PLR2004
    missing = None if column.valid is None else ~column.valid
    if given.dtype.startswith("float"):
        target[...] = values
        if missing is not None:
            default = columns.default(name)
            target[missing] = np.nan if default is None else default
        return
    default = columns.default(name)
    if missing is not None:
        if default is None:
            why = f"{name} is null, and input {given.name} takes {given.dtype}"
            for row in np.flatnonzero(missing).tolist():
                faults.setdefault(row, ("NullInput", why))
            default = 0
        values = np.where(missing[:, None], np.array(0, values.dtype), values)
    cast = values.astype(target.dtype)
    lost = ~_survives(values, cast)
    if missing is not None and default:
        cast[missing], lost[missing] = (default, False) if holds(target.dtype, default) else (0, True)
    for row in np.flatnonzero(lost.any(axis=1)).tolist():
        why = f"{name} is {values[row].tolist()}, which {given.dtype} input {given.name} can't hold"
        faults.setdefault(row, ("NotExact", why))
    target[...] = cast


def _survives(values: NDArray[Any], cast: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each value is still the same in another, whole type.

    A round trip does not show it all: -1 comes back from uint64, and 2.0**63 on some machines from int64.
    """
    same: NDArray[np.bool_] = cast.astype(values.dtype) == values
    if cast.dtype.kind == "u" and values.dtype.kind in "if":
        same &= values >= 0
    if values.dtype.kind == "f" and cast.dtype.kind in "iu":
        same &= np.isfinite(values) & (values < 2.0 ** (8 * cast.dtype.itemsize - (cast.dtype.kind == "i")))
    return same


def _shape(out: Array, given: Input) -> Array:
    """[rows, columns] as the model's own shape: flat for rank 1, folded for rank 3 and more."""
    if len(given.shape) <= 1:
        return out[:, 0]
    if len(given.shape) == 2:  # noqa: PLR2004
        return out
    return out.reshape(len(out), *(size if size is not None else -1 for size in given.shape[1:]))
