"""A producer through librdkafka's own C interface: records that lie ready go out by the run, in one call.

A message of confluent-kafka's costs its caller 1 us and more. At 50,000 events a second the generator took half a core
from what it measured.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import c_char_p, c_int, c_int32, c_size_t, c_void_p

import numpy as np

from streamserve.adapters.native import client_library

# rd_kafka_message_t
MESSAGE = np.dtype(
    [
        ("error", "<i4"), ("topic", "<u8"), ("partition", "<i4"), ("value", "<u8"), ("value_size", "<u8"),
        ("key", "<u8"), ("key_size", "<u8"), ("offset", "<i8"), ("opaque", "<u8"),
    ],
    align=True,
)  # fmt: skip
PRODUCER, CONF_OK = 0, 0
BY_MESSAGE = 8  # RD_KAFKA_MSG_F_PARTITION: each message names its partition. Its bytes stay ours, and are not copied
ANY = -1
_FUNCTIONS = {
    "rd_kafka_conf_new": (c_void_p, []),
    "rd_kafka_conf_set": (c_int, [c_void_p, c_char_p, c_char_p, c_char_p, c_size_t]),
    "rd_kafka_new": (c_void_p, [c_int, c_void_p, c_char_p, c_size_t]),
    "rd_kafka_topic_new": (c_void_p, [c_void_p, c_char_p, c_void_p]),
    "rd_kafka_produce_batch": (c_int, [c_void_p, c_int32, c_int, c_void_p, c_int]),
    "rd_kafka_poll": (c_int, [c_void_p, c_int]),
    "rd_kafka_flush": (c_int, [c_void_p, c_int]),
}


def _library() -> ctypes.CDLL:
    found = ctypes.CDLL(client_library())
    for name, (result, arguments) in _FUNCTIONS.items():
        declared = getattr(found, name)
        declared.restype, declared.argtypes = result, arguments
    return found


class RunProducer:
    """Sends runs of records that it was given at its making.

    Args:
        values: addresses and sizes of the values, one a record.
        keys: fixed-size bytes, one a record.
        partitions: of each record.
    """

    def __init__(
        self,
        config: Mapping[str, object],
        topic: str,
        values: tuple[np.ndarray, np.ndarray],
        keys: np.ndarray,
        partitions: np.ndarray,
    ) -> None:
        self._lib, said = _library(), ctypes.create_string_buffer(512)
        conf = self._lib.rd_kafka_conf_new()
        for name, value in config.items():
            if self._lib.rd_kafka_conf_set(conf, name.encode(), str(value).encode(), said, len(said)) != CONF_OK:
                raise ValueError(said.value.decode())
        self._client = self._lib.rd_kafka_new(PRODUCER, conf, said, len(said))
        if not self._client:
            raise RuntimeError(said.value.decode())
        self._topic = self._lib.rd_kafka_topic_new(self._client, topic.encode(), None)
        self._keys = np.ascontiguousarray(keys)  # the messages point into it
        self._messages = np.zeros(len(keys), MESSAGE)
        self._messages["partition"] = partitions
        self._messages["value"], self._messages["value_size"] = values
        self._messages["key"] = self._keys.ctypes.data + np.arange(len(keys)) * self._keys.itemsize
        self._messages["key_size"] = self._keys.itemsize

    def send(self, start: int, stop: int) -> None:
        """Records [start, stop).

        Raises:
            RuntimeError: the client's queue has no room for them.
        """
        run = self._messages.ctypes.data + start * MESSAGE.itemsize
        if self._lib.rd_kafka_produce_batch(self._topic, ANY, BY_MESSAGE, run, stop - start) != stop - start:
            raise RuntimeError(f"the client did not take the records {start} to {stop}")
        self._lib.rd_kafka_poll(self._client, 0)

    def flush(self, seconds: float) -> bool:
        """Whether the broker has answered for everything that was sent."""
        return self._lib.rd_kafka_flush(self._client, round(seconds * 1000)) == 0
