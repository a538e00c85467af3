"""Numpy arrays of any shape as Arrow columns and back, to be sent to another process: no pickle is read anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def listed(values: NDArray[Any]) -> pa.FixedSizeListArray:
    """[rows, ...] as one list of the same length a row."""
    return pa.FixedSizeListArray.from_arrays(flat(values), int(np.prod(values.shape[1:], dtype=np.int64)))


def unlisted(column: pa.FixedSizeListArray, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
    """The same back. shape: of a row."""
    return unflat(column.flatten(), dtype, (len(column), *shape))


def flat(values: NDArray[Any]) -> pa.Array:
    """All of an array's values, one after the other."""
    row = np.ascontiguousarray(values).reshape(-1)
    if row.dtype == object:
        return pa.array(row.tolist(), pa.string())
    return pa.array(row.view(np.uint8) if row.dtype == bool else row)


def unflat(values: pa.Array, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
    """The same back."""
    if dtype == "object":
        return np.array(values.to_pylist(), object).reshape(shape)
    found: NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(shape)
    return found.view(np.bool_) if dtype == "bool" else found
