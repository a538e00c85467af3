"""The inputs of a run: event number n is the same for everybody who knows the seed. Pure.

Each bears its number in its payload and in a header. One in fifty can't be read: a wrong first byte, a cut record, or
no value at all, in turn.
"""

from __future__ import annotations

import io
import json
import random

import fastavro
import numpy as np
import pyarrow as pa

from chaos.columns import Flags, Ints

SCHEMA_FILE = "payment.avsc"
SCHEMA = json.dumps(
    {
        "type": "record",
        "name": "Payment",
        "namespace": "streamserve.chaos",
        "fields": [
            {"name": "payment", "type": "string"},
            {"name": "customer", "type": "string"},
            {"name": "amount", "type": "double"},
            {"name": "made", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        ],
    }
)
CUSTOMERS = 500
BAD_EVERY, BAD_AT = 50, 17
FIRST_MS = 1_700_000_000_000
NUMBER = "chaos.number"  # the header with an event's number
DRAWN = 10_007  # amounts and customers repeat after so many, a prime: not in step with anything else

Record = tuple[bytes, bytes | None, list[tuple[str, bytes | None]]]  # key, value, headers


class Events:
    """The events of one seed."""

    def __init__(self, seed: int, schema_id: int) -> None:
        dice = random.Random(seed)
        self._customers = [dice.randrange(CUSTOMERS) for _ in range(DRAWN)]
        self._amounts = [round(dice.expovariate(0.02), 2) for _ in range(DRAWN)]
        self._frame = b"\x00" + schema_id.to_bytes(4)
        self._schema = fastavro.parse_schema(json.loads(SCHEMA))

    def record(self, number: int) -> Record:
        """Key, value and headers of event `number`."""
        key = self.key(number)
        headers: list[tuple[str, bytes | None]] = [(NUMBER, b"%d" % number), ("trace", None if number % 3 else b"\xff")]
        return key, self._value(number, key), headers

    def key(self, number: int) -> bytes:
        """The record key: the customer."""
        return b"c%03d" % self._customers[number % DRAWN]

    def _value(self, number: int, key: bytes) -> bytes | None:
        bad = number // BAD_EVERY % 3 if number % BAD_EVERY == BAD_AT else None
        if bad == 2:
            return None
        out = io.BytesIO()
        event = {
            "payment": str(number),
            "customer": key.decode(),
            "amount": self._amounts[number % DRAWN],
            "made": FIRST_MS + number,
        }
        fastavro.schemaless_writer(out, self._schema, event)
        whole = self._frame + out.getvalue()
        return {None: whole, 0: b"\x07" + whole[1:], 1: whole[:-9]}[bad]


def malformed(numbers: Ints) -> Flags:
    """Which of these can't be read."""
    return numbers % BAD_EVERY == BAD_AT


def customers(seed: int) -> pa.Table:
    """The view's rows: one a customer, but for each tenth, who is new."""
    known = [n for n in range(CUSTOMERS) if n % 10]
    spent = np.random.default_rng(seed).random(len(known)).astype(np.float32)
    return pa.table(
        {
            "customer": [f"c{n:03}" for n in known],
            "feature_time": pa.array([FIRST_MS] * len(known), pa.timestamp("ms", "UTC")),
            "spent": spent,
        }
    )
