"""What models run on: ONNX Runtime's execution providers, asked for by name and never replaced in silence.

ONNX Runtime falls back to the processor where a provider is not built in, its libraries are missing, the device does
not answer, or the model's nodes have no kernel there. Each of these is an error here: a GPU that is paid for and idle
looks like a slow model.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime as ort

from streamserve.errors import SettingsError
from streamserve.models.registry import sha256
from streamserve.models.session import SessionSettings
from streamserve.settings import Provider

LOG = logging.getLogger("streamserve.onnx")
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
NAMES: Mapping[Provider, str] = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
DEVICES: Mapping[Provider, str] = {"cpu": "cpu", "cuda": "cuda", "tensorrt": "cuda"}  # where inputs are put
INSTALL = (
    "`pip install 'streamserve[gpu]'`, then `pip uninstall -y onnxruntime` and `pip install --force-reinstall "
    "--no-deps onnxruntime-gpu` (both packages write one folder); or STREAMSERVE_PROVIDER=cpu"
)
LIBRARIES = {
    "cuda": "check `nvidia-smi` and STREAMSERVE_DEVICE_ID, and that CUDA and cuDNN are installed "
    "(`pip install 'onnxruntime-gpu[cuda,cudnn]'`)",
    "tensorrt": "check `nvidia-smi` and STREAMSERVE_DEVICE_ID, and that the TensorRT that this ONNX Runtime was built "
    "for is on LD_LIBRARY_PATH",
}
TREES = frozenset(("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"))
Options = tuple[str, dict[str, str]]
Nodes = Mapping[str, frozenset[str]]


def providers(settings: SessionSettings, path: Path, runtime: str) -> list[Options]:
    """Providers by preference, with their options. The processor comes last: some nodes belong there (shapes)."""
    # TF32 rounds to 10 bits of mantissa: off by 1e-3, a hundred times a golden set's tolerance
    cuda: Options = (CUDA, {"device_id": str(settings.device_id), "use_tf32": "0"})
    if settings.provider == "cpu":
        return [(CPU, {})]
    with contextlib.suppress(AttributeError):  # before 1.21 the libraries had to be on the path
        ort.preload_dlls()
    if settings.provider == "cuda":
        return [cuda, (CPU, {})]
    return [(TENSORRT, _tensorrt_options(settings, path, runtime)), cuda, (CPU, {})]


def _tensorrt_options(settings: SessionSettings, path: Path, runtime: str) -> dict[str, str]:
    """Engines are kept by model and runtime: TensorRT names them by the graph, in which weights don't count.

    The shapes that an engine takes grow with what it meets, by a rebuild each time: minutes, in which a session
    answers nothing. Warming it with one row and with a full batch covers all between before an event comes.
    """
    options = {"device_id": str(settings.device_id)}
    if settings.engines is None:
        return options
    folder = (settings.engines / f"{sha256(path)[:24]}-{runtime}").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"the folder of TensorRT engines can't be made: {error.strerror}",
            where=str(folder),
            mend="point STREAMSERVE_HOME at a folder that can be written",
        ) from None
    kept = {name: str(folder) for name in ("trt_engine_cache_path", "trt_timing_cache_path")}
    return {**options, "trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1", **kept}


def check_available(settings: SessionSettings, available: Sequence[str]) -> None:
    """Is the provider built into the ONNX Runtime that is installed?

    Raises:
        SettingsError: it is not.
    """
    wanted = NAMES[settings.provider]
    if wanted not in available:
        raise SettingsError(
            f"models are to run on {settings.provider}, and the ONNX Runtime installed here has "
            f"no {wanted}; it has {', '.join(available)}",
            where=f"STREAMSERVE_PROVIDER={settings.provider}",
            mend=INSTALL,
        )


def check_taken(settings: SessionSettings, taken: Sequence[str], nodes: Nodes, where: str) -> None:
    """Did the provider take the session, and the work of the model?

    nodes: what each provider runs; empty where this ONNX Runtime does not tell.

    Raises:
        SettingsError: the session, or what matters of it, fell back to the processor.
    """
    wanted, asked = NAMES[settings.provider], settings.provider
    if not taken or taken[0] != wanted:
        raise SettingsError(
            f"models are to run on {asked}, device {settings.device_id}, and ONNX Runtime fell back to "
            f"{', '.join(taken) or 'nothing'}: the device or a library of it is missing",
            where=f"STREAMSERVE_PROVIDER={asked}, {where}",
            mend=f"{LIBRARIES.get(asked, 'install onnxruntime anew')}; or STREAMSERVE_PROVIDER=cpu",
        )
    if asked == "cpu" or not nodes:
        return
    told = "; ".join(f"{name}: {', '.join(sorted(kinds))}" for name, kinds in sorted(nodes.items()))
    if wanted not in nodes or TREES & nodes.get(CPU, frozenset()):
        raise SettingsError(
            f"models are to run on {asked}, which has no kernel for the work of this one ({told})",
            where=f"STREAMSERVE_PROVIDER={asked}, {where}",
            mend="trees and text run on the processor alone: STREAMSERVE_PROVIDER=cpu",
        )
    LOG.info("%s runs on %s", where, told)


def nodes_by_provider(session: ort.InferenceSession) -> dict[str, frozenset[str]]:
    """The kinds of nodes that each provider runs; empty where it is not recorded: the processor, old runtimes."""
    found: dict[str, frozenset[str]] = {}
    with contextlib.suppress(Exception):  # something to check by, not a condition of serving
        for part in session.get_provider_graph_assignment_info():
            kinds = frozenset(node.op_type for node in part.get_nodes())
            found[part.ep_name] = found.get(part.ep_name, frozenset()) | kinds
    return found
