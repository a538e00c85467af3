"""Promise: memory that came free goes back to the system, by a thread that ends with its worker."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import wait_until
from onnx import TensorProto, helper, numpy_helper
from support import save

from streamserve.adapters import memory

MIB = 1 << 20
BLOCK = 64 << 10  # too small for glibc to give back by itself
trims = pytest.mark.skipif(memory.trimmer() is None, reason="this C library keeps what it has, and tells nobody")


def resident_mib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // MIB


@trims
def test_what_lies_free_between_others_is_given_back():
    pool = pa.system_memory_pool()
    held = [pa.allocate_buffer(BLOCK, memory_pool=pool) for _ in range(200 * MIB // BLOCK)]
    for block in held:
        memoryview(block).cast("B")[::4096] = bytes(BLOCK // 4096)
    full = resident_mib()
    kept = held[::64]  # so that no end of the heap comes free
    del held, block
    closing = threading.Event()
    thread = threading.Thread(target=memory.keep_trimmed, args=(closing, 0.05), daemon=True)
    thread.start()
    wait_until(lambda: resident_mib() < full - 150, 10, "the memory of the freed blocks")
    closing.set()
    thread.join(10)
    assert not thread.is_alive()
    assert len(kept) == 50


@trims
def test_arrow_takes_its_buffers_from_the_library_that_gives_them_back(monkeypatch):
    chosen = []
    monkeypatch.setattr(pa, "set_memory_pool", chosen.append)
    monkeypatch.setattr(memory, "_function", lambda name, *_: None if name == "mallopt" else len)
    memory.set_up()
    assert [pool.backend_name for pool in chosen] == ["system"]


LARGE = """
import ctypes
import pyarrow as pa
from streamserve.adapters import memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in (*"abcd", "mapped", *"fghij")]

info = ctypes.CDLL(None).mallinfo
info.restype = Info
if {so}:
    memory.set_up()
pool = pa.system_memory_pool()
pa.allocate_buffer(16 << 20, memory_pool=pool)  # freed at once
before, held = info().mapped, [pa.allocate_buffer(1 << 20, memory_pool=pool) for _ in range(8)]
print(info().mapped - before >> 20)
"""


@trims
@pytest.mark.parametrize(("so", "mapped"), [(True, 8), (False, 0)])
def test_large_buffers_lie_alone_whatever_was_freed_before(so, mapped):
    said = subprocess.run([sys.executable, "-c", LARGE.format(so=so)], capture_output=True, text=True, check=True)
    assert int(said.stdout) == mapped


@pytest.mark.parametrize(
    ("readings", "given_up"),
    [
        ([(0, 0.0), (10_000, 1.0), (20_000, 2.0)], False),  # two percent
        ([(0, 0.0), (200_000, 1.0), (400_000, 2.0), (900_000, 3.0)], True),
        ([(0, 0.0), (200_000, 1.0), (210_000, 2.0), (410_000, 3.0)], False),  # never twice in a row
        ([(5, 1.0), (5, 1.0), (5, 1.0)], False),
    ],
)
def test_what_is_mapped_at_too_high_a_price_is_mapped_no_more(readings, given_up, monkeypatch):
    closing, given, asked = threading.Event(), iter(readings), []

    def usage():
        found = next(given, None)
        if found is None:
            closing.set()
            return memory.Usage(*readings[-1])
        return memory.Usage(*found)

    functions = {"malloc_trim": lambda _: 0, "mallopt": lambda *words: asked.append(words)}
    monkeypatch.setattr(memory, "_function", lambda name, *_: functions[name])
    memory.keep_trimmed(closing, 0.001, usage)
    assert asked == ([(memory.M_MMAP_THRESHOLD, memory.UNMAPPED)] if given_up else [])


def test_pages_and_seconds_are_counted():
    before = memory.Usage.now()
    pa.py_buffer(bytes(8 << 20))
    now = memory.Usage.now()
    assert now.faults > before.faults
    assert now.cpu >= before.cpu


HEAVY = """
import sys
from pathlib import Path
import numpy as np
from streamserve.adapters import memory
from streamserve.adapters.onnx import OnnxSession

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) >> 8

def load():
    session = OnnxSession(Path(sys.argv[1]))
    session.run({{"features": np.ones((4000, {width}), np.float32)}}, ("sum",))
    return session

memory.set_up()
load()
memory.trimmer()()
before, held = resident(), load()
during = resident()
del held
memory.trimmer()()
print(during - before, resident() - before)
"""


@trims
def test_a_version_that_is_freed_takes_its_memory_along(tmp_path):
    """A version of 64 MiB of weights, loaded, used and freed for the second time."""
    path, width = tmp_path / "heavy.onnx", 4096
    weights = numpy_helper.from_array(np.ones((width, width), np.float32), "weights")
    node = helper.make_node("MatMul", ["features", "weights"], ["sum"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width]) for name in ("features", "sum")]
    save(helper.make_graph([node], "heavy", ends[:1], ends[1:], [weights]), path)
    said = subprocess.run(
        [sys.executable, "-c", HEAVY.format(width=width), path], capture_output=True, text=True, check=True
    )
    held, left = map(int, said.stdout.split())
    assert held > 100
    assert left < 10


def test_a_library_that_can_not_trim_is_left_as_it_is(monkeypatch):
    chosen = []
    monkeypatch.setattr(memory, "_function", lambda *_: None)
    monkeypatch.setattr(pa, "set_memory_pool", chosen.append)
    memory.set_up()
    memory.keep_trimmed(threading.Event())
    assert chosen == []


PANDAS = """
import sys
import pyarrow as pa
from streamserve.adapters import memory
memory.leave_pandas_out()
said = [pa.array([1.0]).to_numpy().tolist(), "pandas" in sys.modules]
{needs}
said += [pa.array(pandas.Series([1.0, float("nan")])).null_count, pa.table({{"a": [1]}}).to_pandas()["a"].sum()]
assert sys.meta_path[0].__class__.__name__ != "_Pandas"
print(*said)
"""


@pytest.mark.parametrize(
    "needs", ["import pandas", "pa.table({'a': [1]}).to_pandas(); import pandas", "import pandas.api.types"]
)
def test_arrow_does_not_import_pandas_and_knows_it_once_somebody_does(needs):
    done = subprocess.run(
        [sys.executable, "-c", PANDAS.format(needs=needs)], capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["[1.0]", "False", "1", "1"], "")


def test_what_is_not_installed_is_not_missed():
    script = PANDAS.format(needs="sys.path[:] = []; import pandas")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: No module named 'pandas'" in done.stderr
