"""Promise: a topology file that is wrong says which word is, and one that is right is one value."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from streamserve.errors import TopologyError
from streamserve.features.catalogue import Catalogue
from streamserve.pipeline.schemas import EventSchema
from streamserve.simulate.describe import check_features, draw
from streamserve.topology import (
    Source,
    Topology,
    View,
    argmax,
    days,
    derived,
    field,
    hours,
    load_topology,
    minutes,
    output,
    stored,
    threshold,
    vector,
)

ROOT = Path(__file__).parent.parent
SOURCE = Source(topic="events", schema="event.avsc")
WORDS = {"name": "t", "source": SOURCE, "features": (field("x"),), "model": "m", "outputs": {"y": output("y")}}
HEAD = "from streamserve.topology import *\nfrom streamserve.topology import Source, Topology, View, field, output\n"
GOOD = (
    "made = Topology(name='t', source=Source(topic='events', schema='event.avsc'), features=(field('x'),), model='m', "
    "outputs={'y': output('y')})\n"
)


def refused(match, **changes):
    with pytest.raises(ValidationError, match=match):
        Topology(**{**WORDS, **changes})


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x", "a\n", "é", "x" * 201])
def test_names_that_no_topic_can_have_are_refused(name):
    refused("name", name=name)


def test_what_does_not_hold_together_is_refused():
    two = [stored(View("v", key=key, fields=("p",))) for key in ("a", "b")]
    refused("two views are named 'v'; give each its own name", features=two)
    refused("decision is on output 'z'; the outputs are .'y'.", decision=threshold("z", 0.5))
    refused("argmax needs the whole row", outputs={"y": output("y", column=0)}, decision=argmax("y"))
    refused("outputs", outputs={})
    refused("features", features=())
    refused("target_p99_ms", target_p99_ms=0)
    refused("Extra inputs", modle="m")
    refused("model", model="../m")
    refused("delivery", delivery="at_most_once")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fields": ("p", "p")}, "view v: a field is named twice"),
        ({"default": (1.0, 2.0, 3.0)}, "view v: 3 defaults for 2 fields"),
        ({"default": 1e39}, r"default 1e\+39 is more than a float32 holds"),
        ({"fields": ()}, "fields"),
        ({"key": ()}, "key"),
        ({"max_age": timedelta(-1)}, "max_age"),
        ({"stale": "drop"}, "stale"),
        ({"name": "a b"}, "name"),
    ],
)
def test_a_view_that_can_not_be_is_refused(changes, match):
    words = {"name": "v", "key": "a", "fields": ("p", "q"), **changes}
    with pytest.raises(ValidationError, match=match):
        View(words.pop("name"), **words)


def test_defaults_are_one_number_for_all_fields_or_one_each():
    assert View("v", key="a", fields=("p", "q"), default=2.5).defaults().tolist() == [2.5, 2.5]
    assert View("v", key="a", fields=("p", "q"), default=(1.0, 2.0)).defaults().tolist() == [1.0, 2.0]
    assert np.isnan(View("v", key="a", fields=("p",)).defaults()).all()
    assert View("v", key="a", fields=("p",), default=float("inf")).defaults().tolist() == [float("inf")]


def test_a_topology_can_not_be_changed():
    made = Topology(**WORDS)
    with pytest.raises(ValidationError, match="frozen"):
        made.name = "other"
    assert made.topic("predictions") == "t.predictions"


@pytest.mark.parametrize("path", ["", "a..b", ".a", "a b", "1a", "a.b.", "a-b"])
def test_a_path_is_names_with_dots(path):
    for word in (field, lambda p: vector(p, 3)):
        with pytest.raises(ValidationError, match="path"):
            word(path)


def test_words_for_time_are_what_they_say():
    assert days(2) == hours(48) == minutes(2880) == timedelta(days=2)


# ---- files


def read(tmp_path, text):
    path = tmp_path / "flow.py"
    path.write_text(text)
    return load_topology(path)


def told(tmp_path, text):
    with pytest.raises(TopologyError) as error:
        read(tmp_path, text)
    return error.value


def test_a_file_names_one_topology(tmp_path):
    assert read(tmp_path, HEAD + GOOD) == Topology(**WORDS)
    assert "names 0 topologies" in told(tmp_path, HEAD).what
    both = told(tmp_path, HEAD + GOOD + GOOD.replace("made", "other").replace("'t'", "'u'"))
    assert "names 2 topologies, expected exactly one" in both.what


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("1 +\n", "SyntaxError", 1),
        ("x = 1\nboom\n", "NameError: name 'boom' is not defined", 2),
        ("import no_such_module\n", "ModuleNotFoundError", 1),
        ("def f():\n    raise RuntimeError('deep')\nf()\n", "RuntimeError: deep", 2),
        (HEAD + "field('x', deflt=1)\n", "TypeError", 3),
    ],
)
def test_a_file_that_fails_names_its_line(tmp_path, text, what, line):
    error = told(tmp_path, text)
    assert what in error.what
    assert error.where == f"{tmp_path / 'flow.py'}:{line}"


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (GOOD.replace("name='t'", "name='a b'"), "Topology.name: String should match pattern"),
        (GOOD.replace("field('x')", "field('a b')"), "FieldFeature.name: String should match pattern"),
        (GOOD.replace("outputs=", "output="), "Topology.outputs: Field required; Topology.output: Extra inputs"),
        ("View('v', key='a', fields=('p', 'p'))\n", "View: view v: a field is named twice"),
    ],
)
def test_a_word_that_does_not_fit_is_named_without_a_traceback(tmp_path, wrong, what):
    error = told(tmp_path, HEAD + wrong)
    assert error.what.startswith(what)
    assert error.__cause__ is None


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(TopologyError, match="there is no such topology file"):
        load_topology(tmp_path / "none.py")


def test_an_edit_in_the_same_second_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "flow.py"
    names = []
    for name in ("one", "two"):
        path.write_text(HEAD + GOOD.replace("'t'", f"'{name}'"))
        os.utime(path, (1, 1))
        names.append(load_topology(path).name)
    assert names == ["one", "two"]
    assert not (tmp_path / "__pycache__").exists()


def test_a_file_may_hold_dataclasses_and_functions(tmp_path):
    text = HEAD + (
        "from dataclasses import dataclass\nfrom __future__ import annotations\n@dataclass\nclass C:\n    x: int\n"
        + GOOD
    )
    error = told(tmp_path, text)
    assert "SyntaxError" in error.what, "future imports stand first, as ever"
    assert read(tmp_path, text.replace("from __future__ import annotations\n", "")).name == "t"
    assert "streamserve_topology_flow" in sys.modules


# ---- the topologies that come with the project


@pytest.mark.parametrize("path", sorted((ROOT / "topologies").glob("*.py")), ids=lambda path: path.stem)
def test_each_topology_fits_its_schema_and_is_drawn_the_same_each_time(path):
    topology = load_topology(path)
    catalogue = Catalogue(topology)
    schema = EventSchema.parse((ROOT / "schemas" / topology.source.schema_file).read_text())
    check_features(catalogue, schema)
    text = draw(catalogue, schema, None)
    assert text == draw(Catalogue(load_topology(path)), schema, None)
    for name in (topology.name, topology.source.topic, topology.model, *topology.outputs, *catalogue.views):
        assert name in text
    assert catalogue.fingerprint() in text


def test_the_fingerprint_follows_what_a_version_sees_and_nothing_else():
    def of(**changes):
        return Catalogue(Topology(**{**WORDS, **changes})).fingerprint()

    same = of()
    assert of(target_p99_ms=5, name="u", model="other", outputs={"z": output("z")}) == same
    assert of(source=SOURCE.model_copy(update={"partitions": 12})) == same
    assert of(features=(field("x", default=1),)) != same
    assert of(features=(field("x"), derived("d", lambda x: x, of="x"))) != same
    assert of(source=Source(topic="events", schema="event.avsc", event_time="at")) != same
