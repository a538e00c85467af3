"""Shares and segments as people type them: `5%`, `250bp`; `carrier=UA,B6`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import click

from streamserve.control.commands import WHOLE_WEIGHT


class Share(click.ParamType):
    """Basis points of a share: 5% is 500. A bare number could be either, and is refused."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|bp)", value.strip())
        if match is None:
            self.fail(f"{value!r} is no share: write 5%, 0.5% or 50bp", param, ctx)
        points = Decimal(match[1]) * (100 if match[2] == "%" else 1)
        if points != points.to_integral_value() or points > WHOLE_WEIGHT:
            self.fail(f"{value!r} is no share: from 0% to 100%, in hundredths of a percent", param, ctx)
        return int(points)


def percent(points: int) -> str:
    """A share for people: 500 is 5%."""
    return f"{Decimal(points) / 100:f}%"


def where(given: Iterable[str]) -> dict[str, tuple[str | int | bool, ...]]:
    """`field=value,value`, several times: an event is in the segment if each field has one of its values.

    Values are JSON where they are a whole number, true, false or a quoted text, and text otherwise.

    Raises:
        click.UsageError: not of that form.
    """
    found = {}
    for one in given:
        path, sep, values = one.partition("=")
        if not sep or not path or not values:
            raise click.UsageError(f"{one!r} is no segment: write field=value, or field=value,value")
        found[path.strip()] = tuple(_value(text.strip()) for text in values.split(","))
    return found


def _value(text: str) -> str | int | bool:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, str | int | bool) else text


def segment(found: Mapping[str, Sequence[str | int | bool]]) -> str:
    """The way back: `carrier=UA,B6 origin=JFK`."""
    return " ".join(f"{path}={','.join(map(_text, values))}" for path, values in found.items())


def _text(value: str | int | bool) -> str:
    plain = isinstance(value, str) and "," not in value and value == value.strip() and _value(value) == value
    return str(value) if plain else json.dumps(value, ensure_ascii=False)
