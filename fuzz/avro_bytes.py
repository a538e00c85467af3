"""Avro written by hand, so that one value of an event can be written in a way that no producer should.

Where nothing is spoiled the bytes are those of any Avro writer.
"""

from __future__ import annotations

import struct
from random import Random
from typing import Any

from fuzz import odd
from streamserve.pipeline.schemas import Node

_PYTHON = {
    type(None): ("null",), bool: ("boolean",), int: ("long", "int"), float: ("double", "float"),
    str: ("string", "enum"), bytes: ("bytes", "fixed"), list: ("array",), dict: ("record", "map"),
}  # fmt: skip


def number(value: int) -> bytes:
    """A zigzag varint of 64 bits."""
    raw, out = ((value << 1) ^ (value >> 63)) & ((1 << 64) - 1), bytearray()
    while raw > 0x7F:
        out.append(raw & 0x7F | 0x80)
        raw >>= 7
    return bytes([*out, raw])


def longer(varint: bytes, size: int) -> bytes:
    """The same number in more bytes than it needs."""
    if len(varint) >= size:
        return varint
    return varint[:-1] + bytes([varint[-1] | 0x80]) + b"\x80" * (size - len(varint) - 1) + b"\0"


def encode(node: Node, value: Any, random: Random | None = None, spoiled: int = -1) -> bytes:
    """An event; the value at place `spoiled` of the walk through it is written oddly."""
    writer = _Writer(random or Random(0), spoiled)
    writer.write(node, value)
    return bytes(writer.out)


def places(node: Node, value: Any) -> int:
    """How many values the walk through an event meets."""
    writer = _Writer(Random(0), -1)
    writer.write(node, value)
    return writer.place


class _Writer:
    def __init__(self, random: Random, spoiled: int) -> None:
        self.out, self.place = bytearray(), 0
        self._random, self._spoiled = random, spoiled

    def write(self, node: Node, value: Any) -> None:
        here, self.place = self.place, self.place + 1
        if here == self._spoiled:
            self._spoil(node, value)
        else:
            self._plain(node, value)

    def _plain(self, node: Node, value: Any) -> None:  # noqa: C901 (a case a kind)
        match node.kind:
            case "int" | "long":
                self.out += number(int(value))
            case "float":
                self.out += _float(value)
            case "double":
                self.out += struct.pack("<d", value)
            case "boolean":
                self.out.append(value)
            case "string" | "bytes":
                raw = value.encode() if isinstance(value, str) else value
                self.out += number(len(raw)) + raw
            case "fixed":
                self.out += value
            case "enum":
                self.out += number(node.symbols.index(value))
            case "union":
                at = branch_of(node, value)
                self.out += number(at)
                self.write(node.branches[at], value)
            case "record":
                for f in node.fields:
                    self.write(f.node, value[f.name])
            case "array" | "map":
                self._blocks(node, value)

    def _blocks(self, node: Node, value: Any, how: str = "") -> None:
        if value:
            if how:
                size = {"sized": 0, "lying": 3, "lying far": 2**40, "lying below": -7}[how]
                self.out += number(-len(value)) + number(size)
            else:
                self.out += number(len(value))
            for item in value.items() if isinstance(value, dict) else value:
                self._item(node, item)
        self.out += b"\0"

    def _item(self, node: Node, item: Any) -> None:
        if node.kind == "map":
            key, item = item
            self.out += number(len(key.encode())) + key.encode()
        self.write(node.inner, item)

    def _spoil(self, node: Node, value: Any) -> None:
        pick = self._random.choice
        match node.kind:
            case "int" | "long" | "enum":
                plain = number(node.symbols.index(value) if node.kind == "enum" else int(value))
                self.out += pick((
                    longer(plain, 10), longer(plain, len(plain) + 1), longer(plain, 11), b"\xff" * 9 + b"\x01",
                    b"\xff" * 10 + b"\x01", b"\x80" * 30, b"\xff" * 9 + b"\x7f", number(2**31), number(-1),
                    number(2**63 - 1), number(-(2**63)), b"",
                ))  # fmt: skip
            case "string" | "bytes":
                raw = value.encode() if isinstance(value, str) else value
                bad = pick(odd.BROKEN_TEXTS)
                size = pick((len(raw) + 1, -1, -len(raw), 2**31, 2**62, -(2**63), 2**31 - 6, len(raw) + 1000))
                self.out += pick((number(len(bad)) + bad, number(size) + raw, longer(number(len(raw)), 10) + raw, raw))
            case "union":
                self._spoil_union(node, value)
            case "array" | "map":
                self._spoil_blocks(node, value)
            case "boolean":
                self.out.append(pick((2, 7, 128, 255)))
            case "float" | "double":
                self.out += pick((b"\xff" * 8, b"\x01" + b"\0" * 7, struct.pack("<d", odd.nan(self._random)), b""))
            case "record":
                for _ in range(pick((0, 2))):
                    self._plain(node, value)
            case _:
                self.out += pick((b"", b"\0", b"\xff" * 3))

    def _spoil_union(self, node: Node, value: Any) -> None:
        own, many = branch_of(node, value), len(node.branches)
        at = self._random.choice((own, *range(many), -1, many, -2, 127, 2**31, 2**32 + own, 2**62))
        self.out += longer(number(at), 10) if self._random.random() < 0.3 else number(at)
        if self._random.random() < 0.8:
            self.write(node.branches[own], value)

    def _spoil_blocks(self, node: Node, value: Any) -> None:
        how = self._random.choice(("sized", "lying", "lying far", "lying below", "count", "one by one", "open", "bomb"))
        if how == "one by one":
            for item in value.items() if isinstance(value, dict) else value:
                self.out += number(1)
                self._item(node, item)
            self.out += b"\0"
        elif how == "count":
            self.out += number(self._random.choice((2**62, 2**31, -(2**63), -(2**62), len(value) + 1)))
            self._blocks(node, value)
        elif how == "open":
            self._blocks(node, value)
            self.out.pop()
        elif how == "bomb":
            self.out += number(10**9) + b"\0" * 50
        else:
            self._blocks(node, value, how)


def _float(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def branch_of(node: Node, value: Any) -> int:
    """The place of a union's branch that takes this value."""
    kinds = [branch.kind for branch in node.branches]
    return next(kinds.index(kind) for kind in _PYTHON[type(value)] if kind in kinds)
