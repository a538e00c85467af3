"""A model made of a Python function, for tests of everything around the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from streamserve.models.manifest import Dtype, Tensor

Array = NDArray[np.generic]
Said = Array | Mapping[str, Array]
Width = int | tuple[Dtype, int]


class StubModel:
    """A session whose answers come from a function.

    Args:
        inputs: columns of each model input by its name, as a number (float32) or as ("int64", number).
        outputs: columns of each model output by its name, the same way.
        function: given one array [rows, columns] for each input, in the order of `inputs`; returns the output, or a
            mapping of several, [rows] or [rows, columns]. What it raises makes a dead letter, as a model's error does.

    `calls` counts its runs, and `rows` holds how many rows each of them had.
    """

    def __init__(
        self, inputs: Mapping[str, Width], outputs: Mapping[str, Width], function: Callable[..., Said]
    ) -> None:
        self.inputs = tuple(_tensor(name, width) for name, width in inputs.items())
        self.outputs = tuple(_tensor(name, width) for name, width in outputs.items())
        self.rows: list[int] = []
        self._function = function

    @property
    def calls(self) -> int:
        return len(self.rows)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
        given = [inputs[tensor.name] for tensor in self.inputs]
        self.rows.append(len(given[0]))
        said = self._function(*given)
        named = said if isinstance(said, Mapping) else {self.outputs[0].name: said}
        return [np.asarray(named[name]) for name in outputs]


def _tensor(name: str, width: Width) -> Tensor:
    dtype, columns = ("float32", width) if isinstance(width, int) else width
    return Tensor(name=name, dtype=dtype, shape=(None, columns))
