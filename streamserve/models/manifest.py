"""The manifest of a model version: everything that decides what the version answers, and where it came from.

A worker scores from the manifest, not from its topology file: features and their order, vocabularies, views,
outputs and the decision are pinned here, so that workers on different releases of a file can't disagree. What is
learned after a version was added (a drift reference, batch invariance) is an attachment with its own hash.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from streamserve.features.catalogue import view_fingerprint
from streamserve.topology import Argmax, Output, Threshold, View

Dtype = Literal[
    "float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "bool", "string",
]  # fmt: skip
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FORMAT: Literal[1] = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class FileRef(_Record):
    """A file beside the manifest. path: one plain name, so that a manifest can't point outside its folder."""

    path: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    sha256: Sha256
    bytes: int = Field(ge=0)


class Tensor(_Record):
    """An input or output of the model. shape: None is a free axis; the first is the batch."""

    name: str
    dtype: Dtype
    shape: tuple[int | None, ...]


class Input(Tensor):
    """A model input and the features that fill it, in order."""

    features: tuple[str, ...] = Field(min_length=1)


class FeaturePin(_Record):
    """What a feature meant when the version was added."""

    definition: Mapping[str, object]
    fingerprint: str


class ViewPin(_Record):
    """The view as it was when the version was added: layout, freshness and defaults."""

    name: str
    key: tuple[str, ...]
    fields: tuple[str, ...]
    max_age_s: float | None
    stale: Literal["use", "default"]
    future: Literal["use", "default"]
    defaults: tuple[float, ...]
    fingerprint: str

    @classmethod
    def of(cls, view: View) -> ViewPin:
        return cls(
            name=view.name,
            key=view.key,
            fields=view.fields,
            max_age_s=None if view.max_age is None else view.max_age.total_seconds(),
            stale=view.stale,
            future=view.future,
            defaults=tuple(float(x) for x in view.defaults()),
            fingerprint=view_fingerprint(view),
        )

    def view(self) -> View:
        age = None if self.max_age_s is None else dt.timedelta(seconds=self.max_age_s)
        return View(
            self.name,
            key=self.key,
            fields=self.fields,
            max_age=age,
            stale=self.stale,
            future=self.future,
            default=self.defaults,
        )


class Training(_Record):
    """Where a version came from: the window of its training events, its metrics, what it was made with."""

    start: dt.datetime | None = None
    end: dt.datetime | None = None
    rows: int | None = None
    metrics: Mapping[str, float] = Field(default_factory=dict)
    libraries: Mapping[str, str] = Field(default_factory=dict)
    notes: str = ""


class Manifest(_Record):
    format: Literal[1] = FORMAT
    model: str
    version: str
    created: dt.datetime
    release: str = Field(description="The streamserve release that added the version.")
    file: FileRef
    inputs: tuple[Input, ...] = Field(min_length=1)
    outputs: tuple[Tensor, ...] = Field(min_length=1)
    scores: Mapping[str, Output]
    decision: Annotated[Threshold | Argmax, Field(discriminator="kind")] | None
    features: Mapping[str, FeaturePin]
    vocabularies: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    views: tuple[ViewPin, ...] = ()
    training: Training = Training()
    golden: FileRef | None = None
    attachments: Mapping[str, FileRef] = Field(default_factory=dict)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Every feature that the version uses, in the order of its inputs."""
        return tuple(name for given in self.inputs for name in given.features)
