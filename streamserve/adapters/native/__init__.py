"""The compiled batch path: `batches.c` over the very librdkafka that confluent-kafka has loaded.

It is built at installation where there is a C compiler. Where there is none, or the client library can't be found in
this process, `library()` is None and the path through confluent-kafka's own messages serves: same results, about 3 us
an event dearer. Nothing here knows what a batch means.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import TypeVar

import confluent_kafka
import numpy as np
import pyarrow as pa

LOG = logging.getLogger("streamserve.native")
PATH = Path(__file__).with_name("batches.so")
PLUGIN = "plugin.library.paths"
QUEUE_FULL = -184  # RD_KAFKA_RESP_ERR__QUEUE_FULL
_making = threading.Lock()
_Client = TypeVar("_Client")


class Column(Structure):
    _fields_ = [("data", c_void_p), ("offsets", c_void_p), ("valid", c_void_p), ("first_bit", c_int64)]


class BatchSize(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("rows", "key_bytes", "value_bytes", "header_bytes", "header_rows")),
        ("first_ns", c_int64),
        ("errors", c_int64),
        ("error", c_int32),
        ("partition", c_int32),
        ("text", c_char * 512),
    ]


class Batch(Structure):
    _fields_ = [
        (name, c_void_p)
        for name in (
            "partitions", "offsets", "timestamps", "timestamp_types", "keys", "key_offsets", "key_valid",
            "values", "value_offsets", "value_valid", "headers", "header_offsets", "header_valid",
        )
    ]  # fmt: skip


_FUNCTIONS = {
    "bind_library": (c_char_p, [c_char_p]),
    "take_client": (c_void_p, []),
    "release_client": (None, [c_void_p]),
    "client_counts": (c_int, [c_void_p, POINTER(c_int64), POINTER(c_char_p)]),
    "topic_new": (c_void_p, [c_void_p, c_char_p]),
    "topic_free": (None, [c_void_p]),
    "produce": (
        c_int64,
        [c_void_p, c_void_p, c_int64, c_int64, *[POINTER(Column)] * 3, c_void_p, POINTER(c_int)],
    ),
    "reader_new": (c_void_p, [c_void_p, c_int]),
    "reader_free": (None, [c_void_p]),
    "reader_take": (c_int, [c_void_p, c_char_p, c_int32]),
    "reader_fetch": (None, [c_void_p, c_int, c_int, c_int, c_int, c_int64, POINTER(BatchSize)]),
    "reader_pack": (None, [c_void_p, POINTER(Batch)]),
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, bound to the client's; None where there is none, with a line in the log that says why."""
    if not PATH.exists():
        LOG.info("no compiled client path in this installation: events go through Python messages, at some 3 us each")
        return None
    client = _client_library()
    if client is None:
        LOG.warning("confluent-kafka's librdkafka is not to be found in this process: no compiled client path")
        return None
    try:
        found = ctypes.CDLL(str(PATH))
    except OSError as error:
        LOG.warning("the compiled client path can't be loaded: %s", error)
        return None
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    missing = found.bind_library(client.encode())
    if missing is not None:
        LOG.warning("librdkafka %s lacks %s: no compiled client path", confluent_kafka.libversion()[0], missing)
        return None
    return found


def _client_library() -> str | None:
    """Where the librdkafka lies that this process has loaded."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line.split(maxsplit=5)[5] for line in lines if "/librdkafka" in line and ".so" in line), None)


class Handle:
    """A client that was made with the plugin. What it counts outlives the client."""

    def __init__(self, lib: ctypes.CDLL, pointer: int) -> None:
        self.lib, self.pointer = lib, pointer

    def counts(self) -> tuple[int, int]:
        """Messages that the broker confirmed, and messages that failed for good."""
        return self._counts()[:2]

    def first_failure(self) -> tuple[int, str] | None:
        """Error code and topic of the first message that failed."""
        _, _, error, topic = self._counts()
        return (error, topic) if error else None

    def _counts(self) -> tuple[int, int, int, str]:
        both, topic = (c_int64 * 2)(), c_char_p()
        error = self.lib.client_counts(self.pointer, both, byref(topic))
        return both[0], both[1], error, (topic.value or b"").decode()

    def __del__(self) -> None:
        self.lib.release_client(self.pointer)


def make_client(
    make: Callable[[dict[str, object]], _Client], config: dict[str, object]
) -> tuple[_Client, Handle | None]:
    """A client of confluent-kafka made with the plugin, and its handle; None where there is no compiled path."""
    lib = library()
    if lib is None:
        return make(config), None
    plugins = [str(config[PLUGIN])] if config.get(PLUGIN) else []
    with _making:
        client = make({**config, PLUGIN: ";".join([*plugins, str(PATH)])})
        pointer = lib.take_client()
    return client, None if pointer is None else Handle(lib, pointer)


def to_column(array: pa.BinaryArray | None) -> Column | None:
    """An Arrow binary array's buffers; the array must outlive the call that gets them."""
    if array is None:
        return None
    valid, offsets, data = (None if buffer is None else buffer.address for buffer in array.buffers())
    return Column(data, None if offsets is None else offsets + 4 * array.offset, valid, array.offset)


def from_arrays(data: np.ndarray, offsets: np.ndarray, valid: np.ndarray) -> pa.BinaryArray:
    """Arrays that C has filled as an Arrow column, without a copy. valid: a byte a row."""
    nulls = len(valid) - int(np.count_nonzero(valid))
    bitmap = pa.py_buffer(np.packbits(valid, bitorder="little")) if nulls else None
    buffers = [bitmap, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(valid), buffers, nulls)
