"""Promise: a process that answers in no form, or not at all, is ended and named, and leaves nothing behind."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from shadow_support import DTYPES, gone, order

from streamserve.agents import isolated
from streamserve.agents.isolated import DiedError, GreedyError, HungError, Isolated
from streamserve.errors import IsolatedError, ModelError
from streamserve.features.arrays import flat, listed, unflat, unlisted
from streamserve.models.registry import Registry

PYTHON = os.path.realpath(sys.executable)
ONES = {"features": np.ones((2, 3), np.float32)}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


PLAYED = """#!{python} -IS
import os, signal, socket, struct, sys, time
told, there, back = map(int, sys.argv[-3:])
door = socket.socket(fileno=told)

def ask():
    if not (length := door.recv(8, socket.MSG_WAITALL)):
        sys.exit(0)
    return os.pread(there, *struct.unpack("<Q", length), 0)

def send(message, length=None):
    os.pwrite(back, message, 0)
    os.ftruncate(back, len(message))
    door.sendall(struct.pack("<Q", len(message) if length is None else length))

ask()
send({loaded})
{act}
"""
LOADED = b'{"error": "", "inputs": [], "outputs": []}'
WAYS = {
    "ask(); sys.exit(3)": (DiedError, "exit code 3"),
    "ask(); os.kill(os.getpid(), signal.SIGSEGV)": (DiedError, "SIGSEGV"),
    "os.kill(os.getpid(), 35)": (DiedError, "signal 35|SIGRTMIN"),
    "ask(); door.sendall(bytes(4)); sys.exit(1)": (DiedError, "exit code 1"),
    "ask(); door.sendall(bytes(4)); signal.pause()": (HungError, "in time"),
    "ask(); send(b'half', 8); signal.pause()": (IsolatedError, "of 8 bytes 4 are there"),
    "ask(); door.close(); signal.pause()": (DiedError, "closed its end"),
    "ask(); send(b'', 1 << 62); signal.pause()": (GreedyError, "may have"),
    "signal.pause()": (HungError, "in time"),
}


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Begin a process that acts so, once it has said that it is loaded."""
    begun: list[int] = []

    def begin(act: str, loaded: bytes = LOADED) -> Isolated:
        script = tmp_path / "played"
        script.write_text(PLAYED.format(python=PYTHON, act=act, loaded=loaded))
        script.chmod(0o755)
        monkeypatch.setattr(isolated.sys, "executable", str(script))
        made = Isolated(order(Registry(tmp_path)), 1 << 30)
        begun.append(made.pid)
        made.start()
        return made

    yield begin
    assert all(map(gone, begun))


@pytest.mark.parametrize("act", WAYS)
def test_a_process_that_does_not_keep_to_the_form_is_ended_and_named(played, act):
    kind, words = WAYS[act]
    made = played(act)
    sheet = pa.record_batch({"x": pa.array(np.zeros(1 << 18))})  # more than a socket takes at once
    with pytest.raises(kind, match=words):
        made.ask([sheet], 0.5 if kind is HungError else 30)
    assert gone(made.pid)
    with pytest.raises(IsolatedError):
        made.ask([sheet], 30)


def test_nothing_is_left_after_many(played):
    acts = ["ask(); sys.exit(3)", "signal.pause()", "ask(); os.abort()"]
    threads, files = threading.active_count(), open_files()
    for number in range(50):
        made = played(acts[number % 3])
        if number % 3 == 1:
            made.close()
        else:
            with pytest.raises(IsolatedError):
                made.run(ONES, ["probabilities"])
    assert (threading.active_count(), open_files()) == (threads, files)


@pytest.mark.parametrize("loaded", [b"", b"{}", b"\xff", b"[]", b'{"error": "", "inputs": [{}], "outputs": []}'])
def test_one_that_does_not_say_what_it_has_loaded_is_ended(played, loaded):
    """The fixture looks for what is left over."""
    with pytest.raises((ModelError, ValueError, KeyError, TypeError)):
        played("signal.pause()", loaded)


def test_one_that_can_not_be_loaded_says_why(played):
    with pytest.raises(DiedError, match="no room"):
        played("signal.pause()", b'{"error": "no room"}')


@pytest.mark.parametrize("answer", [b"", b"{}", b"ARROW1"])
def test_an_answer_that_is_no_table_is_an_error_and_nothing_else(played, answer):
    made = played(f"ask(); send({answer!r}); signal.pause()")
    with pytest.raises((ModelError, pa.ArrowInvalid)):
        made.run(ONES, ["probabilities"])
    made.close()


# ---- what goes to and fro

shapes = arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)
anything = st.sampled_from([*DTYPES[:-1]]).flatmap(lambda kind: arrays.arrays(kind, shapes))
texts = shapes.flatmap(
    lambda shape: arrays.arrays(object, shape, elements=st.text(st.characters(exclude_categories=["Cs"])))
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(anything | texts, st.booleans(), st.integers(0, 4))
def test_an_array_is_the_same_after_arrow(values, turned, start):
    """turned: not contiguous. start: rows cut off, as of a part of a column."""
    values = values.T if turned else values
    for part in (values, values[start:]):
        column = listed(values)[start:] if part is not values else listed(values)
        back = unlisted(column, str(values.dtype), values.shape[1:])
        whole = unflat(flat(part), str(values.dtype), part.shape)
        for one in (back, whole):
            assert (one.dtype, one.shape) == (part.dtype, part.shape)
            assert one.tolist() == part.tolist() or one.tobytes() == np.ascontiguousarray(part).tobytes()
