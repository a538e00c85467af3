"""Promise: what a batch took is free when it is done, and waits for no collector of cycles.

Python looks for objects that name each other now and then; until it does, whole batches can lie in such cycles, so that
a worker holds tens of megabytes more than it needs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest
from shadow_support import answered, compared, shadow, stub, under
from test_candidates import HALF
from test_decode_avro import FLIGHT, PATHS, flights
from test_decode_support import avro, framed, is_fast, raw_batch
from test_drift_tally import Tallying, known, tally  # noqa: F401
from test_pipeline import MOVING, NOW, STATIC, event, pipeline, raw

from streamserve.testing import StubModel


def left_by(run: Callable[[], object]) -> list[str]:
    """The types of what only a collector would free, after two runs that may fill caches and one that may not."""
    run(), run()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        run()
        gc.collect()
        return sorted(type(one).__name__ for one in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()


def test_a_cycle_is_seen():
    def run():
        def inner(n):
            return inner(n - 1) + array if n else array

        array = np.zeros(3)
        return inner(2)

    assert "function" in left_by(run)


@pytest.mark.parametrize("slow", [False, True])
def test_decoding_avro_leaves_nothing(slow):
    decoder = avro(FLIGHT, PATHS, slow=slow)
    assert is_fast(decoder) is not slow
    assert left_by(lambda: decoder.decode(raw_batch(flights(40)))) == []


def test_decoding_what_is_broken_leaves_nothing():
    decoder = avro(FLIGHT, PATHS)
    values = [*flights(40), b"", None, framed(b""), framed(b"\xff" * 9), framed(b"", 77)]
    assert left_by(lambda: decoder.decode(raw_batch(values))) == []


VIEWS = {"static": STATIC, "cutovers": MOVING, "a candidate": HALF, "a shadow": under(shadow(candidate="v3"))}


@pytest.mark.parametrize("view", VIEWS)
def test_a_whole_batch_leaves_nothing(view):
    """Some of it is broken, and two rows make the model fail."""
    made = pipeline()
    batch = raw([event(n) for n in range(20)] + [b"{", None], partitions=[n % 3 for n in range(22)])
    assert left_by(lambda: made.process(batch, VIEWS[view], NOW)) == []


def test_a_batch_that_is_counted_for_drift_leaves_nothing(known):  # noqa: F811
    made = pipeline()
    made._tallying = Tallying(v1=tally(known))
    batch = raw([event(n) for n in range(12)])
    assert left_by(lambda: made.process(batch, STATIC, NOW)) == []


def test_what_a_shadow_is_asked_and_says_leaves_nothing():
    candidate = stub(StubModel({"in": 3}, {"y": 1}, lambda x: x.sum(axis=1)))
    batch = answered([event(n) for n in range(12)], shadow())
    assert left_by(lambda: compared(batch, candidate)) == []
