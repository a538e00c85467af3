"""Reading and writing micro-batches as columns, through the compiled path: no Python runs for an event."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ctypes import byref, c_int
from time import monotonic, monotonic_ns
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, TopicPartition

from streamserve.adapters import native
from streamserve.adapters.client_io import Fill, is_fault
from streamserve.adapters.messages import MessageReader
from streamserve.native import address, from_arrays, to_column
from streamserve.records import Outgoing, RawBatch

LOG = logging.getLogger("streamserve.packed")
STRAYS, STRAY_BYTES = 1000, 1 << 20  # at once
LEAD_S, LONGEST_LEAD_S = 0.05, 1.0  # between two tries to lead a partition of which nothing has come; it grows


class PackedReader:
    """A BatchReader: partitions are read from a queue of its own beside the consumer's.

    The group's callbacks stay with the consumer's `poll`, which is called before each read and not inside one.
    """

    def __init__(
        self,
        consumer: Consumer,
        handle: native.Handle,
        topic: str,
        epoch: Callable[[], int],
        max_rows: int,
        where: str,
    ) -> None:
        self._handle, self._lib, self._topic = handle, handle.lib, topic
        self._epoch, self._where = epoch, where
        self._beside = MessageReader(consumer, epoch, where)
        self._ends, self._idle = self._beside.ended, False
        self._unsure: set[int] = set()  # partitions of which nothing has come yet
        self._next_lead, self._pause = 0.0, LEAD_S
        self._reader: int | None = self._lib.reader_new(handle.pointer, max_rows)
        if not self._reader:
            raise MemoryError("no room for a reader")

    def take(self, partitions: Sequence[TopicPartition]) -> None:
        if not self._reader:
            return  # the consumer closes, and answers an assignment that came late
        self._next_lead, self._pause = 0.0, LEAD_S
        self._lead(tp.partition for tp in partitions)
        self._unsure.update(tp.partition for tp in partitions)
        self._beside.take(partitions)

    @property
    def ended(self) -> Mapping[int, int]:
        return {} if self._idle else self._ends  # while nothing is read, more may have come

    def forget_end(self, partition: int) -> None:
        self._beside.forget_end(partition)

    def release(self, partitions: Sequence[TopicPartition]) -> None:
        self._beside.release(partitions)
        self._unsure.difference_update(tp.partition for tp in partitions)

    def _lead(self, partitions: Iterable[int]) -> None:
        """Have the records of these come to our queue, those included that wait in the partition's own."""
        for partition in partitions:
            if self._lib.reader_take(self._reader, self._topic.encode(), partition):
                raise MemoryError(f"no queue for {self._topic}-{partition}")

    def _lead_again(self) -> None:
        """A partition that is given up and taken up at once is cut off by the late end of its first life.

        librdkafka ends it after we have led the queue here, and leads it nowhere then, because once it was ours. From
        the first record on that comes, it is sure: a new life begins when all former ones have ended.
        """
        if self._unsure and monotonic() >= self._next_lead:
            self._next_lead = monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_LEAD_S)
            self._lead(self._unsure)

    def idle(self) -> Iterator[RawBatch]:
        self._idle = True
        return self._strays()

    def read(self, fill: Fill) -> Iterator[RawBatch]:
        self._idle = False
        yield from self._strays(fill.max_rows, fill.max_bytes)
        self._lead_again()
        size = native.BatchSize()
        self._lib.reader_fetch(
            self._reader,
            round(fill.wait * 1000),
            fill.rows,
            round(fill.seconds * 1000),
            fill.max_rows,
            fill.max_bytes,
            byref(size),
        )
        if size.rows:
            batch = self._pack(size)
            if self._unsure or self._ends:
                come = np.unique(batch.partitions).tolist()
                self._unsure.difference_update(come)
                for partition in come:
                    self._ends.pop(partition, None)
        if size.ends:
            self._note_ends(size.ends, batch if size.rows else None)
        if size.rows:
            yield batch
        if size.errors:
            self._judge(KafkaError(size.error, size.text.decode(errors="replace")), size.partition)

    def _note_ends(self, count: int, batch: RawBatch | None) -> None:
        partitions, offsets = np.empty(count, np.int32), np.empty(count, np.int64)
        self._lib.reader_ends(self._reader, address(partitions), address(offsets))
        for partition, end in zip(partitions.tolist(), offsets.tolist(), strict=True):
            later = batch is not None and (batch.offsets[batch.partitions == partition] >= end).any()
            if not later:
                self._ends[partition] = end

    def _strays(self, rows: int = STRAYS, size: int = STRAY_BYTES) -> Iterator[RawBatch]:
        """The group's callbacks and errors; and records of a partition whose queue did not lead here yet.

        They come before anything of theirs that our queue gets from now on.
        """
        at_once = Fill(wait=0, rows=1, seconds=0, max_rows=rows, max_bytes=size)
        while batches := list(self._beside.read(at_once)):
            for batch in batches:
                self.take([TopicPartition(batch.topic, p) for p in np.unique(batch.partitions).tolist()])
                yield batch

    def _judge(self, error: KafkaError, partition: int) -> None:
        fault = is_fault(error, f"{self._where} topic {self._topic}-{partition}")
        if fault is not None:
            raise fault
        LOG.warning("%s", error.str())

    def _pack(self, size: native.BatchSize) -> RawBatch:
        rows = size.rows
        numbers = {
            "partitions": np.empty(rows, np.int32),
            "offsets": np.empty(rows, np.int64),
            "timestamps": np.empty(rows, np.int64),
            "timestamp_types": np.empty(rows, np.uint8),
        }
        keys, values = _blank(rows, size.key_bytes), _blank(rows, size.value_bytes)
        headers = _blank(rows, size.header_bytes) if size.header_rows else None
        filled = [*numbers.values(), *keys, *values, *(headers or ())]
        batch = native.Batch(*map(address, filled))
        self._lib.reader_pack(self._reader, byref(batch))
        return RawBatch(
            topic=self._topic,
            **numbers,
            keys=from_arrays(*keys),
            values=from_arrays(*values),
            headers=None if headers is None else from_arrays(*headers),
            intake_epoch=self._epoch(),
            first_ns=size.first_ns,
            ready_ns=monotonic_ns(),
        )

    def close(self) -> None:
        self._lib.reader_free(self._reader)
        self._reader = None


def _blank(rows: int, data: int) -> tuple[Any, Any, Any]:
    return np.empty(max(data, 1), np.uint8), np.empty(rows + 1, np.int32), np.empty(rows, np.uint8)


class PackedWriter:
    """A RecordWriter that knows of every record whether the broker has confirmed it."""

    def __init__(self, handle: native.Handle) -> None:
        self._handle, self._lib = handle, handle.lib
        self._topics: dict[str, int] = {}
        self._written = 0

    def write(self, out: Outgoing, start: int) -> tuple[int, KafkaError | None]:
        topic = self._topics.get(out.topic)
        if topic is None:
            topic = self._lib.topic_new(self._handle.pointer, out.topic.encode())
            if not topic:
                return start, KafkaError(KafkaError._INVALID_ARG)  # noqa: SLF001
            self._topics[out.topic] = topic
        error = c_int()
        columns = [None if array is None else to_column(array) for array in (out.keys, out.values, out.headers)]
        stamps = np.ascontiguousarray(out.timestamps, np.int64)
        stop = self._lib.produce(
            self._handle.pointer,
            topic,
            start,
            len(out),
            *(None if column is None else byref(column) for column in columns),
            address(stamps),
            byref(error),
        )
        self._written += stop - start
        return stop, KafkaError(error.value) if error.value else None

    def unconfirmed(self) -> int:
        return self._written - sum(self._handle.counts())

    def failure(self) -> tuple[KafkaError, str] | None:
        found = self._handle.first_failure()
        return None if found is None else (KafkaError(found[0]), found[1])

    def failures(self) -> int:
        return self._handle.counts()[1]

    def close(self) -> None:
        for topic in self._topics.values():
            self._lib.topic_free(topic)
        self._topics.clear()
