"""Promise: whatever delivery could do wrong, the checker of the chaos runs sees, and says of which events."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))  # a part of the checkout, not of the package

from chaos.checker import check
from chaos.columns import DeadLetters, Inputs, Predictions, Window, pick, without

PARTITIONS, KEYS, EACH = 3, 5, 40  # keys and events of each partition
MALFORMED = 10  # every tenth
NONE: list[Window] = []


def world(each: int = EACH) -> dict[str, object]:
    """Inputs with ids 1000.., and outputs that answer each of them once, in order."""
    count = PARTITIONS * each
    partitions, offsets = np.repeat(np.arange(PARTITIONS), each), np.tile(np.arange(each), PARTITIONS)
    ids = 1000 + np.arange(count)
    malformed = ids % MALFORMED == 0
    keys = pa.array([b"k%d-%d" % (p, o % KEYS) for p, o in zip(partitions, offsets, strict=True)], pa.binary())
    values = pa.array([b"v%d" % n for n in ids], pa.binary())
    headers = pa.array([b"h%d" % n for n in ids], pa.binary())
    epochs = np.full(count, 7)
    inputs = Inputs(partitions, offsets, ids, malformed, epochs, keys, values, headers)
    sound, bad = np.flatnonzero(~malformed), np.flatnonzero(malformed)
    said = pa.table({"event_id": [str(n) for n in ids[sound]], "model_version": ["v1"] * len(sound)})
    predictions = Predictions(
        partitions[sound], np.arange(len(sound)), partitions[sound], offsets[sound],
        keys.take(pa.array(sound)), headers.take(pa.array(sound)), said, epochs[sound],
        np.linspace(0, 1, len(sound)), pa.array(["PRESENT"] * len(sound)),
    )  # fmt: skip
    dead = DeadLetters(
        partitions[bad], np.arange(len(bad)), partitions[bad], offsets[bad],
        keys.take(pa.array(bad)), headers.take(pa.array(bad)), values.take(pa.array(bad)),
    )  # fmt: skip
    ends = np.full(PARTITIONS, each)
    return {"inputs": inputs, "predictions": predictions, "dead": dead, "committed": ends, "ends": ends}


def judge(made, windows=NONE, *, exactly_once=False, **changed):
    return check(**{**made, **changed}, windows=windows, exactly_once=exactly_once)


def told(verdict):
    return {one.promise: list(one.examples) for one in verdict.violations}


def repeat(columns, row, **changed):
    """The record of `row` once more, behind all others of its partition."""
    rows = np.append(np.arange(len(columns)), row)
    again = pick(columns, rows)
    out = again.out_offsets.copy()
    out[-1] = 10**6
    return replace(again, out_offsets=out, **changed)


def id_of(made, row):
    """The id of the input that a prediction answers."""
    predictions, inputs = made["predictions"], made["inputs"]
    at = predictions.partitions[row] * (len(inputs) // PARTITIONS) + predictions.offsets[row]
    return str(inputs.ids[at])


def everything(each=EACH):
    return Window("1 worker killed", np.zeros(PARTITIONS, np.int64), np.full(PARTITIONS, each))


@pytest.mark.parametrize("exactly_once", [True, False])
def test_a_clean_run_is_clean(exactly_once):
    made = world()
    found = judge(made, exactly_once=exactly_once)
    assert found.violations == []
    assert (found.inputs, found.predictions + found.dead_letters) == (len(made["inputs"]),) * 2


def test_a_topic_without_a_record_is_all_lost():
    made = world()
    empty = {"predictions": without(made["predictions"], range(1000)), "dead": without(made["dead"], range(1000))}
    assert told(judge(made, **empty)) == {
        "lost: neither a prediction nor a dead letter": [str(n) for n in made["inputs"].ids[:20]]
    }


def test_a_lost_prediction_is_named():
    made = world()
    found = judge(made, predictions=without(made["predictions"], [5, 60]))
    assert told(found) == {"lost: neither a prediction nor a dead letter": [id_of(made, 5), id_of(made, 60)]}


def test_a_lost_dead_letter_is_named():
    made = world()
    found = judge(made, dead=without(made["dead"], [0]))
    assert told(found) == {"lost: neither a prediction nor a dead letter": ["1000"]}


def test_a_duplicate_breaks_exactly_once_and_is_counted_under_at_least_once():
    made = world()
    twice = repeat(made["predictions"], 7)
    found = judge(made, [everything()], predictions=twice)
    assert found.violations == []
    assert found.repeated == {"1 worker killed": 1}
    assert told(judge(made, [everything()], exactly_once=True, predictions=twice)) == {
        "answered more than once": [id_of(made, 7)]
    }


def test_a_dead_letter_that_comes_twice_is_a_duplicate_too():
    made = world()
    twice = repeat(made["dead"], 1)
    assert judge(made, [everything()], dead=twice).repeated == {"1 worker killed": 1}
    assert told(judge(made, [everything()], dead=twice, exactly_once=True)) == {"answered more than once": ["1010"]}


def test_a_duplicate_outside_every_window_has_no_excuse():
    made = world()
    early = Window("1", np.zeros(PARTITIONS, np.int64), np.full(PARTITIONS, 5))
    assert told(judge(made, [early], predictions=repeat(made["predictions"], 30))) == {
        "repeated without a fault": [id_of(made, 30)]
    }


def test_more_duplicates_than_were_in_flight_are_too_many():
    made = world()
    again = made["predictions"]
    for _ in range(3):
        again = repeat(again, 0)
    window = Window("1", np.zeros(PARTITIONS, np.int64), np.array([2, 0, 0]))
    found = judge(made, [window], predictions=again)
    assert told(found) == {"more repeated than was in flight": ["1: 3 where 2 were in flight"]}
    assert judge(made, [replace(window, takeovers=2)], predictions=again).violations == []


def test_duplicates_belong_to_the_last_fault_that_can_have_caused_them():
    made = world()
    start, middle, end = (np.full(PARTITIONS, n) for n in (0, 20, EACH))
    windows = [Window("1", start, middle + 5), Window("2", middle, end)]
    again = repeat(repeat(made["predictions"], 3), 20)
    assert judge(made, windows, predictions=again).repeated == {"1": 1, "2": 1}


@pytest.mark.parametrize("change", ["score", "version"])
def test_duplicates_that_disagree_are_named(change):
    made = world()
    again = repeat(made["predictions"], 7)
    if change == "score":
        again.scores[-1] += 1e-9
    else:
        versions = [*again.said.column("model_version").to_pylist()[:-1], "v2"]
        again = replace(again, said=again.said.set_column(1, "model_version", [versions]))
    assert told(judge(made, [everything()], predictions=again)) == {
        "predictions of one event that disagree": [id_of(made, 7)]
    }


def test_duplicates_may_differ_in_what_redis_answered_and_in_lower_epochs():
    made = world()
    again = repeat(made["predictions"], 7)
    again.scores[-1] += 0.5
    again.epochs[-1] -= 3
    statuses = pa.array([*again.statuses.to_pylist()[:-1], "TIMEOUT"])
    assert judge(made, [everything()], predictions=replace(again, statuses=statuses)).violations == []


def test_the_highest_epoch_must_be_the_logs():
    made = world()
    for wrong in (6, 8):
        epochs = made["predictions"].epochs.copy()
        epochs[4] = wrong
        assert told(judge(made, predictions=replace(made["predictions"], epochs=epochs))) == {
            "the highest control epoch is not the log's": [id_of(made, 4)]
        }


def test_a_reorder_within_a_key_is_named_and_one_between_keys_is_none():
    made = world()
    predictions = made["predictions"]
    keys = predictions.keys.to_pylist()
    out = predictions.out_offsets.copy()
    later = next(n for n in range(1, 30) if keys[n] == keys[0])
    out[0], out[later] = out[later], out[0]
    assert told(judge(made, predictions=replace(predictions, out_offsets=out))) == {
        "predictions of a key out of its order": [id_of(made, 0)]
    }
    out = predictions.out_offsets.copy()
    assert keys[0] != keys[1]
    out[0], out[1] = out[1], out[0]
    assert judge(made, predictions=replace(predictions, out_offsets=out)).violations == []


def test_a_late_repetition_is_no_reorder():
    made = world()
    assert judge(made, [everything()], predictions=repeat(made["predictions"], 0)).violations == []


def test_a_key_in_two_partitions_is_out_of_order():
    made = world()
    out = made["predictions"].out_partitions.copy()
    out[30] = 2
    assert "predictions of a key out of its order" in told(
        judge(made, predictions=replace(made["predictions"], out_partitions=out))
    )


@pytest.mark.parametrize(("column", "promise"), [("keys", "a wrong key"), ("headers", "wrong headers")])
@pytest.mark.parametrize("wrong", [b"other", None])
def test_what_an_event_came_with_is_carried(column, promise, wrong):
    made = world()
    for name, which in (("prediction", "predictions"), ("dead letter", "dead")):
        carried = getattr(made[which], column).to_pylist()
        carried[3] = wrong
        found = judge(made, **{which: replace(made[which], **{column: pa.array(carried, pa.binary())})})
        expected = id_of(made, 3) if which == "predictions" else "1030"
        assert told(found) == {f"a {name} with {promise}": [expected]}


def test_a_null_key_that_is_carried_as_null_is_right():
    made = world()
    inputs, predictions = made["inputs"], made["predictions"]
    keys, said = inputs.keys.to_pylist(), predictions.keys.to_pylist()
    keys[1] = said[0] = None  # the first input is malformed
    made |= {"inputs": replace(inputs, keys=pa.array(keys, pa.binary()))}
    assert judge(made, predictions=replace(predictions, keys=pa.array(said, pa.binary()))).violations == []


def test_a_dead_letter_with_other_bytes_is_named():
    made = world()
    values = made["dead"].values.to_pylist()
    values[2] = values[2] + b"!"
    assert told(judge(made, dead=replace(made["dead"], values=pa.array(values, pa.binary())))) == {
        "a dead letter whose value is not the event's": ["1020"]
    }


def test_a_prediction_that_names_another_event_is_named():
    made = world()
    named = made["predictions"].said.column("event_id").to_pylist()
    named[6] = "4711"
    said = made["predictions"].said.set_column(0, "event_id", [named])
    assert told(judge(made, predictions=replace(made["predictions"], said=said))) == {
        "a prediction that names another event": [id_of(made, 6)]
    }


def test_a_phantom_is_told_by_its_positions():
    made = world()
    offsets = made["predictions"].offsets.copy()
    offsets[9] = 999
    found = told(judge(made, predictions=replace(made["predictions"], offsets=offsets)))
    assert found["a prediction of no input"] == ["of 0-999 at 0-9"]
    assert found["lost: neither a prediction nor a dead letter"] == [id_of(made, 9)]


def test_an_answer_of_the_wrong_kind_is_named():
    made = world()
    malformed = made["inputs"].malformed.copy()
    malformed[[1, 10]] = True, False  # as if a dead letter had come of a sound event, and the other way round
    inputs = replace(made["inputs"], malformed=malformed)
    assert told(judge(made, inputs=inputs)) == {
        "a sound event that became a dead letter": ["1010"],
        "a malformed event that was predicted": ["1001"],
    }


def test_a_committed_offset_that_lags_is_told_with_its_partition():
    made = world()
    committed = made["ends"].copy()
    committed[1] -= 2
    assert told(judge(made, committed=committed)) == {"committed offsets are not at the end": ["partition 1: 38 of 40"]}


def test_millions_of_rows_are_no_trouble():
    made = world(each=350_000)
    found = judge(made, [everything(350_000)], predictions=without(made["predictions"], [123_456]))
    assert told(found) == {"lost: neither a prediction nor a dead letter": [id_of(made, 123_456)]}


def lawful(**changed):
    """A world whose events of even ids are the candidate's, and whose predictions say so."""
    made = world()
    inputs, predictions = made["inputs"], made["predictions"]

    def columns(ids):
        mine = ids % 2 == 0
        return {
            "model_version": np.where(mine, "v2", "v1"),
            "variant": np.where(mine, "CANDIDATE", "STABLE"),
            "reason": np.full(len(ids), "SPLIT"),
        }

    wanted = pa.table({**columns(inputs.ids), "stable": np.full(len(inputs), "v1")})
    law = columns(inputs.ids[~inputs.malformed])
    for name, (row, value) in changed.items():
        law[name] = law[name].astype(object)
        law[name][row] = value
    return {
        **made,
        "inputs": replace(inputs, wanted=wanted),
        "predictions": replace(predictions, law=pa.table(law)),
    }


def test_who_answers_as_the_logs_say_is_lawful():
    assert judge(lawful()).violations == []


BY_ANOTHER = "answered by another version, or for another reason, than the logs say"


@pytest.mark.parametrize(
    ("name", "value"), [("model_version", "v9"), ("variant", "STABLE"), ("reason", "TARGETING"), ("reason", "FALLBACK")]
)
def test_an_answer_of_another_version_or_for_another_reason_is_named(name, value):
    made = lawful(**{name: (3, value)})
    assert made["inputs"].ids[~made["inputs"].malformed][3] % 2 == 0
    assert told(judge(made)) == {BY_ANOTHER: [id_of(made, 3)]}


def test_stable_may_answer_for_a_candidate_if_it_says_so():
    made = lawful(model_version=(3, "v1"), variant=(3, "STABLE"), reason=(3, "FALLBACK"))
    assert judge(made).violations == []
    assert judge(made).fallbacks == 1
    other = lawful(model_version=(3, "v3"), variant=(3, "STABLE"), reason=(3, "FALLBACK"))
    assert told(judge(other)) == {BY_ANOTHER: [id_of(other, 3)]}
    uncalled = lawful(reason=(2, "FALLBACK"))
    assert told(judge(uncalled)) == {BY_ANOTHER: [id_of(uncalled, 2)]}
