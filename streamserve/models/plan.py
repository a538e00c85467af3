"""How one version turns the columns of a batch into its model's inputs: a manifest made ready to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streamserve.errors import SignatureError
from streamserve.features.catalogue import Catalogue
from streamserve.features.columns import BatchColumns, Column
from streamserve.models.manifest import Input, Manifest
from streamserve.topology import View

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """Inputs, vocabularies and views of one version."""

    inputs: tuple[Input, ...]
    vocabularies: Mapping[str, tuple[str, ...]]
    views: tuple[View, ...]
    _view_of: Mapping[str, View] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_feature = {f"{view.name}.{name}": view for view in self.views for name in view.fields}
        object.__setattr__(self, "_view_of", by_feature)

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
            if here is None or here.key != pinned.key or here.fields != pinned.fields:
                raise SignatureError(
                    f"view {pinned.name!r} of {manifest.model} {manifest.version} has key {pinned.key} and "
                    f"{len(pinned.fields)} fields; the topology file has another",
                    where=catalogue.topology.name,
                    mend="keep the view as it was beside the new one (under another name) while versions use it",
                )
            views.append(pinned.view())
        return cls(manifest.inputs, manifest.vocabularies, tuple(views))

    def fill(self, columns: BatchColumns) -> dict[str, Array]:
        """The model's inputs over all events of the batch; rows that don't fit are in `columns.rejects`."""
        return {given.name: self._fill(given, columns) for given in self.inputs}

    def _fill(self, given: Input, columns: BatchColumns) -> Array:
        found = [(name, self._column(name, given, columns)) for name in given.features]
        if given.dtype == "string":
            return _shape(_texts(found, columns), given)
        rows = len(columns.events)
        widths = [1 if c.values.ndim == 1 else c.values.shape[1] for _, c in found]
        out = np.empty((rows, sum(widths)), np.dtype(given.dtype))
        start = 0
        for (name, column), width in zip(found, widths, strict=True):
            target = out[:, start : start + width]
            _put(target, name, column, given, columns)
            start += width
        return _shape(out, given)

    def _column(self, name: str, given: Input, columns: BatchColumns) -> Column:
        view = self._view_of.get(name)
        if view is not None:
            return Column(columns.stored.view(view).values[:, view.fields.index(name[len(view.name) + 1 :])])
        if name in self.vocabularies and given.dtype != "string":
            return columns.codes(name, self.vocabularies[name])
        return columns.column(name)


def _texts(found: Sequence[tuple[str, Column]], columns: BatchColumns) -> Array:
    """Text columns side by side, objects [rows, n]; a null is the feature's default."""
    out = np.empty((len(columns.events), len(found)), object)
    for place, (name, column) in enumerate(found):
        values = column.values.astype(object) if column.values.dtype != object else column.values
        out[:, place] = values
        if column.valid is not None:
            out[~column.valid, place] = columns.default(name)
    return out


def _put(target: Array, name: str, column: Column, given: Input, columns: BatchColumns) -> None:
    """Write a column into its place in the input, in the input's type, without a silent change of value."""
    values = column.values if column.values.ndim == 2 else column.values[:, None]  # noqa: PLR2004
    missing = None if column.valid is None else ~column.valid
    if given.dtype.startswith("float"):
        with np.errstate(over="ignore", invalid="ignore"):
            target[...] = values.astype(target.dtype)
        if missing is not None:
            default = columns.default(name)
            target[missing] = np.nan if default is None else default
        return
    default = columns.default(name)
    if missing is not None:
        if default is None:
            for row in np.flatnonzero(missing):
                columns.reject(int(row), "NullInput", f"{name} is null, and input {given.name} takes {given.dtype}")
            default = 0
        values = np.where(missing[:, None], np.array(default, values.dtype), values)
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(target.dtype)
        lost = (cast.astype(values.dtype) != values).any(axis=1)
        if values.dtype.kind == "f":
            # 2**63 as a float survives the round trip through the wrapped integer on some machines
            lost |= ~np.isfinite(values).all(axis=1)
    for row in np.flatnonzero(lost):
        columns.reject(
            int(row),
            "NotExact",
            f"{name} is {values[row].tolist()}, which {given.dtype} input {given.name} can't hold",
        )
    target[...] = cast


def _shape(out: Array, given: Input) -> Array:
    """[rows, columns] as the model's own shape: flat for rank 1, folded for rank 3 and more."""
    if len(given.shape) <= 1:
        return out[:, 0]
    if len(given.shape) == 2:  # noqa: PLR2004
        return out
    return out.reshape(len(out), *(size if size is not None else -1 for size in given.shape[1:]))
