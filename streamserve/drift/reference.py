"""What windows of a model version are compared with: its measures, and how much they differ without drift. Pure.

It is an attachment of the version, made once: bins are frozen, and it is of one version alone.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from streamserve.drift.calibration import Calibration, calibrate
from streamserve.drift.distances import Comparison, compare
from streamserve.drift.measures import Measure
from streamserve.drift.policy import AlertSettings
from streamserve.errors import DriftError
from streamserve.records import Int64s

MEND = "build one for this version: streamserve drift reference"


class Segment(BaseModel):
    """Those of the rows that have one value in the reference's segment field, in the bins of all rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Annotated[str, Field(min_length=1)]
    counts: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...]  # of each measure
    calibration: Calibration


class Reference(BaseModel):
    """The counts of a window are one row over all bins: measure i has those from offsets[i] to offsets[i + 1].

    Args:
        manifest_sha256: of the manifest that says what the features are.
        rows: that were counted.
        source: where they came from, in words: a file of training data, or a range of a topic.
        segment: the event field by whose values windows are told apart as well; None: they are not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    model: str
    version: str
    manifest_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    rows: int = Field(ge=0)
    source: str
    created: dt.datetime
    alerts: AlertSettings
    measures: tuple[Measure, ...]
    calibration: Calibration
    segment: str | None = None
    segments: tuple[Segment, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        keys = [one.key for one in self.measures]
        if len(set(keys)) < len(keys):
            raise ValueError("two measures have one name")
        if len({one.value for one in self.segments}) < len(self.segments) or (self.segments and self.segment is None):
            raise ValueError("two segments have one value, or their field is not named")
        for value in (None, *self.values):
            measures, calibration = self.of(value)
            if not {one.key for one in measures if one.rows} <= set(calibration.curves):
                raise ValueError("a measure is not calibrated")
        return self

    @property
    def values(self) -> tuple[str, ...]:
        """Of the segments."""
        return tuple(one.value for one in self.segments)

    def of(self, segment: str | None) -> tuple[tuple[Measure, ...], Calibration]:
        """What windows of a segment are held against; None: those of all events.

        Raises:
            KeyError: there is no such segment.
        """
        return self._parts[segment]

    @cached_property
    def _parts(self) -> dict[str | None, tuple[tuple[Measure, ...], Calibration]]:
        found: dict[str | None, tuple[tuple[Measure, ...], Calibration]] = {None: (self.measures, self.calibration)}
        for one in self.segments:
            pairs = zip(self.measures, one.counts, strict=True)
            found[one.value] = tuple(measure.with_counts(counts) for measure, counts in pairs), one.calibration
        return found

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each measure begins in a window's counts, and how many counts there are."""
        return tuple(accumulate((len(one.bins) for one in self.measures), initial=0))

    @property
    def fingerprint(self) -> str:
        """The sha256, in hex, of `to_bytes` but for when it was made: the same rows and settings have the same."""
        return hashlib.sha256(self._bytes({"created"})).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical: JSON with sorted names and no spaces. Equal references are equal bytes."""
        return self._bytes(set())

    def _bytes(self, but: set[str]) -> bytes:
        told = self.model_dump(mode="json", exclude=but)
        return json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, given: bytes, *, where: str = "") -> Reference:
        """Raises DriftError for what is no reference. where: named in it."""
        try:
            return cls.model_validate_json(given)
        except ValidationError as broken:
            first = broken.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DriftError(f"not a drift reference: {place} {first['msg']}".strip(), where=where, mend=MEND) from None

    def check(self, model: str, version: str, manifest_sha256: str) -> None:
        """Raises DriftError where this is the reference of anything else."""
        if (self.model, self.version) != (model, version):
            what = f"the drift reference is of {self.model} {self.version}, not of {model} {version}"
        elif self.manifest_sha256 != manifest_sha256:
            what = (
                f"the drift reference of {model} {version} is of a manifest {self.manifest_sha256[:12]}, "
                f"and the manifest is {manifest_sha256[:12]}"
            )
        else:
            return
        raise DriftError(what, where=self.source, mend=MEND)

    def compare(self, counts: Int64s, segment: str | None = None) -> tuple[Comparison, ...]:
        """Each measure of a window; none of a segment that is not known. counts: int64, the last of `offsets` many."""
        if segment not in self._parts:
            return ()
        if counts.shape != (self.offsets[-1],):
            raise DriftError(
                f"a window has {counts.shape} counts, and its reference {self.offsets[-1]} bins", mend=MEND
            )
        (measures, calibration), parts = self.of(segment), np.split(counts, self.offsets[1:-1])
        return tuple(compare(one, part, calibration) for one, part in zip(measures, parts, strict=True))


def build(
    measures: Sequence[Measure],
    *,
    model: str,
    version: str,
    manifest_sha256: str,
    rows: int,
    source: str,
    created: dt.datetime,
    alerts: AlertSettings | None = None,
    segment: str | None = None,
    segments: Mapping[str, Sequence[Measure]] = MappingProxyType({}),
    tell: Callable[[int], None] = lambda done: None,  # noqa: ARG005
) -> Reference:
    """With its calibration, which takes some seconds. The same measures and settings give the same bits.

    segment, segments: the field, and by its values the same measures with the counts of these rows alone.
    tell: told how many of `measures` and those of segments are calibrated.
    """
    alerts = alerts or AlertSettings()
    families = [measures, *segments.values()]
    found, among, done = [], sum(bool(one.rows) for family in families for one in family), 0
    for family in families:
        found.append(calibrate(family, alerts, among))
        done += len(family)
        tell(done)
    parts = (
        Segment(value=value, counts=tuple(one.counts for one in family), calibration=calibration)
        for (value, family), calibration in zip(segments.items(), found[1:], strict=True)
    )
    return Reference(
        model=model, version=version, manifest_sha256=manifest_sha256, rows=rows, source=source, created=created,
        alerts=alerts, measures=tuple(measures), calibration=found[0], segment=segment, segments=tuple(parts),
    )  # fmt: skip
