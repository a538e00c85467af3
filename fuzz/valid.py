"""Good events of any Avro schema, with the values that a topology knows where a field's name says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from streamserve.pipeline.schemas import Node

NOON_MS = 1_372_680_000_000  # 2013-07-01T12:00Z
SPREAD_MS = 200 * 86_400_000
Known = Mapping[str, Sequence[Any]]  # by field name
DEEPEST = 5  # records within records of a type that holds itself


def event(node: Node, random: Random, known: Known, name: str = "", depth: int = 0) -> Any:  # noqa: C901, PLR0911
    """A value of this type: integers for times, bytes for decimals, as without logical types."""
    if name in known:
        return random.choice(known[name])
    if node.kind == "union":
        ends = node.branches[0].kind == "null" and (depth > DEEPEST or random.random() < 0.15)
        return None if ends else event(random.choice(_values(node)), random, known, name, depth)
    match node.kind:
        case "int" | "long":
            return _number(node, random)
        case "float" | "double":
            return float(f"{random.gauss(10, 30):.4g}")
        case "string":
            return f"{name[:3]}{random.randrange(1000)}"
        case "boolean":
            return random.random() < 0.5
        case "enum":
            return random.choice(node.symbols)
        case "bytes":
            return random.randrange(100_000).to_bytes(4)
        case "fixed":
            return random.randbytes(node.size)
        case "array":
            count = 0 if depth > DEEPEST else random.randrange(4)
            return [event(node.inner, random, known, name, depth + 1) for _ in range(count)]
        case "map":
            return {f"k{i}": event(node.inner, random, known, name, depth + 1) for i in range(random.randrange(4))}
        case "record":
            return {f.name: event(f.node, random, known, f.name, depth + 1) for f in node.fields}
    return None


def _values(node: Node) -> list[Node]:
    return [branch for branch in node.branches if branch.kind != "null"] or node.branches


def _number(node: Node, random: Random) -> int:
    logical = node.logical
    if "timestamp" in logical:
        moment = NOON_MS + random.randrange(-SPREAD_MS, SPREAD_MS)
        return moment * {"millis": 1, "micros": 1000, "nanos": 1_000_000}[logical.rpartition("-")[2]]
    if logical == "date":
        return 15_887 + random.randrange(-200, 200)
    if logical.startswith("time"):
        return random.randrange(86_400_000) * (1 if logical.endswith("millis") else 1000)
    return random.randrange(3000)
