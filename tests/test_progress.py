"""Promise: every fold of the progress log agrees on who claims a partition, whatever stands in the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from streamserve.delivery.ledger import NOBODY
from streamserve.delivery.progress import Owned, Progress, Released

pure = settings(deadline=None, derandomize=True, max_examples=200)
COMMON = {"topology": "t", "topic": "e", "incarnation": "x"}


def owned(*partitions: int, who: str = "x", transactional: bool = True, topology: str = "t") -> bytes:
    tid = f"id-{who}" if transactional else None
    return Owned(
        **{**COMMON, "topology": topology, "incarnation": who}, partitions=partitions, transactional_id=tid
    ).encode()


def released(epochs: dict[int, int], who: str = "x") -> bytes:
    return Released(**{**COMMON, "incarnation": who}, owner_epochs=epochs).encode()


def fold(*values: bytes | None) -> tuple[Progress, list[str | None]]:
    progress = Progress("t")
    return progress, [progress.step(offset, value) for offset, value in enumerate(values)]


def fenced(progress: Progress, partition: int, epoch: int) -> set[str]:
    return set(progress.before([("e", partition)], epoch))


def test_a_claim_that_was_not_released_is_fenced_by_whoever_comes_next():
    progress, _ = fold(owned(0, 1, who="a"), owned(1, who="b"))
    assert progress.latest(("e", 1)) == 1
    assert progress.latest(("e", 0)) == 0
    assert fenced(progress, 1, 1) == {"id-a"}
    assert fenced(progress, 0, 9) == {"id-a"}
    assert progress.latest(("e", 7)) == NOBODY


def test_a_release_ends_its_own_claim_and_those_that_it_took_over():
    progress, _ = fold(owned(0, who="a"), owned(0, who="b"), owned(0, who="c"), released({0: 1}, who="b"))
    assert fenced(progress, 0, 9) == {"id-c"}
    assert progress.latest(("e", 0)) == 2, "who owned last stays known"


def test_a_late_release_of_a_claim_that_is_gone_ends_nothing():
    progress, _ = fold(owned(0, who="a"), released({0: 0}), owned(0, who="b"), released({0: 0}, who="a"))
    assert fenced(progress, 0, 9) == {"id-b"}


def test_a_claim_without_transactions_needs_no_fence():
    progress, _ = fold(owned(0, transactional=False))
    assert fenced(progress, 0, 9) == set()


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        (None, "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no JSON object"),
        (owned(0).replace(b'"partitions":[0]', b'"partitions":[-1]'), "owned: partitions"),
        (owned(0).replace(b'"partitions":[0]', b'"partitions":[]'), "owned: partitions"),
        (owned(0).replace(b'"schema_version":1', b'"schema_version":2'), "owned: schema_version"),
        (released({0: 5}).replace(b'"0":5', b'"x":5'), "released: owner_epochs"),
    ],
)
def test_what_is_malformed_is_told_and_changes_nothing(value, counts):
    progress, said = fold(owned(0, who="a"), value)
    assert said[0] is None
    assert said[1].startswith(counts) or counts in said[1]
    assert progress.latest(("e", 0)) == 0
    assert fenced(progress, 0, 9) == {"id-a"}


@pytest.mark.parametrize("value", [b'{"kind": "cutover"}', b'{"kind": ["owned"]}', owned(0, topology="other"), b"{}"])
def test_what_is_no_affair_of_ours_is_let_be(value):
    progress, said = fold(value)
    assert said == [None]
    assert progress.latest(("e", 0)) == NOBODY


def test_fields_of_a_later_release_are_let_be():
    later = json.dumps({**json.loads(owned(0)), "zone": "eu-1"}).encode()
    assert fold(later)[0].latest(("e", 0)) == 0


steps = st.one_of(
    st.tuples(st.just("owned"), st.integers(0, 2), st.sampled_from("abc")),
    st.tuples(st.just("released"), st.integers(0, 2), st.integers(0, 12)),
    st.tuples(st.just("noise"), st.binary(max_size=20), st.none()),
)


@pure
@given(st.lists(steps, max_size=14))
def test_the_fold_is_that_of_a_plain_list_of_claims(said):
    """Against the specification's words: open claims in order, a release ends its own and the older ones."""
    progress, claims = Progress("t"), {p: [] for p in range(3)}
    for offset, (kind, first, second) in enumerate(said):
        if kind == "owned":
            progress.step(offset, owned(first, who=f"{second}{offset}"))
            claims[first].append((offset, f"id-{second}{offset}"))
        elif kind == "released":
            progress.step(offset, released({first: second}))
            if second in [epoch for epoch, _ in claims[first]]:
                claims[first] = [one for one in claims[first] if one[0] > second]
        else:
            progress.step(offset, first)
        for partition, open_ in claims.items():
            assert fenced(progress, partition, offset + 1) == {name for _, name in open_}


def test_the_published_schema_of_progress_is_that_of_the_code():
    published = Path(__file__).parent.parent / "schemas" / "streamserve.progress.json"
    form = TypeAdapter(Annotated[Owned | Released, Field(discriminator="kind")])
    assert json.loads(published.read_text()) == form.json_schema()
