"""Whole topics as the checker's columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Message

from chaos.broker import Broker
from chaos.columns import LAW, DeadLetters, Inputs, Ints, Predictions
from chaos.events import NUMBER, malformed
from chaos.law import Desk, cutovers, expected
from streamserve.headers import pack
from streamserve.pipeline.prediction import decode

ADDED = "streamserve."  # what the names of the product's own headers begin with
VARY = (*LAW, "scored_at", "scores", "decision", "control_epoch", "feature_status", "prediction_id", "rollout_id")
Columns = dict[str, list[Any]]
Look = Callable[[Message], tuple[Any, ...]]


def read_log(broker: Broker, topic: str) -> list[tuple[int, bytes | None]]:
    """A log's offsets and values."""
    return [(message.offset(), message.value()) for messages in broker.read(topic) for message in messages]


def read_law(broker: Broker, inputs: Inputs, topology: str) -> tuple[Inputs, Desk]:
    """The inputs with what the control log and the progress log say of each; and the control log itself."""
    desk = Desk(topology)
    desk.read(read_log(broker, "streamserve.control"))
    wanted = expected(inputs, desk.epochs, cutovers(read_log(broker, "streamserve.progress"), topology))
    columns = dict(
        zip((*LAW, "stable"), (wanted.versions, wanted.variants, wanted.reasons, wanted.stables), strict=True)
    )
    return replace(inputs, epochs=wanted.epochs, wanted=pa.table(columns)), desk


def read_inputs(broker: Broker, topic: str, epoch: int) -> Inputs:
    """The source topic. epoch: the control epoch in force from its beginning on."""
    found = _columns(broker.read(topic), lambda m: (*_plain(m), int(dict(m.headers())[NUMBER])), 6)
    partitions, offsets, ids = (_ints(found[n]) for n in (0, 1, 5))
    order = np.lexsort((offsets, partitions))
    keys, values, headers = (pa.array(found[n], pa.binary()).take(pa.array(order)) for n in (2, 3, 4))
    ids = ids[order]
    epochs = np.full(len(ids), epoch)
    return Inputs(partitions[order], offsets[order], ids, malformed(ids), epochs, keys, values, headers)


def read_predictions(broker: Broker, topic: str, schema_id: int) -> Predictions:
    """Every prediction that a reader of committed records sees."""
    found = _columns(broker.read(topic), _plain, 5)
    table = decode_all(found[3], schema_id)
    said = table.select([name for name in table.column_names if name not in VARY])
    return Predictions(
        out_partitions=_ints(found[0]),
        out_offsets=_ints(found[1]),
        **dict(zip(("partitions", "offsets"), positions(table.column("prediction_id")), strict=True)),
        keys=pa.array(found[2], pa.binary()),
        headers=pa.array(found[4], pa.binary()),
        said=said,
        epochs=table.column("control_epoch").to_numpy(),
        scores=_items(table.column("scores")).to_numpy(zero_copy_only=False),
        statuses=_items(table.column("feature_status")).cast(pa.string()),
        law=table.select(LAW),
    )


def read_dead_letters(broker: Broker, topic: str) -> DeadLetters:
    """Every dead letter, and the position that its headers tell."""

    def look(message: Message) -> tuple[Any, ...]:
        grounds = dict(message.headers())
        where = (int(grounds[f"{ADDED}source.{name}"]) for name in ("partition", "offset"))
        return *_plain(message), *where

    found = _columns(broker.read(topic), look, 7)
    out_partitions, out_offsets, partitions, offsets = (_ints(found[n]) for n in (0, 1, 5, 6))
    keys, values, headers = (pa.array(found[n], pa.binary()) for n in (2, 3, 4))
    return DeadLetters(out_partitions, out_offsets, partitions, offsets, keys, headers, values)


def decode_all(values: Sequence[bytes], schema_id: int) -> pa.Table:
    """Prediction records as a table."""
    parts = [decode(pa.array(values[at : at + 10_000], pa.binary()), schema_id) for at in range(0, len(values), 10_000)]
    return pa.Table.from_batches(parts or [decode(pa.array([], pa.binary()), schema_id)])


def positions(prediction_ids: pa.ChunkedArray) -> tuple[Ints, Ints]:
    """Source partitions and offsets, of which prediction ids consist."""
    parts = pc.extract_regex(prediction_ids, r"-(?P<partition>\d+)-(?P<offset>\d+)$")
    partitions, offsets = (
        pc.cast(pc.struct_field(parts, name), pa.int64()).to_numpy() for name in ("partition", "offset")
    )
    return partitions, offsets


def _plain(message: Message) -> tuple[Any, ...]:
    own = [one for one in message.headers() or () if not one[0].startswith(ADDED)]
    return message.partition(), message.offset(), message.key(), message.value(), pack(own)


def _columns(reads: Iterable[Sequence[Message]], look: Look, width: int) -> list[list[Any]]:
    columns: list[list[Any]] = [[] for _ in range(width)]
    for messages in reads:
        for column, values in zip(columns, zip(*map(look, messages), strict=True), strict=False):
            column.extend(values)
    return columns


def _ints(values: Sequence[int]) -> Ints:
    return np.array(values, np.int64)


def _items(maps: pa.ChunkedArray) -> pa.Array:
    """The values of maps with one entry each: this topology has one score and one view."""
    items = maps.combine_chunks().items
    if len(items) != len(maps):
        raise ValueError(f"{len(items)} entries in {len(maps)} maps of one entry each")
    return items
