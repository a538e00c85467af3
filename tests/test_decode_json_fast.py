"""The quick ways through JSON say what the slow ones say."""

from __future__ import annotations

import json
import math
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.pipeline import columns, json_events
from streamserve.pipeline.columns import Asked
from streamserve.pipeline.json_events import JsonReader, NotJsonError
from streamserve.pipeline.schemas import EventSchema

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
BYTES = b'{}[]",:0123456789eE.+-\\utrfn \n\x00\x1f\xff\xc3/NIa'
CORNERS = [
    b'{"a":1e999}', b'{"a":-0}', b'{"a":-0.0}', b'{"a":1,"a":2}', b"\xef\xbb\xbf{}", b'{"a":"\\ud800"}', b'{"a":01}',
    b'{"a":"\\ud83d\\ude00"}', b'{"a":1.}', b'{"a":.5}', b'{"a":+1}', b"{} x", b'{"a":NaN}', b'{"a":-Infinity}', b"[]",
    b'{"a":' + b"9" * 5000 + b"}", *(b'{"a":' + b"[" * deep + b"]" * deep + b"}" for deep in (150, 5000)),
    b'{"a":0.1e-400}', b'{"a":123456789012345678901234567890.123}', b'{"a":2.2250738585072011e-308}', b'{"a":1e23}',
    b'{"a":9007199254740993.0}', b'{"a":8.5e-324}', b'{"a":"\x7f\x00"}', b'\n {"a" :\t1 }\r\n', b"", b"nul",
]  # fmt: skip


def said(parse, value: bytes) -> str:
    try:
        return repr(parse(value))
    except NotJsonError:
        return "not JSON"


@pytest.mark.parametrize("value", CORNERS, ids=lambda value: repr(value[:20]))
def test_corners_of_the_grammar(value):
    assert said(json_events.parse, value) == said(json_events._judge, value)


@settings(max_examples=1500, deadline=None)
@given(
    st.dictionaries(st.text(max_size=5), anything, max_size=5), st.booleans(), st.integers(0, 2**32), st.integers(0, 3)
)
def test_the_quick_parser_and_the_judge_agree_on_whole_and_broken_text(found, escaped, seed, faults):
    raw, dice = bytearray(json.dumps(found, ensure_ascii=escaped).encode(errors="surrogatepass")), random.Random(seed)
    for _ in range(faults):
        place, byte = dice.randrange(len(raw)) if raw else 0, dice.choice(BYTES)
        raw[place : place + dice.randrange(2)] = bytes([byte]) * dice.randrange(2)
    assert said(json_events.parse, bytes(raw)) == said(json_events._judge, bytes(raw))


def test_the_quick_parser_takes_what_is_plain(monkeypatch):
    """Otherwise the comparison above compares the judge with itself."""
    monkeypatch.setattr(json_events, "_judge", None)
    assert json_events.parse(b'{"a": [1, 2.5, "x"]}') == {"a": [1, 2.5, "x"]}


def reader(items: object, *, nullable: bool) -> JsonReader:
    kind: object = {"type": "array", "items": items}
    pixels = {"name": "pixels", "type": ["null", kind] if nullable else kind}
    schema = {"type": "record", "name": "E", "fields": [pixels | ({"default": None} if nullable else {})]}
    return JsonReader(Asked(EventSchema.parse(json.dumps(schema)), {"pixels"}).columns)


elements = (
    st.floats(allow_nan=False)
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([2**1024, math.nan, math.inf, 3.4028235677973366e38, 3.4028235e38, "1", None, True, [1.0], -0.0])
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.none() | st.lists(elements, max_size=5) | st.sampled_from([5, "x", {}]), min_size=1, max_size=6),
    st.sampled_from(["float", "double", ["null", "float"], "long", "string"]), st.booleans(),
)  # fmt: skip
def test_lists_at_one_go_and_one_by_one_are_the_same(lists, items, nullable):
    values = [json.dumps({"pixels": one}).encode() for one in lists]
    made = reader(items, nullable=nullable)
    quick = made.read(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_events, "whole", lambda *_: None)
        slow = made.read(values)
    assert as_bits(quick) == as_bits(slow)


def as_bits(read):
    """Rows, bits and rejects; as text, for NaN and -0.0."""
    (part,), rejects = read
    found = part.arrays[0].to_pylist()
    bits = [one and [struct.pack("<d", x) if isinstance(x, float) else x for x in one] for one in found]
    return part.rows.tolist(), str(part.arrays[0].type), bits, sorted(map(repr, rejects))


def test_plain_lists_of_numbers_go_the_quick_way(monkeypatch):
    made, taken = reader("float", nullable=True), []
    quick = columns._number_lists
    monkeypatch.setattr(columns, "_number_lists", lambda *given: taken.append(quick(*given)) or taken[-1])
    made.read([b'{"pixels": [1, 2.5]}', b'{"pixels": null}', b'{"pixels": []}', b"{}"])
    assert taken[0].to_pylist() == [[1.0, 2.5], None, [], None]
