"""ONNX Runtime sessions: one thread a run, so that the bits of a score don't depend on its batch."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime as ort

from streamserve.errors import SignatureError
from streamserve.models.manifest import Tensor
from streamserve.models.session import Array

LOG = logging.getLogger("streamserve.onnx")
ORT_SEVERITY_ERROR = 3
DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "int8": "int8", "int16": "int16",
    "int32": "int32", "int64": "int64", "uint8": "uint8", "uint16": "uint16", "uint32": "uint32",
    "uint64": "uint64", "bool": "bool", "string": "string",
}  # fmt: skip


class OnnxSession:
    """A model loaded from a path. `run` releases the GIL and may be called from several threads."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        # With two intra-op threads 277 of 1,000 tree scores depended on the batch size, with one none did;
        # several batches in flight use the other cores
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = ORT_SEVERITY_ERROR
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise SignatureError(
                f"ONNX Runtime {ort.__version__} can't load the model: {_first_line(error)}",
                where=str(path),
                mend="check that it is an ONNX file, and that its opset is one that this runtime knows",
            ) from error
        self.inputs = tuple(_tensor(given, path) for given in self._session.get_inputs())
        self.outputs = tuple(
            _tensor(given, path) for given in self._session.get_outputs() if given.type.startswith("tensor(")
        )
        self._check_batch_axis(path)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
        found: Sequence[Array] = self._session.run(list(outputs), dict(inputs))
        return found

    def _check_batch_axis(self, path: Path) -> None:
        for tensor in self.inputs:
            if not tensor.shape or tensor.shape[0] is not None:
                raise SignatureError(
                    f"input {tensor.name!r} has shape {list(tensor.shape)}: its first axis is not a free batch axis",
                    where=str(path),
                    mend="export the model with a dynamic first axis",
                )


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
    return str(error).strip().splitlines()[0][:300]
