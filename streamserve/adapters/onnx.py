"""ONNX Runtime sessions: one thread a run, so that the bits of a score don't depend on its batch.

How a session is set up, with what was measured (ONNX Runtime 1.31, two cores, three threads over all batch sizes):

- One intra-op thread, no spinning. With two, 277 of 1,000 tree scores depended on the batch size, with one none did;
  several batches in flight use the other cores.
- The memory arena stays on. Off, the C library keeps a pool a thread instead: 95 MB against 53 (four layers of 512),
  422 against 239 (six of 2,048), at the same CPU. Giving the arena back after each run takes more, not less (79 MB
  against 20 for a small net). Trees don't tell the difference: 22 MB.
- Memory patterns are off: they keep a plan for each batch size, and batches have any size. On, the nets took up to
  10 MB more and no less CPU.
- Every optimisation is on. Bits were those of the lower levels for trees and nets; the highest lays out convolutions
  for the instruction set at hand.
- Loaded by path: bytes would hold the GIL for 29 ms in place of 1 to 3. Only the outputs asked for are computed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from streamserve.adapters.onnx_cache import OptimisedModels, load_key
from streamserve.adapters.onnx_providers import DEVICES, check_available, check_taken, nodes_by_provider, providers
from streamserve.adapters.onnx_trees import Register, with_compiled_trees
from streamserve.errors import SignatureError
from streamserve.models.manifest import Tensor
from streamserve.models.session import ON_CPU, Array, SessionSettings

LOG = logging.getLogger("streamserve.onnx")
RUNTIME = str(ort.__version__)
ORT_SEVERITY_FATAL = (
    4  # errors are raised as well: a row on which a model fails printed a line for each half that it is in
)
LEVEL = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "int8": "int8", "int16": "int16",
    "int32": "int32", "int64": "int64", "uint8": "uint8", "uint16": "uint16", "uint32": "uint32",
    "uint64": "uint64", "bool": "bool", "string": "string",
}  # fmt: skip


class OnnxSession:
    """A model loaded from a path. `run` releases the GIL and may be called from several threads.

    Raises:
        SettingsError: the provider that was asked for is not there, or took nothing of the model.
        SignatureError: it is no model, or none that takes batches.
    """

    def __init__(self, path: Path, settings: SessionSettings = ON_CPU) -> None:
        check_available(settings, ort.get_available_providers())
        self._session = _open(path, settings)
        check_taken(settings, self._session.get_providers(), nodes_by_provider(self._session), str(path))
        self.inputs = tuple(_tensor(given, path) for given in self._session.get_inputs())
        self.outputs = tuple(
            _tensor(given, path) for given in self._session.get_outputs() if given.type.startswith("tensor(")
        )
        self._check_batch_axis(path)
        if settings.compiled_trees and settings.provider == "cpu":
            self._session = with_compiled_trees(path, self._session, partial(_create_of_bytes, path, settings))
        self._device, self._device_id = DEVICES[settings.provider], settings.device_id
        # ONNX Runtime binds no text: a model that has any is run as on the processor, which copies by itself
        texts = any(tensor.dtype == "string" for tensor in (*self.inputs, *self.outputs))
        self._bound = self._device != "cpu" and not texts

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
        if self._bound:
            return self._run_bound(inputs, outputs)
        found: Sequence[Array] = self._session.run(list(outputs), dict(inputs))
        return found

    def _run_bound(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
        """Inputs are copied to the device once; of the outputs only those asked for come back."""
        binding = self._session.io_binding()
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, self._device_id)
            for name, array in inputs.items()
        }
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        found: Sequence[Array] = binding.copy_outputs_to_cpu()
        return found

    def _check_batch_axis(self, path: Path) -> None:
        for tensor in self.inputs:
            if not tensor.shape or tensor.shape[0] is not None:
                raise SignatureError(
                    f"input {tensor.name!r} has shape {list(tensor.shape)}: its first axis is not a free batch axis",
                    where=str(path),
                    mend="export the model with a dynamic first axis",
                )


def _open(path: Path, settings: SessionSettings) -> ort.InferenceSession:
    """From the cache of optimised models where there is one for the processor, else from the file itself."""
    if settings.optimised is None or settings.provider != "cpu":
        return _load(path, settings)
    kept = OptimisedModels(settings.optimised)
    try:
        key = load_key(path, settings.provider, RUNTIME, LEVEL.name)
    except OSError:  # the runtime says it better
        return _load(path, settings)
    for found in kept.find(key):
        try:
            return _create(found, settings, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
        except Exception as error:  # noqa: BLE001  (whatever is wrong with a copy, the original is at hand)
            kept.drop(found, _first_line(error))
    with kept.draft(key) as draft:
        return _load(path, settings, draft)


def _load(path: Path, settings: SessionSettings, draft: Path | None = None) -> ort.InferenceSession:
    if draft is not None:
        try:
            return _create(path, settings, LEVEL, draft)
        except Exception as error:  # noqa: BLE001  (a full disk must not keep a model from being served)
            LOG.info("%s: no optimised copy of it is kept: %s", path, _first_line(error))
            draft.unlink(missing_ok=True)  # it may be half written
    try:
        return _create(path, settings, LEVEL)
    except Exception as error:
        raise SignatureError(
            f"ONNX Runtime {RUNTIME} can't load the model: {_first_line(error)}",
            where=str(path),
            mend="check that it is an ONNX file, and that its opset is one that this runtime knows",
        ) from error


def _create(
    path: Path, settings: SessionSettings, level: ort.GraphOptimizationLevel, draft: Path | None = None
) -> ort.InferenceSession:
    options = _options(settings, level)
    if draft is not None:
        options.optimized_model_filepath = str(draft)
    return _start(str(path), options, settings, path)


def _create_of_bytes(path: Path, settings: SessionSettings, content: bytes, register: Register) -> ort.InferenceSession:
    options = _options(settings, LEVEL)
    register(options)
    return _start(content, options, settings, path)


def _options(settings: SessionSettings, level: ort.GraphOptimizationLevel) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = level
    options.enable_mem_pattern = False
    options.log_severity_level = ORT_SEVERITY_FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if settings.provider != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _start(
    model: str | bytes, options: ort.SessionOptions, settings: SessionSettings, path: Path
) -> ort.InferenceSession:
    session = ort.InferenceSession(model, options, providers=providers(settings, path, RUNTIME))
    session.disable_fallback()  # a run that fails on the device must not go on on the processor
    return session


def _tensor(given: ort.NodeArg, path: Path) -> Tensor:
    kind = re.fullmatch(r"tensor\((\w+)\)", given.type)
    if kind is None or kind[1] not in DTYPES:
        raise SignatureError(
            f"{given.name!r} has type {given.type}, expected a tensor of numbers, booleans or strings",
            where=str(path),
            mend="export the model with tensor inputs and outputs (scikit-learn: zipmap=False)",
        )
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in given.shape)
    return Tensor(name=given.name, dtype=DTYPES[kind[1]], shape=shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
