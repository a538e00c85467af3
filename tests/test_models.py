"""Promise: a version is written once and whole, is read as it was written, and serves only where it still fits."""

from __future__ import annotations

import datetime as dt
import json
import math
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_features import EVENT_SCHEMA, batch_of, make

from streamserve.errors import ModelError, ModelMissingError, ModelTamperedError, SignatureError
from streamserve.features.catalogue import Catalogue
from streamserve.features.rows import Answer, pack, row_key
from streamserve.models.manifest import FileRef, Manifest, Tensor, ViewPin
from streamserve.models.plan import FeaturePlan
from streamserve.models.registry import MANIFEST, Registry, file_ref
from streamserve.models.signature import check_outputs, plan_inputs
from streamserve.records import FeatureStatus
from streamserve.simulate.adding import NewVersion, add_version
from streamserve.simulate.offline import MemoryStore
from streamserve.simulate.versions import LoadedVersions, open_version
from streamserve.testing import StubModel
from streamserve.topology import View, category, derived, field, output, parts, stored, text, threshold, vector

DAY = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
VIEW = View("v", key="a", fields=("p", "q"), default=(math.nan, -1.0))
TOPOLOGY = make(field("x"), category("a"), stored(VIEW), decision=threshold("y", 1.0))
CATALOGUE = Catalogue(TOPOLOGY)
VOCABULARY = {"a": ("k", "l")}
ROWS = {row_key(VIEW, ["k"]): pack(-5, np.float32([3, 4]))}


def total(x):
    """[rows, 2]; the first is x and q, an unknown x counting for one."""
    return np.column_stack([np.nan_to_num(x[:, 0], nan=1.0) + x[:, 3], x[:, 1]])


def model(function=None):
    return StubModel({"in": 4}, {"y": 2}, function or total)


def add(root, name="v1", *, session=None, catalogue=CATALOGUE, golden=None, vocabularies=VOCABULARY, inputs=None):
    file = root / "given.onnx"
    file.write_bytes(b"bytes of a model")
    new = NewVersion(name, file, DAY, vocabularies, inputs or {})
    registry = Registry(root / "registry")
    made = add_version(
        registry, catalogue, EVENT_SCHEMA, new, load=lambda _: session or model(), release="test", golden=golden
    )
    return registry, *made


def loaded(registry, *, session=None, catalogue=CATALOGUE):
    return LoadedVersions(registry, catalogue, EVENT_SCHEMA, lambda _: session or model(), warm_rows=(1, 7))


# ---- the registry


def test_a_version_is_read_as_it_was_added(tmp_path):
    registry, manifest, folder = add(tmp_path)
    assert registry.manifest("m", "v1").model_dump_json() == manifest.model_dump_json()
    assert registry.file(manifest, manifest.file).read_bytes() == b"bytes of a model"
    assert (registry.models(), registry.versions("m")) == (["m"], ["v1"])
    assert folder == tmp_path / "registry" / "m" / "v1"


def test_a_version_is_never_written_again(tmp_path):
    registry, manifest, folder = add(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ModelError, match="is in the registry already"):
        registry.add(manifest, {"model.onnx": b"other"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["v1"], "nothing is left over"


def test_of_two_writers_the_first_wins_and_the_other_is_told(tmp_path, monkeypatch):
    _, manifest, _ = add(tmp_path, "other")
    registry, meet = Registry(tmp_path / "race"), threading.Barrier(2, timeout=10)
    rename, told = __import__("os").rename, []

    def together(source, target):
        meet.wait()
        rename(source, target)

    monkeypatch.setattr("streamserve.models.registry.os.rename", together)

    def write(content):
        mine = manifest.model_copy(update={"file": file_ref("model.onnx", content)})
        try:
            registry.add(mine, {"model.onnx": content})
        except ModelError as error:
            told.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in (b"one", b"two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(told) == 1
    assert "already" in str(told[0])
    found = registry.manifest("m", "other")
    assert registry.file(found, found.file).read_bytes() in (b"one", b"two")
    assert [path.name for path in (registry.root / "m").iterdir()] == ["other"]


def test_a_writer_that_fails_leaves_no_version(tmp_path):
    _, manifest, _ = add(tmp_path)
    registry = Registry(tmp_path / "other")
    with pytest.raises(ModelError, match="can't be written"):
        registry.add(manifest, {"model.onnx": tmp_path / "not there"})
    assert registry.versions("m") == []
    assert list((registry.root / "m").iterdir()) == []


names = st.text(st.sampled_from("ab./\\-_ \n\x00é~"), max_size=5)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names)
def test_no_name_leads_out_of_the_registry(tmp_path, name):
    registry = Registry(tmp_path / "registry")
    for model_name, version in ((name, "v1"), ("m", name)):
        try:
            folder = registry.folder(model_name, version)
        except ModelError:
            continue
        assert folder.resolve().parent.parent == registry.root.resolve()
        assert not any(part.startswith(".") for part in folder.relative_to(registry.root).parts)
    assert registry.versions(name) == []


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/b", "..", ".hidden", "", "a\n", "a\x00"])
def test_no_file_of_a_manifest_lies_outside_of_its_folder(tmp_path, path):
    registry, manifest, folder = add(tmp_path)
    with pytest.raises(ValueError, match="path"):
        FileRef(path=path, sha256="0" * 64, bytes=1)
    body = json.loads((folder / MANIFEST).read_text())
    body["file"]["path"] = path
    (folder / MANIFEST).write_text(json.dumps(body))
    with pytest.raises(ModelTamperedError, match=r"file\.path"):
        registry.manifest("m", "v1")
    with pytest.raises(ModelError):
        Registry(tmp_path / "r2").add(manifest, {path: b""})
    assert not (tmp_path / "r2" / "m" / "v1").exists()


def test_files_and_manifest_name_the_same(tmp_path):
    _, manifest, _ = add(tmp_path)
    registry = Registry(tmp_path / "other")
    for files in ({}, {"model.onnx": b"", "more": b""}, {MANIFEST: b""}):
        with pytest.raises(ModelError, match="the manifest names the files"):
            registry.add(manifest, files)


def test_a_changed_file_is_not_served(tmp_path):
    registry, manifest, folder = add(tmp_path)
    for change in (b"bytes of a modem", b"", None):
        (folder / "model.onnx").unlink() if change is None else (folder / "model.onnx").write_bytes(change)
        with pytest.raises(ModelTamperedError):
            registry.file(manifest, manifest.file)
        with pytest.raises(ModelTamperedError):
            loaded(registry).get("v1")


@pytest.mark.parametrize("text_", ["", "{", "[]", '{"format": 2}', "\udcff"])
def test_a_manifest_that_is_none_says_so(tmp_path, text_):
    registry, _, folder = add(tmp_path)
    (folder / MANIFEST).write_bytes(text_.encode(errors="surrogateescape"))
    with pytest.raises(ModelTamperedError, match="the manifest cannot be read"):
        registry.manifest("m", "v1")


def test_a_folder_under_another_name_is_not_that_version(tmp_path):
    registry, _, folder = add(tmp_path)
    folder.rename(folder.parent / "v2")
    with pytest.raises(ModelTamperedError, match="is of m v1, not of m v2"):
        registry.manifest("m", "v2")
    with pytest.raises(ModelMissingError, match=r"version 'v1' of model 'm' is not in the registry \(there: v2\)"):
        registry.manifest("m", "v1")


numbers = st.floats(width=32) | st.just(math.nan)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(numbers, min_size=1, max_size=4), st.none() | st.integers(0, 10**9), st.dictionaries(st.text(), numbers)
)
def test_a_manifest_survives_json_with_every_bit(defaults, age_us, metrics):
    age = None if age_us is None else dt.timedelta(microseconds=age_us)
    view = View("v", key="a", fields=[f"f{i}" for i in range(len(defaults))], max_age=age, default=tuple(defaults))
    manifest = Manifest(
        model="m", version="v", created=DAY, release="test", file=file_ref("f", b""),
        inputs=({"name": "in", "dtype": "float32", "shape": (None, 1), "features": ("x",)},),
        outputs=(Tensor(name="y", dtype="float32", shape=(None, 1)),), scores={"y": output("y")}, decision=None,
        features={}, views=(ViewPin.of(view),), training={"metrics": metrics},
    )  # fmt: skip
    again = Manifest.model_validate_json(manifest.model_dump_json())
    assert again.model_dump_json() == manifest.model_dump_json()
    np.testing.assert_array_equal(again.views[0].defaults, view.defaults())
    back = again.views[0].view()
    assert (back.max_age, back.fields, back.key) == (view.max_age, view.fields, view.key)
    np.testing.assert_array_equal(back.defaults(), view.defaults())


# ---- does a catalogue fit a model?


def tensors(**shapes):
    return [Tensor(name=name, dtype=dtype, shape=(None, width)) for name, (dtype, width) in shapes.items()]


WIDE = Catalogue(make(field("x"), field("n"), text("b"), category("a"), vector("list", 3), stored(VIEW)))


@pytest.mark.parametrize(
    ("given_", "chosen", "what"),
    [
        (tensors(i=("float32", 4)), {"i": ["x", "n"]}, "found 2 features of 2 columns in all, expected 4 columns"),
        (tensors(i=("float32", 4)), {"i": ["list"]}, "found 1 features of 3 columns in all"),
        (tensors(i=("float32", 1)), {"i": ["b"]}, "feature 'b': found text, expected a number for float32 input 'i'"),
        (tensors(i=("string", 1)), {"i": ["x"]}, r"feature 'x': found field \(a number\), expected text"),
        (tensors(i=("int64", 3)), {"i": ["list"]}, r"feature 'list': found vector \(float32\), expected int64"),
        (tensors(i=("int64", 1)), {"i": ["v.p"]}, r"feature 'v.p': found stored \(float32\), expected int64"),
        (
            tensors(i=("float32", 1)),
            {"i": ["y"]},
            r"input 'i' \(float32\[N, 1\]\) wants feature y: not in the catalogue",
        ),
        (tensors(i=("float32", 1)), {"j": ["x"]}, r"features are named for inputs \['j'\], the model's are \['i'\]"),
        (tensors(x=("float32", 1), z=("float32", 1)), None, r"input 'z' .* wants feature z"),
    ],
)
def test_a_model_that_does_not_fit_names_feature_found_and_expected(given_, chosen, what):
    with pytest.raises(SignatureError, match=what):
        plan_inputs(WIDE, given_, chosen)


def test_all_faults_stand_in_one_message():
    with pytest.raises(SignatureError) as told:
        plan_inputs(WIDE, tensors(i=("float32", 9), k=("string", 1)), {"i": ["b"], "k": ["n"]})
    assert str(told.value).count("\n    ") == 3


def test_a_default_that_an_integer_input_can_not_hold_is_told_when_the_version_is_added():
    catalogue = Catalogue(make(field("n", default=0.5), field("x", default=300)))
    with pytest.raises(SignatureError, match=r"feature 'n': found default 0\.5, which int8 input 'i' can't hold"):
        plan_inputs(catalogue, tensors(i=("int8", 2)))
    assert plan_inputs(catalogue, tensors(i=("float32", 2)))[0].features == ("n", "x")


def test_one_input_takes_the_whole_catalogue_and_several_take_their_namesakes():
    (one,) = plan_inputs(WIDE, tensors(i=("float32", None)), {"i": ["list", "x"]})
    assert one.features == ("list", "x")
    found = plan_inputs(WIDE, tensors(n=("int64", 1), b=("string", 1)))
    assert [given_.features for given_ in found] == [("n",), ("b",)]


@pytest.mark.parametrize(
    ("word", "tensor", "what"),
    [
        (output("z"), ("float32", 2), r"output 'y' reads 'z'; the model's outputs are t \(float32\[N, 2\]\)"),
        (output("t", column=2), ("float32", 2), "reads column 2 of 't', which has 2"),
        (output("t"), ("float32", None), "whose width the model leaves open"),
        (output("t"), ("string", 1), "'t' is text, expected numbers"),
    ],
)
def test_an_output_that_is_not_there_is_told(word, tensor, what):
    with pytest.raises(SignatureError, match=what):
        check_outputs(make(field("x"), outputs={"y": word}), tensors(t=tensor))


@pytest.mark.parametrize("vocabularies", [{}, {"a": ("k", "k")}])
def test_a_category_needs_a_vocabulary_of_distinct_values(tmp_path, vocabularies):
    with pytest.raises(SignatureError, match="vocabulary"):
        add(tmp_path, vocabularies=vocabularies)
    assert Registry(tmp_path / "registry").models() == []


# ---- a version against another release of the topology file


def test_a_feature_that_means_something_else_by_now_is_told(tmp_path):
    _, manifest, _ = add(tmp_path)
    changed = Catalogue(make(field("n", name="x"), category("a"), stored(VIEW)))
    with pytest.raises(
        SignatureError, match=r"feature 'x' of m v1: found \{.*'n'.*\} in the topology file, expected \{.*'x'"
    ):
        FeaturePlan.of(manifest, changed)
    without = Catalogue(make(field("x"), stored(VIEW)))
    with pytest.raises(SignatureError, match="feature 'a' of m v1: found no such feature"):
        FeaturePlan.of(manifest, without)


def test_another_layout_of_a_view_is_told_and_another_freshness_is_the_versions_own(tmp_path):
    _, manifest, _ = add(tmp_path)
    turned = View("v", key="a", fields=("q", "p"))
    with pytest.raises(
        SignatureError, match=r"view 'v' of m v1: found key .* fields \('q', 'p'\) in the topology file"
    ):
        FeaturePlan.of(manifest, Catalogue(make(field("x"), category("a"), stored(turned))))
    fresher = View("v", key="a", fields=("p", "q"), max_age=dt.timedelta(1), default=0.0)
    plan = FeaturePlan.of(manifest, Catalogue(make(field("x"), category("a"), stored(fresher))))
    assert plan.views[0].max_age is None
    np.testing.assert_array_equal(plan.views[0].defaults(), [math.nan, -1])


def test_a_new_layout_of_rows_does_not_meet_versions_of_the_old(tmp_path, monkeypatch):
    _, manifest, _ = add(tmp_path)
    monkeypatch.setattr("streamserve.features.catalogue.ROW_LAYOUT", 2)
    with pytest.raises(SignatureError, match="view 'v'"):
        FeaturePlan.of(manifest, CATALOGUE)


def test_what_a_derived_feature_is_made_of_is_pinned_with_it(tmp_path):
    def twice(p):
        return 2 * p

    catalogue = Catalogue(make(parts("at", "hour"), stored(VIEW), derived("d", twice, of=("v.p", "hour"))))
    _, manifest, _ = add(
        tmp_path, catalogue=catalogue, session=StubModel({"in": 1}, {"y": 1}, lambda x: x), inputs={"in": ["d"]}
    )
    assert set(manifest.features) == {"d", "v.p", "hour"}
    assert [pin.name for pin in manifest.views] == ["v"]
    other = Catalogue(make(parts("at", "hour", tz="Asia/Tokyo"), stored(VIEW), derived("d", twice, of=("v.p", "hour"))))
    with pytest.raises(SignatureError, match="feature 'hour'"):
        FeaturePlan.of(manifest, other)


# ---- the golden set

EVENTS = [{"x": 1.5, "a": "k"}, {"x": None, "a": "nobody"}, {"x": -2.0, "a": None}]


def with_golden(root, function=None, store=None):
    return add(root, session=model(function), golden=(batch_of(TOPOLOGY, EVENTS), store or MemoryStore(ROWS)))


def test_a_version_that_answers_as_it_did_is_served(tmp_path):
    registry, manifest, folder = with_golden(tmp_path)
    said = json.loads((folder / "golden.json").read_text())
    assert said["scores"] == [[5.5], [0.0], [-3.0]], "with the row that there was"
    assert said["decisions"] == ["true", "false", "false"]
    assert loaded(registry).get("v1").scorer.manifest.golden == manifest.golden


@pytest.mark.parametrize("off", [2e-5, math.nan, math.inf])
def test_a_planted_difference_in_one_score_is_caught(tmp_path, off):
    registry, _, _ = with_golden(tmp_path)

    def differs(x):
        said = total(x).astype(np.float64)
        said[said == -3] += off
        return said

    with pytest.raises(SignatureError, match=r"answers other than its golden set: event 2: y is .*, expected -3"):
        loaded(registry, session=model(differs)).get("v1")


def test_nan_is_what_it_was_and_a_hair_is_tolerated(tmp_path):
    registry, _, _ = with_golden(tmp_path, lambda x: x[:, [0, 3]])
    assert "NaN" in (tmp_path / "registry/m/v1/golden.json").read_text()
    loaded(registry, session=model(lambda x: x[:, [0, 3]].astype(np.float64) + 1e-6)).get("v1")
    with pytest.raises(SignatureError, match="expected nan"):
        loaded(registry).get("v1")


def test_a_golden_event_that_can_not_be_scored_adds_no_version(tmp_path):
    def fails(_):
        raise RuntimeError("no")

    with pytest.raises(SignatureError, match="event 0 of the golden set can't be scored: score: RuntimeError: no"):
        with_golden(tmp_path, fails)
    assert Registry(tmp_path / "registry").models() == []


def test_a_golden_set_made_while_the_store_was_out_is_checked_as_it_was_made(tmp_path):
    class Out:
        def fetch(self, keys):
            return Answer(None, FeatureStatus.TIMEOUT)

    registry, _, _ = with_golden(tmp_path, store=Out())
    loaded(registry).get("v1")


def test_a_version_is_loaded_once_and_warm(tmp_path):
    registry, _, _ = add(tmp_path)
    session, loads = model(), []
    versions = LoadedVersions(
        registry, CATALOGUE, EVENT_SCHEMA, lambda path: loads.append(path) or session, warm_rows=(1, 7)
    )
    asked = [threading.Thread(target=versions.get, args=("v1",)) for _ in range(4)]
    for one in asked:
        one.start()
    for one in asked:
        one.join()
    assert len(loads) == 1
    assert session.rows == [1, 7]


def test_a_file_with_other_inputs_than_its_manifest_is_told(tmp_path):
    registry, _, _ = add(tmp_path)
    with pytest.raises(SignatureError, match="its manifest says"):
        open_version(registry, "m", "v1", lambda _: StubModel({"in": 5}, {"y": 2}, lambda x: x))
