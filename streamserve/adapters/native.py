"""The compiled batch path: `native/client.c` over the very librdkafka that confluent-kafka has loaded.

Where it was not built, or the client library can't be found in this process, `library()` is None and the path through
confluent-kafka's own messages serves: same results, some 4 us an event dearer. Nothing here knows what a batch means.
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

from streamserve.native import Column, Signature, array_of, load, path_of

LOG = logging.getLogger("streamserve.native")
PLUGIN = "plugin.library.paths"
_making = threading.Lock()
_Client = TypeVar("_Client")


class BatchSize(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("rows", "key_bytes", "value_bytes", "header_bytes", "header_rows")),
        ("first_ns", c_int64),
        ("ends", c_int64),
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


_FUNCTIONS: dict[str, Signature] = {
    "bind_library": (c_char_p, [c_char_p]),
    "take_client": (c_void_p, []),
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
    "reader_ends": (None, [c_void_p, c_void_p, c_void_p]),
    "reader_pack": (None, [c_void_p, POINTER(Batch)]),
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, bound to the client's; None where there is none, with a line in the log that says why."""
    client = client_library()
    if client is None:
        LOG.warning("confluent-kafka's librdkafka is not to be found in this process: events go through messages")
        return None
    found = load("client", _FUNCTIONS)
    if found is None:
        return None
    missing = found.bind_library(client.encode())
    if missing is not None:
        LOG.warning("librdkafka %s lacks %s: events go through messages", confluent_kafka.libversion()[0], missing)
        return None
    return found


def client_library() -> str | None:
    """Where the librdkafka lies that this process has loaded."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line.split(maxsplit=5)[5] for line in lines if "/librdkafka" in line and ".so" in line), None)


class Handle:
    """A client that was made with the plugin. What it counts outlives the client, and is never freed."""

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
        both, topic = array_of(c_int64, 2)(), c_char_p()
        error = self.lib.client_counts(self.pointer, both, byref(topic))
        return both[0], both[1], error, (topic.value or b"").decode()


def make_client(
    make: Callable[[dict[str, object]], _Client], config: dict[str, object]
) -> tuple[_Client, Handle | None]:
    """A client of confluent-kafka made with the plugin, and its handle; None where there is no compiled path."""
    lib = library()
    if lib is None:
        return make(config), None
    plugins = [str(config[PLUGIN])] if config.get(PLUGIN) else []
    with _making:
        client = make({**config, PLUGIN: ";".join([*plugins, str(path_of("client"))])})
        pointer = lib.take_client()
    return client, None if pointer is None else Handle(lib, pointer)
