"""A version in a process of its own: whatever it does there, nobody else's memory, threads or interpreter are touched.

One that takes its process down, hangs or eats memory is ended and begun again; who waits for it is told which it was.
What goes to and fro are Arrow tables, each in a file in memory of its direction; a pair of sockets tells of its length.
Through the sockets themselves a table would take ten turns of both sides, at 208 kB each.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from streamserve.adapters.schema_ids import schema_ids
from streamserve.control.state import State
from streamserve.errors import IsolatedError, ModelError
from streamserve.features.arrays import listed, unflat
from streamserve.models.manifest import Tensor
from streamserve.models.session import Array, SessionSettings
from streamserve.pipeline.shadow_decision import SCHEMA_TEXT
from streamserve.settings import Settings
from streamserve.topology import Topology

LENGTH = struct.Struct("<Q")
LOOK_S = 0.05  # between two looks at a process that does not answer
START_S = 120.0  # what it may take to import its libraries and load its model
PAGE = os.sysconf("SC_PAGE_SIZE")


class DiedError(IsolatedError):
    """It ended by itself: by a signal, or because its version can't be loaded."""


class HungError(IsolatedError):
    """It did not answer in time, and was ended."""


class GreedyError(IsolatedError):
    """It took more memory than it may, and was ended."""


class RemoteError(ModelError):
    """The model failed in its process, which goes on."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a process is told at its start. manifest: sha256 of the version's manifest."""

    registry: str
    model: str
    version: str
    manifest: str
    schema_id: int
    session: SessionSettings

    def encode(self) -> bytes:
        return json.dumps(asdict(self), default=str).encode()

    @classmethod
    def decode(cls, value: bytes | bytearray) -> Order:
        found = json.loads(value)
        folders = {name: None if (path := found["session"][name]) is None else Path(path) for name in _FOLDERS}
        return cls(**{**found, "session": SessionSettings(**{**found["session"], **folders})})


_FOLDERS = ("optimised", "engines")


class Isolated:
    """One process. Its caller serialises the calls.

    Args:
        most: bytes of memory that it may have.
        closing: asked while it is waited for; True: give up.
    """

    def __init__(self, order: Order, most: int, closing: Callable[[], bool] = lambda: False) -> None:
        self._most, self._closing = most, closing
        self._socket, far = socket.socketpair()
        self._socket.settimeout(LOOK_S)
        self._there, self._back = _in_memory(), _in_memory()
        with far:
            doors = [far.fileno(), self._there.fileno(), self._back.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streamserve.agents.isolated_child", *map(str, doors)],
                pass_fds=doors,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # who stops the worker from a terminal does not stop this one first
            )
        self._order = order

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Wait until the version is loaded.

        Raises:
            IsolatedError: it can't be, with the reason.
        """
        try:
            with self._or_ended():
                self._tell(self._order.encode())
                answer = json.loads(self._answer(START_S))
            if not (why := answer["error"]):
                told = (map(Tensor.model_validate, answer[of]) for of in ("inputs", "outputs"))
                self.inputs, self.outputs = map(tuple, told)
        except BaseException:  # whatever it said, nobody will ask it again
            self.close()
            raise
        if why:
            self.close()
            raise DiedError(why)

    def tell(self, sheets: Sequence[pa.RecordBatch]) -> None:
        """Ask it about sheets of one schema: see `isolated_child`. Its answer is to be taken before it is asked again.

        Raises:
            IsolatedError: it is gone.
        """
        with self._or_ended():
            self._tell(stream(sheets))

    def answer(self, seconds: float) -> pa.Table:
        """What it says to that.

        Raises:
            IsolatedError: nothing, in so many seconds; the process is gone.
        """
        with self._or_ended():
            found = self._answer(seconds)
        return pa.ipc.open_stream(found).read_all()

    def ask(self, sheets: Sequence[pa.RecordBatch], seconds: float) -> pa.Table:
        """Both at once."""
        self.tell(sheets)
        return self.answer(seconds)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
        """Run the model there: so a process is a `Session`.

        Raises:
            IsolatedError: it did not answer, and is gone.
            RemoteError: the model failed.
        """
        told = {
            "inputs": {name: (str(values.dtype), values.shape[1:]) for name, values in inputs.items()},
            "outputs": outputs,
        }
        sheet = pa.RecordBatch.from_arrays([listed(values) for values in inputs.values()], names=list(inputs))
        answer = self.ask([sheet.replace_schema_metadata({"run": json.dumps(told)})], START_S)
        told = json.loads(answer.schema.metadata[b"ran"])
        if told["error"]:
            raise RemoteError(told["error"])
        columns = (answer.column(place).combine_chunks().values for place in range(answer.num_columns))
        return [unflat(column, *of) for column, of in zip(columns, told["outputs"], strict=True)]

    @contextlib.contextmanager
    def _or_ended(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._died() from error
        except IsolatedError:
            self.close()
            raise

    def _tell(self, message: bytes | pa.Buffer) -> None:
        if self._there.closed:
            raise DiedError("it has ended")
        self._check_memory()  # of one that answers at once it would not be looked at below
        self._socket.sendall(put(self._there.fileno(), message))

    def _answer(self, seconds: float) -> bytearray:
        (length,) = LENGTH.unpack(self._receive(LENGTH.size, time.monotonic() + seconds))
        if length > self._most:
            raise GreedyError(f"its answer is of {length >> 20} MiB, and it may have {self._most >> 20} of memory")
        return got(self._back.fileno(), length)

    def _receive(self, size: int, limit: float) -> bytearray:
        found = bytearray(size)
        rest = memoryview(found)
        while rest:
            try:
                count = self._socket.recv_into(rest)
            except TimeoutError:
                self._look(limit)
                continue
            if not count:
                raise self._died()
            rest = rest[count:]
        return found

    def _look(self, limit: float) -> None:
        if self._closing():
            raise IsolatedError("the worker stops")
        self._check_memory()
        if time.monotonic() > limit:
            raise HungError("it did not answer in time")

    def _check_memory(self) -> None:
        if (used := _resident(self.pid)) > self._most:
            raise GreedyError(f"it took {used >> 20} MiB of memory, and may have {self._most >> 20}")

    def _died(self) -> DiedError:
        self._shut()
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.close()
            return DiedError("it closed its end")
        return DiedError(
            f"its process was ended by {_signal(-code)}" if code < 0 else f"it ended with exit code {code}"
        )

    def close(self) -> None:
        """End it, whatever it does."""
        self._shut()
        self._process.kill()
        self._process.wait()

    def _shut(self) -> None:
        for door in (self._socket, self._there, self._back):
            door.close()


def isolation(
    settings: Settings, topology: Topology, state: Callable[[], State], closing: Callable[[], bool]
) -> Callable[[str], Isolated]:
    """What begins a version of a topology's model in a process of its own, and waits until it is loaded.

    closing: as of `Isolated`.

    Raises:
        StreamserveError: the schema of shadow decisions has no id.
    """
    schema_id = schema_ids(settings).id_of(f"{topology.topic('shadow-decisions')}-value", SCHEMA_TEXT)

    def begin(version: str) -> Isolated:
        manifest, session = state().manifest(version) or "", SessionSettings.of(settings)
        order = Order(str(settings.registry), topology.model, version, manifest, schema_id, session)
        made = Isolated(order, settings.shadow_memory, closing)
        made.start()
        return made

    return begin


def _in_memory() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("streamserve"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def put(file: int, message: bytes | pa.Buffer) -> bytes:
    """Write a message to its file; returns what tells of it."""
    rest, place = memoryview(message), 0
    while rest:
        count = os.pwrite(file, rest, place)
        rest, place = rest[count:], place + count
    return LENGTH.pack(place)


def got(file: int, length: int) -> bytearray:
    """A message of its file.

    Raises:
        IsolatedError: it is not there, whatever was told.
    """
    found, place = bytearray(length), 0
    while place < length:
        count = os.preadv(file, [memoryview(found)[place:]], place)
        if not count:
            raise IsolatedError(f"of a message of {length} bytes {place} are there")
        place += count
    return found


def stream(batches: Sequence[pa.RecordBatch]) -> pa.Buffer:
    """Batches of one schema as one message."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


def _resident(pid: int) -> int:
    """Bytes of a process that are in memory; 0 where that can't be known."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
