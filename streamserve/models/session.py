"""The door to whatever runs a model: arrays in by input name, arrays out in the order asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streamserve.models.manifest import Tensor

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
        """
        ...
