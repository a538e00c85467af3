"""Promise: a reference freezes bins that any row falls into once, goes through JSON as it is, and fits one version."""

from __future__ import annotations

import datetime as dt
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamserve.drift import calibration
from streamserve.drift.building import category, decision, numeric, status
from streamserve.drift.edges import quantile_edges
from streamserve.drift.measures import (
    DEFAULT,
    MISSING,
    Measure,
    bins_of,
    code_bins,
    count,
    label_bins,
)
from streamserve.drift.policy import AlertSettings
from streamserve.drift.reference import Reference, build
from streamserve.errors import DriftError
from streamserve.records import FeatureStatus

pure = settings(deadline=None, derandomize=True, max_examples=200)
DTYPES = st.sampled_from(["float32", "float64"])
ANY = st.lists(st.floats(), max_size=60)
WIDTH32 = st.lists(st.one_of(st.floats(width=32), st.sampled_from([0.0, 1.0, 0.1, 2.5])), min_size=1, max_size=60)
NAN, INF = math.nan, math.inf
SHA = "ab" * 32


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(calibration, "DRAWS", (50, 50))


def measures() -> list[Measure]:
    rng = np.random.default_rng(1)
    return [
        numeric("delay", rng.standard_normal(500), missing=rng.random(500) < 0.1),
        numeric("delay", rng.random(500), dtype="float64", of="score"),
        category("carrier", rng.integers(0, 6, 500), vocabulary=["AA", "UA", "B6", "DL"]),
        decision(["no", "yes"], rng.integers(-1, 2, 500)),
        status("route", rng.integers(0, 6, 500)),
    ]


def reference(**more) -> Reference:
    given = {
        "model": "flight-delay", "version": "v3", "manifest_sha256": SHA, "rows": 500, "source": "train.parquet",
        "created": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
    }  # fmt: skip
    return build(measures(), **{**given, **more})


def test_segments_share_alpha_with_the_whole_and_are_compared_with_their_own_counts():
    parts = {name: [one.with_counts(n // 2 for n in one.counts) for one in measures()] for name in ("a", "b")}
    told = reference(segment="site", segments=parts)
    assert told.values == ("a", "b")
    assert Reference.from_bytes(told.to_bytes()).fingerprint == told.fingerprint
    key, alone = "feature:delay", reference()
    assert told.calibration.at(key, 1_000).limit > alone.calibration.at(key, 1_000).limit
    assert told.of("a")[1].at(key, 1_000).limit != told.calibration.at(key, 1_000).limit
    counts = np.concatenate([one.counts for one in parts["a"]])
    whole, part = told.compare(counts)[0], told.compare(counts, "a")[0]
    assert part.psi == 0 < whole.psi
    assert part.unit > whole.unit  # of half the rows
    assert told.compare(counts, "c") == ()


@pytest.mark.parametrize(
    "broken",
    [
        {"segment": None},
        {"segments": [{"value": "a", "counts": [], "calibration": {"sizes": [], "draws": 1, "curves": {}}}]},
        {"segments": ["twice"]},
    ],
)
def test_segments_that_do_not_fit_are_refused(broken):
    told = json.loads(reference(segment="site", segments={"a": measures()}).to_bytes())
    if broken.get("segments") == ["twice"]:
        broken = {"segments": told["segments"] * 2}
    with pytest.raises(DriftError, match="not a drift reference"):
        Reference.from_bytes(json.dumps({**told, **broken}).encode())


def test_the_same_rows_and_settings_have_one_fingerprint_whenever_it_was_built():
    later = reference(created=dt.datetime(2026, 5, 5, tzinfo=dt.UTC))
    assert later.to_bytes() != reference().to_bytes()
    assert later.fingerprint == reference().fingerprint
    assert reference(alerts=AlertSettings(alpha=0.01)).fingerprint != reference().fingerprint


@pytest.mark.parametrize("alpha", [0.002, 0.02, 0.1, 0.5])
def test_a_constant_is_calibrated_at_any_alpha(alpha):
    told = build(
        [numeric("c", np.ones(10_000)), numeric("x", np.random.default_rng(1).normal(size=10_000))],
        model="m", version="v", manifest_sha256=SHA, rows=10_000, source="s",
        created=dt.datetime(2026, 1, 2, tzinfo=dt.UTC), alerts=AlertSettings(alpha=alpha),
    )  # fmt: skip
    limits = told.calibration.curves["feature:c"].limits
    assert all(np.isfinite(limits))
    assert min(limits) > 0


def test_the_same_bins_with_other_counts_have_other_rows():
    one = measures()[0]
    assert one.rows == 500
    assert one.with_counts(2 * n for n in one.counts).rows == 1_000


class TestEdges:
    @pure
    @given(WIDTH32, DTYPES, st.integers(2, 12))
    def test_they_ascend_are_of_the_inputs_type_and_part_values_that_differ(self, values, dtype, bins):
        edges = quantile_edges(np.array(values, float), bins, dtype)
        assert np.array_equal(edges.astype(dtype).astype(float), edges)
        assert (np.diff(edges) > 0).all()
        assert np.isfinite(edges).all()

    @pure
    @given(WIDTH32, DTYPES)
    def test_no_bin_takes_more_than_its_share_but_for_a_value_of_its_own(self, values, dtype):
        measure = numeric("x", values, dtype=dtype)
        at = bins_of(measure, np.array(values))
        for place in np.unique(at):
            inside = np.array(values)[at == place]
            inside = np.unique(inside[~np.isnan(inside)])
            assert (at == place).sum() <= 2 * math.ceil(len(values) / 10) or len(inside) <= 1

    @pure
    @given(WIDTH32)
    def test_a_comparison_of_floats_gives_the_bin_that_doubles_give(self, values):
        one, other = numeric("x", values, dtype="float32"), np.array(values, np.float32)
        edges = np.array(one.edges)
        known = [1 if np.isnan(x) else 3 + sum(edge < x for edge in edges) for x in other.astype(float).tolist()]
        assert bins_of(one, other).tolist() == known

    def test_an_edge_that_is_no_float_would_be_noticed(self):
        """Planted: the middle of two neighbours, as a double. Rounded to a float it is one of them."""
        low = np.float32(1)
        high = np.nextafter(low, np.float32(2))
        middle = (float(low) + float(high)) / 2
        assert float(np.float32(middle)) != middle
        with pytest.raises(ValidationError, match="numbers of float32"):
            Measure(kind="numeric", name="x", of="feature", edges=(middle,), dtype="float32", counts=(0,) * 5)
        (edge,) = numeric("x", [low, high], bins=2).edges
        assert low <= edge < high

    def test_tenths_of_many_values_are_tenths(self):
        values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
        assert numeric("x", values).counts == (0, 0, 0, *(1_000,) * 10)

    def test_a_constant_has_its_own_bin_and_one_on_either_side(self):
        for value in (0.0, 3.0, -1e30, 1e-40):
            measure = numeric("x", np.full(100, value, np.float32))
            assert measure.counts == (0, 0, 0, 0, 100, 0)
            assert count(measure, np.float32([value - 1, value, value + 1e30, NAN])).sum() == 4
        assert count(numeric("x", np.full(9, 3.0)), [2.0, 4.0]).tolist() == [0, 0, 0, 1, 0, 1]

    def test_few_distinct_values_have_their_own_bins(self):
        measure = numeric("x", np.repeat([0.0, 1.0, 7.0], [60, 30, 10]))
        assert [many for many in measure.counts if many] == [60, 30, 10]
        assert count(measure, [0.5, 6.0]).sum() == 2

    def test_infinities_are_in_the_outermost_bins(self):
        measure = numeric("x", np.arange(100.0))
        assert count(measure, [-INF, INF]).tolist() == [0, 0, 0, 1, *[0] * 8, 1]
        for values in ([INF] * 9, [-INF] * 9, [INF, -INF] * 9, [INF, 1.0, -INF] * 9):
            found = numeric("x", values)
            assert all(math.isfinite(edge) for edge in found.edges)
            assert sum(found.counts) == len(values)
            assert len(set(bins_of(found, np.unique(values)).tolist())) == len(set(values))

    def test_without_a_value_there_is_one_bin_for_any(self):
        for measure in (numeric("x", np.full(5, NAN)), numeric("x", np.ones(5), missing=np.ones(5, bool))):
            assert measure.edges == ()
            assert measure.bins == ("missing", "nan", "default", "(-inf, inf]")
        assert measure.counts == (5, 0, 0, 0)
        assert numeric("x", np.zeros(0)).counts == (0, 0, 0, 0)


class TestCounting:
    @pure
    @given(ANY, ANY, DTYPES)
    def test_each_row_is_in_one_bin_and_counts_add_up(self, known, rows, dtype):
        measure = numeric("x", np.array(known, float), dtype=dtype)
        found = count(measure, np.array(rows, float))
        assert found.sum() == len(rows)
        assert found.dtype == np.int64
        half = len(rows) // 2
        parts = [count(measure, np.array(part, float)) for part in (rows[:half], rows[half:])]
        assert np.array_equal(sum(parts), found)
        assert np.array_equal(count(measure, np.array(rows[::-1], float)), found)

    def test_what_is_special_goes_before_what_the_value_is(self):
        measure = numeric("x", np.arange(10.0))
        values, special = np.array([NAN, NAN, NAN, 3.0, 3.0, 3.0]), np.array([0, MISSING, DEFAULT, 0, 1, 2], np.uint8)
        found = [measure.bins[at] for at in bins_of(measure, values, special)]
        assert found[:3] == ["nan", "missing", "default"]
        assert found[4:] == ["missing", "default"]
        built = numeric("x", values, missing=special == MISSING, default=special == DEFAULT)
        assert built.counts[:3] == (2, 1, 2)

    def test_codes_and_texts_of_a_category(self):
        words = ["AA", "UA", "B6", "DL"]
        codes = np.array([0, 1, 2, 2, 3, 3, 3, 5, 4, 4])
        measure = category("carrier", codes, vocabulary=words, most=2)
        assert measure.bins == ("missing", "unseen", "default", "UA", "AA", "rest")  # of AA and B6 the first by name
        assert measure.counts == (1, 1, 0, 3, 2, 3)
        table = code_bins(measure, words)
        assert table.tolist() == [0, 1, 4, 3, 5, 5]
        assert bins_of(measure, [-7, 99], codes=table).tolist() == [1, 1]
        texts = pa.array(["UA", None, "AA", "never seen"])
        assert [measure.bins[at] for at in bins_of(measure, texts)] == ["UA", "missing", "AA", "rest"]
        assert np.array_equal(bins_of(measure, texts), bins_of(measure, ["UA", None, "AA", "never seen"]))
        assert category("carrier", texts).counts == (1, 0, 0, 1, 1, 1, 0)

    def test_the_most_frequent_twenty_have_a_bin(self):
        texts = [f"v{at:02}" for at in range(40) for _ in range(50 - at)]
        measure = category("x", texts)
        assert measure.values == tuple(f"v{at:02}" for at in range(20))
        assert measure.counts[-1] == sum(50 - at for at in range(20, 40))

    def test_decisions_and_statuses(self):
        measure = decision(["no", "yes"], [0, 0, 1, -1])
        assert (measure.bins, measure.counts) == (("none", "no", "yes", "rest"), (1, 2, 1, 0))
        other = label_bins(measure, ["maybe", "yes"])
        assert count(measure, [0, 1, -1], codes=other).tolist() == [1, 0, 1, 1]
        found = status("route", [0, 0, 3])
        assert found.bins == tuple(one.name for one in FeatureStatus)
        assert found.counts == (2, 0, 0, 1, 0, 0)
        with pytest.raises(ValueError, match="no status"):
            count(found, [6])

    @pytest.mark.parametrize(
        "broken",
        [
            {"edges": None},
            {"edges": (1.0, 1.0)},
            {"edges": (2.0, 1.0)},
            {"edges": (INF,)},
            {"values": ("a",)},
            {"counts": (1, 2)},
            {"counts": (-1, 0, 0, 0, 0)},
            {"kind": "category"},
            {"surplus": 1},
        ],
    )
    def test_a_measure_that_contradicts_itself_is_refused(self, broken):
        good = {
            "kind": "numeric",
            "name": "x",
            "of": "feature",
            "edges": (1.0,),
            "dtype": "float32",
            "counts": (0,) * 5,
        }
        Measure.model_validate(good)
        with pytest.raises(ValidationError):
            Measure.model_validate({**good, **broken})


class TestReference:
    def test_it_goes_through_json_as_it_is(self):
        one = reference()
        again = Reference.from_bytes(one.to_bytes())
        assert again == one
        assert again.to_bytes() == one.to_bytes()
        assert again.fingerprint == one.fingerprint

    def test_the_same_rows_give_the_same_bytes_and_others_do_not(self):
        one = reference()
        calibration._curve.cache_clear()
        assert reference().to_bytes() == one.to_bytes()
        assert reference(source="elsewhere").fingerprint != one.fingerprint
        assert reference(alerts=AlertSettings(alpha=0.01)).fingerprint != one.fingerprint

    def test_another_model_version_or_manifest_is_refused_with_a_way_out(self):
        one = reference()
        one.check("flight-delay", "v3", SHA)
        for other in (("eta", "v3", SHA), ("flight-delay", "v4", SHA), ("flight-delay", "v3", "cd" * 32)):
            with pytest.raises(DriftError, match="streamserve drift reference") as told:
                one.check(*other)
            assert "v3" in str(told.value)

    @pytest.mark.parametrize("broken", [b"", b"{}", b"[1]", b"\xff", b'{"format": 2}', None])
    def test_what_is_no_reference_is_refused(self, broken):
        given = reference().to_bytes().replace(b'"rows":500', b'"rows":-1') if broken is None else broken
        with pytest.raises(DriftError, match="not a drift reference"):
            Reference.from_bytes(given, where="v3/drift.json")

    def test_a_window_is_one_row_of_counts_over_all_measures(self):
        one = reference()
        assert one.offsets == (0, 13, 26, 34, 38, 44)
        window = np.concatenate([measure.reference for measure in one.measures])
        found = one.compare(window)
        assert [comparison.key for comparison in found] == [
            "feature:delay", "score:delay", "feature:carrier", "decision:decision", "view:route",
        ]  # fmt: skip
        assert [comparison.psi for comparison in found] == [0] * 5
        with pytest.raises(DriftError, match="44 bins"):
            one.compare(window[1:])

    def test_two_measures_of_one_name_are_refused(self):
        twice = [*measures(), measures()[0]]
        with pytest.raises(ValidationError, match="one name"):
            build(twice, model="m", version="1", manifest_sha256=SHA, rows=1, source="", created=reference().created)

    def test_measures_without_rows_and_no_measures_are_references_too(self):
        one = build([numeric("x", np.zeros(0))], model="m", version="1", manifest_sha256=SHA, rows=0, source="nothing",
                    created=reference().created)  # fmt: skip
        assert math.isnan(one.compare(np.ones(4, np.int64))[0].psi)
        assert Reference.from_bytes(one.to_bytes()) == one
