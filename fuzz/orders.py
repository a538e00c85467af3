"""A topology with a bit of everything: nested records, arrays, maps, enums, optional fields, logical types, derived
features that refuse some events, inputs of three types, and a schema that was written in several versions.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamserve.topology import (
    Source,
    Topology,
    View,
    argmax,
    category,
    days,
    derived,
    field,
    output,
    parts,
    stored,
    text,
    vector,
)  # fmt: skip

Column = NDArray[np.generic]
Json = dict[str, Any]
SHAPE = 4  # of the vector
CODES = 64  # beyond it the model has no row in its table, and fails


def one(name: str, type: Any, **more: Any) -> Json:
    return {"name": name, "type": type, **more}


def maybe(name: str, type: Any) -> Json:
    return one(name, ["null", type], default=None)


def record(name: str, *fields: Json, **more: Any) -> Json:
    return {"type": "record", "name": name, "fields": list(fields), **more}


def logical(type: Any, name: str, **more: Any) -> Json:
    return {**(type if isinstance(type, dict) else {"type": type}), "logicalType": name, **more}


def _item(*more: Json) -> Json:
    return record("Item", one("sku", "string"), one("count", "int"), maybe("price", "double"), *more)


def _kind(*symbols: str) -> Json:
    return {"type": "enum", "name": "Kind", "symbols": list(symbols)}


TREE = record("Tree", one("label", "string"), one("below", {"type": "array", "items": "Tree"}))
PLACE = record(
    "Place", maybe("city", "string"), one("lat", "float"), one("lon", "float"),
    maybe("street", record("Street", one("name", "string"), maybe("number", "int"))),
)  # fmt: skip
PRICE = logical("bytes", "decimal", precision=12, scale=2)

READER = record(
    "Order",
    one("order_id", logical("string", "uuid")),
    one("customer", record("Customer", one("name", "string"), maybe("since", logical("int", "date")),
                           one("place", PLACE))),
    one("kind", _kind("WEB", "SHOP", "PHONE")),
    one("placed", logical("long", "timestamp-micros")),
    maybe("packed", logical("long", "local-timestamp-millis")),
    maybe("picked", logical("int", "time-millis")),
    one("items", {"type": "array", "items": _item()}),
    one("amounts", {"type": "map", "values": "double"}, default={}),
    one("shape", {"type": "array", "items": "float"}),
    maybe("weight", "double"),
    one("code", "long"),
    one("gift", "boolean", default=False),
    one("price", PRICE, default="\u0000"),
    maybe("note", "string"),
    one("free", ["null", "boolean", "string"], default=None),
    namespace="shop",
)  # fmt: skip


def _other(drop: tuple[str, ...] = (), change: dict[str, Json] | None = None, *more: Json) -> Json:
    """The reader's schema as another release of a producer had it."""
    changed = change or {}
    kept = [changed.get(f["name"], f) for f in READER["fields"] if f["name"] not in drop]
    return {**READER, "fields": [*kept, *more]}


# By schema id. What nobody reads (a field of recursive records) may stand in any of them.
WRITERS: dict[int, Json | str] = {
    10: READER,
    11: _other(("gift", "amounts", "free"), {"code": one("code", "int"), "weight": maybe("weight", "float")}),
    12: _other((), {
        "kind": one("kind", _kind("PHONE", "WEB", "SHOP", "FAX")),
        "customer": one("customer", record("Customer", one("place", PLACE), one("vip", "boolean"),
                                           one("name", ["null", "string"]), maybe("since", logical("int", "date")))),
        "items": one("items", {"type": "array", "items": _item(one("tags", {"type": "array", "items": "string"}))}),
    }, maybe("history", TREE), one("md5", {"type": "fixed", "name": "Md5", "size": 16})),
    13: _other((), {"code": one("code", "string")}),  # can't be read as the reader's
    14: "{",  # no schema
    15: _other(
        (), {"shape": one("shape", {"type": "array", "items": "int"})},
        one("voids", {"type": "array", "items": "null"}),
    ),
}  # fmt: skip

KNOWN = {
    "name": ["Ann", "Bob", "Cy", "Ödön"], "city": ["Ulm", "Oslo", "Rom"], "sku": [f"s{i}" for i in range(9)],
    "code": list(range(CODES)), "count": [1, 2, 3, 4], "shape": [[0.5] * SHAPE, [1.0, -2.0, 3.5, 0.0]],
}  # fmt: skip


def _total(items: Column) -> Column:
    """A record an element, in a list an event: user code that fails on a null price and on too many."""
    found = np.empty(len(items))
    for at, few in enumerate(items):
        if few is None or len(few) > 100:
            raise ValueError("no items, or too many")
        found[at] = sum(item["count"] * item["price"] for item in few if item["price"] is not None)
    return found


def _spread(amounts: Column) -> Column:
    return np.array([np.ptp([v for _, v in few]) if few is not None and len(few) else np.nan for few in amounts])


def _log(weight: Column, lat: Column) -> Column:
    return np.log1p(np.abs(weight)) * np.cos(lat.astype(np.float64)) ** 3


def _picky(minute: Column) -> Column:
    if (minute == 13).any():
        raise ArithmeticError("thirteen")
    return 1 / (60 - minute)


customers = View(
    "customer", key="customer.name", max_age=days(120), stale="use", future="default",
    fields=("orders", "returns", "mean"), default=(3.0, 0.1, 20.0),
)  # fmt: skip
places = View("place", key=("customer.place.city", "order_id", "code"), fields=("rate", "count"))


def topology(format: Literal["avro", "json"]) -> Topology:
    """`code`, `gift` and `number` (which may be null) go into whole numbers, `note` and `city` into texts.

    All the others go into a matrix.
    """
    prices = (field("price"),) if format == "avro" else ()  # bytes have no plain form in JSON
    return Topology(
        name=f"orders-{format}",
        source=Source(
            f"orders-{format}.events", schema="order.avsc", format=format, key="customer.name", event_time="placed",
            id="order_id",
        ),
        features=(
            field("weight"), field("gift"), field("code"), *prices, field("customer.place.lat", name="lat"),
            field("customer.place.street.number", name="number"), category("kind"), text("note", default="-"),
            text("customer.place.city", name="city"),
            parts("placed", "minute", "hour", "weekday", "day", "month", "dayofyear", tz="Europe/Berlin"),
            parts("customer.since", "day", "month", prefix="since_"), parts("packed", "hour", prefix="packed_"),
            vector("shape", SHAPE), derived("total", _total, of="items"), derived("spread", _spread, of="amounts"),
            derived("logged", _log, of=("weight", "lat")), derived("picky", _picky, of="minute"),
            stored(customers), stored(places),
        ),
        model=f"orders-{format}",
        outputs={"class": output("probabilities"), "value": output("value", column=0)},
        decision=argmax("class"),
    )  # fmt: skip


SCHEMA = json.dumps(READER)
