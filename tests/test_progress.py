"""Promise: every fold of the progress log agrees on who claims a partition, whatever stands in the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from streamserve.delivery.progress import CutOver, Form, Owned, Prepared, Progress, Released
from streamserve.records import NOBODY

pure = settings(deadline=None, derandomize=True, max_examples=200)
COMMON = {"topology": "t", "topic": "e", "incarnation": "x"}


def owned(*partitions: int, who: str = "x", transactional: bool = True, topology: str = "t") -> bytes:
    tid = f"id-{who}" if transactional else None
    return Owned(
        **{**COMMON, "topology": topology, "incarnation": who}, partitions=partitions, transactional_id=tid
    ).encode()


def released(epochs: dict[int, int], who: str = "x") -> bytes:
    return Released(**{**COMMON, "incarnation": who}, owner_epochs=epochs).encode()


def cutover(epoch: int, offsets: dict[int, int], owners: dict[int, int], topology: str = "t") -> bytes:
    return CutOver(**{**COMMON, "topology": topology}, epoch=epoch, offsets=offsets, owner_epochs=owners).encode()


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
        (cutover(1, {0: 5}, {0: 0}).replace(b'"0":5', b'"0":-5'), "cutover: offsets"),
        (cutover(1, {0: 5}, {0: 0}).replace(b'"0":5', b'"1":5'), "offsets and owner_epochs name different partitions"),
        (cutover(1, {0: 5}, {0: 0}).replace(b'"0":5', b""), "cutover: offsets"),
    ],
)
def test_what_is_malformed_is_told_and_changes_nothing(value, counts):
    progress, said = fold(owned(0, who="a"), value)
    assert said[0] is None
    assert said[1].startswith(counts) or counts in said[1]
    assert progress.latest(("e", 0)) == 0
    assert fenced(progress, 0, 9) == {"id-a"}


@pytest.mark.parametrize("value", [b'{"kind": "moved"}', b'{"kind": ["owned"]}', owned(0, topology="other"), b"{}"])
def test_what_is_no_affair_of_ours_is_let_be(value):
    progress, said = fold(value)
    assert said == [None]
    assert progress.latest(("e", 0)) == NOBODY


def test_fields_of_a_later_release_are_let_be():
    later = json.dumps({**json.loads(owned(0)), "zone": "eu-1"}).encode()
    assert fold(later)[0].latest(("e", 0)) == 0


def cuts(progress: Progress, partition: int) -> list[tuple[int, int]]:
    return [(cut.epoch, cut.offset) for cut in progress.cutovers().get(("e", partition), ())]


def test_a_cutover_counts_under_the_latest_claim_alone():
    progress, said = fold(
        owned(0, 1, who="a"), owned(0, who="b"), cutover(7, {0: 50, 1: 60}, {0: 0, 1: 0}), cutover(7, {0: 55}, {0: 1})
    )
    assert cuts(progress, 0) == [(7, 55)], "a sleeper's cutover of what another has taken up changes nothing"
    assert cuts(progress, 1) == [(7, 60)], "its other partition is its own"
    assert "owner epoch 0 is not the latest" in said[2]
    assert progress.cutover_count == 2


def test_a_cutover_after_the_release_of_its_claim_does_not_count():
    progress, said = fold(owned(0), released({0: 0}), cutover(7, {0: 5}, {0: 0}))
    assert cuts(progress, 0) == []
    assert "released" in said[2]


def test_the_epochs_of_a_partition_grow_and_so_do_its_offsets():
    first = [owned(0), cutover(7, {0: 50}, {0: 0})]
    for late in (cutover(7, {0: 60}, {0: 0}), cutover(3, {0: 60}, {0: 0}), cutover(9, {0: 49}, {0: 0})):
        progress, said = fold(*first, late)
        assert cuts(progress, 0) == [(7, 50)]
        assert "epoch 7 holds from 50 on" in said[2]
    assert cuts(fold(*first, cutover(9, {0: 50}, {0: 0}))[0], 0) == [(7, 50), (9, 50)], "one may cover no event"


def test_a_cutover_of_another_topology_is_no_affair_of_ours():
    progress, said = fold(owned(0), cutover(7, {0: 5}, {0: 0}, topology="u"))
    assert (cuts(progress, 0), said[1]) == ([], None)


def test_what_a_worker_said_last_of_a_version_stands():
    def said(version: str, worker: str, why_not: str = "") -> bytes:
        common = {"topology": "t", "worker": worker}
        return Prepared(**common, version=version, why_not=why_not).encode()

    progress, told = fold(
        said("v2", "a", "no such file"), said("v2", "a"), said("v2", "b", "tampered"), said("v3", "a")
    )
    assert told == [None] * 4
    assert {worker: one.why_not for worker, one in progress.prepared("v2").items()} == {"a": "", "b": "tampered"}
    assert progress.prepared("v9") == {}


@pure
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["owned", "released", "cutover"]), st.integers(0, 1), st.integers(0, 8), st.integers(0, 30)
        ),
        max_size=20,
    )
)
def test_the_first_cutover_of_its_owner_wins_whatever_lands_late(said):
    """Against the protocol's words: under the latest claim, while it is open, epochs and offsets in order."""
    progress = Progress("t")
    open_: dict[int, list[int]] = {0: [], 1: []}
    latest: dict[int, int] = {}
    expected: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for offset, (kind, partition, number, start) in enumerate(said):
        if kind == "owned":
            progress.step(offset, owned(partition))
            open_[partition].append(offset)
            latest[partition] = offset
        elif kind == "released":
            progress.step(offset, released({partition: number}))
            if number in open_[partition]:
                open_[partition] = [one for one in open_[partition] if one > number]
        else:
            owner = latest.get(partition, 0) if start % 3 else number
            progress.step(offset, cutover(number, {partition: start}, {partition: owner}))
            mine = owner in open_[partition] and latest[partition] == owner
            if mine and all(number > e and start >= o for e, o in expected[partition]):
                expected[partition].append((number, start))
        assert {p: cuts(progress, p) for p in expected} == expected


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
    form = TypeAdapter(Annotated[Form, Field(discriminator="kind")])
    assert json.loads(published.read_text()) == form.json_schema()
