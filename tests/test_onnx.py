"""Promise: a session gives the bits of ONNX Runtime itself, from any thread, and only what it is asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_support import MAKERS, ROWS
from support import direct, save

from streamserve.adapters import onnx as adapter
from streamserve.adapters.onnx import OnnxSession
from streamserve.errors import SignatureError
from streamserve.models.manifest import Tensor
from streamserve.models.session import SessionSettings
from streamserve.settings import Settings


@pytest.fixture(scope="module", params=MAKERS)
def model(request, tmp_path_factory):
    return MAKERS[request.param](tmp_path_factory.mktemp("onnx") / "model.onnx")


def text_model(path):
    given = [helper.make_tensor_value_info(n, TensorProto.STRING, [None, 1]) for n in ("a",)]
    said = [helper.make_tensor_value_info("b", TensorProto.STRING, [None, 1])]
    save(helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "text", given, said), path)
    return path


def shaped(path, shape):
    given = helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)
    said = helper.make_tensor_value_info("b", TensorProto.FLOAT, shape)
    save(helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "shaped", [given], [said]), path)
    return path


def test_scores_are_bit_for_bit_those_of_the_runtime(model):
    expected = direct(model, {"features": ROWS}, ["probabilities"])[0]
    assert OnnxSession(model).run({"features": ROWS}, ["probabilities"])[0].tobytes() == expected.tobytes()


def test_threads_with_batches_of_many_sizes_do_not_disturb_one_another(model):
    session = OnnxSession(model)
    sizes = [1, 3, 17, 64, 333, 900, 2000] * 6
    expected = {n: direct(model, {"features": ROWS[:n]}, ["probabilities"])[0].tobytes() for n in set(sizes)}
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda n: session.run({"features": ROWS[:n]}, ["probabilities"])[0].tobytes(), sizes)
        assert [expected[n] for n in sizes] == list(found)


def test_outputs_come_in_the_order_asked_and_no_others(tmp_path):
    session = OnnxSession(MAKERS["trees"](tmp_path / "m.onnx"))
    assert len(session.outputs) == 2
    label, said = session.run({"features": ROWS[:5]}, ["label", "probabilities"])
    assert (label.shape, said.shape) == ((5,), (5, 2))
    assert [a.shape for a in session.run({"features": ROWS[:5]}, ["probabilities"])] == [(5, 2)]


def test_inputs_and_outputs_are_told_with_their_free_axes(model):
    session = OnnxSession(model)
    assert session.inputs == (Tensor(name="features", dtype="float32", shape=(None, ROWS.shape[1])),)
    assert "probabilities" in [tensor.name for tensor in session.outputs]


def test_a_session_is_set_up_for_bits_that_do_not_depend_on_the_batch(model):
    options = OnnxSession(model)._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (True, False)


@pytest.mark.parametrize("settings", [SessionSettings(), "cache"])
@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_what_is_no_model_is_told_by_its_path(tmp_path, content, settings):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SignatureError, match="can't load") as told:
        OnnxSession(path, SessionSettings(optimised=tmp_path / "kept") if settings == "cache" else settings)
    assert told.value.where == str(path)
    assert not list(tmp_path.glob("kept/*"))


@pytest.mark.parametrize("shape", [[4, 2], []])
def test_a_model_without_a_batch_axis_is_refused(tmp_path, shape):
    with pytest.raises(SignatureError, match="not a free batch axis"):
        OnnxSession(shaped(tmp_path / "m.onnx", shape))


# ---- the way to a device, walked on the processor: binding is the same, only the place of the copies differs


@pytest.fixture
def bound(model):
    session = OnnxSession(model)
    session._bound = True
    return session


def test_bound_runs_give_the_same_bits(model, bound):
    plain = OnnxSession(model)
    for rows in (1, 7, 2000):
        given = {"features": ROWS[:rows]}
        found, expected = bound.run(given, ["probabilities"]), plain.run(given, ["probabilities"])
        assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]


def test_bound_runs_take_arrays_that_are_not_in_one_piece(model, bound):
    apart = np.asfortranarray(ROWS[:50])[::2]
    assert not apart.flags.c_contiguous
    expected = direct(model, {"features": np.ascontiguousarray(apart)}, ["probabilities"])[0]
    assert bound.run({"features": apart}, ["probabilities"])[0].tobytes() == expected.tobytes()


def test_a_model_with_text_is_not_bound(tmp_path, monkeypatch):
    monkeypatch.setitem(adapter.DEVICES, "cpu", "cuda")
    session = OnnxSession(text_model(tmp_path / "m.onnx"))
    assert not session._bound
    assert session.run({"a": np.array([["x"], ["y"]], object)}, ["b"])[0].tolist() == [["x"], ["y"]]


# ---- settings


def test_session_settings_are_those_of_the_process(tmp_path):
    found = SessionSettings.of(
        Settings(home=tmp_path, provider="tensorrt", device_id=2, model_cache=True, _env_file=None)
    )
    assert found == SessionSettings("tensorrt", 2, tmp_path / "onnx" / "optimised", tmp_path / "onnx" / "engines")
    assert SessionSettings.of(Settings(_env_file=None)).optimised is None
