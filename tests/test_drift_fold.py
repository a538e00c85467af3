"""Promise: each event counts once in `T.panes`, whoever counted it and however often; what is missing is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from panes_world import (
    PLANTED,
    STEP_MS,
    TOPIC,
    Event,
    check_exact,
    check_lossy,
    chunk_of,
    planted,
    run,
    world,
)

from streamserve.drift.chunks import Cell, Chunk
from streamserve.drift.fold import Fold
from streamserve.drift.windows import WindowRule

ENOUGH = 300  # worlds in which a planted error must show
SEEDS = st.integers(0, 2**32)
RULE = WindowRule(size_ms=60, slide_ms=60, lateness_ms=20, pane_ms=10)

PATIENT = WindowRule(size_ms=60, slide_ms=60, lateness_ms=300, pane_ms=10)


def steady(count, step=1):
    return [Event(0, n, 1_000 + n * step, "a", None, n % 4) for n in range(count)]


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_windows_are_those_of_the_events_whatever_befalls_the_workers(seed):
    check_exact(seed)


@settings(max_examples=150, deadline=None)
@given(SEEDS)
@example(19537811)  # the few rows behind a hole are all late
def test_a_window_that_lacks_something_says_so(seed):
    check_lossy(seed)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_found(name):
    law = PLANTED[name][-1]
    with planted(name), pytest.raises((AssertionError, IndexError)):
        all(law(seed) is None for seed in range(ENOUGH))


def test_what_was_planted_is_gone_again():
    for seed in range(20):
        check_exact(seed)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 50))
def test_how_many_records_are_read_at_once_changes_nothing_in_the_end(seed, every):
    made = world(seed)
    stands = [{(w.start_ms, w.series): w.digest for w in run(made, every=n)} for n in (1, every)]
    assert stands[0] == stands[1]


def test_what_is_held_does_not_grow_with_the_log():
    events, sizes = steady(20_000), []
    fold = Fold(RULE, {TOPIC: 1})
    for at, start in enumerate(range(0, len(events), 5)):
        fold.add(chunk_of(events, start, start + 5, 1), at, at * STEP_MS)
        fold.due()
        sizes.append(fold.cells)
        assert fold.panes_from > at - 64 * 4
    assert max(sizes) < 80
    assert max(sizes[2_000:]) == max(sizes[:2_000])


def test_a_rewind_into_a_block_costs_the_block_and_is_told():
    events = steady(700)
    fold, said = Fold(PATIENT, {TOPIC: 1}), []
    spans = [(1, n, n + 2) for n in range(0, 130, 2)] + [(2, 31, 200), (2, 200, 400), (2, 400, 600), (2, 600, 700)]
    for at, (epoch, start, stop) in enumerate(spans):
        assert fold.add(chunk_of(events, start, stop, epoch), at, at) is None
        said += fold.due()
    stands = {w.start_ms: (w.rows, w.complete) for w in said}
    assert [stands[start] for start in (960, 1_020, 1_380, 1_440)] == [(0, False), (49, False), (60, False), (60, True)]
    assert all(w.complete for w in said if not w.revision and w.end_ms < 1_140)


def test_what_no_owner_could_have_written_is_refused_and_leaves_a_hole():
    events = steady(400)
    good, counts = chunk_of(events, 100, 200, 1), np.zeros(7, np.int64)
    cell = Cell("a", "ra", None, 1_100, 1, 1, 1_100, counts)
    wrong = {
        "offsets": Chunk(TOPIC, 0, 200, 100, 1, idle=False, shed=0, sample_bp=10_000, cells=good.cells),
        "sampled": Chunk(TOPIC, 0, 100, 200, 1, idle=False, shed=0, sample_bp=10_001, cells=good.cells),
        "source": Chunk("other", 0, 100, 200, 1, idle=False, shed=0, sample_bp=10_000, cells=good.cells),
        "7 counts": Chunk(TOPIC, 0, 100, 200, 1, idle=False, shed=0, sample_bp=10_000, cells=(cell,)),
        "rows": Chunk(TOPIC, 0, 100, 200, 1, False, 0, 1, (Cell("a", "ra", None, 1_100, 1, 2, 1_100, counts[:4]),)),
        "latest": Chunk(TOPIC, 0, 100, 200, 1, False, 0, 1, (Cell("a", "ra", None, 1_100, 1, 1, 1_000, counts[:4]),)),
        "whole": Chunk(
            TOPIC, 0, 100, 200, 1, False, 0, 1, (Cell("a", "ra", None, 1_100, 1, 1, 1_100, counts[:4] - 1),)
        ),
    }
    for why, chunk in wrong.items():
        fold = Fold(RULE, {TOPIC: 1})
        assert fold.add(chunk_of(events, 0, 100, 1), 0, 0) is None
        assert why in fold.add(chunk, 1, 1)
        assert fold.add(chunk_of(events, 200, 400, 1), 2, 2) is None
        complete = {w.start_ms: w.complete for w in fold.due()}
        assert complete == {start: start < 1_020 for start in range(960, 1_300, 60)}, why


def test_a_log_whose_beginning_is_gone_gives_windows_that_say_so():
    events = steady(400)
    fold = Fold(RULE, {TOPIC: 1})
    fold.add(chunk_of(events, 100, 150, 1), 7, 7)
    fold.add(chunk_of(events, 150, 400, 1), 8, 8)
    assert {w.start_ms: w.complete for w in fold.due()}[1_080] is False


def test_shares_of_sampling_are_not_hidden_and_shed_rows_are_told():
    events = steady(400)
    fold = Fold(RULE, {TOPIC: 1})
    fold.add(chunk_of(events, 0, 50, 1, sample_bp=10_000), 0, 0)
    fold.add(chunk_of(events, 50, 100, 1, sample_bp=500, shed=3), 1, 1)
    fold.add(chunk_of(events, 100, 400, 1, sample_bp=500), 2, 2)
    said = {w.start_ms: w for w in fold.due()}
    assert said[960].sample_bp == (10_000,)
    assert said[1_020].sample_bp == (500, 10_000)
    assert [said[start].shed for start in (960, 1_020, 1_080, 1_140)] == [0, 3, 3, 0]
    assert said[1_020].counts.tolist() == [15] * 4
