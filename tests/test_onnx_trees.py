"""Promise: a session with compiled trees gives the bits of ONNX Runtime for any rows, or leaves the model to it."""

from __future__ import annotations

import gc
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import tree_models as models
from ensembles import KINDS, Form, ensemble, forms, write
from hypothesis import Phase, given, settings
from onnx import helper
from onnx_support import ROWS, WIDTH
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tree_models import ALONE, PLAIN, TREES, check_same, comparable, opened, rows_of, said

from streamserve.adapters import onnx_trees
from streamserve.adapters.onnx import OnnxSession
from streamserve.adapters.onnx_ensembles import LeftAlone, Trees, nodes_of, parse
from streamserve.errors import SignatureError
from streamserve.models.session import SessionSettings

pytestmark = pytest.mark.skipif(onnx_trees.library() is None, reason="there is no C compiler here")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("trees") / "m.onnx"


@pytest.fixture
def lanes():
    yield onnx_trees.library().use_lanes
    onnx_trees.library().use_lanes(16)


# ---- bits


@pytest.mark.parametrize("kind", KINDS)
def test_any_ensemble_gives_the_bits_of_the_runtime_for_any_rows_with_any_lanes(kind, path, lanes):
    @settings(max_examples=40, deadline=None, database=None, phases=[Phase.generate])
    @given(forms(kind))
    def any_ensemble(form):
        made = ensemble(form)
        plain, (session, taken) = OnnxSession(made.write(path), PLAIN), opened(path)
        for count in (1, int(made.random.integers(2, 41)), 300):
            rows = made.rows(count)
            expected = said(plain, rows)
            for width in (4, 8, 16):
                lanes(width)
                assert said(session, rows) == expected, f"{count} rows, {width} lanes"
        assert taken

    any_ensemble()


def test_an_answer_that_no_probe_meets_has_the_bits_of_the_runtime_as_well(path):
    plain, session = OnnxSession(models.cornered(path), PLAIN), OnnxSession(path)
    rows = np.ones((1, 19), np.float32)
    assert said(session, rows) == said(plain, rows)


def test_two_nodes_of_trees_in_one_model_are_both_compiled(path):
    first, second = (ensemble(Form(width=WIDTH, seed=seed)) for seed in (1, 2))
    nodes = [first.node(), second.node(), helper.make_node("Add", ["scores", "more"], ["sum"])]
    nodes[1].output[0] = "more"
    write(path, nodes, [("sum", models.FLOAT, [None, 1])], [None, WIDTH])
    check_same(path, ROWS, compiled=True)


# ---- whole libraries' models


@pytest.mark.parametrize(
    ("objective", "classes", "more", "compiled"),
    models.LIGHTGBM,
)
def test_lightgbm_gives_the_bits_of_the_runtime(path, objective, classes, more, compiled):
    models.boosted(path, objective, classes, **more)
    rows = np.concatenate([ROWS, rows_of(path)]) if compiled else np.round(ROWS * 2)
    check_same(path, rows, compiled=compiled)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("kind", "classes", "compiled"),
    models.SCIKIT_LEARN,
)
def test_scikit_learn_gives_the_bits_of_the_runtime(path, kind, classes, compiled, scaled):
    models.fitted(path, make_pipeline(StandardScaler(), kind()) if scaled else kind(), classes)
    taken = compiled and not scaled  # what the trees are fed can't be probed behind a scaler
    check_same(path, np.concatenate([ROWS, rows_of(path)]) if taken else ROWS, compiled=taken)


# ---- what is left alone


@pytest.mark.parametrize("case", ALONE)
def test_what_the_compiled_trees_do_not_know_is_left_to_the_runtime(path, caplog, case):
    make, why = ALONE[case]
    made = make(path)
    names = [one.name for one in OnnxSession(made, PLAIN).inputs]
    caplog.set_level(logging.DEBUG, "streamserve.onnx")
    session, taken = opened(made)
    rows = ROWS[:64, :2].astype(np.float64 if case == "double" else np.float32)
    outputs = [one.name for one in session.outputs]
    given = dict.fromkeys(names, rows)
    found, expected = (one.run(given, outputs) for one in (session, OnnxSession(made, PLAIN)))
    assert comparable(found) == comparable(expected)
    assert not taken
    assert why in caplog.text
    assert [one.levelname for one in caplog.records] == ["DEBUG"]


@pytest.mark.parametrize("form", models.FORMS_OF_MODELS)
def test_a_model_that_the_runtime_serves_is_served_with_the_same_signature(path, caplog, form):
    made = models.FORMS_OF_MODELS[form](path)
    plain, session = OnnxSession(made, PLAIN), OnnxSession(made)
    rows = ROWS[:64, : models.WIDTHS.get(form, 2)]
    outputs = [one.name for one in plain.outputs]
    found, expected = (one.run({"features": rows}, outputs) for one in (session, plain))
    assert comparable(found) == comparable(expected)
    assert (session.inputs, session.outputs) == (plain.inputs, plain.outputs)
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_trees_without_a_free_batch_axis_are_refused_as_any_model_is(path):
    with pytest.raises(SignatureError, match="not a free batch axis"):
        OnnxSession(models.only([TREES.node()], (4, 2), said=[("scores", models.FLOAT, [4, 1])])(path))


@pytest.mark.parametrize(("attributes", "why"), models.BROKEN)
def test_broken_trees_are_refused_before_anything_is_built_of_them(attributes, why):
    node = ensemble(Form((2,), width=2, shuffled=False), **attributes).node()
    model = helper.make_model(helper.make_graph([node], "broken", [], []))
    [found] = nodes_of(parse(model.SerializeToString()))
    with pytest.raises(LeftAlone, match=why):
        onnx_trees._operator(onnx_trees.library(), Trees(found), 0)


def test_a_large_file_is_left_alone(path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "streamserve.onnx")
    size = TREES.write(path).stat().st_size
    for largest, compiled in ((size, True), (size - 1, False)):
        monkeypatch.setattr(onnx_trees, "LARGEST", largest)
        check_same(path, ROWS[:9, :2], compiled=compiled)
    assert "too large to be looked at" in caplog.text


def test_without_the_compiled_part_the_runtime_serves(path, monkeypatch):
    monkeypatch.setattr(onnx_trees, "library", lambda: None)
    check_same(TREES.write(path), ROWS[:9, :2], compiled=False)


# ---- a disagreement


@pytest.mark.parametrize(("array", "leaves", "places"), [("weights", (2,), 2), ("values", (2,) * 6, 18)])
@pytest.mark.parametrize("seed", range(5))
def test_a_number_that_is_off_by_the_least_is_caught_and_the_runtime_serves(
    path, monkeypatch, caplog, array, leaves, places, seed
):
    made = ensemble(Form(leaves, width=4, missing=False, seed=seed))
    meant = [n for n in range(places) if array == "weights" or made.attributes["nodes_modes"][n] != "LEAF"]
    read, plain = Trees._read, OnnxSession(made.write(path), PLAIN)
    for place in meant:

        def planted(self, what, place=place):
            found = read(self, what)
            found[array] = found[array].copy()
            found[array][place] = np.nextafter(found[array][place], np.float32(np.inf))
            return found

        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Trees, "_read", planted)
            session, taken = opened(path)
        assert not taken, place
        assert "compiled trees say other" in caplog.text
        assert said(session, ROWS[:50, :4]) == said(plain, ROWS[:50, :4])


# ---- batches


@pytest.mark.parametrize("kind", ["a sum", "two classes by votes", "three classes"])
def test_rows_of_any_width_and_number_are_scored_or_refused(path, kind):
    made = ensemble(Form(leaves=(4, 5, 6), width=4, **KINDS[kind]))
    made.write(path, any_width=True)
    session, taken = opened(path)
    assert taken
    empty = session.run({"features": np.empty((0, 4), np.float32)}, [one.name for one in session.outputs])
    assert [len(one) for one in empty] == [0] * len(session.outputs)
    assert said(session, made.rows(5)) != said(session, np.empty((0, 4), np.float32))
    wide = np.pad(made.rows(7), ((0, 0), (0, 5)))
    assert said(session, wide) == said(OnnxSession(path, PLAIN), wide)
    for width in range(4):
        with pytest.raises(Exception, match="a feature that rows lack"):
            session.run({"features": np.zeros((3, width), np.float32)}, ["scores"])
    with pytest.raises(Exception, match="Invalid rank"):
        session.run({"features": np.zeros(4, np.float32)}, ["scores"])


# ---- lives of sessions


def test_sessions_that_are_opened_at_once_each_have_their_own_trees(tmp_path):
    made = [ensemble(Form(seed=seed, **KINDS[kind])) for seed in range(8) for kind in ("a sum", "three classes")]
    paths = [one.write(tmp_path / f"{n}.onnx") for n, one in enumerate(made)]
    rows = made[0].rows(100)
    expected = [said(OnnxSession(path, PLAIN), rows) for path in paths]
    assert len({one[-1] for one in expected}) == len(paths)

    def open_and_score(n):
        session = OnnxSession(paths[n % len(paths)])
        return said(session, rows)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(open_and_score, range(len(paths) * 5))) == expected * 5


def test_what_one_thread_offers_the_runtime_is_not_taken_by_another(tmp_path, monkeypatch, caplog):
    both = Barrier(2, timeout=20)

    class Slow:
        """The compiled part, but no thread goes on to register its trees before the other has offered its own."""

        def __getattr__(self, name):
            return getattr(library, name)

        def operators_offer(self, *given):
            library.operators_offer(*given)
            both.wait()

    library = onnx_trees.library()
    monkeypatch.setattr(onnx_trees, "library", Slow)
    paths = [ensemble(Form(seed=seed)).write(tmp_path / f"{seed}.onnx") for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        sessions = list(pool.map(OnnxSession, paths))
    assert both.broken is False
    assert not caplog.records
    for path, session in zip(paths, sessions, strict=True):
        assert said(session, ROWS[:40, :3]) == said(OnnxSession(path, PLAIN), ROWS[:40, :3])


def test_a_session_outlives_those_that_were_made_before_and_after_it(tmp_path):
    made = [ensemble(Form(seed=seed)) for seed in range(6)]
    sessions = [opened(one.write(tmp_path / f"{n}.onnx")) for n, one in enumerate(made)]
    assert all(taken for _, taken in sessions)
    rows = made[0].rows(64)
    last = [session for session, _ in sessions][3]
    expected = said(last, rows)
    del sessions
    gc.collect()
    opened(made[5].write(tmp_path / "again.onnx"))
    assert said(last, rows) == expected


def test_sessions_that_are_gone_leave_no_memory_behind(path):
    ensemble(Form((9,) * 400, width=6)).write(path)  # 8 MB for 200 of them, were its tests and leaves kept

    def resident(times):
        for _ in range(times):
            assert opened(path)[1]
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident(30)
    assert resident(200) - before < 4 << 20


@pytest.mark.parametrize("kind", ["a sum", "two classes by votes", "five classes, softmax"])
def test_trees_from_the_cache_of_optimised_models_give_the_same_bits(tmp_path, path, kind):
    made = ensemble(Form(leaves=(5, 4, 3, 2, 6), **KINDS[kind]))
    rows, plain = made.rows(200), OnnxSession(made.write(path), PLAIN)
    for _ in range(3):
        session, taken = opened(path, SessionSettings(optimised=tmp_path / "kept"))
        assert taken
        assert said(session, rows) == said(plain, rows)
    assert list((tmp_path / "kept").rglob("*.onnx"))
    kept = SessionSettings(optimised=tmp_path / "kept", compiled_trees=False)
    assert said(OnnxSession(path, kept), rows) == said(plain, rows)
