"""JSON events, and JSON with one value of it spoiled."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from fuzz import odd

MARK = "@@here@@"  # where the odd token goes


def encode(event: Any) -> bytes:
    """As producers write it; NaN and infinities as Python's producers write them, which is no JSON."""
    return json.dumps(event, separators=(",", ":"), default=lambda raw: raw.decode("latin-1")).encode()


def spoiled(event: Any, random: Random) -> bytes:  # noqa: PLR0911 (a return a way)
    """With something odd in the place of one of its fields; the event itself is given away for it."""
    how = random.random()
    if how < 0.75:
        _put(event, random, MARK)
        return encode(event).replace(f'"{MARK}"'.encode(), random.choice(odd.TOKENS).encode(), 1)
    text = encode(event)
    if how < 0.85:  # a name twice: the last one counts
        name = random.choice(list(event))
        return text[:-1] + f',"{name}":{random.choice(odd.TOKENS)}}}'.encode()
    if how < 0.86:
        return bomb(random)
    turn = random.randrange(7)
    if turn == 0:
        return b"\xef\xbb\xbf" + text
    if turn == 1:
        return text.decode().encode("utf-16")
    if turn == 2:
        return b" \n\t" + text + b"\r\n "
    if turn == 3:
        return b"[" + text + b"]"
    if turn == 4:
        return text + text
    if turn == 5:
        return text.replace(b'"', b"'")
    return json.dumps(json.loads(text), indent=random.choice((None, 1, "\t"))).encode()


def bomb(random: Random) -> bytes:
    """Deep, long or both."""
    depth = random.choice((90, 200, 1000, odd.LONG))
    kind = random.randrange(6)
    if kind == 0:
        return b"[" * depth
    if kind == 1:
        return b'{"a":' * depth + b"1" + b"}" * depth
    if kind == 2:
        return b'{"a":' + b"[" * depth + b"]" * depth + b"}"
    if kind == 3:
        return b'{"a":' + b"9" * depth + b"}"
    if kind == 4:
        return b'{"a":[' + b"0," * depth + b"0]}"
    return b'{"' + b"a" * depth + b'":"' + b"\\u0041" * depth + b'"}'


def _put(event: Any, random: Random, what: Any) -> None:
    """Replace one value, at any depth."""
    while True:
        name = random.choice(list(event)) if isinstance(event, dict) else random.randrange(len(event))
        inside = event[name]
        if not isinstance(inside, (dict, list)) or not inside or random.random() < 0.4:
            event[name] = what
            return
        event = inside
