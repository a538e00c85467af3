"""Score: one run of a version's model over its feature matrix; named scores and decisions come out.

The bits of a score do not depend on the batch that an event travelled in (one thread a run; see ARCHITECTURE.md).
A row that makes the model fail is found by halving, and is a reject of that event alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamserve.errors import SignatureError
from streamserve.features.columns import run_by_halves
from streamserve.models.manifest import Manifest
from streamserve.models.session import Array, Session
from streamserve.models.signature import axis_width
from streamserve.records import FeatureMatrix, Floats, Int32s, Int64s, Reject, Scores, Stage
from streamserve.topology import Argmax, Threshold


@dataclass(frozen=True, slots=True)
class _Column:
    tensor: int  # index into the asked tensors
    column: int | None


class Scorer:
    """A loaded version, ready to score: its session and what its manifest says of outputs and decision."""

    def __init__(self, manifest: Manifest, session: Session) -> None:
        self.manifest = manifest
        self._session = session
        self._tensors = tuple(dict.fromkeys(out.tensor for out in manifest.scores.values()))
        self._spans: dict[str, tuple[int, int]] = {}
        self._columns: list[_Column] = []
        names: list[str] = []
        widths = {tensor.name: axis_width(tensor) for tensor in manifest.outputs}
        for name, out in manifest.scores.items():
            start, tensor = len(names), self._tensors.index(out.tensor)
            if out.column is not None or widths[out.tensor] == 1:
                names.append(name)
                self._columns.append(_Column(tensor, out.column or 0))
            else:
                width = widths[out.tensor] or 0
                names.extend(f"{name}.{i}" for i in range(width))
                self._columns.extend(_Column(tensor, i) for i in range(width))
            self._spans[name] = (start, len(names))
        self.names = tuple(names)
        if len(set(names)) != len(names):
            raise SignatureError(
                f"two scores have one name: {', '.join(names)}",
                where=f"{manifest.model} {manifest.version}",
                mend="columns of a whole row are named output.0, output.1, ...: name no other output like that",
            )
        self.labels = _labels(manifest, self._spans)

    def score(self, matrix: FeatureMatrix, raw_rows: Int64s) -> Scores:
        """Scores of a matrix. raw_rows: the RawBatch row of each of the batch's events, for rejects."""
        rows = matrix.rows
        values = np.empty((len(rows), len(self.names)))
        bad: dict[int, Reject] = {}
        for part, out in run_by_halves(lambda at: self._run(matrix, at), np.arange(len(rows))):
            if isinstance(out, SignatureError):
                raise out
            if isinstance(out, Exception):
                row = int(raw_rows[rows[part[0]]])
                bad[int(part[0])] = Reject(row, Stage.SCORE, type(out).__name__, str(out)[:300])
            elif len(part) == len(rows):
                values = np.asarray(out, np.float64)
            else:
                values[part] = out
        if bad:
            rows, values = np.delete(rows, list(bad)), np.delete(values, list(bad), axis=0)
        return Scores(
            version=matrix.version,
            rows=rows,
            names=self.names,
            values=values,
            labels=self.labels,
            decisions=self._decide(values),
            rejects=tuple(bad.values()),
        )

    def _run(self, matrix: FeatureMatrix, at: NDArray[np.intp]) -> Floats:
        whole = len(at) == len(matrix.rows)
        inputs = matrix.inputs if whole else {name: given[at] for name, given in matrix.inputs.items()}
        tensors = self._session.run(inputs, self._tensors)
        flat = [_two_axes(name, tensor, len(at)) for name, tensor in zip(self._tensors, tensors, strict=True)]
        out = np.empty((len(at), len(self._columns)))
        for place, wanted in enumerate(self._columns):
            tensor = flat[wanted.tensor]
            if (wanted.column or 0) >= tensor.shape[1]:
                raise SignatureError(
                    f"score {self.names[place]!r} reads column {wanted.column} of {self._tensors[wanted.tensor]!r}, "
                    f"and the model gave {tensor.shape[1]}",
                    where=f"{self.manifest.model} {self.manifest.version}",
                    mend="name a column that the model has, and add the version anew",
                )
            out[:, place] = tensor[:, wanted.column]
        return out

    def _decide(self, values: Floats) -> Int32s:
        decision = self.manifest.decision
        if decision is None:
            return np.full(len(values), -1, np.int32)
        start, stop = self._spans[decision.output]
        block = values[:, start:stop]
        undecided = np.isnan(block).any(axis=1)
        if isinstance(decision, Threshold):
            chosen = (block[:, 0] >= decision.at).astype(np.int32)
        else:
            chosen = np.argmax(block, axis=1).astype(np.int32)
        chosen[undecided] = -1
        return chosen


def _labels(manifest: Manifest, spans: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    decision = manifest.decision
    if isinstance(decision, Threshold):
        start, stop = spans[decision.output]
        if stop - start != 1:
            raise SignatureError(
                f"threshold is on output {decision.output!r}, which has {stop - start} columns",
                where=f"{manifest.model} {manifest.version}",
                mend="name one of them: output(..., column=)",
            )
        return decision.labels
    if not isinstance(decision, Argmax):
        return ()
    start, stop = spans[decision.output]
    if decision.labels is None:
        return tuple(str(i) for i in range(stop - start))
    if len(decision.labels) != stop - start:
        raise SignatureError(
            f"argmax names {len(decision.labels)} labels, the output {decision.output!r} has {stop - start} columns",
            where=f"{manifest.model} {manifest.version}",
            mend="name one label a column",
        )
    return decision.labels


def _two_axes(name: str, tensor: Array, rows: int) -> Array:
    if tensor.ndim == 0 or len(tensor) != rows:
        raise ValueError(f"output {name} has shape {list(tensor.shape)} for {rows} rows")
    return tensor.reshape(rows, -1)
