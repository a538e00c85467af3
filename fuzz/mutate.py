"""From good events to the values, keys and headers of inputs: each drawn by itself, all from the given randomness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from fuzz import avro_bytes, json_bytes, odd
from streamserve.headers import Header
from streamserve.pipeline.schemas import Field, Node

FRAME = 5
INTERESTING = (b"\0", b"\xff", b"\x80", b"\x02", b"\x01", b"\x7f", b'"', b"{", b"[", b"\\", b"\xff" * 9, b"\x80" * 10)


@dataclass(frozen=True)
class Sample:
    """A good event. places: how many values its Avro form has. writer: what it is written with (JSON: the reader's)."""

    format: Literal["avro", "json"]
    schema_id: int
    writer: Node
    event: dict[str, Any]
    value: bytes
    key: bytes | None
    places: int


def framed(schema_id: int, body: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4) + body


def written(sample: Sample, event: dict[str, Any]) -> bytes:
    if sample.format == "json":
        return json_bytes.encode(event)
    return framed(sample.schema_id, avro_bytes.encode(sample.writer, event))


# ---- values that still are events


def altered(sample: Sample, random: Random) -> bytes:
    """One to three values of the event odd, and each still one of its type."""
    event = copied(sample.event)
    for _ in range(random.choice((1, 1, 2, 3))):
        _alter(sample.writer, event, random)
    return written(sample, event)


def _alter(record: Node, event: dict[str, Any], random: Random) -> None:
    while True:
        f: Field = random.choice(record.fields)
        inner, _ = f.node.without_null()
        found = event[f.name]
        if inner.kind == "record" and isinstance(found, dict) and random.random() < 0.8:
            record, event = inner, found
            continue
        if inner.kind == "array" and found and random.random() < 0.5:
            at = random.randrange(len(found))
            found[at] = odd.value(inner.inner, random)
        else:
            event[f.name] = odd.value(f.node, random)
        return


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: copied(one) for name, one in value.items()}
    if isinstance(value, list):
        return [copied(one) for one in value] if value and isinstance(value[0], (dict, list)) else list(value)
    return value


# ---- values that mostly are none


def spoiled(sample: Sample, random: Random) -> bytes:
    """One value of the event written in a way that the format forbids, or nearly."""
    if sample.format == "json":
        return json_bytes.spoiled(copied(sample.event), random)
    body = avro_bytes.encode(sample.writer, sample.event, random, random.randrange(sample.places))
    return framed(sample.schema_id, body)


def bent(value: bytes, random: Random) -> bytes:
    """A few bytes of it changed, lost, doubled or added."""
    data = bytearray(value)
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        at = random.randrange(len(data) + 1)
        end = min(len(data), at + random.choice((1, 1, 2, 4, 8, 64)))
        turn = random.randrange(7)
        if turn <= 1 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif turn == 2:
            data[at:end] = random.choice(INTERESTING)
        elif turn == 3:
            data[at:at] = random.choice(INTERESTING)
        elif turn == 4:
            del data[at:end]
        elif turn == 5:
            data[at:at] = data[at:end]
        else:
            data[at:end] = random.randbytes(end - at)
    return bytes(data)


def cut(value: bytes, random: Random) -> bytes:
    return value[: random.randrange(len(value))]


def longer(value: bytes, random: Random) -> bytes:
    return value + (random.randbytes(random.choice((1, 2, 8, 100))) if random.random() < 0.9 else b"\0" * odd.HUGE)


def deep(value: bytes, random: Random) -> bytes:
    """A run of one thing put into it or after it: what nests, in Avro and in JSON, and lengths without end."""
    run = random.choice((b"\x02", b"\0", b"\x80", b"\xff", b"[", b'{"a":', b"\x02\x02\x01", b"9"))
    at = random.choice((len(value), random.randrange(len(value) + 1)))
    return value[:at] + run * random.choice((3, 50, 99, 101, 300, 5000, odd.LONG // 4)) + value[at:]


def headed(value: bytes, random: Random, ids: Sequence[int]) -> bytes:
    """The event under another header: of a schema that it was not written with, of none, or no header at all."""
    if random.random() < 0.3:
        return bytes([random.choice((1, 2, 0x7B, 0x80, 0xFF))]) + value[1:]
    known = random.choice(ids) if ids and random.random() < 0.7 else random.choice((0, 3000, 2**31, 2**32 - 1))
    return value[:1] + known.to_bytes(4) + value[FRAME:]


def spliced(value: bytes, other: bytes, random: Random) -> bytes:
    return value[: random.randrange(len(value) + 1)] + other[random.randrange(len(other) + 1) :]


def value(pool: Sequence[Sample], ids: Sequence[int], random: Random) -> bytes | None:  # noqa: PLR0911 (a return a way)
    """A mutated value. ids: of all schemas that are known."""
    sample, turn = random.choice(pool), random.random()
    if turn < 0.30:
        return altered(sample, random)
    if turn < 0.55:
        return spoiled(sample, random)
    if turn < 0.75:
        return bent(sample.value, random)
    if turn < 0.80:
        return bent(altered(sample, random), random)
    if turn < 0.85:
        return cut(sample.value, random)
    if turn < 0.90:
        return longer(sample.value, random)
    if turn < 0.94:
        return spliced(sample.value, random.choice(pool).value, random)
    if turn < 0.97:
        return headed(sample.value, random, ids)
    if turn < 0.98:
        return deep(sample.value, random)
    return random.choice((None, None, b"", b"\0", b"\0\0\0\0\1", b"{}", b"null", b"\0" * 64, random.randbytes(40)))


# ---- keys and headers


def key(sample: Sample, random: Random) -> bytes | None:
    if random.random() < 0.9:
        return sample.key
    turn: Callable[[], bytes | None] = random.choice((
        lambda: None, lambda: b"", lambda: b"\0", lambda: b"\xff\xfe", lambda: random.randbytes(30),
        lambda: b"k" * (odd.HUGE if random.random() < 0.02 else 5000), lambda: odd.text(random).encode(),
    ))  # fmt: skip
    return turn()


def headers(random: Random) -> list[Header] | None:
    """Mostly none; else a few, with names and values that Kafka allows."""
    if random.random() < 0.6:
        return None
    count = 200 if random.random() < 0.003 else random.choice((0, 1, 1, 2, 5))
    return [(random.choice(odd.NAMES), _header(random)) for _ in range(count)]


def _header(random: Random) -> bytes | None:
    turn = random.random()
    if turn < 0.2:
        return None
    if turn < 0.3:
        return b""
    return random.randbytes(random.choice((1, 8, 40))) if turn < 0.99 else b"h" * 20_000
