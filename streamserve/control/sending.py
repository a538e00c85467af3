"""A command as the record that is written to the control log."""

from __future__ import annotations

from streamserve.control.commands import AnyCommand
from streamserve.control.signature import HEADER, Key, sign
from streamserve.headers import Header


def encode(command: AnyCommand, key: Key | None = None) -> tuple[bytes, list[Header]]:
    """Value and headers, signed where a key is given. The bytes are signed: no part of the way may write them anew."""
    value = command.model_dump_json(exclude_none=True).encode()
    return value, [] if key is None else [(HEADER, sign(value, key))]
