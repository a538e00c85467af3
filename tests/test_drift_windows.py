"""Promise: windows pass when all partitions say so, are mended while they may be, and survive a restart."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from panes_world import TOPIC, Event, check_restart, check_wild, chunk_of, words

from streamserve.drift.fold import Fold
from streamserve.drift.watermark import Quorum
from streamserve.drift.windows import WindowRule, told
from streamserve.errors import ConfigError

SEEDS = st.integers(0, 2**32)
RULE = WindowRule(size_ms=60, slide_ms=60, lateness_ms=20, pane_ms=10)

PATIENT = WindowRule(size_ms=60, slide_ms=60, lateness_ms=100, pane_ms=10)


class Told:
    """A fold whose records are written here by event times."""

    def __init__(self, rule=RULE, partitions=1):
        self.fold = Fold(rule, {TOPIC: partitions})
        self.said, self.at, self.position = [], 0, [0] * partitions

    def hear(self, *times, partition=0, version="a", idle=False, after_ms=1):
        self.at += after_ms
        start = self.position[partition]
        events = [None] * start + [Event(partition, start + n, t, version, None, 0) for n, t in enumerate(times)]
        stop = self.position[partition] = start + len(times)
        chunk = chunk_of(events, start, stop, 1, idle=idle, partition=partition)
        assert self.fold.add(chunk, self.at, self.at) is None
        due = self.fold.due()
        self.said += due
        return [(w.start_ms, w.series.version, w.revision, w.rows) for w in due]


@settings(max_examples=80, deadline=None)
@given(SEEDS)
def test_a_wild_minority_moves_nothing(seed):
    check_wild(seed)


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_a_restart_at_any_point_says_nothing_twice_and_nothing_else(seed):
    check_restart(seed)


# ---- the watermark


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 10**6), max_size=9), st.booleans()), max_size=30))
def test_it_never_goes_back_and_never_passes_what_was_heard(records):
    log, before, latest = Told(partitions=3), None, 0
    for partition, times, idle in records:
        log.hear(*times, partition=partition, idle=idle)
        latest = max([latest, *times])
        assert before is None or before <= log.fold.watermark <= latest
        before = log.fold.watermark


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(10**5, 10**15), max_size=15), st.integers(0, 3))
def test_less_than_a_quorum_moves_it_by_no_millisecond(wild, size):
    log = Told()
    log.hear(*range(1_000, 1_064))
    for n, time in enumerate(wild[:15]):
        log.hear(*range(1_064 + n * size, 1_064 + n * size + size), time)
        assert log.fold.watermark < 1_064 + 15 * 3


def test_the_very_first_event_may_be_wild():
    log = Told()
    log.hear(9_999_999)
    log.hear(1_000)
    assert log.fold.watermark is None
    log.hear(1_001, 1_002)
    assert log.fold.watermark == 1_002


def test_no_window_closes_before_a_quorum_has_reached_its_end():
    log = Told(PATIENT)
    log.hear(*range(1_000, 1_064))
    assert log.hear(1_085, 1_130) == [(1_020, "a", 0, 44)]  # a little ahead: it passes too early
    assert log.hear(*range(1_064, 1_080)) == [(1_020, "a", 1, 60)]  # and is mended
    assert not any(w.late for w in log.said)


def test_after_a_night_without_events_time_goes_on():
    log = Told()
    log.hear(*range(1_000, 1_064))
    for n in range(30):
        log.hear(9_000 + n)
    assert log.fold.watermark == 9_029
    assert [w.start_ms for w in log.said] == [960, 1_020, 1_080]  # one that is empty, then silence
    assert [w.rows for w in log.said] == [20, 44, 0]
    assert not any(w.wild for w in log.said)


def test_wild_rows_are_counted_and_told():
    log = Told()
    log.hear(*range(1_000, 1_064), 5_000_000, 6_000_000)
    log.hear(*range(1_064, 1_200))
    log.hear(*range(1_200, 1_300))
    assert sum(w.wild for w in log.said) == 2
    assert log.fold.panes_from == 0
    assert log.fold.cells < 25


def test_silence_holds_and_an_idle_word_holds_no_longer_than_it_is_fresh():
    log = Told(PATIENT, partitions=2)
    log.hear(*range(1_000, 1_200))
    assert log.fold.watermark is None  # the other one never spoke
    log.hear(*range(1_000, 1_100), partition=1)
    assert log.fold.watermark == 1_099
    log.hear(*range(1_200, 1_300))
    assert log.fold.watermark == 1_099  # it is silent
    log.hear(partition=1, idle=True)
    assert log.fold.watermark == 1_299
    log.hear(*range(1_300, 1_400))
    assert log.fold.watermark == 1_299  # since its word some may have come there too
    log.hear(partition=1, idle=True)
    assert log.fold.watermark == 1_399
    log.hear(*range(1_400, 1_500), after_ms=15_001)
    assert log.fold.watermark == 1_399  # its word is too old
    log.hear(partition=1, idle=True)
    log.hear(idle=True)
    assert log.fold.watermark == 1_499  # nothing waits anywhere


def test_a_new_partition_holds_it_until_it_speaks():
    log = Told(PATIENT)
    log.hear(*range(1_000, 1_100))
    log.fold.expect({TOPIC: 2})
    log.position.append(0)
    log.hear(*range(1_100, 1_200))
    assert log.fold.watermark == 1_099
    log.hear(*range(1_150, 1_160), partition=1)
    assert log.fold.watermark == 1_159


# ---- windows


def test_late_rows_are_mended_within_the_lateness_and_counted_past_it():
    log = Told()
    assert log.hear(*range(1_000, 1_090)) == [(960, "a", 0, 20), (1_020, "a", 0, 60)]
    assert log.hear(1_025, 1_026) == [(1_020, "a", 1, 62)]
    assert log.hear(1_000, 1_001, 1_002) == []  # closed at 1,040
    log.hear(*range(1_090, 1_190))
    assert [(w.start_ms, w.late) for w in log.said if w.late] == [(1_080, 3)]


def test_sliding_windows_share_panes():
    log = Told(WindowRule(size_ms=60, slide_ms=20, lateness_ms=0, pane_ms=10))
    log.hear(*range(1_000, 1_201))
    assert [(w.start_ms, w.rows) for w in log.said[:4]] == [(960, 20), (980, 40), (1_000, 60), (1_020, 60)]


def test_versions_and_segments_have_records_of_their_own():
    log = Told(PATIENT)
    log.hear(*range(1_000, 1_010), version="a")
    log.hear(*range(1_000, 1_010), version="b")
    assert log.hear(*range(1_010, 1_150), version="a") == [
        (960, "a", 0, 20), (960, "b", 0, 10), (1_020, "a", 0, 60), (1_020, "b", 0, 0), (1_080, "a", 0, 60),
    ]  # fmt: skip
    assert log.said[3].counts.tolist() == [0] * 4


def test_panes_that_nonsense_asks_for_are_bounded_and_the_oldest_are_kept():
    log = Told(WindowRule(size_ms=60, slide_ms=60, lateness_ms=20, pane_ms=10, max_panes=20))
    log.hear(*range(1_000, 1_064), *range(10**6, 10**6 + 20 * 10**5, 10**5))
    assert log.fold.cells <= 21
    log.hear(*range(1_064, 1_300))
    assert [w.rows for w in log.said if w.start_ms in {1_020, 1_080}] == [60, 60]


def test_a_window_that_lost_panes_to_the_bound_is_incomplete():
    log = Told(WindowRule(size_ms=60, slide_ms=10, lateness_ms=200, pane_ms=10, max_panes=10))
    for at in range(1_000, 1_600, 10):
        log.hear(*range(at, at + 10))
    lost = [w for w in log.said if w.rows < 60 and w.start_ms >= 1_000]
    assert lost
    assert not any(w.complete for w in lost)


def test_with_a_canary_a_wild_minority_moves_nothing():
    log = Told()
    log.at += 1
    wild = [Event(0, 85 + n, 10**6 + 10 * n, "a", None, 0) for n in range(15)]
    events = [Event(0, n, 1_000, "ab"[n % 2], None, 0) for n in range(85)] + wild
    log.fold.add(chunk_of(events, 0, 100, 1), log.at, log.at)
    assert log.fold.watermark == 1_000


@pytest.mark.parametrize("lateness", [0, 100])
def test_what_is_gone_of_the_log_is_missing(lateness):
    rule = WindowRule(size_ms=100, slide_ms=100, lateness_ms=lateness, pane_ms=10, block_chunks=1)
    events = [Event(0, n, 1_000 + n, "a", None, 0) for n in range(500)]
    chunks = [chunk_of(events, at, at + 10, 1) for at in range(0, 500, 10)]

    def go_on(first: int, earlier) -> list:
        fold, said = Fold(rule, {TOPIC: 1}, earlier), []
        for offset, chunk in enumerate(chunks[first:], first):
            fold.add(chunk, offset, offset)
            said += fold.due()
        return said

    whole = go_on(0, None)
    before = [w for w in whole if w.panes_to <= 25]
    earlier = told(before)
    assert earlier.panes_from < 22
    assert words(go_on(earlier.panes_from, earlier)) == words(whole[len(before) :])
    for said in (go_on(22, earlier), go_on(22, earlier.anew())):  # what came before is gone
        lacking = [w for w in said if w.rows < 100 and w.start_ms < 1_300]
        assert lacking
        assert not any(w.complete for w in lacking)
        assert [w.rows for w in said if w.complete] == [100] * sum(w.complete for w in said)
        assert any(w.complete for w in said)


def test_a_log_that_was_made_anew_is_read_from_its_beginning():
    events = [Event(0, n, 1_000 + n, "a", None, 0) for n in range(1_000)]
    fold, said = Fold(RULE, {TOPIC: 1}), []
    for offset, at in enumerate(range(0, 500, 10)):
        fold.add(chunk_of(events, at, at + 10, 1), offset, offset)
        said += fold.due()
    fold, anew = Fold(RULE, {TOPIC: 1}, told(said).anew()), []
    for offset, at in enumerate(range(500, 1_000, 10)):
        fold.add(chunk_of(events, at, at + 10, 1), offset, offset)
        anew += fold.due()
    assert [w.start_ms for w in anew if w.revision == 0] == list(range(1_440, 1_980, 60))
    assert not any(w.revision for w in anew)  # what was said of the former one stays as it is
    assert [(w.rows, w.complete) for w in anew if w.start_ms > 1_600] == [(60, True)] * 6


def test_nothing_is_held_for_wild_rows_for_ever():
    log = Told(WindowRule(size_ms=60, slide_ms=60, lateness_ms=20, pane_ms=10, block_chunks=4))
    log.hear(*range(1_000, 1_064), 10**9)
    for n in range(100):
        log.hear(*range(1_064 + n * 20, 1_084 + n * 20))
    assert log.fold.panes_from > 80
    assert log.fold.cells < 20


def test_a_fold_that_is_told_of_a_part_of_a_window_says_the_rest():
    log = Told()
    log.hear(*range(1_000, 1_050), version="a")
    log.hear(*range(1_000, 1_050), version="b")
    log.hear(*range(1_050, 1_150), version="a")
    for written in range(1, len(log.said)):
        other = Told()
        other.fold = Fold(RULE, {TOPIC: 1}, told(log.said[:written]))
        other.hear(*range(1_000, 1_050), version="a")
        other.hear(*range(1_000, 1_050), version="b")
        other.hear(*range(1_050, 1_150), version="a")
        assert words(other.said) == words(log.said[written:])


@pytest.mark.parametrize(
    "lengths", [(60, 60, 20, 7), (60, 90, 0, 10), (60, 0, 0, 10), (60, 60, -10, 10), (60, 60, 0, 0)]
)
def test_a_rule_that_leaves_events_out_is_refused(lengths):
    with pytest.raises(ConfigError):
        WindowRule(*lengths)


def test_a_quorum_is_several_events_and_a_share_of_all():
    assert [Quorum(0).of(rows) for rows in (1, 12, 13, 64, 1_000)] == [3, 3, 4, 16, 250]
