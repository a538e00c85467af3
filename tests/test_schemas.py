"""Promise: what is published in `schemas/` is what is written, and a consumer can add to its side first."""

from __future__ import annotations

import json
from pathlib import Path

import fastavro
import pytest

from streamserve.adapters.schema_ids import PinnedIndex
from streamserve.errors import SchemaError
from streamserve.pipeline import drift_window, pane_chunk, prediction, shadow_decision
from streamserve.pipeline.schemas import EventSchema
from streamserve.records import FeatureStatus, Reason, Variant
from streamserve.topology import load_topology

FOLDER = Path(__file__).parent.parent / "schemas"
PREDICTION = json.loads((FOLDER / "streamserve.prediction.avsc").read_text())
OURS = {
    "streamserve.prediction.avsc": prediction,
    "streamserve.shadow-decision.avsc": shadow_decision,
    "streamserve.pane-chunk.avsc": pane_chunk,
    "streamserve.drift-window.avsc": drift_window,
}
FILES = sorted(FOLDER.glob("*.avsc"))
ENTRIES = json.loads((FOLDER / "index.json").read_text())["schemas"]


@pytest.mark.parametrize("name", OURS)
def test_what_workers_write_is_the_code_s(name):
    published = json.loads((FOLDER / name).read_text())
    assert published == OURS[name].SCHEMA == json.loads(OURS[name].SCHEMA_TEXT)
    assert ENTRIES[str(OURS[name].PINNED_ID)]["file"] == name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_schema_is_valid_avro(path):
    fastavro.parse_schema(json.loads(path.read_text()))


@pytest.mark.parametrize("number", ENTRIES)
def test_each_id_is_pinned_to_a_schema_that_finds_it(number):
    index, entry = PinnedIndex(FOLDER), ENTRIES[number]
    assert set(entry) == {"subject", "file"}
    text = (FOLDER / entry["file"]).read_text()
    assert json.loads(index.writer_schema(int(number))) == json.loads(text)
    assert index.id_of(entry["subject"], text) == int(number)


@pytest.mark.parametrize("path", sorted((FOLDER.parent / "topologies").glob("*.py")), ids=lambda path: path.stem)
def test_the_schema_of_each_topology_is_there_and_pinned_where_its_events_are_avro(path):
    source = load_topology(path).source
    pinned = {(entry["subject"], entry["file"]) for entry in ENTRIES.values()}
    assert (FOLDER / source.schema_file).is_file()
    assert source.format == "json" or (f"{source.topic}-value", source.schema_file) in pinned


@pytest.mark.parametrize("ours", OURS.values(), ids=OURS)
def test_what_workers_write_is_pinned_even_where_there_is_no_index(tmp_path, ours):
    index = PinnedIndex(tmp_path)
    assert json.loads(index.writer_schema(ours.PINNED_ID)) == ours.SCHEMA
    assert index.id_of("any-value", ours.SCHEMA_TEXT) == ours.PINNED_ID
    assert index.writer_schema(1) is None
    with pytest.raises(SchemaError, match="no id is pinned"):
        index.id_of("events-value", '{"type": "record", "name": "E", "fields": []}')


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schemas": {"x": {}}}', '{"schemas": {"1": {"subject": "s", "file": "no"}}}']
)
def test_an_index_that_can_not_be_read_says_how_to_write_one(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(SchemaError, match="the index of schema ids can't be read") as told:
        PinnedIndex(tmp_path)
    assert "schemas" in told.value.mend


def test_the_symbols_of_each_enum_are_its_members_in_the_order_of_their_numbers():
    def symbols(node):
        if isinstance(node, dict):
            if node.get("type") == "enum":
                yield node["name"], node["symbols"]
            for inner in node.values():
                yield from symbols(inner)
        elif isinstance(node, list):
            for inner in node:
                yield from symbols(inner)

    found = dict(symbols(PREDICTION))
    for kind in (Variant, Reason, FeatureStatus):
        assert [member.value for member in kind] == list(range(len(kind)))
        assert found[kind.__name__] == [member.name for member in kind]


def test_every_field_that_may_be_absent_has_a_default():
    for field in PREDICTION["fields"]:
        nullable = isinstance(field["type"], list) and "null" in field["type"]
        assert nullable == ("default" in field), field["name"]
        if nullable:
            assert field["type"][0] == "null"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_field_of_a_published_schema_can_be_a_column(path):
    schema = EventSchema.parse(path.read_text())
    for name in schema.paths():
        if path.name != "streamserve.prediction.avsc":
            schema.column_type(name)
