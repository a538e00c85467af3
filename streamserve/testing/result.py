"""What became of one event, read back from the bytes that a worker would have sent."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fastavro

from streamserve.headers import Header
from streamserve.pipeline import framing
from streamserve.pipeline.emit import HEADER
from streamserve.pipeline.prediction import SCHEMA

_PARSED = fastavro.parse_schema(SCHEMA)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that could not be scored. stage, error and message are those of its headers.

    headers: all of them, the event's own first. key, value: the event's, untouched.
    """

    stage: str
    error: str
    message: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    @classmethod
    def read(cls, key: bytes | None, value: bytes | None, headers: Sequence[Header] | None) -> DeadLetter:
        added = {name: text or b"" for name, text in headers or () if name.startswith(HEADER)}
        stage, error, message = (added[HEADER + name].decode() for name in ("stage", "error", "message"))
        return cls(stage, error, message, key, value, tuple(headers or ()))


@dataclass(frozen=True, slots=True)
class Result:
    """One event's prediction, or its dead letter: exactly one of the two is there.

    place: the event's place in what was given. prediction: the record as any consumer of the topic decodes it.
    features: what the model was fed, by feature name; a list where a feature has several columns.
    key, headers, timestamp: of the prediction's record.
    """

    place: int
    prediction: Mapping[str, Any] | None = None
    dead_letter: DeadLetter | None = None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp: int = 0
    _features: Mapping[str, Any] | None = None

    @property
    def scores(self) -> dict[str, float]:
        """By output name.

        Raises:
            AssertionError: (as all that is read of a prediction) the event became a dead letter; says why.
        """
        return dict(self._said("scores"))

    @property
    def decision(self) -> str | None:
        found: str | None = self._said("decision")
        return found

    @property
    def feature_status(self) -> dict[str, str]:
        """By view name: PRESENT, STALE, FUTURE, MISSING, TIMEOUT or DEFAULTED."""
        return dict(self._said("feature_status"))

    @property
    def version(self) -> str:
        return str(self._said("model_version"))

    @property
    def features(self) -> dict[str, Any]:
        self._said("model")
        return dict(self._features or {})

    def _said(self, name: str) -> Any:
        if self.prediction is None:
            grounds = self.dead_letter
            why = f"{grounds.stage}: {grounds.error}: {grounds.message}" if grounds else "it is nowhere"
            raise AssertionError(f"event {self.place} has no prediction, it is a dead letter: {why}")
        return self.prediction[name]


def read_prediction(value: bytes | None) -> dict[str, Any]:
    """A framed prediction, as a consumer with the published schema reads it."""
    body = io.BytesIO((value or b"")[framing.HEADER :])
    found = fastavro.schemaless_reader(body, _PARSED, None)
    if not isinstance(found, dict) or body.read(1):
        raise AssertionError("a prediction is not a record of the published schema")
    return found
