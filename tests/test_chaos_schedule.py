"""Promise: a seed tells all faults of a chaos run, of every kind; a point that is gone from the product is an error."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))  # a part of the checkout, not of the package

from chaos import points
from chaos.broker import partitions_of
from chaos.events import BAD_EVERY, Events, malformed
from chaos.points import ADAPTERS, AT_LEAST_ONCE, HIT, Brake, Point, UnknownPlaceError, install, points_of
from chaos.schedule import FEWEST, MOST, REVOKE, SESSION_S, Kind, schedule

PLACES = [point.name for point in points_of(AT_LEAST_ONCE)]


def plan(seed=1, count=100):
    return schedule(random.Random(seed), count, PLACES)


class TestSchedule:
    def test_a_seed_tells_all_of_it(self):
        assert plan(3) == plan(3)
        assert plan(3) != plan(4)
        assert plan(3, 10) == plan(3, 100)[:10], "a shorter run is the beginning of a longer one"

    @pytest.mark.parametrize("seed", range(20))
    def test_a_hundred_faults_have_every_kind_and_every_point(self, seed):
        found = plan(seed)
        assert {fault.kind for fault in found} == set(Kind)
        for kind in (Kind.KILL, Kind.STOP):
            assert {fault.point for fault in found if fault.kind is kind} == {None, *PLACES}
        assert all(fault.point is None for fault in found if fault.kind not in (Kind.KILL, Kind.STOP))

    @pytest.mark.parametrize("seed", range(20))
    def test_there_are_always_two_or_three_workers(self, seed):
        workers = FEWEST
        for fault in plan(seed):
            change = fault.workers - workers
            assert FEWEST <= fault.workers <= MOST
            if fault.kind is Kind.JOIN:
                assert change == 1
            elif fault.kind is Kind.LEAVE:
                assert change == -1
            elif change:
                assert change == 1
                assert fault.point.startswith(REVOKE), "somebody must join for partitions to be revoked"
            workers = fault.workers

    def test_workers_sleep_shorter_and_longer_than_their_session(self):
        stops = [fault.seconds for seed in range(5) for fault in plan(seed) if fault.kind is Kind.STOP]
        assert min(stops) >= 1.0
        assert max(stops) <= 15.0
        assert sum(seconds < SESSION_S for seconds in stops) > len(stops) / 5
        assert sum(seconds > SESSION_S for seconds in stops) > len(stops) / 5

    def test_without_points_kills_land_anywhere(self):
        assert all(fault.point is None for fault in schedule(random.Random(1), 50, []))


class TestPoints:
    def test_every_place_of_the_table_is_in_the_product(self):
        code = f"from pathlib import Path; from chaos.points import *; install(Path('.'), points_of({AT_LEAST_ONCE!r}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize(
        "gone",
        [
            Point("gone", "before", f"{ADAPTERS}.at_least_once", "AtLeastOnceEmitter", "no_more"),
            Point("gone", "before", f"{ADAPTERS}.at_least_once", "NoMore", "send"),
            Brake("gone", "streamserve.no_more", "OnnxSession", "run"),
        ],
    )
    def test_a_place_that_is_gone_is_an_error(self, tmp_path, gone):
        with pytest.raises(UnknownPlaceError, match="mend the table"):
            install(tmp_path, *(([gone], []) if isinstance(gone, Point) else ([], [gone])))

    def test_a_guarantee_without_points_is_an_error(self):
        with pytest.raises(UnknownPlaceError, match="name its commit's steps"):
            points_of("at_most_once")

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_process_dies_at_the_nth_call_since_it_was_armed(self, tmp_path, when):
        code = """
import sys
from fractions import Fraction
from pathlib import Path
from chaos.points import Point, install
folder = Path(sys.argv[1])
install(folder, [Point("here", sys.argv[2], "fractions", "Fraction", "limit_denominator")], [])
for n in range(9):
    if n == 4:
        (folder / "here").write_text("kill 3")
    Fraction(1, 3).limit_denominator(2)
    print(n, flush=True)
"""
        before = time.time_ns()
        ended = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), when], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert ended.returncode == -9, ended.stderr
        assert ended.stdout.split() == ["0", "1", "2", "3", "4", "5"]
        assert before < int((tmp_path / f"here{HIT}").read_text()) < time.time_ns()
        assert not (tmp_path / "here").exists()

    def test_a_brake_holds_while_its_file_is_there(self, tmp_path):
        file = tmp_path / "slow"
        for seconds, told in ((0.0, None), (0.05, "0.05"), (0.0, None)):
            if told is None:
                file.unlink(missing_ok=True)
            else:
                file.write_text(told)
            started = time.monotonic()
            points.wait(file)
            assert time.monotonic() - started >= seconds


class TestEvents:
    def test_a_seed_tells_every_event(self):
        first, again, other = Events(1, 5), Events(1, 5), Events(2, 5)
        assert [first.record(n) for n in range(300)] == [again.record(n) for n in range(300)]
        assert first.record(3) != other.record(3)

    def test_one_in_fifty_is_malformed_in_three_ways(self):
        events, numbers = Events(1, 5), np.arange(3 * BAD_EVERY)
        bad = numbers[malformed(numbers)]
        assert len(bad) == 3
        values = [events.record(int(n))[1] for n in bad]
        assert values[2] is None
        assert values[0][:1] == b"\x07"
        assert values[1][:5] == b"\x00\x00\x00\x00\x05"
        assert len({events.key(n) for n in range(2000)}) > 400
        assert all(itertools.starmap(lambda _, value, __: value, map(events.record, range(17))))


@pytest.mark.parametrize("owned", [(), (4,), (0, 2, 5)])
def test_what_a_member_owns_is_read_from_the_consumer_protocol(owned):
    numbers = b"".join(n.to_bytes(4) for n in owned)
    topics = b"\x00\x06events" + len(owned).to_bytes(4) + numbers
    assert partitions_of(b"\x00\x01\x00\x00\x00\x01" + topics + b"\xff\xff\xff\xff") == set(owned)
    assert partitions_of(b"") == set()
