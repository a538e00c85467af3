"""The process of an isolated version: it loads the version, then answers sheets with records until its parent is gone.

Below everything else in priority, the first to go when memory runs out, and dead when its parent is.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa

from streamserve.adapters import memory
from streamserve.adapters.onnx import OnnxSession
from streamserve.agents.isolated import LENGTH, Order, got, put, stream
from streamserve.errors import ModelTamperedError, StreamserveError
from streamserve.features.arrays import flat, unlisted
from streamserve.models.registry import Registry
from streamserve.models.session import Session
from streamserve.pipeline.score import Scorer
from streamserve.pipeline.shadow_compare import compare
from streamserve.simulate.versions import open_version

NICER = 10
FIRST_TO_GO = "1000"
PR_SET_PDEATHSIG = 1


def main() -> None:
    door = Door(*map(int, sys.argv[1:]))
    _stand_back()
    memory.leave_pandas_out()
    order = Order.decode(door.receive())
    try:
        scorer, session = _load(order)
    except Exception as error:  # noqa: BLE001  (told to the parent, which knows whom to tell)
        why = error.what if isinstance(error, StreamserveError) else f"{type(error).__name__}: {error}"
        door.send(json.dumps({"error": why}).encode())
        return
    tensors = {
        "inputs": [one.model_dump() for one in session.inputs],
        "outputs": [one.model_dump() for one in session.outputs],
    }
    door.send(json.dumps({"error": "", **tensors}).encode())
    while True:
        asked = pa.ipc.open_stream(door.receive()).read_all().combine_chunks().to_batches()[0]
        answer = _run(asked, session) if b"run" in asked.schema.metadata else _compare(asked, scorer, order.schema_id)
        door.send(stream([answer]))


def _run(asked: pa.RecordBatch, session: Session) -> pa.RecordBatch:
    """The model's outputs, each as one list of all its values."""
    told = json.loads(asked.schema.metadata[b"run"])
    inputs = {name: unlisted(asked.column(name), *told["inputs"][name]) for name in asked.schema.names}
    try:
        found = session.run(inputs, told["outputs"])
    except Exception as error:  # noqa: BLE001  (raised again where it was asked for)
        return _told("ran", {"error": str(error)}, {})
    shapes = [(str(values.dtype), values.shape) for values in found]
    columns = {str(place): flat(values) for place, values in enumerate(found)}
    lists = {name: pa.ListArray.from_arrays([0, len(values)], values) for name, values in columns.items()}
    return _told("ran", {"error": "", "outputs": shapes}, lists)


def _compare(asked: pa.RecordBatch, scorer: Scorer, schema_id: int) -> pa.RecordBatch:
    found = compare(asked, scorer, schema_id, time.time_ns() // 1_000_000)
    told = {"agreed": found.agreed, "decided": found.decided, "errors": found.errors}
    return _told("told", told, {"value": found.values})


def _told(name: str, about: object, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    return batch.replace_schema_metadata({name: json.dumps(about)})


def _stand_back() -> None:
    """What can't be had on a system is done without."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(NICER)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO, "ascii")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _load(order: Order) -> tuple[Scorer, Session]:
    registry = Registry(Path(order.registry))
    found = registry.manifest_sha256(order.model, order.version)
    if order.manifest and found != order.manifest:
        raise ModelTamperedError(
            f"the manifest of {order.model} {order.version} is not the one that was put in force",
            where=str(registry.folder(order.model, order.version)),
        )
    manifest, session = open_version(registry, order.model, order.version, partial(OnnxSession, settings=order.session))
    return Scorer(manifest, session), session


class Door:
    """To the parent; without it, this process has nothing to do."""

    def __init__(self, told: int, there: int, back: int) -> None:
        self._told, self._there, self._back = socket.socket(fileno=told), there, back

    def receive(self) -> bytearray:
        length = self._told.recv(LENGTH.size, socket.MSG_WAITALL)
        if len(length) < LENGTH.size:
            sys.exit(0)
        return got(self._there, *LENGTH.unpack(length))

    def send(self, message: bytes | pa.Buffer) -> None:
        try:
            self._told.sendall(put(self._back, message))
        except OSError:
            sys.exit(0)


if __name__ == "__main__":
    main()
