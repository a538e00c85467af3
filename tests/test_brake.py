"""Promise: a wrong deployment does not empty a topic into the dead letters, and what was mended needs no restart."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import ROOT, Project, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Broker, Record, linear_model, renamed

from streamserve.delivery.brake import PAUSES_S, PROBE_ROWS, WINDOW, Brake

HERE = ROOT / "tests" / "topologies"
pure = settings(deadline=None, derandomize=True, max_examples=200)
ROWS = 4000


def held(limit: float = 0.5) -> Brake:
    brake = Brake(limit)
    brake.learn(WINDOW, WINDOW, 0.0)
    assert brake.held
    return brake


def test_it_holds_when_too_many_of_the_last_events_failed():
    brake = Brake(0.5)
    brake.learn(900, 900, 0.0)
    assert brake.rows(ROWS, 0, 0.0) == ROWS, "too few events to say"
    brake.learn(100, 0, 0.0)
    assert brake.held
    assert brake.rows(ROWS, 0, PAUSES_S[0] - 0.1) == 0


def test_a_few_bad_ones_among_good_ones_do_not():
    brake = Brake(0.5)
    for at in range(100):
        brake.learn(100, 50, float(at))
    assert brake.rows(ROWS, 3, 100.0) == ROWS


def test_one_probe_at_a_time_after_growing_pauses():
    brake, now = held(), 0.0
    for pause in (5.0, 10.0, 20.0, 40.0, 60.0, 60.0):
        assert brake.rows(ROWS, 0, now + pause - 0.01) == 0
        now += pause
        assert brake.rows(ROWS, 1, now) == 0, "what was read before goes first"
        assert brake.rows(ROWS, 0, now) == PROBE_ROWS
        brake.read()
        assert brake.rows(ROWS, 0, now + 1000) == 0, "one at a time"
        brake.learn(PROBE_ROWS, PROBE_ROWS, now)


def test_a_probe_that_comes_out_well_lets_the_stream_flow():
    brake = held()
    brake.read()
    brake.learn(PROBE_ROWS, 1, 6.0)
    assert brake.rows(ROWS, 3, 6.0) == ROWS
    brake.learn(100, 100, 7.0)
    assert not brake.held, "what failed before is forgotten"


def test_at_one_it_never_holds():
    brake = Brake(1.0)
    brake.learn(10 * WINDOW, 10 * WINDOW, 0.0)
    assert brake.rows(ROWS, 0, 0.0) == ROWS


@pure
@given(st.lists(st.tuples(st.integers(1, 600), st.floats(0, 1)), max_size=40), st.sampled_from([0.0, 0.2, 0.5]))
def test_it_holds_as_soon_as_a_full_window_is_over_the_limit(batches, limit):
    """Against all batches: those of late that make up a window, and no older one."""
    brake, said = Brake(limit), []
    for rows, share in batches:
        letters = int(rows * share)
        said.append((rows, letters))
        brake.learn(rows, letters, 0.0)
        events = total = 0
        for n, bad in reversed(said):
            events, total = events + n, total + bad
            if events >= WINDOW:
                break
        over = events >= WINDOW and total / events > limit
        assert brake.held == over
        if over:
            return


@pytest.mark.services
def test_reading_pauses_and_goes_on(project: Project):
    """Garbage, then events: of the garbage only what was in flight when the brake took hold becomes dead letters."""
    shutil.copy(HERE / "reading.avsc", project.folder / "schemas")
    linear_model(project.folder / "model.onnx", [1, 1, 1])
    file = renamed(project, HERE / "readings.py", "braked")
    for words in (
        ("topics", "apply", file),
        ("models", "add", file, "v1", project.folder / "model.onnx"),
        ("topology", "init", file, "--version", "v1"),
    ):
        project.ok(*words)
    broker = Broker(project.endpoints.bootstrap)
    few = {"STREAMSERVE_BATCH_ROWS": "200"}
    worker = project.worker(file, **few)
    broker.produce("braked.events", [Record(f"k{n}".encode(), b"garbage") for n in range(5000)])
    wait_until(lambda: worker.get("/ready")[0] == 503, what="the brake")
    assert "became dead letters" in json.loads(worker.get("/ready")[1])["why"]
    assert worker.metric("streamserve_in_trouble") == 1
    letters = "streamserve_dead_letters_total"
    wait_until(lambda: worker.metric(letters) >= WINDOW, what="the dead letters of what was in flight")
    assert worker.metric(letters) <= WINDOW + 4 * 200 + PROBE_ROWS
    assert worker.stop() == 0, worker.log.read_text()

    through = project.worker(file, STREAMSERVE_DEAD_LETTER_SHARE="1")
    wait_until(lambda: through.metric("streamserve_dead_letters_total") > 3000, what="the rest of the garbage")
    assert through.get("/ready")[0] == 200
    assert through.stop() == 0, through.log.read_text()

    bad = [Record(f"k{n}".encode(), b"garbage") for n in range(WINDOW + 100)]
    good = [Record(f"k{n}".encode(), json.dumps({"id": str(n), "sensor": "s"}).encode()) for n in range(3000)]
    mended = project.worker(file, **few)
    broker.produce("braked.events", bad)
    wait_until(lambda: mended.get("/ready")[0] == 503, what="the brake")
    broker.produce("braked.events", good)
    wait_until(lambda: mended.metric("streamserve_predictions_total") == len(good), 60, "the good events")
    assert "events are scored again" in mended.log.read_text()
    assert mended.get("/ready")[0] == 200
    assert mended.stop() == 0, mended.log.read_text()
