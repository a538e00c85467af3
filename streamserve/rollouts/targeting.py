"""Rules of a rollout over the columns of a batch: the first one that an event is in says who answers for it.

Types never meet: "1" is not 1, and 1 is not true. Whole numbers are found in columns of floats where they are equal,
bit for bit. Columns of other types (times, decimals, bytes, lists) hold no value that a rule could name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamserve.features.buffers import Mask, bits, numbers, valid
from streamserve.records import EventBatch, Rule, Scalar, Uint8s

UNDECIDED, TO_STABLE, TO_CANDIDATE = 0, 2, 3  # bits: a rule decided, and for the candidate
FLOAT_BITS = 1023  # whole numbers of more are beyond every float


def decide(rules: Sequence[Rule], events: EventBatch) -> Uint8s:
    """What the rules say of each event: UNDECIDED, TO_STABLE or TO_CANDIDATE."""
    said = np.full(len(events), UNDECIDED, np.uint8)
    for rule in reversed(rules):  # the first one has the last word
        said[_segment(rule, events)] = TO_CANDIDATE if rule.candidate else TO_STABLE
    return said


def _segment(rule: Rule, events: EventBatch) -> Mask:
    """Which events are in the rule's segment: all of them, if it asks for nothing."""
    inside = np.ones(len(events), bool)
    for path, values in rule.where:
        place = events.columns.schema.get_field_index(path)
        inside &= holds(events.columns.column(place), values) if place >= 0 else np.False_
    return inside


def holds(column: pa.Array, values: Sequence[Scalar]) -> Mask:
    """Where a column has one of these values."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        found = pc.is_in(column, _texts(tuple(value for value in values if isinstance(value, str)), kind))
        return bits(found.buffers()[1], found)
    if pa.types.is_dictionary(kind):
        return _through(column, holds(column.dictionary, values))
    if pa.types.is_boolean(kind):
        found = np.isin(bits(column.buffers()[1], column), [value for value in values if isinstance(value, bool)])
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        found = _numbers(column, [v for v in values if isinstance(v, int) and not isinstance(v, bool)])
    else:
        return np.zeros(len(column), bool)
    there = valid(column)
    return found if there is None else found & there


def _through(column: pa.DictionaryArray, found: Mask) -> Mask:
    """Of each row what was found for its entry of the dictionary; null: nothing."""
    index = column.indices.cast(pa.int64()).fill_null(-1).to_numpy()
    each: Mask = np.append(found, False)[index]
    return each


@lru_cache
def _texts(values: tuple[str, ...], kind: pa.DataType) -> pa.Array:
    return pa.array([value for value in values if _is_text(value)], kind)


def _is_text(value: str) -> bool:
    """Not so with half a surrogate pair in it, which JSON can write and no column can hold."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _numbers(column: pa.Array, values: Sequence[int]) -> Mask:
    kind = np.dtype(column.type.to_pandas_dtype())
    have = numbers(column, kind)
    if kind.kind == "f":
        wanted = [float(v) for v in values if v.bit_length() <= FLOAT_BITS and int(float(v)) == v]
        return np.isin(have.astype(np.float64), wanted)  # which holds all that narrower ones do
    limits = np.iinfo(kind)
    return np.isin(have, np.array([v for v in values if limits.min <= v <= limits.max], kind))
