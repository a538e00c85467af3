"""Promise: models run on what was asked for, or the worker says why not; never on the processor in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx_support import MAKERS, ROWS

from streamserve.adapters import onnx as adapter
from streamserve.adapters import onnx_providers
from streamserve.adapters.onnx import OnnxSession
from streamserve.adapters.onnx_providers import (
    CPU,
    CUDA,
    TENSORRT,
    check_available,
    check_taken,
    nodes_by_provider,
    providers,
)
from streamserve.errors import SettingsError
from streamserve.models.session import SessionSettings

HAS_GPU = CUDA in ort.get_available_providers() and Path("/dev/nvidiactl").exists()
NO_GPU = "needs an NVIDIA GPU and onnxruntime-gpu; this machine lacks one of them"


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return MAKERS["net"](tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.mark.parametrize("asked", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_built_in_is_told_with_what_to_install(net, monkeypatch, asked):
    monkeypatch.setattr(adapter.ort, "get_available_providers", lambda: ["AzureExecutionProvider", CPU])
    with pytest.raises(SettingsError) as told:
        OnnxSession(net, SessionSettings(asked))
    assert "it has AzureExecutionProvider, CPUExecutionProvider" in told.value.what
    assert told.value.where == f"STREAMSERVE_PROVIDER={asked}"
    assert "pip install 'streamserve[gpu]'" in told.value.mend


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU here: nothing falls back")
@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
@pytest.mark.parametrize("asked", ["cuda", "tensorrt"])
def test_a_session_that_fell_back_to_the_processor_is_refused(net, monkeypatch, asked):
    """A real fall: this runtime has no such provider, and takes the processor without an error."""
    monkeypatch.setattr(adapter, "check_available", lambda *_: None)
    with pytest.raises(SettingsError, match="fell back to CPUExecutionProvider") as told:
        OnnxSession(net, SessionSettings(asked, device_id=3))
    assert "device 3" in told.value.what
    assert "nvidia-smi" in told.value.mend


def test_the_first_provider_is_what_counts():
    check_taken(SessionSettings("cuda"), [CUDA, CPU], {CUDA: {"MatMul"}, CPU: {"Shape"}}, "m")
    check_taken(SessionSettings("tensorrt"), [TENSORRT, CUDA, CPU], {}, "m")
    check_taken(SessionSettings(), [CPU], {CPU: {"TreeEnsemble"}}, "m")
    for asked, taken in (("cuda", [CPU, CUDA]), ("cuda", []), ("tensorrt", [CUDA, CPU]), ("cpu", [CUDA])):
        with pytest.raises(SettingsError, match="fell back"):
            check_taken(SessionSettings(asked), taken, {}, "m")


@pytest.mark.parametrize(
    "nodes", [{CPU: {"MatMul"}}, {CPU: {"TreeEnsembleClassifier"}, CUDA: {"Cast", "Mul"}}, {TENSORRT: {"MatMul"}}]
)
def test_a_model_whose_work_does_not_run_on_the_device_is_refused(nodes):
    with pytest.raises(SettingsError, match="no kernel for the work of this one") as told:
        check_taken(SessionSettings("cuda"), [CUDA, CPU], nodes, "trees.onnx")
    assert "trees.onnx" in told.value.where


def test_what_runs_where_is_what_the_runtime_says(tmp_path):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    path = str(MAKERS["trees"](tmp_path / "m.onnx"))
    session = ort.InferenceSession(path, options, providers=[CPU])
    assert "TreeEnsembleClassifier" in nodes_by_provider(session)[CPU]
    assert nodes_by_provider(ort.InferenceSession(path, providers=[CPU])) == {}  # it was not recorded


def test_each_provider_is_available_where_it_is_named():
    for asked, name in onnx_providers.NAMES.items():
        check_available(SessionSettings(asked), [name])


def test_the_device_and_the_folder_of_engines_are_handed_on(net, tmp_path):
    settings = SessionSettings("tensorrt", device_id=1, engines=tmp_path / "engines")
    (first, engine), (second, cuda), (third, _) = providers(settings, net, "1.31")
    assert (first, second, third) == (TENSORRT, CUDA, CPU)
    assert engine["device_id"] == cuda["device_id"] == "1"
    (folder,) = (tmp_path / "engines").iterdir()
    assert engine["trt_engine_cache_path"] == engine["trt_timing_cache_path"] == str(folder)
    assert engine["trt_engine_cache_enable"] == "1"


def test_models_of_one_graph_and_other_weights_do_not_share_engines(net, tmp_path):
    other = tmp_path / net.name  # in the registry they all have one name
    content = bytearray(net.read_bytes())
    content[content.index(b"w0") - 20] ^= 1
    other.write_bytes(content)
    for path, runtime in ((net, "1"), (other, "1"), (net, "2"), (net, "1")):
        providers(SessionSettings("tensorrt", engines=tmp_path / "engines"), path, runtime)
    assert len(list((tmp_path / "engines").iterdir())) == 3


def test_without_a_folder_no_engines_are_kept(net):
    assert providers(SessionSettings("tensorrt"), net, "1")[0] == (TENSORRT, {"device_id": "0"})


def test_a_folder_of_engines_that_can_not_be_made_is_told(net, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsError, match="TensorRT engines can't be made"):
        providers(SessionSettings("tensorrt", engines=tmp_path / "file"), net, "1")


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason=NO_GPU)
def test_on_a_gpu_scores_agree_with_the_processors(net):
    there, here = OnnxSession(net, SessionSettings("cuda")), OnnxSession(net)
    assert there._bound
    for rows in (1, 7, 2000):
        given = {"features": ROWS[:rows]}
        found, expected = (s.run(given, ["probabilities"])[0] for s in (there, here))
        assert np.abs(found - expected).max() <= 1e-5  # a golden set's tolerance


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason=NO_GPU)
def test_on_a_gpu_trees_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="no kernel for the work"):
        OnnxSession(MAKERS["trees"](tmp_path / "m.onnx"), SessionSettings("cuda"))
