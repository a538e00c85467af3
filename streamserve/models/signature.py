"""Does a catalogue fit a model? Which feature fills which input, and what is wrong where none does.

Pure: signature and catalogue in, a plan or a message that names the feature, what was found and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamserve.errors import SignatureError
from streamserve.features.catalogue import Catalogue
from streamserve.models.manifest import Input, Tensor
from streamserve.topology import Output, Topology

FLOATS = ("float16", "float32", "float64")
TEXT_KINDS = ("text", "category")


def plan_inputs(
    catalogue: Catalogue, tensors: Sequence[Tensor], chosen: Mapping[str, Sequence[str]] | None = None
) -> tuple[Input, ...]:
    """Which features fill which input.

    One input takes the whole catalogue in its order, unless `chosen` names its features. Of several, each takes
    the feature of its own name (what a scikit-learn pipeline converts to), unless `chosen` says otherwise.

    Raises:
        SignatureError: an input has no feature, or one that does not fit; all faults in one message.
    """
    chosen = dict(chosen or {})
    if unknown := set(chosen) - {tensor.name for tensor in tensors}:
        raise SignatureError(
            f"features are named for inputs {sorted(unknown)}, the model's are {[t.name for t in tensors]}",
            mend="name the model's inputs",
        )
    planned, faults = [], []
    for tensor in tensors:
        if tensor.name in chosen:
            names = tuple(chosen[tensor.name])
        elif len(tensors) == 1:
            names = tuple(catalogue.atoms)
        else:
            names = (tensor.name,)
        missing = [name for name in names if name not in catalogue.atoms]
        if missing:
            faults.append(_no_feature(catalogue, tensor, missing))
            continue
        faults.extend(_misfits(catalogue, tensor, names))
        planned.append(Input(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, features=names))
    if faults:
        raise SignatureError(
            "the features do not fit the model:\n    " + "\n    ".join(faults),
            where=catalogue.topology.name,
            mend="change the topology's features, or name them for each input (--input NAME=feature,feature)",
        )
    return tuple(planned)


def _no_feature(catalogue: Catalogue, tensor: Tensor, missing: Sequence[str]) -> str:
    return (
        f"input {tensor.name!r} ({describe(tensor)}) wants feature {', '.join(missing)}: "
        f"not in the catalogue ({', '.join(list(catalogue.atoms)[:12])}{', ...' if len(catalogue.atoms) > 12 else ''})"  # noqa: PLR2004
    )


def _misfits(catalogue: Catalogue, tensor: Tensor, names: Sequence[str]) -> list[str]:
    faults = []
    for name in names:
        kind = catalogue.atoms[name].feature.kind
        if tensor.dtype == "string" and kind not in TEXT_KINDS:
            faults.append(f"feature {name!r}: found {kind} (a number), expected text for string input {tensor.name!r}")
        if tensor.dtype != "string" and kind == "text":
            faults.append(
                f"feature {name!r}: found text, expected a number for {tensor.dtype} input {tensor.name!r}; "
                "use category() to code it"
            )
        if tensor.dtype not in (*FLOATS, "string") and kind in ("stored", "vector"):
            faults.append(f"feature {name!r}: found {kind} (float32), expected {tensor.dtype} for {tensor.name!r}")
        default = getattr(catalogue.atoms[name].feature, "default", None)
        whole = kind == "field" and tensor.dtype not in (*FLOATS, "string")
        if whole and default is not None and not holds(np.dtype(tensor.dtype), default):
            faults.append(
                f"feature {name!r}: found default {default}, which {tensor.dtype} input {tensor.name!r} can't hold"
            )
    width = sum(catalogue.atoms[name].width for name in names)
    expected = axis_width(tensor)
    if expected is not None and width != expected:
        faults.append(
            f"input {tensor.name!r}: found {len(names)} features of {width} columns in all, "
            f"expected {expected} columns ({describe(tensor)})"
        )
    return faults


def holds(kind: np.dtype[Any], number: float | str) -> bool:
    """Whether an input of this whole type can take a number as it is."""
    if isinstance(number, str) or not math.isfinite(number) or number != int(number):
        return False
    if kind.kind == "b":
        return number in (0, 1)
    limits = np.iinfo(kind)
    return int(limits.min) <= int(number) <= int(limits.max)


def axis_width(tensor: Tensor) -> int | None:
    """How many columns an input takes for each event; None where the model leaves it open."""
    width = 1
    for size in tensor.shape[1:]:
        if size is None:
            return None
        width *= size
    return width


def check_outputs(topology: Topology, outputs: Sequence[Tensor]) -> None:
    """Do the topology's outputs name tensors and columns of the model?

    Raises:
        SignatureError: names the output, what was found and what was expected.
    """
    by_name = {tensor.name: tensor for tensor in outputs}
    for name, wanted in topology.outputs.items():
        tensor = by_name.get(wanted.tensor)
        if tensor is None:
            raise SignatureError(
                f"output {name!r} reads {wanted.tensor!r}; the model's outputs are "
                + ", ".join(f"{t.name} ({describe(t)})" for t in outputs),
                where=topology.name,
                mend="name one of them in outputs=",
            )
        _check_column(topology, name, wanted, tensor)
    _check_decision(topology, by_name)


def _check_decision(topology: Topology, tensors: Mapping[str, Tensor]) -> None:
    decision = topology.decision
    if decision is None:
        return
    wanted = topology.outputs[decision.output]
    width = 1 if wanted.column is not None else axis_width(tensors[wanted.tensor])
    if decision.kind == "threshold" and width != 1:
        raise SignatureError(
            f"threshold is on output {decision.output!r}, which has {width} columns",
            where=topology.name,
            mend="name one of them: output(..., column=)",
        )
    if decision.kind == "argmax" and decision.labels is not None and len(decision.labels) != width:
        raise SignatureError(
            f"argmax names {len(decision.labels)} labels, the output {decision.output!r} has {width} columns",
            where=topology.name,
            mend="name one label a column",
        )


def _check_column(topology: Topology, name: str, wanted: Output, tensor: Tensor) -> None:
    if tensor.dtype == "string":
        raise SignatureError(
            f"output {name!r}: {tensor.name!r} is text, expected numbers",
            where=topology.name,
            mend="read the probabilities and let decision=argmax(..., labels=...) name the class",
        )
    width = axis_width(tensor)
    if wanted.column is not None and width is not None and wanted.column >= width:
        raise SignatureError(
            f"output {name!r} reads column {wanted.column} of {tensor.name!r}, which has {width}",
            where=topology.name,
            mend=f"columns count from 0: use at most {width - 1}",
        )
    if wanted.column is None and width is None:
        raise SignatureError(
            f"output {name!r} reads the whole row of {tensor.name!r}, whose width the model leaves open",
            where=topology.name,
            mend="name a column, or export the model with a fixed width",
        )


def describe(tensor: Tensor) -> str:
    return f"{tensor.dtype}[{', '.join('N' if i == 0 else str(s or '?') for i, s in enumerate(tensor.shape))}]"
