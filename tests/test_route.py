"""Promise: the version that answers follows from the event and the control logs alone, however the stream was cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_pipeline import NOW, by_row, event, pipeline, raw, read, version

from streamserve.pipeline.route import route
from streamserve.records import (
    Assignment,
    ControlView,
    Cutover,
    EventBatch,
    RawBatch,
    Reason,
    RoutingEpoch,
    Rule,
    Variant,
    binary,
)
from streamserve.rollouts import buckets
from streamserve.testing import StubModel

pure = settings(deadline=None, derandomize=True, max_examples=200)
UNREAD = (1000, 2000)  # numbers of epochs that no view here has

# ---- worlds


RULES = st.lists(
    st.builds(
        Rule,
        st.just("r"),
        st.sampled_from([(), (("s", ("a",)),), (("n", (1,)),), (("n", (True,)),), (("s", ("b", "c")), ("n", (0, 1)))]),
        st.booleans(),
    ),
    max_size=3,
).map(tuple)
WEIGHTS = st.sampled_from([0, 1, 500, 5_000, 9_999, 10_000]) | st.integers(0, 10_000)


@st.composite
def epochs(draw):
    """As a fold may give them: some of one rollout, with its rules; numbers grow and are not dense."""
    number, rules, found = 0, (), []
    for _ in range(draw(st.integers(1, 5))):
        number += draw(st.integers(1, 9))
        rules = draw(RULES) if draw(st.booleans()) else rules
        candidate = draw(st.none() | st.sampled_from(["v2", "v3"]))
        found.append(
            RoutingEpoch(
                number, draw(st.sampled_from(["v0", "v1"])), candidate, draw(WEIGHTS) if candidate else 0,
                draw(st.sampled_from(["", "s", "é"])), draw(st.sampled_from(["r1", "r2"])) if candidate else None,
                rules if candidate else (), draw(st.sampled_from([frozenset(), frozenset(["v2"]), frozenset(["v9"])])),
                draw(st.none() | st.just("v9")),
            )
        )  # fmt: skip
    return tuple(found)


@st.composite
def views(draw, *, unread=False):
    found, cutovers = draw(epochs()), {}
    numbers = [epoch.number for epoch in found[1:]] + list(UNREAD if unread else ())
    for topic in ("events", "other"):
        for partition in draw(st.sets(st.sampled_from([0, 1, 2, 5]))):
            cut = sorted(draw(st.sets(st.sampled_from(numbers)))) if numbers else []
            offsets = sorted(draw(st.lists(st.integers(0, 25), min_size=len(cut), max_size=len(cut))))
            cutovers[topic, partition] = tuple(map(Cutover, cut, offsets))
    return ControlView("t", found, cutovers)


@st.composite
def batches(draw):
    """Events of which some could not be decoded; offsets jump, other rows lie around the columns' own."""
    count, rows, at, places = draw(st.integers(0, 20)), [], dict.fromkeys(range(7), -1), []
    for row in range(count):
        partition = draw(st.sampled_from([0, 0, 1, 2, 3, 6]))
        at[partition] += draw(st.integers(1, 6))
        places.append((partition, at[partition]))
        if draw(st.integers(0, 9)):
            rows.append(row)
    some = {"s": st.sampled_from(["a", "b", "c"]), "n": st.integers(0, 2)}
    values = {
        name: draw(st.lists(st.none() | one, min_size=count + 2, max_size=count + 2)) for name, one in some.items()
    }
    keys = draw(st.lists(st.none() | st.binary(max_size=40), min_size=count + 2, max_size=count + 2))
    columns = pa.RecordBatch.from_pydict(values)[1 : count + 1].take(pa.array(rows, pa.int64()))
    return events_of(places, rows, keys=binary(keys)[1 : count + 1], columns=columns)


def events_of(places, rows=None, keys=None, columns=None):
    count = len(places)
    batch = RawBatch(
        "events", np.array([p for p, _ in places], np.int32), np.array([o for _, o in places], np.int64),
        np.zeros(count, np.int64), np.ones(count, np.uint8),
        binary([b"k%d" % i for i in range(count)]) if keys is None else keys, binary([b"{}"] * count),
    )  # fmt: skip
    rows = np.arange(count) if rows is None else np.array(rows, np.int64)
    columns = pa.RecordBatch.from_arrays([], schema=pa.schema([])) if columns is None else columns
    return EventBatch(batch, rows, columns, np.zeros(len(rows), np.int64))


# ---- one event at a time, from the words of the design


def in_force(view, partition, offset):
    """The number of the epoch; that it was read is another question."""
    cuts = view.cutovers.get(("events", partition), ())
    return max([cut.epoch for cut in cuts if cut.offset <= offset], default=view.epochs[0].number)


def alike(have, value):
    return type(have) is type(value) and have == value


def answer(epoch, key, fields):
    """Version, variant, reason."""
    stable = epoch.stable, Variant.STABLE
    if epoch.candidate is None:
        return *stable, Reason.STATIC if epoch.instead_of is None else Reason.KILLED
    to_candidate, reason = None, Reason.TARGETING
    for rule in epoch.rules:
        if all(any(alike(fields.get(path), value) for value in values) for path, values in rule.where):
            to_candidate = rule.candidate
            break
    if to_candidate is None:
        reason = Reason.SPLIT
        to_candidate = key is not None and xxhash.xxh64_intdigest(epoch.salt.encode() + key) % 10_000 < epoch.weight_bp
    if not to_candidate:
        return *stable, reason if epoch.instead_of is None else Reason.KILLED
    if epoch.candidate in epoch.killed:
        return *stable, Reason.KILLED
    return epoch.candidate, Variant.CANDIDATE, reason


def expected(events, view):
    found = []
    by_number = {epoch.number: epoch for epoch in view.epochs}
    fields = events.columns.to_pylist() or [{}] * len(events)
    for row, had in zip(events.rows.tolist(), fields, strict=True):
        number = in_force(view, int(events.raw.partitions[row]), int(events.raw.offsets[row]))
        epoch = by_number[number]
        key = events.raw.keys[row].as_py()
        found.append((*answer(epoch, key, had), epoch.stable, epoch.rollout_id, number))
    return found


def told(assignment: Assignment):
    """Of each event: version, variant, reason, stable, rollout, control epoch."""
    arrays = (assignment.version, assignment.variant, assignment.reason, assignment.stable, assignment.rollout)
    assert [array.dtype for array in arrays] == [np.int32, np.uint8, np.uint8, np.int32, np.int32]
    assert assignment.control_epoch.dtype == np.int64
    names, rollouts = assignment.versions, assignment.rollouts
    return [
        (names[version], Variant(variant), Reason(reason), names[stable], rollouts[rollout], epoch)
        for version, variant, reason, stable, rollout, epoch in zip(
            *(array.tolist() for array in (*arrays, assignment.control_epoch)), strict=True
        )
    ]


WAYS = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "numpy"])


def routed(events, view, *, compiled=True):
    if compiled:
        return route(events, view)
    with patch.object(buckets, "library", lambda: None):
        return route(events, view)


@WAYS
@pure
@given(batches(), views())
def test_every_event_is_answered_as_the_words_say(compiled, events, view):
    assert told(routed(events, view, compiled=compiled)) == expected(events, view)


@pure
@given(batches(), views(), st.data())
def test_any_pieces_of_a_batch_are_routed_as_the_whole(events, view, data):
    whole, found = told(route(events, view)), []
    cuts = sorted(data.draw(st.sets(st.integers(0, len(events)), max_size=4)) | {0, len(events)})
    for low, high in pairwise(cuts):
        piece = EventBatch(events.raw, events.rows[low:high], events.columns[low:high], events.event_times[low:high])
        found += told(route(piece, view))
    assert found == whole


@pure
@given(batches(), views())
def test_what_an_assignment_names_is_in_force_in_the_batch(events, view):
    assume(len(events))
    made = route(events, view)
    there = {in_force(view, int(events.raw.partitions[r]), int(events.raw.offsets[r])) for r in events.rows}
    here = [epoch for epoch in view.epochs if epoch.number in there]
    may = {epoch.stable for epoch in here} | {e.candidate for e in here if e.candidate and e.candidate not in e.killed}
    assert set(made.versions) == may
    assert len(set(made.versions)) == len(made.versions)
    assert set(made.rollouts) == {epoch.rollout_id for epoch in here}
    answering = sorted({made.versions[at] for at in made.version.tolist()})
    assert set(answering) == {one[0] for one in told(made)}
    rows = [made.rows_of(one, variant) for one in answering for variant in Variant]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(events)))
    assert set(made.standing()) == {one[3] for one in told(made)}
    trials = {(name, row) for name, rows in made.tried() for row in rows.tolist()}
    assert trials == {(one[0], row) for row, one in enumerate(told(made)) if one[1] is Variant.CANDIDATE}


# ---- what follows, said by itself


def ramp(weight, **more):
    return RoutingEpoch(5, "v1", "v2", weight, "salt", "r1", **more)


def candidates(view, keys, places=None):
    events = events_of(places or [(0, i) for i in range(len(keys))], keys=binary(keys))
    return {key for key, one in zip(keys, told(route(events, view)), strict=True) if one[1] is Variant.CANDIDATE}


def test_a_key_that_is_in_stays_in_as_the_weight_grows():
    keys, before = [b"plane%d" % i for i in range(3_000)], set()
    for weight in (0, 1, 500, 2_000, 9_999, 10_000):
        now = candidates(ControlView("t", (ramp(weight),)), keys)
        assert before <= now
        before = now
    assert candidates(ControlView("t", (ramp(0),)), keys) == set()
    assert before == set(keys)


def test_a_weight_of_w_is_the_first_w_buckets_and_no_more():
    key = b"plane7"
    bucket = xxhash.xxh64_intdigest(b"salt" + key) % 10_000
    assert candidates(ControlView("t", (ramp(bucket),)), [key]) == set()
    assert candidates(ControlView("t", (ramp(bucket + 1),)), [key]) == {key}


def test_a_key_has_one_answer_wherever_it_comes():
    keys = [b"plane%d" % (i % 50) for i in range(2_000)]
    seen = candidates(ControlView("t", (ramp(3_000),)), keys, [(i * 7 % 5, i) for i in range(2_000)])
    rest = ControlView("t", (ramp(3_000, rules=(Rule("r", (("absent", (1,)),), candidate=True),)),))
    assert seen == candidates(rest, sorted(set(keys), reverse=True))
    assert 0 < len(seen) < 50


def test_an_event_without_a_key_goes_to_stable_even_at_the_full_weight_unless_a_rule_names_it():
    events = events_of([(0, 0), (0, 1)], keys=binary([None, b""]))
    view = ControlView("t", (ramp(10_000),))
    assert [one[:3] for one in told(route(events, view))] == [
        ("v1", Variant.STABLE, Reason.SPLIT),
        ("v2", Variant.CANDIDATE, Reason.SPLIT),
    ]
    ruled = ControlView("t", (ramp(0, rules=(Rule("all", (), candidate=True),)),))
    assert {one[:3] for one in told(route(events, ruled))} == {("v2", Variant.CANDIDATE, Reason.TARGETING)}


def test_a_batch_over_two_salts_draws_each_event_by_the_salt_of_its_own_epoch():
    """Else who is in would follow from where the batch was cut."""
    two = (ramp(3_000), replace(ramp(3_000), number=6, salt="other"))
    view = ControlView("t", two, {("events", 0): (Cutover(6, 500),)})
    keys = [b"plane%d" % i for i in range(1_000)]
    for row, one in enumerate(told(route(events_of([(0, i) for i in range(1_000)], keys=binary(keys)), view))):
        assert one[0] == answer(two[row >= 500], keys[row], {})[0]


@pytest.mark.parametrize("values", [(1, True), (True, 1)])
def test_rules_of_two_epochs_that_python_takes_for_equal_are_two(values):
    first, second = ((Rule("r", (("n", (value,)),), candidate=True),) for value in values)
    assert first == second
    two = (ramp(0, rules=first), replace(ramp(0, rules=second), number=6))
    events = events_of([(0, 0), (0, 1)], columns=pa.RecordBatch.from_pydict({"n": pa.array([1, 1])}))
    view = ControlView("t", two, {("events", 0): (Cutover(6, 1),)})
    found = [version for version, *_ in told(route(events, view))]
    assert found == ["v1" if value is True else "v2" for value in values]


def test_a_killed_candidate_is_answered_by_stable_for_its_events_alone():
    keys = [b"plane%d" % i for i in range(500)]
    events = events_of([(0, i) for i in range(500)], keys=binary(keys))
    alive, killed = (route(events, ControlView("t", (ramp(2_000, killed=dead),))) for dead in ((), frozenset(["v2"])))
    was, now = told(alive), told(killed)
    for before, after in zip(was, now, strict=True):
        given_ = before[1] is Variant.CANDIDATE
        assert after == ("v1", Variant.STABLE, Reason.KILLED if given_ else Reason.SPLIT, "v1", "r1", 5)
    assert any(one[1] is Variant.CANDIDATE for one in was)
    assert killed.versions == ("v1",), "nobody loads what must not answer"


def test_a_version_killed_long_ago_is_no_reason():
    view = ControlView("t", (RoutingEpoch(1, "v3", killed=frozenset(["v2"])),))
    assert told(route(events_of([(0, 0)]), view)) == [("v3", Variant.STABLE, Reason.STATIC, "v3", None, 1)]


# ---- cutovers


HISTORY = ControlView(
    "t",
    tuple(RoutingEpoch(10 * i, f"v{i}") for i in range(1, 41)),
    {("events", p): tuple(Cutover(10 * i, 100 * i + p) for i in range(2, 41)) for p in range(9)},
)


@pure
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 4_300)), max_size=30))
def test_a_long_history_is_found_at_any_offset_in_any_order(places):
    by_partition = sorted(places, key=lambda place: place[1])
    for these in (places, by_partition):
        found = HISTORY.epochs_at("events", np.int32([p for p, _ in these]), np.int64([o for _, o in these]))
        assert [10 * (i + 1) for i in found.tolist()] == [in_force(HISTORY, *place) for place in these]


def test_the_largest_of_the_epochs_that_were_cut_over_at_one_offset_is_in_force():
    cuts = {("events", 0): (Cutover(20, 7), Cutover(30, 7), Cutover(40, 7))}
    view = replace(HISTORY, cutovers=cuts)
    assert view.epochs_at("events", np.int32([0, 0, 0]), np.int64([6, 7, 8])).tolist() == [0, 3, 3]


def unread(view, partition, offset):
    return in_force(view, partition, offset) not in {epoch.number for epoch in view.epochs}


@pure
@given(batches(), views(unread=True))
def test_what_is_cut_over_to_an_epoch_not_yet_read_is_held_and_its_neighbours_are_routed(events, view):
    raw_ = events.raw
    held = view.held("events", raw_.partitions, raw_.offsets)
    places = zip(raw_.partitions.tolist(), raw_.offsets.tolist(), strict=True)
    assert held.tolist() == [unread(view, *place) for place in places]
    here = held[events.rows]
    if here.any():
        with pytest.raises(ValueError, match=r"events-\d-\d+ is held"):
            route(events, view)
    free = np.flatnonzero(~here)
    piece = EventBatch(raw_, events.rows[free], events.columns.take(pa.array(free)), events.event_times[free])
    assert told(route(piece, view)) == expected(piece, view)


@pure
@given(batches(), views(unread=True))
def test_what_was_held_is_routed_once_its_epoch_was_read_and_nothing_else_changes(events, view):
    held = view.held("events", events.raw.partitions, events.raw.offsets)[events.rows]
    later = replace(view, epochs=(*view.epochs, RoutingEpoch(UNREAD[0], "v8"), RoutingEpoch(UNREAD[1], "v9")))
    free = np.flatnonzero(~held)
    piece = EventBatch(events.raw, events.rows[free], events.columns.take(pa.array(free)), events.event_times[free])
    whole = told(route(events, later))
    assert [whole[at] for at in free] == told(route(piece, view))
    assert {whole[at][0] for at in np.flatnonzero(held)} <= {"v8", "v9"}


def test_a_batch_behind_the_cutover_of_an_unread_epoch_is_held_as_a_whole():
    view = replace(HISTORY, cutovers={("events", 0): (Cutover(UNREAD[0], 5),)})
    with pytest.raises(ValueError, match="events-0-5 is held"):
        route(events_of([(0, 5), (0, 6)]), view)


def test_before_init_everything_is_held():
    view = ControlView("t", ())
    assert view.held("events", np.int32([0]), np.int64([0])).all()
    assert told(route(events_of([]), view)) == []
    with pytest.raises(ValueError, match="events-3-44 is held"):
        route(events_of([(3, 44)]), view)


# ---- falling back


@pure
@given(batches(), views(), st.data())
def test_events_of_the_candidate_fall_back_to_the_stable_of_their_own_epoch(events, view, data):
    made = route(events, view)
    mine = np.flatnonzero(made.variant == Variant.CANDIDATE)
    rows = mine[np.array(data.draw(st.lists(st.booleans(), min_size=len(mine), max_size=len(mine))), bool)]
    before, after = told(made), told(made.fallen_back(rows))
    for row, (was, now) in enumerate(zip(before, after, strict=True)):
        assert now == ((was[3], Variant.STABLE, Reason.FALLBACK, *was[3:]) if row in rows else was)
    assert told(made) == before, "the first one is as it was"


def test_only_the_candidate_can_fall_back():
    made = route(events_of([(0, 0), (0, 1)], keys=binary([b"k", None])), ControlView("t", (ramp(10_000),)))
    with pytest.raises(ValueError, match="only an event of the candidate"):
        made.fallen_back(np.array([0, 1]))


# ---- through the pipeline


def tenfold(name, by):
    model = StubModel({"in": 1}, {"y": 1}, lambda x: x.sum(axis=1) * by)
    return version(name, ("x",), model, decision=None)


def test_a_rollout_is_told_in_each_prediction_and_each_version_scores_its_own():
    rules = (Rule("late", (("a", ("late",)),), candidate=True),)
    view = ControlView("t", (ramp(5_000, rules=rules),))
    batch = raw([event(i) for i in range(200)])
    scored = pipeline({"v1": tenfold("v1", 10), "v2": tenfold("v2", 20)}).process(batch, view, NOW)
    seen = set()
    for row, (_, key, value, _, _) in by_row(scored).items():
        said, a = read(value), ("old", "new", "late", None, "none")[row % 5]
        who, variant, reason = answer(view.epochs[0], key, {"a": a})
        assert (said["model_version"], said["variant"], said["reason"]) == (who, variant.name, reason.name)
        assert (said["rollout_id"], said["control_epoch"]) == ("r1", 5)
        assert said["scores"] == {"y": row * (10.0 if who == "v1" else 20.0)}
        seen.add((who, reason))
    assert seen == {("v1", Reason.SPLIT), ("v2", Reason.SPLIT), ("v2", Reason.TARGETING)}
