"""Promise: the benchmark's arithmetic hides no wait, and its command says what it needs. Nothing is timed here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT

import streamserve
from streamserve.cli import cli, main
from streamserve.cli.bench import PARTS

sys.path.insert(0, str(ROOT))  # the benchmark is a part of the checkout, not of the package

from bench import docs, flights, growth, memory, restart, run, schedule, tables, vectors
from bench.measure import Cost

SECOND = schedule.SECOND


def cost(us: float, events: int = 1000, rate: float = 100.0, rss=(10.0, 11.0, 12.0)) -> Cost:
    return Cost(events, events / rate, us * events / 1e6, rss)


class TestSchedule:
    def test_what_is_due_is_told_by_the_clock_alone(self):
        assert schedule.due(-1, 1000) == 0
        assert schedule.due(0, 1000) == 1
        assert schedule.due(SECOND // 2, 1000) == 501

    @pytest.mark.parametrize("rate", [1.0, 3.0, 999.0, 1000.0, 50_000.0])
    def test_an_event_is_due_exactly_from_its_intended_time_on(self, rate):
        for number, at in enumerate(schedule.intended(200, 0, rate).tolist()):
            assert schedule.due(at, rate) == number + 1
            assert number == 0 or schedule.due(at - 1, rate) == number

    def test_a_stall_counts_for_every_event_that_waited_not_for_one(self):
        """A server that stands still for a second, at 1,000 events/s: a closed loop would see one slow answer."""
        start, rate = 5 * SECOND, 1000.0
        arrivals = schedule.intended(10_000, start, rate) + 1_000_000
        stalled = (arrivals >= start + 4 * SECOND) & (arrivals < start + 5 * SECOND)
        arrivals[stalled] = start + 5 * SECOND
        late = schedule.latencies_ms(arrivals, start, rate)
        found = schedule.percentiles(late)
        assert found["p50"] == pytest.approx(1.0)
        assert found["p99"] == pytest.approx(901, abs=2)
        assert found["max"] == pytest.approx(1001, abs=2)
        assert np.count_nonzero(late > 500) == pytest.approx(500, abs=2)

    def test_the_warm_up_is_left_out_and_what_never_came_is_infinite(self):
        arrivals = schedule.intended(4, 0, 1.0) + 2_000_000
        arrivals[0] += SECOND
        arrivals[3] = 0
        assert schedule.latencies_ms(arrivals, 0, 1.0, skip=1).tolist() == [2.0, 2.0, np.inf]

    def test_a_percentile_is_a_value_that_was_seen(self):
        found = schedule.percentiles(np.arange(1.0, 1001.0)[::-1])
        assert found == {"p50": 500.0, "p90": 900.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0}
        assert set(schedule.percentiles(np.array([7.0])).values()) == {7.0}

    def test_answers_that_fall_behind_are_fewer_than_were_offered(self):
        sent = schedule.intended(2000, SECOND, 1000.0)
        assert schedule.answered_in_time(sent, SECOND, 1000.0, 1000) == pytest.approx(1000, rel=0.01)
        behind = SECOND + (sent - SECOND) * 2  # answers come at half the rate
        assert schedule.answered_in_time(behind, SECOND, 1000.0, 0) == pytest.approx(500, rel=0.01)


class TestCosts:
    def test_a_cost_survives_its_file(self):
        assert Cost.of(cost(3.0).as_dict()) == cost(3.0)
        assert cost(3.0).us == pytest.approx(3.0)
        assert cost(3.0).rate == pytest.approx(100.0)

    def test_the_floor_is_the_sum_of_the_cheapest_candidate_of_each_part(self):
        parts = {"decode: slow": cost(90.0), "decode: fast": cost(5.0, 250), "read": cost(2.0), "write: one": cost(1.0)}
        found = vectors.total(parts)
        assert found.us == pytest.approx(8.0)
        assert found.rate == pytest.approx(100 / 3)  # one after the other: the times of an event add up
        assert found.events == 1000

    def test_what_the_stages_do_not_explain_is_the_client(self):
        found = {
            "runs": {"streamserve": [{"us": 20.0}, {"us": 22.0}, {"us": 30.0}]},
            "stages": [{"rows": 2000, "decode": 1.0, "enrich": 4.0, "score": 7.0, "emit": 2.0, "all": 14.1}],
        }
        assert tables.by_stage(found)[tables.REST] == pytest.approx(8.0)
        assert "| Kafka client and the rest | 8.00 | 36% |" in tables.stages(found)


class TestMemory:
    def test_memory_after_so_many_events_is_the_median_around_them(self):
        samples = [(50, 10.0), (95, 20.0), (100, 40.0), (109, 30.0), (120, 90.0)]
        assert memory.near(samples, 100) == 30.0
        assert memory.near(samples, 40) == 10.0, "nothing is near: what is nearest"


class TestRestart:
    def test_a_pause_is_the_longest_time_without_an_answer_of_one_partition(self):
        """Two events in turn for each of two partitions; one partition stays away for half a second."""
        arrivals = np.arange(40) * 1_000_000 + 1
        partition = np.arange(40) // 2 % 2
        arrivals[(partition == 1) & (np.arange(40) >= 20)] += 500_000_000
        arrivals[39] = 0  # never came
        pauses = restart.pauses_s(arrivals, 0, 2)
        assert restart._longest(pauses, 0, 10) == pytest.approx(0.503)
        assert restart._longest(pauses, 0, 0.4) == pytest.approx(0.003)


class TestTables:
    def test_a_range_is_written_where_rounds_differ(self):
        assert tables.ranged([3.0], ".1f") == "3.0"
        assert tables.ranged([3.0, 1.0, 2.0], ".1f") == "2.0 (1.0 to 3.0)"
        assert tables.ranged([3.01, 3.02], ".1f") == "3.0"

    def test_contestants_stand_against_the_floor(self):
        runs = {"floor": [cost(5.0).as_dict()], "loop": [cost(40.0).as_dict(), cost(60.0).as_dict()]}
        assert tables.contestants(runs, "floor").splitlines()[2:] == [
            "| floor | 100 | 5.00 | 1.00 | 200,000 | 10, 11, 12 |",
            "| loop | 100 | 50.00 (40.00 to 60.00) | 10.00 | 20,000 | 10, 11, 12 |",
        ]

    def test_tables_go_between_their_markers_and_the_rest_of_a_page_stays(self):
        page = "a\n<!-- table: one -->\nold\n<!-- end -->\nb\n<!-- table: two -->\nkept\n<!-- end -->\n"
        once = docs.filled(page, {"one": "| new |"})
        assert once == page.replace("old", "| new |")
        assert docs.filled(once, {"one": "| new |"}) == once
        with pytest.raises(ValueError, match="no place is marked for three"):
            docs.filled(page, {"three": ""})

    def test_the_docs_have_a_place_for_every_table(self):
        page = (ROOT / "docs" / "performance.md").read_text()
        marked = {match["name"] for match in docs.MARKED.finditer(page)}
        assert marked == {
            "machine", "contest", "stages", "uniform", "latency", "latency-echo", "latency-cost", "growth",
            "latency-hurry", "latency-hurry-echo",
            "memory", "restart", "shadow", "shadow-latency", "commands", "switch", "drift", "drift-live",
            *(f"vectors-{kind}{more}" for kind in ("avro", "json") for more in ("", "-floor")),
        }  # fmt: skip


class TestWorkloads:
    def test_uniform_keys_have_a_row_each(self):
        drawn = flights.draw(_few_flights(), 7)
        assert drawn.schema == _few_flights().schema
        rows = flights.uniform_views(_few_views())
        planes = set(rows["plane"].column("tailnum").to_pylist())
        routes = set(zip(*(rows["route"].column(name).to_pylist() for name in ("origin", "dest")), strict=True))
        assert len(planes) == len(routes) == flights.KEYS
        assert set(drawn.column("tailnum").to_pylist()) <= planes
        assert set(zip(drawn.column("origin").to_pylist(), drawn.column("dest").to_pylist(), strict=True)) <= routes

    def test_growth_changes_one_thing_at_a_time(self):
        wanted = growth.cases(growth.AXES)
        assert set(wanted.values()) >= {growth.BASE}
        for case in wanted.values():
            assert sum(vars(case)[name] != value for name, value in vars(growth.BASE).items()) <= 1

    @pytest.mark.parametrize("size", [300, 1000, 10_000])
    def test_a_message_has_the_size_that_its_case_says(self, size):
        case = growth.Case(size=size)
        _, values = growth._events(case, growth._schema(case), 1)
        assert {len(value) for value in values} == {size}


class TestCommand:
    @pytest.fixture
    def asked(self, monkeypatch) -> list:
        found: list = []
        monkeypatch.setattr(run, "run", found.append)
        return found

    def test_every_part_is_run_unless_some_are_named(self, asked):
        assert tuple(run.PARTS) == PARTS
        assert CliRunner().invoke(cli, ["bench"]).exit_code == 0
        assert (asked[0].only, asked[0].times, asked[0].scale, asked[0].offered) == ((), 3, run.Scale(), run.RATES)

    def test_a_quick_run_is_smaller_and_takes_one_round(self, asked, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        words = ["--quick", "--only", "latency", "--only", "growth", "--only", "latency", "--json", "f.json"]
        assert CliRunner().invoke(cli, ["bench", *words]).exit_code == 0
        (found,) = asked
        assert found.only == ("latency", "growth")
        assert (found.times, found.scale, found.offered) == (1, run.QUICK, run.QUICK_RATES)
        assert found.json == tmp_path / "f.json"

    def test_rounds_rates_and_settings_are_taken_as_given(self, asked):
        words = ["--quick", "--rounds", "2", "--rate", "3000", "--setting", "STREAMSERVE_BATCH_ROWS=500"]
        assert CliRunner().invoke(cli, ["bench", *words]).exit_code == 0
        assert (asked[0].times, asked[0].offered) == (2, (3000.0,))
        assert asked[0].settings == {"STREAMSERVE_BATCH_ROWS": "500"}

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--only", "speed"], "is not one of"),
            (["--setting", "oops"], "is not NAME=VALUE"),
            (["--rounds", "0"], "0 is not in the range"),
            (["--from", __file__], "--from needs --write-docs"),
        ],
    )
    def test_a_mistake_is_told_before_anything_starts(self, asked, words, said):
        done = CliRunner().invoke(cli, ["bench", *words])
        assert done.exit_code == 2
        assert said in done.output
        assert not asked

    def test_outside_a_checkout_it_says_how_to_get_one(self, asked, monkeypatch, capsys, tmp_path):
        monkeypatch.setattr(streamserve, "__file__", str(tmp_path / "site-packages" / "streamserve" / "__init__.py"))
        monkeypatch.setattr(sys, "argv", ["streamserve", "bench", "--quick"])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr().err
        assert left.value.code == 2
        assert "not a part of the installed package" in said
        assert "make bench" in said
        assert not asked

    def test_two_at_once_would_measure_each_other(self, tmp_path: Path):
        with (
            run.alone(tmp_path),
            pytest.raises(run.DevError, match="another run uses this folder"),
            run.alone(tmp_path),
        ):
            pass
        with run.alone(tmp_path):
            pass


def _few_flights():
    import pyarrow as pa

    columns = {"tailnum": ["N1"] * 50, "origin": ["EWR"] * 50, "dest": ["IAH"] * 50, "distance": [1] * 50}
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def _few_views():
    import pyarrow as pa

    return {
        "carrier": pa.table({"carrier": ["UA"], "late_rate": [0.1]}),
        "plane": pa.table({"tailnum": ["N1", "N2"], "late_rate": [0.1, 0.2]}),
        "route": pa.table({"origin": ["EWR"], "dest": ["IAH"], "late_rate": [0.1]}),
    }
