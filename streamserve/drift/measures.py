"""A measure: one watched quantity as counts in frozen bins, and how rows are counted into them. Pure.

What `bins_of` says is the definition of counting: whoever counts in another way (compiled code) is held to its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from streamserve.drift.edges import Dtype
from streamserve.features.columns import FIRST_CODE, MISSING_CODE, UNSEEN_CODE
from streamserve.records import Indices, Int64s, Uint8s

Kind = Literal["numeric", "category", "decision", "status"]
Of = Literal["feature", "score", "decision", "view"]
NONE, MISSING, DEFAULT = 0, 1, 2  # of `special`: an ordinary row, one without a value, one that a default filled
BEFORE: Mapping[Kind, tuple[str, ...]] = {  # bins that stand before those of values
    "numeric": ("missing", "nan", "default"),
    "category": ("missing", "unseen", "default"),
    "decision": ("none",),
    "status": (),
}
REST = "rest"
NAN_BIN, UNSEEN_BIN, DEFAULT_BIN = 1, 1, 2


class Measure(BaseModel):
    """One quantity, its bins and how many rows of the reference are in each.

    Args:
        of: what the quantity is of; a feature and a score may have one name.
        edges: of a numeric one. Row x is in value bin number `how many edges are below x`: -inf is in the first, +inf
            in the last one.
        values: of the others, each with a bin: the most frequent categories, a decision's labels, names of statuses.
        dtype: of the model's input, where numeric: values are compared as this type, and edges are numbers of it.
        counts: of the reference, bin by bin.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    name: str
    of: Of
    edges: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None = None
    values: tuple[str, ...] | None = None
    dtype: Dtype | None = None
    counts: tuple[Annotated[int, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind == "numeric":
            if self.edges is None or self.values is not None or self.dtype is None:
                raise ValueError(f"{self.name}: a numeric measure has edges and a dtype, and no values")
            with np.errstate(over="ignore"):
                same = np.array(self.edges).astype(self.dtype).tolist() == list(self.edges)
            if not same or not _ascends(self.edges):
                raise ValueError(f"{self.name}: edges ascend, and are numbers of {self.dtype}")
        elif self.values is None or self.edges is not None or self.dtype is not None:
            raise ValueError(f"{self.name}: a measure of kind {self.kind} has values, and neither edges nor a dtype")
        elif len(set(self.values)) < len(self.values):
            raise ValueError(f"{self.name}: a value has one bin")
        if len(self.counts) != len(self.bins):
            raise ValueError(f"{self.name}: {len(self.counts)} counts for {len(self.bins)} bins")
        return self

    @property
    def key(self) -> str:
        """What no other measure of a reference is called."""
        return f"{self.of}:{self.name}"

    @cached_property
    def rows(self) -> int:
        """Of the reference."""
        return sum(self.counts)

    @cached_property
    def reference(self) -> Int64s:
        """The counts as an array."""
        return np.array(self.counts, np.int64)

    @cached_property
    def bins(self) -> tuple[str, ...]:
        """What each bin is called, in order."""
        rest = () if self.kind in {"numeric", "status"} else (REST,)
        return (*BEFORE[self.kind], *(_intervals(self) if self.values is None else self.values), *rest)

    def with_counts(self, counts: Iterable[int]) -> Measure:
        """The same bins, with these counts."""
        return Measure.model_validate({**self.model_dump(), "counts": tuple(map(int, counts))})

    @property
    def first_value(self) -> int:
        """The bin from which on there are values."""
        return len(BEFORE[self.kind])


def _ascends(values: Sequence[float]) -> bool:
    return all(one < other for one, other in pairwise(values))


def _intervals(measure: Measure) -> list[str]:
    kind = np.dtype(measure.dtype).type
    ends = [str(kind(edge)) for edge in measure.edges or ()]
    return [f"({low}, {high}]" for low, high in zip(["-inf", *ends], [*ends, "inf"], strict=True)]


# ---- counting


def bins_of(
    measure: Measure, values: ArrayLike | pa.Array, special: Uint8s | None = None, *, codes: Int64s | None = None
) -> Indices:
    """The bin of each row.

    Args:
        values: numbers of a numeric measure. Of others codes, one a row, or texts where there is no `codes`; a text
            that is null is missing, and one without a bin of its own is in the rest.
        special: of each row NONE, MISSING or DEFAULT, whatever its value; above that it counts as DEFAULT. Not of
            statuses.
        codes: the bin of each code, of `code_bins` or `label_bins`; a status is its own. A code outside is unseen, or
            no decision.
    """
    if measure.kind == "numeric":
        found = _numeric(measure, np.asarray(values))
    elif codes is not None or measure.kind == "status":
        found = _coded(measure, np.asarray(values), codes)
    else:
        found = _texts(measure, values)
    if special is None or measure.kind == "status":
        return found
    default = DEFAULT_BIN if measure.first_value > DEFAULT_BIN else 0
    return np.where(special == NONE, found, np.where(special == MISSING, 0, default))


def count(
    measure: Measure, values: ArrayLike | pa.Array, special: Uint8s | None = None, *, codes: Int64s | None = None
) -> Int64s:
    """How many rows are in each bin: whole numbers, which add up over any split of the rows. See `bins_of`."""
    return np.bincount(bins_of(measure, values, special, codes=codes), minlength=len(measure.bins)).astype(np.int64)


def code_bins(measure: Measure, vocabulary: Sequence[str]) -> Int64s:
    """The bin of each code that a category feature gives the model: missing, unseen, then words of the vocabulary."""
    own = _places(measure)
    found = np.empty(FIRST_CODE + len(vocabulary), np.int64)
    found[MISSING_CODE], found[UNSEEN_CODE] = 0, UNSEEN_BIN
    found[FIRST_CODE:] = [own.get(word, len(measure.bins) - 1) for word in vocabulary]
    return found


def label_bins(measure: Measure, labels: Sequence[str]) -> Int64s:
    """The bin of each decision that is an index into `labels`."""
    own = _places(measure)
    return np.array([own.get(label, len(measure.bins) - 1) for label in labels], np.int64)


def _places(measure: Measure) -> dict[str, int]:
    return {value: measure.first_value + at for at, value in enumerate(measure.values or ())}


def _numeric(measure: Measure, values: NDArray[np.generic]) -> Indices:
    with np.errstate(over="ignore"):
        seen = values.astype(measure.dtype)
    edges = np.array(measure.edges, measure.dtype)
    return np.where(np.isnan(seen), NAN_BIN, measure.first_value + np.searchsorted(edges, seen, "left"))


def _coded(measure: Measure, values: NDArray[Any], codes: Int64s | None) -> Indices:
    table = np.arange(len(measure.bins)) if codes is None else codes
    inside = (values >= 0) & (values < len(table))  # NaN is not
    if measure.kind == "status" and not inside.all():
        raise ValueError(f"{measure.name}: {values[~inside][0]} is no status")
    at = np.where(inside, values, 0).astype(np.intp)
    outside = UNSEEN_BIN if measure.kind == "category" else 0
    return np.where(inside, np.append(table, outside)[at], outside).astype(np.intp)


def _texts(measure: Measure, values: ArrayLike | pa.Array) -> Indices:
    coded = encoded(values)
    bins = np.append(label_bins(measure, coded.dictionary.to_pylist()), 0)
    at: Indices = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return bins[at].astype(np.intp)


def encoded(values: ArrayLike | pa.Array) -> pa.DictionaryArray:
    """Texts by their distinct values; null stays null."""
    texts = values if isinstance(values, pa.Array) else pa.array(list(np.asarray(values, object)), pa.string())
    return texts.cast(pa.string()).dictionary_encode()
