"""The door to whatever runs a model: arrays in by input name, arrays out in the order asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from streamserve.models.manifest import Tensor
from streamserve.settings import Provider, Settings

Array = NDArray[np.generic]


class Session(Protocol):
    """A loaded model. `run` may be called from several threads at once."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]: ...


class Loader(Protocol):
    def __call__(self, path: Path) -> Session:
        """Load a model file.

        Raises:
            SignatureError: it is no model, or has inputs that no feature can fill.
            SettingsError: this machine has not what models are to run on.
        """
        ...


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a session runs on, and what it may keep on disk.

    device_id: of the GPU; without meaning for the processor.
    optimised: folder of optimised models; None: none is kept.
    engines: folder of the engines that TensorRT builds, which takes it minutes; None: they are built at every start.
    compiled_trees: trees that `native/trees.c` knows are scored by it, to the same bits.
    """

    provider: Provider = "cpu"
    device_id: int = 0
    optimised: Path | None = None
    engines: Path | None = None
    compiled_trees: bool = True

    @classmethod
    def of(cls, settings: Settings) -> Self:
        kept = settings.home / "onnx"
        return cls(
            provider=settings.provider,
            device_id=settings.device_id,
            optimised=kept / "optimised" if settings.model_cache else None,
            engines=kept / "engines",
            compiled_trees=settings.compiled_trees,
        )


ON_CPU = SessionSettings()
