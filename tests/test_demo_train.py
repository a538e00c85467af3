"""The ONNX file of a demo model scores every flight as its trainer does."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from sklearn.metrics import roc_auc_score

from streamserve.demo import data, train, views
from streamserve.errors import ModelError

APRIL = 1_364_774_400_000  # milliseconds since 1970, UTC


def _run(path, matrix):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"features": matrix})[0]


@pytest.fixture(scope="module")
def flights():
    """Names, matrix, labels and times of all flights; NaN where the weather or a view has nothing."""
    frame = data.flights_frame()
    weather = data.flights_table(frame)["weather"].combine_chunks().flatten()
    columns = {"distance": frame.distance, "hour": frame.hour, "night": frame.hour < 6}
    columns |= dict(zip(data.INSTRUMENTS, (c.to_numpy(zero_copy_only=False) for c in weather[1:]), strict=True))
    for view, table in views.view_tables(frame).items():
        keys = list(views.KEYS[view])
        rows = frame[keys].merge(table.to_pandas(), how="left", on=keys)
        columns |= {f"{view}.{name}": rows[name] for name in table.column_names[len(keys) + 1 :]}
    matrix = np.column_stack([np.asarray(column, np.float32) for column in columns.values()])
    return list(columns), matrix, frame.late.to_numpy(np.int8), frame.scheduled_departure.to_numpy()


@pytest.fixture(scope="module")
def march(flights):
    _, matrix, labels, times = flights
    rows = (times >= views.TRAINING_START) & (times < APRIL)
    return matrix[rows], labels[rows]


@pytest.fixture(scope="module")
def booster(flights, march):
    return train.train(*march, flights[0])


@pytest.fixture(scope="module")
def exported(booster, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    train.export_onnx(booster, booster.num_feature(), path)
    return path


def test_the_file_scores_every_flight_as_the_trainer_does(booster, exported, flights):
    parity = train.check_parity(booster, exported, flights[1], _run)
    assert parity.rows == 336_776
    assert parity.max_abs_diff < 1e-6


def test_parity_holds_for_values_missing_where_training_had_none(booster, exported, march):
    gaps = march[0].copy()
    gaps[np.random.default_rng(1).random(gaps.shape) < 0.3] = np.nan
    assert train.check_parity(booster, exported, gaps, _run).max_abs_diff < 1e-6


def _near_thresholds(model, row):
    """`row` with one value put on the float32 next to a threshold of `model`, below it or above it."""
    lines = [line for line in model.split("\n") if line.startswith(("split_feature=", "threshold="))]
    for which, cuts in zip(lines[::2], lines[1::2], strict=True):
        features, values = which.partition("=")[2].split(), cuts.partition("=")[2].split()
        for feature, value in zip(features, values, strict=True):
            near = np.float32(value)
            for way in (-np.inf, near, np.inf):
                cell = np.nextafter(near, np.float32(way))
                changed = row.copy()
                changed[int(feature)] = cell if abs(cell) > 2e-35 else 0  # LightGBM reads up to 1e-35 as 0
                yield changed


def test_parity_holds_on_the_thresholds_themselves(booster, exported, march):
    """Where rounding to nearest would take the other branch."""
    rows = np.array(list(_near_thresholds(booster.model_to_string(), march[0][0])))
    assert len(rows) == 200 * 30 * 3
    assert train.check_parity(booster, exported, rows, _run).max_abs_diff < 1e-6


def test_a_file_of_another_model_is_refused(exported, flights, march):
    other = train.train(*march, flights[0], trees=20)
    with pytest.raises(ModelError, match="rows differ from the trainer"):
        train.check_parity(other, exported, march[0], _run)


def test_a_score_that_is_no_number_is_refused(booster, exported, march):
    with pytest.raises(ModelError, match=f"{len(march[0])} of {len(march[0])} rows"):
        train.check_parity(booster, exported, march[0], lambda _, m: np.full((len(m), 2), np.nan, np.float32))


def test_the_file_takes_and_gives_what_serving_expects(exported, flights, capfd):
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape[1]) == ("features", "tensor(float)", len(flights[0]))
    assert [output.name for output in session.get_outputs()] == ["label", "probabilities"]
    label, probabilities = session.run(None, {"features": flights[1][:100]})
    assert (label.shape, probabilities.shape, probabilities.dtype) == ((100,), (100, 2), np.float32)
    assert capfd.readouterr().err == ""


def test_training_and_export_repeat_to_the_byte(booster, exported, flights, march, tmp_path):
    again = train.train(*march, flights[0])
    assert again.model_to_string() == booster.model_to_string()
    train.export_onnx(again, again.num_feature(), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_the_model_is_of_use_on_later_months(booster, flights):
    _, matrix, labels, times = flights
    later = times >= APRIL
    assert train.auc(booster.predict(matrix[later]), labels[later]) > 0.66


@pytest.mark.parametrize("levels", [3, 50, 10**9])
def test_auc_is_that_of_scikit_learn(levels):
    random = np.random.default_rng(levels)
    labels = (random.random(5_000) < 0.2).astype(np.int8)
    scores = random.integers(0, levels, 5_000) / levels + labels * 0.1
    assert train.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auc_of_one_label_is_no_number():
    assert np.isnan(train.auc(np.arange(3.0), np.ones(3, np.int8)))


def test_floor32_is_the_largest_float32_not_above():
    values = np.array([0.1, 0.3, -0.1, -0.3, 1e-35, 1e38, 16_777_217.0, 0.5])
    floors = train.floor32(values)
    assert (floors.astype(np.float64) <= values).all()
    assert (np.nextafter(floors, np.float32(np.inf)).astype(np.float64) > values).all()
    assert train.floor32(np.array([1e300])) == np.finfo(np.float32).max


def test_library_versions_name_what_is_installed():
    found = train.library_versions()
    assert found["lightgbm"].split(".")[0].isdigit()
    assert train.library_versions(["no-such-library"]) == {}
