"""Promise: a key's bucket is xxh64(salt + key) mod 10,000, on every machine, and a larger weight keeps who was in."""

from __future__ import annotations

import re
import struct
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.rollouts import buckets as room
from streamserve.rollouts.buckets import BUCKETS, NO_BUCKET, buckets
from streamserve.rollouts.xxh64 import xxh64

pure = settings(deadline=None, derandomize=True, max_examples=200)
EDGES = (0, 1, 3, 4, 7, 8, 11, 12, 15, 16, 24, 28, 31, 32, 33, 36, 40, 47, 60, 63, 64, 65, 95, 96, 97, 300)
KEYS = st.none() | st.binary(max_size=12) | st.sampled_from(EDGES).flatmap(lambda n: st.binary(min_size=n, max_size=n))
SALTS = st.text(max_size=6) | st.sampled_from(["", "\0", "s" * 31, "s" * 32, "s" * 33, "é" * 40, "\ud800"])
WAYS = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "numpy"])


def expected(keys, salt):
    """By somebody else's xxh64."""
    salted = salt.encode(errors="surrogatepass")
    return [NO_BUCKET if key is None else xxhash.xxh64_intdigest(salted + key) % 10_000 for key in keys]


def found(compiled, *asked):
    if compiled:
        return buckets(*asked).tolist()
    with patch.object(room, "library", lambda: None):
        return buckets(*asked).tolist()


def planes(count):
    return [f"N{i:06d}".encode() for i in range(count)]


def test_the_compiled_part_is_built_here():
    """Without it the comparisons below would compare nothing."""
    assert room.library() is not None


@WAYS
@pure
@given(st.lists(KEYS, max_size=9), SALTS)
def test_a_bucket_is_that_of_any_xxh64(compiled, keys, salt):
    assert found(compiled, pa.array(keys, pa.binary()), salt) == expected(keys, salt)


@WAYS
@pytest.mark.parametrize("size", EDGES)
def test_a_key_of_any_length_behind_a_salt_of_any_length(compiled, size):
    keys = [bytes(range(256)) * 2, None, b"", *(bytes([at]) * size for at in (0, 127, 255))]
    for salt in map("s".__mul__, EDGES):
        assert found(compiled, pa.array([key and key[:size] for key in keys], pa.binary()), salt) == expected(
            [key and key[:size] for key in keys], salt
        )


@pytest.mark.parametrize(
    ("text", "digest"), [(b"", 0xEF46DB3751D8E999), (b"a", 0xD24EC4F1A98C6E5B), (b"abc", 0x44BC2CF5AD770999)]
)
def test_digests_that_the_world_knows(text, digest):
    flat = np.frombuffer(text + b"more", np.uint8)
    assert xxh64(flat, np.array([0]), np.array([len(text)])).tolist() == [digest]
    assert xxhash.xxh64_intdigest(text) == digest


@WAYS
@pure
@given(st.data())
def test_only_the_rows_that_are_asked_for_in_their_order(compiled, data):
    keys = data.draw(st.lists(KEYS, min_size=1, max_size=9))
    rows = data.draw(st.lists(st.integers(0, len(keys) - 1), max_size=12))
    given_ = found(compiled, pa.array(keys, pa.binary()), "s", np.array(rows, np.int64))
    assert given_ == expected([keys[row] for row in rows], "s")


@WAYS
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.large_string()])
@settings(pure, max_examples=60)
@given(st.lists(st.none() | st.text(max_size=40), max_size=20), st.data())
def test_the_same_from_slices_chunks_and_wide_columns(compiled, kind, texts, data):
    """The compiled part counts from a column's first bit and first offset."""
    keys = [None if text is None else text.encode() for text in texts]
    column = pa.array(keys, pa.large_binary()).cast(kind)
    low, high = sorted(data.draw(st.tuples(st.integers(0, len(keys)), st.integers(0, len(keys)))))
    assert found(compiled, column[low:high], "s") == expected(keys[low:high], "s")
    chunked = pa.chunked_array([column[:low], column[low:high], column[high:]], kind)
    assert found(compiled, chunked, "s") == expected(keys, "s")
    back = np.arange(len(keys))[::-1]
    assert found(compiled, chunked, "s", back) == expected(keys[::-1], "s")


@WAYS
@pytest.mark.parametrize("keys", [[], [None], [None, None, None], [b""]])
def test_no_keys_at_all(compiled, keys):
    for column in (pa.array(keys, pa.binary()), pa.chunked_array([], pa.binary()) if not keys else pa.array(keys)):
        assert found(compiled, column, "s") == expected(keys, "s")


@WAYS
def test_an_empty_key_is_a_key_and_a_missing_one_is_in_at_no_weight(compiled):
    empty, missing = found(compiled, pa.array([b"", None], pa.binary()), "s")
    assert 0 <= empty < BUCKETS
    assert missing > BUCKETS


def test_one_very_long_key_among_short_ones():
    keys = [b"x" * 300_001, *planes(1000)]
    column = pa.array(keys, pa.binary())
    assert found(True, column, "s") == found(False, column, "s") == expected(keys, "s")


# ---- what follows for a rollout


def test_a_key_that_is_in_at_a_weight_is_in_at_every_larger_one():
    drawn = np.array(found(True, pa.array(planes(20_000)), "s"))
    before = set()
    for weight in (0, 1, 100, 500, 2_000, 5_000, 9_999, 10_000):
        inside = set(np.flatnonzero(drawn < weight).tolist())
        assert before <= inside
        assert abs(len(inside) - 2 * weight) <= 4 * (2 * weight) ** 0.5, "and as many as the weight says"
        before = inside
    assert len(before) == 20_000


def chi_square(counts, share):
    return ((counts - share) ** 2 / share).sum()


def test_buckets_are_evenly_filled():
    counts = np.bincount(found(True, pa.array(planes(200_000)), "flights"), minlength=BUCKETS)
    assert len(counts) == BUCKETS
    # 9,999 degrees of freedom: mean 9,999, deviation 141
    assert 9_999 - 600 < chi_square(counts, 20.0) < 9_999 + 600


@pytest.mark.parametrize("partitions", [2, 7, 12, 64])
def test_every_partition_of_kafka_has_its_share_of_the_first_buckets(partitions):
    keys = planes(50_000)
    drawn = np.array(found(True, pa.array(keys), "flights"))
    where = np.array([(murmur2(key) & 0x7FFFFFFF) % partitions for key in keys])
    inside = np.bincount(where[drawn < 500], minlength=partitions)
    share = np.bincount(where) * (drawn < 500).mean()
    assert chi_square(inside, share) < partitions + 4 * (2 * partitions) ** 0.5


def test_another_salt_draws_other_keys():
    keys = pa.array(planes(50_000))
    one, other = (np.array(found(True, keys, salt)) < 500 for salt in ("2026-11", "2026-12"))
    assert abs((one & other).sum() - 50_000 * 0.05**2) < 60


def murmur2(key):
    """Of Kafka's default partitioner (org.apache.kafka.common.utils.Utils.murmur2)."""
    m, whole = 0x5BD1E995, len(key) // 4 * 4
    h = (0x9747B28C ^ len(key)) & 0xFFFFFFFF
    for (k,) in struct.iter_unpack("<I", key[:whole]):
        mixed = k * m & 0xFFFFFFFF
        h = (h * m & 0xFFFFFFFF) ^ ((mixed ^ mixed >> 24) * m & 0xFFFFFFFF)
    if rest := key[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & 0xFFFFFFFF
    h = (h ^ h >> 13) * m & 0xFFFFFFFF
    return h ^ h >> 15


def test_the_worked_example_of_the_docs_is_right():
    text = (ROOT / "docs" / "rollouts.md").read_text("utf-8")
    rows = re.findall(r"^\| `([^`]*)` \| `([^`]*)`? \| `(\w{16})` \| (\d+) \| (\w+) \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for salt, key, digest, bucket, who in rows:
        assert xxhash.xxh64_hexdigest((salt + key).encode()) == digest
        assert found(True, pa.array([key.encode()]), salt) == [int(bucket)] == [int(digest, 16) % 10_000]
        assert who == ("candidate" if int(bucket) < 500 else "stable")
