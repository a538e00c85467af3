"""Promise: what is sent to Redis is what redis-py would send, whichever way it was packed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.connection import HiredisRespSerializer

from streamserve.adapters.redis_store import _Packer


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=20))
def test_a_request_for_rows_has_the_same_bytes(keys):
    assert _Packer().pack("MGET", *keys) == HiredisRespSerializer().pack("MGET", *keys)


@pytest.mark.parametrize(
    "command",
    [("AUTH", "user", "pass word"), ("CLIENT SETINFO", "LIB-NAME", "redis-py"), ("SELECT", 3), ("MSET", b"k", b"v"),
     ("PING",), ("HELLO", 3)],
)  # fmt: skip
def test_every_other_command_has_them_too(command):
    assert _Packer().pack(*command) == HiredisRespSerializer().pack(*command)
