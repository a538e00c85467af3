"""Promise: verify finds every prediction that is not what the pipeline says of its event, and nothing else."""

from __future__ import annotations

import io
import json
import math
import struct
from dataclasses import replace

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline import NOW, ROWS, VIEW, Versions, cut, event, pipeline, pure, raw

from streamserve.errors import ModelMissingError
from streamserve.features.rows import pack, row_key
from streamserve.pipeline.prediction import PINNED_ID, SCHEMA
from streamserve.records import ControlView, Cutover, RoutingEpoch, binary
from streamserve.simulate.said import FIELDS, SaidReader, Wording
from streamserve.simulate.standing import Standing
from streamserve.simulate.verify import StableAlone, Trying, Verdict, Verifier

PARSED = fastavro.parse_schema(SCHEMA)
TOPIC, COUNT = "events", 120
EPOCHS = (
    RoutingEpoch(3, "v1"),
    RoutingEpoch(5, "v1", "v2", 5000, "s", "r1"),
    RoutingEpoch(8, "v1", "v3", 10_000, "s", "r2"),
    RoutingEpoch(9, "v1", "v3", 10_000, "s", "r2", killed=frozenset({"v3"})),
)
CUTS = {
    (TOPIC, 0): (Cutover(5, 9), Cutover(8, 31), Cutover(9, 50)),
    (TOPIC, 1): (Cutover(5, 0), Cutover(9, 40)),
}
LAW = ControlView("t", EPOCHS, CUTS)
SPANS = {0: (0, COUNT // 2), 1: (0, COUNT // 2)}
EVENTS = raw([b"{" if n % 17 == 4 else event(n) for n in range(COUNT)], partitions=[n % 2 for n in range(COUNT)])


def scoring(versions=None, rows=None):
    """A pipeline with other versions, or other stored rows."""
    found = pipeline(rows=rows)
    found._versions = versions or found._versions
    return found


def answered(events=EVENTS, view=LAW, made=None):
    """What a worker writes: framed predictions, and the rows that became dead letters."""
    out = (made or pipeline()).process(events, view, NOW)
    return out.outgoing[0].values.to_pylist(), [reject.row for reject in out.rejects]


def verified(values, letters, *, events=EVENTS, view=LAW, size=COUNT, made=None, sure=None, **more):
    wording, standing = Wording(), Standing(SPANS)
    reader = SaidReader(TOPIC, PINNED_ID, wording)
    for at in range(0, len(values), 50):
        standing.predictions(reader.read(binary(values[at : at + 50])))
    refused = np.zeros(len(letters), np.bool_)
    standing.letters(events.partitions[letters].astype(np.int64), events.offsets[letters], refused)
    one = Verifier(
        made or pipeline(), scoring(StableAlone(pipeline()._versions)), view, SaidReader(TOPIC, PINNED_ID, wording),
        wording, standing, {0: COUNT, 1: COUNT} if sure is None else sure, now_ms=NOW + 5, **more,
    )  # fmt: skip
    rest = events
    while len(rest):
        batch, rest = cut(rest, min(size, len(rest)))
        one.take(batch)
    found = one.finish()
    found.unreadable = reader.unreadable
    return found


def read(value):
    return fastavro.schemaless_reader(io.BytesIO(value[5:]), PARSED)


def changed(value, **fields):
    out = io.BytesIO()
    fastavro.schemaless_writer(out, PARSED, {**read(value), **fields})
    return value[:5] + out.getvalue()


def flipped(score):
    [bits] = struct.unpack("<q", struct.pack("<d", score))
    [found] = struct.unpack("<d", struct.pack("<q", bits ^ 1))
    return found


def only(found):
    """Of one event that differs: its id, and the fields."""
    assert not found.good
    [one] = found.examples
    return one.prediction_id, set(one.fields)


def test_what_a_worker_wrote_agrees_and_dead_letters_are_found_again():
    values, letters = answered()
    found = verified(values, letters)
    assert found.good
    assert found.verdicts == {Verdict.AGREES: len(values), Verdict.DEAD_LETTER: len(letters)}
    assert len(letters) > 5
    assert (found.events, found.repeated, found.strays, found.examples) == (COUNT, 0, 0, [])
    assert set(found.epochs) == {3, 5, 8, 9}
    assert {reason for _, _, reason in found.routes} == {"STATIC", "SPLIT", "KILLED"}
    assert {version for version, _, _ in found.routes} == {"v1", "v2", "v3"}


@settings(deadline=None, derandomize=True, max_examples=15)
@given(st.integers(1, COUNT), st.integers(1, COUNT))
def test_however_the_stream_is_cut_the_same_is_found(written, again):
    """Both when it was scored and when it is scored again."""
    values, letters, rest, first = [], [], EVENTS, 0
    while len(rest):
        batch, rest = cut(rest, min(written, len(rest)))
        made, dead = answered(batch)
        values, letters, first = values + made, letters + [first + row for row in dead], first + len(batch)
    broken = [*values[:60], changed(values[60], model_version="v9"), *values[61:]]
    assert verified(values, letters, size=again).good
    found = verified(broken, letters, size=again)
    assert only(found) == (read(values[60])["prediction_id"], {"model_version"})
    assert (found.verdicts, found.routes) == (
        verified(broken, letters).verdicts,
        verified(broken, letters).routes,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "other"), ("model_version", "v3"), ("variant", "CANDIDATE"), ("reason", "TARGETING"),
        ("rollout_id", "r9"), ("rollout_id", None), ("control_epoch", 4), ("control_epoch", 6), ("decision", None),
        ("decision", "middle"), ("scores", {}), ("scores", {"x": 1.0}),
    ],
)  # fmt: skip
def test_one_field_of_one_prediction_is_found(field, value):
    values, letters = answered()
    at = next(n for n, one in enumerate(values) if read(one)["control_epoch"] == 5 and read(one)[field] != value)
    found = verified([*values[:at], changed(values[at], **{field: value}), *values[at + 1 :]], letters)
    assert only(found) == (read(values[at])["prediction_id"], {field})
    assert found.verdicts[Verdict.DIFFERS] == 1
    assert (found.examples[0].fields[field][1]) == read(values[at])[field]


@pytest.mark.parametrize("at", range(0, 100, 9))
def test_one_flipped_bit_of_one_score_is_found(at):
    """Of each score of a prediction, the last of several too."""
    values, letters = answered()
    scores = read(values[at])["scores"]
    for name, score in scores.items():
        broken = changed(values[at], scores={**scores, name: flipped(score)})
        found = verified([*values[:at], broken, *values[at + 1 :]], letters)
        assert only(found) == (read(values[at])["prediction_id"], {"scores"})
        assert found.examples[0].fields["scores"] == ({**scores, name: flipped(score)}, scores)
        assert found.scores_alone == bool(read(values[at])["feature_status"])


def test_minus_zero_is_not_zero_and_nan_is_the_same_nan():
    values, letters = answered()
    at, scores = 3, read(values[3])["scores"]
    zero, minus, nan = (
        [*values[:at], changed(values[at], scores=dict.fromkeys(scores, one)), *values[at + 1 :]]
        for one in (0.0, -0.0, math.nan)
    )
    wording = Wording()
    said = [SaidReader(TOPIC, PINNED_ID, wording).read(binary([one[at]])).bits for one in (zero, minus, nan)]
    assert len({one.tobytes() for one in said}) == 3
    assert not verified(nan, letters).good


def test_scores_that_are_written_in_another_order_are_the_same():
    values, letters = answered()
    at = next(n for n, one in enumerate(values) if len(read(one)["scores"]) > 1)
    backwards = dict(reversed(read(values[at])["scores"].items()))
    assert verified([*values[:at], changed(values[at], scores=backwards), *values[at + 1 :]], letters).good


@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_moved_cutover_is_found_at_the_events_between(which, shift):
    cuts = list(CUTS[TOPIC, 0])
    moved = replace(cuts[which], offset=cuts[which].offset + shift)
    law = replace(LAW, cutovers={**CUTS, (TOPIC, 0): (*cuts[:which], moved, *cuts[which + 1 :])})
    values, letters = answered()
    found = verified(values, letters, view=law)
    between = min(moved.offset, cuts[which].offset)
    assert [one.prediction_id for one in found.examples] == [f"{TOPIC}-0-{between}"]
    assert "control_epoch" in found.examples[0].fields


@pytest.mark.parametrize(
    "edit",
    [{"weight_bp": 4000}, {"salt": "t"}, {"candidate": "v3"}, {"rollout_id": "r7"}, {"stable": "v3"}, {"number": 4}],
)
def test_an_edited_command_is_found(edit):
    epochs = (EPOCHS[0], replace(EPOCHS[1], **edit), *EPOCHS[2:])
    number = edit.get("number", 5)
    cuts = {at: tuple(replace(c, epoch=number) if c.epoch == 5 else c for c in some) for at, some in CUTS.items()}
    values, letters = answered()
    found = verified(values, letters, view=replace(LAW, epochs=epochs, cutovers=cuts))
    assert found.verdicts[Verdict.DIFFERS] > 0
    assert not found.good


def test_a_prediction_that_is_gone_is_missing_or_where_nothing_is_sure_yet_waiting():
    values, letters = answered()
    gone = read(values[40])
    _, partition, offset = gone["prediction_id"].rsplit("-", 2)
    left = [*values[:40], *values[41:]]
    found = verified(left, letters)
    assert (found.verdicts[Verdict.MISSING], only(found)) == (1, (gone["prediction_id"], {"answer"}))
    waits = verified(left, letters, sure={0: COUNT, 1: COUNT} | {int(partition): int(offset)})
    assert waits.good
    assert waits.verdicts[Verdict.WAITING] == 1
    assert not verified(values, letters[1:]).good, "a dead letter may be missing as well"


def test_a_second_record_is_counted_and_of_two_epochs_the_highest_counts():
    values, letters = answered()
    at = next(n for n, one in enumerate(values) if read(one)["control_epoch"] == 8)
    older = changed(values[at], control_epoch=3, model_version="v1", variant="STABLE", reason="STATIC", rollout_id=None)
    for order in ([older, *values], [*values, older], [*values, values[at]], [values[at], older, *values]):
        found = verified(order, letters)
        assert (found.good, found.repeated) == (True, len(order) - len(values))
    newer = changed(older, control_epoch=9)
    for order in ([newer, *values], [*values, newer]):
        assert only(verified(order, letters))[0] == read(newer)["prediction_id"]


@pytest.mark.parametrize("place", ["before", "after"])
def test_of_two_records_of_one_epoch_both_must_hold(place):
    values, letters = answered()
    other = changed(values[70], reason="TARGETING", scores=dict.fromkeys(read(values[70])["scores"], 0.25))
    found = verified([other, *values] if place == "before" else [*values, other], letters)
    assert (only(found)[0], found.repeated) == (read(other)["prediction_id"], 1)


def test_two_records_of_an_older_epoch_that_disagree_count_for_nothing():
    values, letters = answered()
    at = next(n for n, one in enumerate(values) if read(one)["control_epoch"] == 8)
    one, two = (changed(values[at], control_epoch=3, decision=said) for said in ("this", "that"))
    assert verified([one, two, *values], letters).good
    assert verified([*values, one, two], letters).good


class Failing(dict):
    """Versions of which no candidate is loaded."""

    def get(self, version):
        return self[version]

    def trial(self, _version):
        return None


def test_a_fallback_is_excepted_and_must_be_what_stable_says():
    good = Versions(pipeline()._versions)
    values, letters = answered()
    fallen, dead = answered(made=scoring(Failing(good)))
    fell = [one for one in fallen if read(one)["reason"] == "FALLBACK"]
    assert len(fell) > 20
    assert len(dead) == len(letters) + 1, "one that stable can't score"
    found = verified(fallen, dead)
    assert found.good
    assert (found.verdicts[Verdict.FELL_BACK], found.verdicts[Verdict.DEAD_LETTER]) == (len(fell), len(dead))
    there = {read(one)["prediction_id"] for one in fallen}
    twice = [one for one in values if read(one)["prediction_id"] in there]
    for order in ([*twice, *fallen], [*fallen, *twice]):
        assert verified(order, dead).good, "once it fell back, and once it did not"
    at = fallen.index(fell[5])
    for edit in ({"model_version": "v2"}, {"control_epoch": 3}, {"scores": {"y": 0.5}}, {"variant": "CANDIDATE"}):
        broken = verified([*fallen[:at], changed(fell[5], **edit), *fallen[at + 1 :]], dead)
        assert only(broken)[0] == read(fell[5])["prediction_id"], edit
    stable = next(n for n, one in enumerate(values) if read(one)["variant"] == "STABLE")
    lie = changed(values[stable], reason="FALLBACK")
    assert only(verified([*values[:stable], lie, *values[stable + 1 :]], letters))[1] == {"reason"}


def test_a_candidate_that_can_not_be_loaded_any_more_is_told_of():
    good = Versions(pipeline()._versions)

    class Gone(Versions):
        def trial(self, version):
            raise ModelMissingError(f"there is no {version}")

    trying = Trying(Gone(good))
    fallen, dead = answered(made=scoring(Failing(good)))
    assert verified(fallen, dead, made=scoring(trying)).good
    assert trying.unloadable == {"v2": "there is no v2", "v3": "there is no v3"}
    values, letters = answered()
    found = verified(values, letters, made=scoring(Trying(Gone(good))))
    assert found.verdicts[Verdict.DIFFERS] == sum(read(one)["variant"] == "CANDIDATE" for one in values)
    assert found.verdicts[Verdict.DIFFERS] > 20


def test_where_a_feature_has_another_status_now_scores_are_not_compared():
    values, letters = answered()
    rows = {key: row for key, row in ROWS.items() if key != row_key(VIEW, ["new"])}
    found = verified(values, letters, made=scoring(rows=rows))
    assert found.good, "routing is the same"
    assert found.verdicts[Verdict.CHANGED] > 10
    assert set(found.examples[0].fields) >= {"feature_status"}
    assert found.fields["model_version"] == 0


def test_a_row_that_was_written_anew_makes_scores_differ_and_routing_alone_agrees():
    values, letters = answered()
    rows = {**ROWS, row_key(VIEW, ["new"]): pack(1000, np.float32([8, 4]))}
    found = verified(values, letters, made=scoring(rows=rows))
    assert not found.good
    assert found.scores_alone == found.verdicts[Verdict.DIFFERS] > 10
    assert set(found.fields) & {name for name, count in found.fields.items() if count} <= {"scores", "decision"}
    ignoring = verified(values, letters, made=scoring(rows=rows), ignore_scores=True)
    assert (ignoring.good, ignoring.verdicts[Verdict.AGREES]) == (True, len(values))
    broken = [changed(values[0], reason="KILLED"), *values[1:]]
    assert only(verified(broken, letters, ignore_scores=True))[1] == {"reason"}


def test_a_dead_letter_in_place_of_a_prediction_is_found_and_the_other_way_round():
    values, letters = answered()
    row = next(n for n in range(COUNT) if n not in letters)
    place = f"{TOPIC}-{EVENTS.partitions[row]}-{EVENTS.offsets[row]}"
    left = [one for one in values if read(one)["prediction_id"] != place]
    found = verified(left, [*letters, row])
    assert found.examples[0].fields == {"answer": ("dead letter", "prediction")}
    found = verified(values, [*letters, row])
    assert found.examples[0].fields == {"answer": ("prediction and dead letter", "prediction")}
    where = f"{TOPIC}-{EVENTS.partitions[letters[0]]}-{EVENTS.offsets[letters[0]]}"
    found = verified([*values, changed(values[0], prediction_id=where)], letters[1:])
    assert only(found)[0] == where


def test_a_prediction_of_no_event_is_found_and_one_of_another_range_left_out():
    values, letters = answered()
    half, _ = cut(EVENTS, 100)
    kept = [row for row in letters if row < 100]
    found = verified(values, kept, events=half)
    assert (found.good, found.strays) == (False, len(values) + len(kept) - 100)
    beyond = [changed(values[0], prediction_id=one) for one in (f"{TOPIC}-0-60", f"{TOPIC}-7-0", "other-0-1", "x")]
    assert verified([*values, *beyond], letters).good


def test_what_is_no_prediction_is_counted():
    values, letters = answered()
    found = verified([*values, b"\x00\x00\x00\x00\x07abc", b""], letters)
    assert (found.good, found.unreadable) == (False, 2)


def test_nothing_is_never_good_news():
    none = raw([])
    found = verified([], [], events=none, sure={})
    assert (found.good, found.events) == (False, 0)


def test_the_report_is_json():
    values, letters = answered()
    broken = [changed(values[0], scores={"y": math.pi}), *values[1:-1]]
    plain = json.loads(json.dumps(verified(broken, letters).plain()))
    assert (plain["good"], plain["differs"], plain["missing"], plain["agrees"]) == (False, 1, 1, len(values) - 2)
    assert plain["dead_letter"] == len(letters)
    assert plain["examples"][0]["fields"]["scores"][0] == {"y": math.pi}
    assert sum(plain["epochs"].values()) == len(values) - 2
    assert ["v2", "CANDIDATE", "SPLIT"] in [one[:3] for one in plain["routes"]]


class TestWording:
    def test_equal_words_have_one_number_and_parts_tell_what_is_shared(self):
        wording = Wording()
        one = ("m", "v1", "STABLE", "SPLIT", None, "low", (("v", "STALE"),), ("y",))
        two = (*one[:5], "high", *one[6:])
        numbers = np.array([wording.number(one), wording.number(two), wording.number(tuple(one))], np.int32)
        assert numbers[0] == numbers[2] != numbers[1]
        for at, name in enumerate(FIELDS):
            part = wording.part(numbers, at, at + 1)
            assert (part[0] == part[1]) == (name != "decision")
        assert wording.where(numbers, FIELDS.index("decision"), "high").tolist() == [False, True, False]


@pure
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 3), st.integers(0, 2)), max_size=40),
    st.data(),
)
def test_of_each_event_the_highest_epoch_stands_however_its_records_come(records, data):
    """Against the plainest form of it."""
    standing, wording = Standing({0: (0, 6), 2: (2, 5)}), Wording()
    base = SaidReader(TOPIC, PINNED_ID, wording).read(binary([answered()[0][0]]))
    left = list(records)
    while left:
        size = data.draw(st.integers(1, len(left)))
        p, o, e, s = np.array(left[:size], np.int64).T
        many = base.take(np.zeros(size, np.intp))
        standing.predictions(replace(many, partitions=p, offsets=o, epochs=e, bits=s[:, None]))
        left = left[size:]
    inside = [one for one in records if one[0] == 0 or (one[0] == 2 and 2 <= one[1] < 5)]
    assert standing.outside == len(records) - len(inside)
    assert standing.repeated == len(inside) - len({one[:2] for one in inside})
    places = [(0, o) for o in range(6)] + [(2, o) for o in range(2, 5)]
    partitions, offsets = np.array(places, np.int64).T
    found, copies = standing.at(partitions, offsets), standing.copies(partitions, offsets)
    for row, place in enumerate(places):
        mine = [one for one in inside if one[:2] == place]
        assert found.predicted[row] == bool(mine)
        if mine:
            top = max(one[2] for one in mine)
            first, *others = [one[3] for one in mine if one[2] == top]
            assert (found.said.epochs[row], found.said.bits[row, 0]) == (top, first)
            assert {int(c.bits[0, 0]) for at, c in copies if at == row} == set(others) - {first}
    assert standing.of_no_event()[0] == 0
    assert standing.unanswered() == 9 - len({one[:2] for one in inside})
