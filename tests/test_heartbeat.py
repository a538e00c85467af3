"""Promise: whoever asks which workers live is told of those that spoke a moment ago, whatever stands in the topic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.rollouts.heartbeat import SILENT_MS, Heartbeat, living, read


def beat(worker: str, at: int, **more) -> Heartbeat:
    return Heartbeat(topology="t", worker=worker, at=at, **more)


def test_a_worker_lives_while_it_is_heard():
    heard = [beat("b", 9000), beat("a", 10_000, lag=3), beat("a", 9000, lag=9), beat("c", 4999)]
    assert [(one.worker, one.lag) for one in living(heard, 10_000)] == [("a", 3), ("b", 0)]
    assert [one.worker for one in living(heard, 4999 + SILENT_MS)] == ["a", "b", "c"]
    assert living(heard, 10_001 + SILENT_MS) == ()


def test_who_says_goodbye_is_gone_at_once():
    assert living([beat("a", 1000), beat("a", 1100, leaving=True)], 1200) == ()
    assert living([beat("a", 1000, leaving=True), beat("a", 1100)], 1200) != (), "a process of the same name came again"


def test_what_is_written_is_what_is_read():
    said = beat("a", 5, partitions={0: 7, 11: 9}, versions=("v1", "v2"), failed={"v3": "no file"}, why="x", ready=False)
    assert read(said.encode(), "t") == said
    assert read(said.encode(), "u") is None


@pytest.mark.parametrize(
    "value", [None, b"", b"\xff", b"[]", b"1", b'{"topology": "t"}', b"[" * 100_000, b'{"topology": "t", "worker": 1}']
)
def test_what_is_no_heartbeat_is_let_be(value):
    assert read(value, "t") is None


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_no_bytes_break_the_reader(value):
    read(value, "t")


def test_fields_of_a_later_release_are_let_be():
    assert read(json.dumps({**json.loads(beat("a", 5).encode()), "zone": "x"}).encode(), "t") == beat("a", 5)


def test_the_published_schema_is_that_of_the_code():
    published = Path(__file__).parent.parent / "schemas" / "streamserve.status.json"
    assert json.loads(published.read_text()) == Heartbeat.model_json_schema()
