"""What is told as drift: the terms that limits are calibrated for, and alerts follow. Pure."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AlertSettings(BaseModel):
    """The defaults are argued, with figures, in docs/drift.md.

    Args:
        threshold: how far the PSI of a window must be above what it is without drift, on average.
        alpha: the chance of a false alert, of any measure of a reference, in `per` windows.
        per: the windows that `alpha` is the chance of: 24 are a day of hours.
        in_a_row: windows that exceed before there is an alert.
        min_rows: a window with fewer is INSUFFICIENT. Limits are calibrated from 50 on.
        clear: windows in a row that do not exceed end an alert.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(default=0.005, ge=0, allow_inf_nan=False)
    alpha: float = Field(default=0.002, gt=0, lt=1)
    per: int = Field(default=24, le=10_000)
    in_a_row: int = Field(default=2, ge=1, le=10)
    min_rows: int = Field(default=100, ge=50)
    clear: int = Field(default=3, ge=1, le=10)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.per < self.in_a_row:
            raise ValueError(f"of {self.per} windows no {self.in_a_row} are in a row")
        return self
