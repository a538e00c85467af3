"""The golden set of a version: some events, the stored rows that they met, and the scores that came out.

It travels with the version. A worker that does not get these scores, within the tolerance, does not serve it: another
release of the topology file, of ONNX Runtime or of the machine then shows before an event does.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field


class GoldenSet(BaseModel):
    """events: JSON objects as the event schema describes them. rows: by the store's key, base64.

    scores: one list an event, in the order of `names`; decisions beside them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    events: tuple[str, ...] = Field(min_length=1)
    timestamps: tuple[int, ...]
    rows: Mapping[str, str]
    names: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]
    decisions: tuple[str | None, ...]
    tolerance: float = Field(default=1e-5, ge=0)

    def stored(self) -> dict[bytes, bytes]:
        return {key.encode(): base64.b64decode(row) for key, row in self.rows.items()}


def encode_rows(rows: Mapping[bytes, bytes]) -> dict[str, str]:
    return {key.decode(): base64.b64encode(row).decode() for key, row in rows.items()}
