"""Faults that are planted on purpose, one for each promise: they show that the promises are really looked at."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from fuzz.streams import VERSIONS, Stream
from streamserve.models.session import Array
from streamserve.pipeline.score import Scorer
from streamserve.records import ControlView, Outgoing, OutputBatch, RawBatch, Scores

ENOUGH = 3  # inputs of a batch from which on a fault shows
_kept: list[bytearray] = []


def plant(name: str, stream: Stream) -> None:
    """Break this stream so; an empty name breaks nothing."""
    if not name:
        return
    if name in SCORERS:
        for version in VERSIONS:
            SCORERS[name](stream.versions.get(version).scorer)
        return
    whole, fault = stream.pipeline.process, FAULTS[name]

    def process(raw: RawBatch, view: ControlView, now_ms: int) -> OutputBatch:
        out = whole(raw, view, now_ms)
        return fault(out) if len(raw) >= ENOUGH else out

    stream.process = process


def _predictions(out: OutputBatch, change: Callable[[Outgoing], Outgoing]) -> OutputBatch:
    return replace(out, outgoing=(change(out.outgoing[0]), *out.outgoing[1:]))


def _lost(out: OutputBatch) -> OutputBatch:
    return _predictions(out, lambda said: said.take(np.arange(len(said) - 1)) if len(said) else said)


def _doubled(out: OutputBatch) -> OutputBatch:
    return _predictions(out, lambda said: said.take(np.array([*range(len(said)), 0])) if len(said) else said)


def _letters(out: OutputBatch, change: Callable[[Outgoing], Outgoing]) -> OutputBatch:
    return replace(out, outgoing=(out.outgoing[0], *map(change, out.outgoing[1:])))


def _changed(out: OutputBatch) -> OutputBatch:
    """The last byte of each dead letter's value."""

    def bent(values: pa.BinaryArray) -> pa.BinaryArray:
        return pa.array([v[:-1] + bytes([v[-1] ^ 1]) if v else v for v in values.to_pylist()], pa.binary())

    return _letters(out, lambda letters: replace(letters, values=bent(letters.values)))


def _no_headers(out: OutputBatch) -> OutputBatch:
    return _predictions(out, lambda said: replace(said, headers=None))


def _swapped(out: OutputBatch) -> OutputBatch:
    """Each prediction under the key of the one after it."""
    return _predictions(
        out, lambda said: replace(said, keys=said.keys.take(pa.array(np.roll(np.arange(len(said)), 1))))
    )


def _mistaken(out: OutputBatch) -> OutputBatch:
    """Each event's prediction is that of the one before it."""
    return _predictions(
        out, lambda said: replace(said, values=said.values.take(pa.array(np.roll(np.arange(len(said)), 1))))
    )


def _longer(out: OutputBatch) -> OutputBatch:
    return _predictions(
        out, lambda said: replace(said, values=pa.array([v + b"\0" for v in said.values.to_pylist()], pa.binary()))
    )


def _no_grounds(out: OutputBatch) -> OutputBatch:
    own = out.raw.headers
    return _letters(
        out, lambda letters: replace(letters, headers=None if own is None else own.take(pa.array(letters.rows)))
    )


def _raised(_: OutputBatch) -> OutputBatch:
    raise ZeroDivisionError("planted")


def _hang(out: OutputBatch) -> OutputBatch:
    time.sleep(3600)
    return out


def _crash(_: OutputBatch) -> OutputBatch:
    os.abort()


def _leak(out: OutputBatch) -> OutputBatch:
    _kept.append(bytearray(b"\1" * (4 << 20)))
    return out


def _no_number(scorer: Scorer) -> None:
    """The first score of each batch is NaN, whatever the model says."""
    score = scorer.score

    def changed(*given: Any) -> Scores:
        said = score(*given)
        said.values[:1] = np.nan
        said.decisions[:1] = -1
        return said

    scorer.score = changed  # type: ignore[method-assign]


def _neighbourly(scorer: Scorer) -> None:
    """A model whose scores depend on how many rows it is given."""
    session = scorer._session  # noqa: SLF001

    class Session:
        inputs, outputs = session.inputs, session.outputs

        def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
            said = session.run(inputs, outputs)
            return [one * np.float32(1 + 1e-6 * len(one)) for one in said]

    scorer._session = Session()  # noqa: SLF001


FAULTS: dict[str, Callable[[OutputBatch], OutputBatch]] = {
    "lost": _lost, "doubled": _doubled, "dead letter": _changed, "grounds": _no_grounds, "headers": _no_headers,
    "id": _mistaken, "record": _longer,
    "key": _swapped, "exception": _raised, "hang": _hang, "crash": _crash, "memory": _leak,
}  # fmt: skip
SCORERS: dict[str, Callable[[Scorer], None]] = {"neighbours": _neighbourly, "scores": _no_number}
