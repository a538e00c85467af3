"""Promise: the proof finds whoever answered an event that the logs gave to another, or for another reason."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import pytest
from conftest import ROOT
from support import prediction
from test_verify import changed

sys.path.insert(0, str(ROOT))  # a part of the checkout, not of the package

from test_pipeline import NOW, event, pipeline, raw

from chaos.law import Epoch, answer
from chaos.lean import Law, hold, read_source
from streamserve.pipeline.prediction import PINNED_ID
from streamserve.records import ControlView, Cutover, RoutingEpoch

COUNT = 200
NOBODY = frozenset()
EPOCHS = (
    Epoch(3, "v3", None, 0, "", None, NOBODY, None),
    Epoch(5, "v3", "v2", 5000, "s", "r1", NOBODY, None),
    Epoch(9, "v3", "v2", 5000, "s", "r1", frozenset({"v2"}), None),
)
CUTS = {0: [(5, 20), (9, 70)], 1: [(5, 0)]}
VIEW = ControlView(
    "t",
    tuple(RoutingEpoch(e.number, e.stable, e.candidate, e.weight, e.salt, e.rollout, killed=e.killed) for e in EPOCHS),
    {("events", p): tuple(Cutover(*cut) for cut in cuts) for p, cuts in CUTS.items()},
)


@dataclass(frozen=True)
class Message:
    at: int
    said: bytes | None
    named: bytes | None = None
    of: int = 0

    def partition(self):
        return self.of

    def offset(self):
        return self.at

    def key(self):
        return self.named

    def value(self):
        return self.said

    def timestamp(self):
        return 1, NOW


class Topics(dict):
    def read(self, topic):
        some = self[topic]
        return [some[:77], [], some[77:]]


@pytest.fixture(scope="module")
def world():
    """Events of two partitions, and what the product's pipeline says of them."""
    batch = raw([event(n) for n in range(COUNT)], partitions=[n % 2 for n in range(COUNT)])
    places = zip(batch.partitions.tolist(), batch.offsets.tolist(), batch.keys.to_pylist(), strict=True)
    events = [Message(offset, b"", key, partition) for partition, offset, key in places]
    values = pipeline().process(batch, VIEW, NOW).outgoing[0].values.to_pylist()
    return events, values


def held(events, values, letters=(), epochs=EPOCHS, cuts=None):
    topics = Topics(events=events, predictions=[Message(n, value) for n, value in enumerate(values)])
    source = read_source(topics, "events")
    return hold(topics, source, Law(source, epochs, cuts or CUTS), "predictions", list(letters), PINNED_ID)


def put(values, at, **fields):
    return [*values[:at], changed(values[at], **fields), *values[at + 1 :]]


def test_what_the_router_says_is_what_the_logs_say(world):
    found = held(*world)
    assert (found.good, found.events, found.right) == (True, COUNT, COUNT)
    assert {prediction(Said(value))["reason"] for value in world[1]} == {"STATIC", "SPLIT", "KILLED"}


@dataclass(frozen=True)
class Said:
    value: bytes


@pytest.mark.parametrize("field", ["model_version", "variant", "reason", "control_epoch"])
def test_each_word_of_an_answer_is_looked_at(world, field):
    events, values = world
    other = {"model_version": "v1", "variant": "CANDIDATE", "reason": "TARGETING", "control_epoch": 4}
    at = next(n for n, one in enumerate(values) if prediction(Said(one))[field] != other[field])
    found = held(events, put(values, at, **{field: other[field]}))
    assert (found.good, found.wrong, len(found.examples)) == (False, 1, 1)


def test_a_fallback_is_stable_s_in_place_of_the_candidate_and_of_nobody_else(world):
    events, values = world
    said = [prediction(Said(one)) for one in values]
    candidate = next(n for n, one in enumerate(said) if one["variant"] == "CANDIDATE")
    stable = next(n for n, one in enumerate(said) if one["variant"] == "STABLE")
    fell = {"model_version": "v3", "variant": "STABLE", "reason": "FALLBACK"}
    found = held(events, put(values, candidate, **fell))
    assert (found.good, found.fell_back) == (True, 1)
    assert not held(events, put(values, candidate, **{**fell, "model_version": "v2"})).good
    assert not held(events, put(values, stable, **fell)).good


def test_what_is_missing_and_what_is_there_several_times(world):
    events, values = world
    found = held(events, values[1:])
    assert (found.good, found.missing) == (False, 1)
    assert held(events, values[1:], [(events[0].of, events[0].at)]).good
    assert not held(events, values, [(events[0].of, events[0].at)]).good
    assert held(events, [*values, values[3]]).repeated == 1
    at = next(n for n, one in enumerate(values) if prediction(Said(one))["control_epoch"] == 9)
    older = changed(values[at], control_epoch=5, reason="SPLIT")
    for order in ([older, *values], [*values, older]):
        assert held(events, order).good, "the highest epoch counts"
    lie = changed(values[at], reason="STATIC")
    for order in ([lie, *values], [*values, lie]):
        assert not held(events, order).good, "both of one epoch must hold"


def test_a_moved_cutover_and_an_edited_command_are_found(world):
    found = held(*world, cuts={**CUTS, 0: [(5, 21), (9, 70)]})
    assert found.wrong == 1
    assert found.examples[0].startswith("0-20: ")
    assert held(*world, epochs=(EPOCHS[0], replace(EPOCHS[1], weight=4000), EPOCHS[2])).wrong > 0


def test_a_key_is_split_by_the_published_hash():
    """The table of docs/rollouts.md: bucket 115 is in at 500, bucket 1088 is not."""
    epoch = Epoch(1, "v1", "v2", 500, "flights-2026-11", "r", NOBODY, None)
    assert answer(epoch, b"N14001") == ("v2", "CANDIDATE", "SPLIT", "v1")
    assert answer(epoch, b"N14228") == ("v1", "STABLE", "SPLIT", "v1")
    assert answer(epoch, None) == ("v1", "STABLE", "SPLIT", "v1")
