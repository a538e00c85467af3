"""Predictions encoded by the compiled encoder, `native/prediction.c`: 0.1 us a record, next to nothing a batch."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char_p, c_int64, c_void_p
from functools import cache, lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamserve.errors import SettingsError
from streamserve.native import Column, address, from_arrays, load, to_column
from streamserve.pipeline import framing
from streamserve.pipeline.prediction import Predicted, Provenance

NUMBER = 10  # bytes of an Avro long at most
NUMBERS = 16  # at most, beside those that stand with each score and each status
LARGEST = 2**31 - 1  # bytes that a column's offsets can count
ID = 42  # bytes of "-partition-offset" at most


class Predictions(Structure):
    """`predictions` of the C file, field by field."""

    _fields_ = [
        ("rows", c_int64),
        ("header", c_char_p),
        ("constants", Column),
        ("partitions", c_void_p),
        ("offsets", c_void_p),
        ("event_ids", POINTER(Column)),
        ("event_times", c_void_p),
        ("has_event_time", c_void_p),
        ("source_timestamps", c_void_p),
        ("scored_at", c_int64),
        ("score_count", c_int64),
        ("score_names", Column),
        ("scores", c_void_p),
        ("labels", Column),
        ("decisions", c_void_p),
        ("versions", Column),
        ("version", c_void_p),
        ("variant", c_void_p),
        ("rollouts", Column),
        ("rollout", c_void_p),
        ("control_epochs", c_void_p),
        ("reason", c_void_p),
        ("view_count", c_int64),
        ("view_names", Column),
        ("statuses", c_void_p),
    ]


@cache
def library() -> ctypes.CDLL | None:
    return load("prediction", {"encode_predictions": (None, [POINTER(Predictions), c_void_p, c_void_p])})


def encode(made: Predicted, about: Provenance, now_ms: int) -> pa.BinaryArray | None:
    """The framed record of each row; None where the encoder was not built."""
    lib = library()
    if lib is None:
        return None
    names = [(made.topic, about.topology, about.model), made.names, made.labels, made.versions, made.rollouts]
    constants, score_names, labels, versions, rollouts = (_texts(one) for one in names)
    views, event_ids = _texts(made.views), None if made.event_ids is None else to_column(made.event_ids)
    arrays = {  # they must live until the call is over
        "partitions": _flat(made.partitions, np.int32),
        "offsets": _flat(made.offsets, np.int64),
        "event_times": _flat(made.event_times, np.int64),
        "has_event_time": None if made.has_event_time is None else _flat(made.has_event_time, np.bool_),
        "source_timestamps": _flat(made.source_timestamps, np.int64),
        "scores": _flat(made.scores, np.float64),
        "decisions": _flat(made.decisions, np.int32),
        "version": _flat(made.version, np.int32),
        "variant": _flat(made.variant, np.uint8),
        "rollout": _flat(made.rollout, np.int32),
        "control_epochs": _flat(made.control_epoch, np.int64),
        "reason": _flat(made.reason, np.uint8),
        "statuses": _flat(made.statuses, np.uint8),
    }
    given = Predictions(
        rows=len(made.rows),
        header=framing.header(about.schema_id),
        constants=constants.column,
        event_ids=None if event_ids is None else ctypes.pointer(event_ids),
        scored_at=now_ms,
        score_count=len(made.names),
        score_names=score_names.column,
        labels=labels.column,
        versions=versions.column,
        rollouts=rollouts.column,
        view_count=len(made.views),
        view_names=views.column,
        **{name: None if array is None else address(array) for name, array in arrays.items()},
    )
    each = framing.HEADER + ID + NUMBER * NUMBERS + constants.total + labels.longest + versions.longest
    each += rollouts.longest + score_names.total + views.total + len(made.names) * (NUMBER + 8)
    each += len(made.views) * NUMBER * 2
    ids = 0 if made.event_ids is None else made.event_ids.nbytes
    if each * len(made.rows) + ids > LARGEST:
        raise SettingsError(
            f"the predictions of a batch of {len(made.rows)} rows may come to more than 2 GiB",
            where=about.topology,
            mend="lower STREAMSERVE_BATCH_ROWS",
        )
    data, starts = np.empty(each * len(made.rows) + ids, np.uint8), np.empty(len(made.rows) + 1, np.int32)
    lib.encode_predictions(byref(given), address(data), address(starts))
    return from_arrays(data, starts)


def _flat(array: NDArray[np.generic], dtype: type[np.generic]) -> NDArray[np.generic]:
    return np.ascontiguousarray(array, dtype)


class _Texts:
    """A few strings as a column, their bytes counted."""

    def __init__(self, texts: tuple[str | None, ...]) -> None:
        self._array = pa.array(texts, pa.string())
        self.column = to_column(self._array)
        sizes = [len((text or "").encode()) for text in texts]
        self.total, self.longest = sum(sizes), max(sizes, default=0)


@lru_cache(maxsize=256)
def _texts(texts: tuple[str | None, ...]) -> _Texts:
    return _Texts(texts)
