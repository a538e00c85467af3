"""Promise: a version in a process of its own says what it would say in ours, and whatever it does ends with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import bad_models
import numpy as np
import pyarrow as pa
import pytest
from conftest import wait_until
from shadow_support import DTYPES, LATER, add, begun, decision, gone, order, told_to
from support import linear_model
from test_features import EVENT_SCHEMA
from test_pipeline import CATALOGUE, event

from streamserve.adapters.onnx import OnnxSession
from streamserve.agents import isolated
from streamserve.agents.isolated import DiedError, GreedyError, HungError, Isolated, Order, RemoteError
from streamserve.agents.isolated_child import _load
from streamserve.errors import IsolatedError, ModelMissingError, ModelTamperedError
from streamserve.models.registry import MANIFEST, Registry
from streamserve.pipeline.shadow_compare import compare
from streamserve.pipeline.shadow_decision import PINNED_ID
from streamserve.simulate.versions import LoadedVersions

MIB = 1 << 20
TICK = 1 / os.sysconf("SC_CLK_TCK")
HARMLESS, HARMFUL = [event(0), event(1)], [event(i) for i in range(8)]
ONES = {"features": np.ones((2, 3), np.float32)}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Registry:
    """A good version, all bad ones, and one that echoes every type."""
    root = tmp_path_factory.mktemp("models")
    for name, build in bad_models.BAD.items():
        add(root, build(root / f"{name}.onnx"), name)
    add(root, bad_models.crashes(root / "cold.onnx", 0.0), "cold")
    add(root, bad_models.hangs(root / "stuck.onnx", -1.0), "stuck")
    add(root, bad_models.echoes(root / "echoes.onnx", DTYPES), "echoes", ("x", "n"), scores={}, decision=None)
    return add(root, linear_model(root / "good.onnx", [1, -2, 0.5]), "good")


@pytest.fixture(scope="module")
def child(models):
    """The good version, begun."""
    with contextlib.closing(begun(models, "good")) as made:
        yield made


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def said(answer: pa.Table) -> tuple[list[dict[str, object]], dict[str, object]]:
    """The records of an answer, but for the clock's, and what is told of them."""
    records = [decision(value) for value in answer.column("value").to_pylist()]
    return [{**one, "compared_at": None} for one in records], json.loads(answer.schema.metadata[b"told"])


# ---- the same answers


def test_what_it_says_of_a_sheet_is_what_would_be_said_here(models, child):
    sheets, scorer = told_to(models, HARMFUL * 30, "good")
    here = [compare(sheet, scorer, PINNED_ID, LATER) for sheet in sheets * 2]
    records, told = said(child.ask(sheets * 2, 20))
    values = [value for one in here for value in one.values.to_pylist()]
    assert records == [{**decision(value), "compared_at": None} for value in values]
    assert (told["agreed"], told["decided"]) == (sum(one.agreed for one in here), sum(one.decided for one in here))
    assert told["errors"] == {}
    assert 0 < told["agreed"] < told["decided"]


def test_its_session_gives_the_bits_of_one_here(models, child):
    session = OnnxSession(models.folder("m", "good") / "model.onnx")
    for rows in (1, 7, 1000):
        given_ = {"features": np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)}
        (here,), (there,) = (one.run(given_, ["probabilities"]) for one in (session, child))
        assert (there.dtype, there.shape, there.tobytes()) == (here.dtype, here.shape, here.tobytes())
    assert (child.inputs, child.outputs) == (session.inputs, session.outputs)


def echoed(dtype: str, rows: int) -> np.ndarray:
    if dtype == "string":
        return np.array([["", "a\0b"], ["é\U0001f600", "x" * 9999]] * rows, object)[:rows]
    if dtype == "bool":
        return np.arange(2 * rows).reshape(rows, 2) % 3 == 0
    if dtype.startswith("float"):
        limits = np.finfo(dtype)
        odd = [np.nan, -0.0, np.inf, -np.inf, limits.max, limits.smallest_subnormal]
        return np.resize(np.array(odd, dtype), (rows, 2))
    limits = np.iinfo(dtype)
    return np.resize(np.array([limits.min, limits.max, 1], dtype), (rows, 2))


def test_arrays_of_every_type_go_there_and_come_back(models):
    with contextlib.closing(begun(models, "echoes")) as made:
        for rows in (1, 2, 5):
            given_ = {f"in_{name}": echoed(name, rows) for name in DTYPES}
            found = made.run(given_, [f"out_{name}" for name in DTYPES])
            for name, back in zip(DTYPES, found, strict=True):
                sent = given_[f"in_{name}"]
                assert (back.dtype, back.shape) == (sent.dtype, sent.shape), name
                assert (back.tolist() == sent.tolist()) if name == "string" else (back.tobytes() == sent.tobytes())
        (alone,) = made.run({f"in_{name}": echoed(name, 2) for name in DTYPES}, ["out_bool"])
        assert alone.tolist() == echoed("bool", 2).tolist()
        with pytest.raises(RemoteError, match="Invalid"):
            made.run({f"in_{name}": echoed(name, 2) for name in DTYPES}, ["no such output"])
        with pytest.raises(RemoteError, match="in_bool"):
            made.run({f"in_{name}": echoed(name, 2) for name in DTYPES if name != "bool"}, ["out_bool"])
        assert made.run(given_, ["out_int8"])[0].tolist() == given_["in_int8"].tolist(), "it goes on"


# ---- whatever it does


def test_one_that_crashes_names_the_signal_and_can_be_begun_again(models):
    for _ in range(2):
        made = begun(models, "crashes")
        good, bad = (told_to(models, values, "crashes")[0] for values in (HARMLESS, HARMFUL))
        assert len(said(made.ask(good, 20))[0]) == 2
        with pytest.raises(DiedError, match="ended by SIGFPE"):
            made.ask(bad, 20)
        assert gone(made.pid)


def test_one_that_hangs_is_ended_in_time(models):
    made = begun(models, "hangs")
    assert len(said(made.ask(told_to(models, HARMLESS, "hangs")[0], 20))[0]) == 2
    began = time.monotonic()
    with pytest.raises(HungError):
        made.ask(told_to(models, HARMFUL, "hangs")[0], 0.5)
    assert 0.5 <= time.monotonic() - began < 3
    assert gone(made.pid)


def test_one_that_hangs_is_left_when_the_worker_stops(models):
    closing = threading.Event()
    made = begun(models, "hangs", closing=closing.is_set)
    stopper = threading.Thread(target=lambda: (wait_until(lambda: busy(made.pid)), closing.set()))
    busy_from = cpu(made.pid)

    def busy(pid: int) -> bool:
        return cpu(pid) > busy_from + 0.1

    stopper.start()
    with pytest.raises(IsolatedError, match="the worker stops"):
        made.ask(told_to(models, HARMFUL, "hangs")[0], 60)
    stopper.join()
    assert gone(made.pid)


def test_one_that_eats_memory_is_ended_before_it_has_much(models):
    made = begun(models, "leaks", 600 * MIB)
    with pytest.raises(GreedyError, match="may have 600") as told:
        made.ask(told_to(models, HARMFUL, "leaks")[0], 10)
    assert int(str(told.value).partition("it took ")[2].split()[0]) < 1500
    assert gone(made.pid)


def test_one_that_eats_memory_and_answers_at_once_is_ended_as_well(models):
    made = begun(models, "good")
    sheets, _ = told_to(models, HARMLESS, "good")
    made.ask(sheets, 20)
    made._most = MIB
    with pytest.raises(GreedyError):
        made.ask(sheets, 20)
    assert gone(made.pid)


@pytest.mark.parametrize(("name", "errors"), [("raises", {"Fail": 1}), ("nan", {}), ("loses_rows", {"ValueError": 6})])
def test_what_fails_for_an_event_is_told_of_that_event(models, name, errors):
    """A batch that gives too few rows is halved until each is alone, where it still gives one too few."""
    sheets, scorer = told_to(models, HARMFUL, name)
    (told,) = (compare(sheet, scorer, PINNED_ID, LATER) for sheet in sheets)
    assert told.errors == errors
    records = [decision(value) for value in told.values.to_pylist()]
    assert [one["prediction_id"] for one in records] == [f"events-0-{i}" for i in range(8)]
    failed = {place for place, one in enumerate(records) if one["error"]}
    assert len(failed) == sum(errors.values())
    for place, one in enumerate(records):
        silent = place in failed or (name == "nan" and place == 3)
        assert (one["candidate_decision"] is None) == (one["agreement"] is None) == silent
        assert bool(one["candidate_scores"]) == (place not in failed)


def test_one_that_fails_for_an_event_goes_on(models):
    sheets, _ = told_to(models, HARMFUL, "raises")
    with contextlib.closing(begun(models, "raises")) as made:
        for _ in range(2):
            records, told = said(made.ask(sheets, 60))
            assert [one["error"] for one in records] == [None] * 3 + ["Fail"] + [None] * 4
            assert told["errors"] == {"Fail": 1}


# ---- a version is examined before the worker loads it


def loading(registry: Registry, seen: list[str], **more) -> LoadedVersions:
    def load(path):
        seen.append(path.parent.name)
        return OnnxSession(path)

    isolate = more.pop("isolate", lambda name: contextlib.closing(begun(registry, name)))
    return LoadedVersions(registry, CATALOGUE, EVENT_SCHEMA, load, (1, 7), isolate=isolate, **more)


def test_one_that_crashes_when_it_is_warmed_is_not_loaded_here(models):
    seen = []
    versions = loading(models, seen)
    with pytest.raises(DiedError, match="SIGFPE"):
        versions.get("cold")
    assert (seen, versions.loaded()) == ([], frozenset())
    versions.get("good")
    assert (seen, versions.loaded()) == (["good"], {"good"})


def test_one_that_hangs_when_it_is_warmed_is_not_loaded_here(models, monkeypatch):
    seen, made = [], []

    def isolate(name):
        made.append(begun(models, name))
        monkeypatch.setattr(isolated, "START_S", 0.3)  # once it is there
        return contextlib.closing(made[0])

    with pytest.raises(HungError):
        loading(models, seen, isolate=isolate).get("stuck")
    assert seen == []
    assert gone(made[0].pid)


def test_one_that_was_stable_before_is_not_examined_again(models):
    seen = []
    loading(models, seen, isolate=pytest.fail, proven=lambda: ("good",)).get("good")
    assert seen == ["good"]


# ---- what it is begun with


def test_it_answers_for_no_other_version_than_the_one_in_force(models, tmp_path):
    made = Isolated(order(models, "good", "0" * 64), 2 << 30)
    with pytest.raises(DiedError, match="is not the one that was put in force"):
        made.start()
    assert gone(made.pid)
    _load(order(models, "good", models.manifest_sha256("m", "good")))
    registry = add(tmp_path, linear_model(tmp_path / "v.onnx", [1, 1, 1]))
    right, folder = registry.manifest_sha256("m", "v9"), registry.folder("m", "v9")
    manifest, model = folder / MANIFEST, folder / "model.onnx"
    written = manifest.read_text()
    manifest.write_text(written.replace('"test"', '"best"'))
    with pytest.raises(ModelTamperedError, match="put in force"):
        _load(order(registry, "v9", right))
    manifest.write_text(written)
    model.write_bytes(model.read_bytes() + b" ")
    with pytest.raises(ModelTamperedError, match="was changed"):
        _load(order(registry, "v9", right))
    with pytest.raises(ModelMissingError):
        _load(order(registry, "v8"))


def test_an_order_is_read_as_it_was_written(models):
    asked = order(models, "good", "ab")
    assert Order.decode(asked.encode()) == asked


def test_it_steps_back_behind_everything_else(child, models):
    pid = child.pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"
    assert os.getsid(pid) == pid, "Ctrl-C in a terminal is not for it"
    os.kill(pid, signal.SIGINT)
    assert len(child.run(ONES, ["probabilities"])) == 1


PARENT = """
import sys, numpy as np
from streamserve.agents.isolated import Isolated, Order
made = Isolated(Order.decode(sys.argv[1].encode()), 2 << 30)
made.start()
print(made.pid, flush=True)
made.run({"features": np.full((2, 3), float(sys.argv[2]), np.float32)}, ["probabilities"])
print("answered", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("value", [1.0, 9.0])
def test_it_goes_when_its_parent_is_killed_be_it_idle_or_busy(models, value):
    asked = order(models, "hangs").encode().decode()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, asked, str(value)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        pid = int(parent.stdout.readline())
        before = cpu(pid)
        if value < 5:
            assert parent.stdout.readline() == b"answered\n"
        else:
            wait_until(lambda: cpu(pid) > before + 0.3)
        assert not gone(pid)
        parent.kill()
        wait_until(lambda: gone(pid), 10, "the child's end")
