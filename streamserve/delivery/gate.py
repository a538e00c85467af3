"""The gate between intake and output: which rows of a batch still count when it is about to be sent.

A batch was read under an intake epoch. A partition that was given up, or taken up anew since, is closed to it; its
neighbours in the same batch go on. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from streamserve.records import OutputBatch, RawBatch, TopicPartition


class Gate:
    """The intake epoch at which each partition was last taken up. Its caller serialises the calls."""

    def __init__(self) -> None:
        self.epoch = 0
        self._opened: dict[TopicPartition, int] = {}

    def open(self, partitions: Iterable[TopicPartition]) -> int:
        """Partitions were assigned, or are read again from an earlier offset: what was read before is void."""
        self.epoch += 1
        self._opened.update(dict.fromkeys(partitions, self.epoch))
        return self.epoch

    def close(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self._opened.pop(partition, None)

    @property
    def partitions(self) -> frozenset[TopicPartition]:
        return frozenset(self._opened)

    def admits(self, raw: RawBatch, partition: int) -> bool:
        opened = self._opened.get((raw.topic, partition))
        return opened is not None and raw.intake_epoch >= opened

    def pass_through(self, batch: OutputBatch) -> OutputBatch:
        """The batch without the rows of partitions that are closed to it."""
        raw = batch.raw
        shut = [p for (_, p) in batch.covers if not self.admits(raw, p)]
        if not shut:
            return batch
        return replace(
            batch,
            outgoing=tuple(
                out.take(np.flatnonzero(~np.isin(raw.partitions[out.rows], shut))) for out in batch.outgoing
            ),
            covers={key: span for key, span in batch.covers.items() if key[1] not in shut},
        )
