"""Odd values: numbers, texts and JSON that producers should not send, and one day do."""

from __future__ import annotations

import math
import struct
from random import Random
from typing import Any

from streamserve.pipeline.schemas import Node

HUGE = 1 << 18  # characters of a huge text or bytes of a huge key: rare, and not what memory is tried with
MANY = 50  # items from which on all are the same
LONG = 100_000  # steps of something too deep, digits of something too long

INTS = (0, 1, -1, 127, -128, 255, 2**31 - 1, -(2**31))
LONGS = (
    *INTS, 2**31, -(2**31) - 1, 2**52, -(2**52), 2**53 + 1, 2**62, 2**63 - 1, -(2**63), 2**40,
    253_402_300_799_999, 253_402_300_800_000, -62_135_596_800_000, -62_135_596_800_001, 8_640_000_000_000_001,
)  # fmt: skip
FLOATS = (
    0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, 5e-324, -5e-324, 1e-45, 1.1754942e-38, 3.4028234e38, -3.4028235e38,
    1e300, -1e300, 1.7976931348623157e308, 16_777_217.0, 2.0**53 + 2, 0.1, 1e-7,
)  # fmt: skip
NAN_BITS = (0x7FF8000000000001, 0xFFF8000000000000, 0x7FF0000000000001, 0xFFFFFFFFFFFFFFFF)
TEXTS = (
    "", " ", "\0", "a\0b", "\x1f", "a\x1fb", "\\", "a\\\x1f", "null", "NaN", "é", "e\u0301", "\u202e", "\ufeff",
    "\U0001f600", "\U0010ffff", "\uffff", "'; --", "%s%n", "{}", "\r\n", "0", "-1", "ß" * 300, "1970-01-01",
)  # fmt: skip
BROKEN_TEXTS = (
    b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xed\xb0\x80\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"abc\x80",
    b"\xf8\x88\x80\x80\x80",
)  # fmt: skip
# What stands where a JSON value is expected. Most of it is no value of the field's type; some of it is no JSON.
TOKENS = (
    "null", "true", "false", "0", "-0", "-0.0", "1e999999", "-1e999999", "1e-999999", "1e308", "-1e309", "1e400",
    "NaN", "Infinity", "-Infinity", "nan", "0x10", "01", "+1", "1.", ".5", "1e", "1_000", "9" * 400, "9" * 5000,
    "-" + "1" * 4301, "9223372036854775807", "9223372036854775808", "-9223372036854775809", "2147483648", "1.0",
    "1.5", "9007199254740993", "4503599627370496", "1e15", "5e-324", "3.4028236e38", '""', '"0"', '"\\u0000"',
    '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\x"', '"\\u12"', '"a\nb"', '"\x7f"', '"unended',
    "[]", "{}", "[[]]", "[null]", "[1,]", "{,}", '{"a":1}', '{"":{}}', "[1e999]", "undefined", "", "'a'", "/**/1",
    '"2013-01-01T00:00:00Z"', '"2013-02-30T00:00:00Z"', '"0000-01-01T00:00:00Z"', '"9999-12-31T23:59:59.999999999Z"',
    '"0001-01-01T00:00:00+23:59"', '"24:00"', '"2013-01-01"',
)  # fmt: skip
NAMES = ("", " ", "a", "h\0", "streamserve.stage", "streamserve.error", "traceparent", "\udcff\udcfe", "ß", "x" * 300)


def nan(random: Random) -> float:
    """A NaN of unusual bits; a signalling one stays one in a double."""
    value: float = struct.unpack("<d", struct.pack("<Q", random.choice(NAN_BITS)))[0]
    return value


def text(random: Random) -> str:
    """Always valid UTF-8."""
    if random.random() < 0.01:
        return random.choice(("x", "\\", "é", "\0")) * random.choice((1000, HUGE))
    return random.choice(TEXTS)


def value(node: Node, random: Random, depth: int = 0) -> Any:  # noqa: C901, PLR0911, PLR0912 (a case a kind)
    """An odd value that is nevertheless one of this type."""
    inner, nullable = node.without_null()
    if nullable and random.random() < 0.3:
        return None
    match inner.kind:
        case "int":
            return random.choice(INTS)
        case "long":
            return random.choice(LONGS)
        case "float" | "double":
            return nan(random) if random.random() < 0.1 else random.choice(FLOATS)
        case "string":
            return random.choice(TEXTS) if depth else text(random)  # hundreds of huge ones are no input
        case "boolean":
            return random.random() < 0.5
        case "enum":
            return random.choice(inner.symbols)
        case "bytes":
            return random.choice((b"", b"\0", b"\x80", b"\xff" * 16, b"\x7f" + b"\xff" * 20, random.randbytes(40)))
        case "fixed":
            return random.choice((b"\0" * inner.size, b"\xff" * inner.size, random.randbytes(inner.size)))
        case "array":
            return _values(inner.inner, random, depth)
        case "map":
            return {
                text(random)[:50]: value(inner.inner, random, depth + 1) for _ in range(random.choice((0, 1, 2, 30)))
            }
        case "record":
            return {f.name: value(f.node, random, depth) for f in inner.fields}
        case "union":
            return value(random.choice(inner.branches), random)
    return None


def _values(node: Node, random: Random, depth: int) -> list[Any]:
    count = random.choice((0, 1, 2, 27, 783, 784, 785)) if depth == 0 else random.choice((0, 0, 1, 2)) // depth
    many = count if count < MANY else 1
    return [value(node, random, depth + 1) for _ in range(many)] * (count // many if many else 1)
