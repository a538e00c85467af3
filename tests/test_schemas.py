"""Promise: what is published in `schemas/` is what is written, and a consumer can add to its side first."""

from __future__ import annotations

import json
from pathlib import Path

import fastavro
import pytest

from streamserve.adapters.schema_ids import PinnedIndex
from streamserve.errors import SchemaError
from streamserve.pipeline.prediction import PINNED_ID, SCHEMA, SCHEMA_TEXT
from streamserve.pipeline.schemas import EventSchema
from streamserve.records import FeatureStatus, Reason, Variant
from streamserve.topology import load_topology

FOLDER = Path(__file__).parent.parent / "schemas"
PREDICTION = json.loads((FOLDER / "streamserve.prediction.avsc").read_text())
FILES = sorted(FOLDER.glob("*.avsc"))
ENTRIES = json.loads((FOLDER / "index.json").read_text())["schemas"]


def test_the_prediction_schema_is_the_code_s():
    assert PREDICTION == SCHEMA == json.loads(SCHEMA_TEXT)


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


def test_predictions_have_the_id_that_the_code_writes():
    assert ENTRIES[str(PINNED_ID)]["file"] == "streamserve.prediction.avsc"


def test_the_prediction_schema_is_pinned_even_where_there_is_no_index(tmp_path):
    index = PinnedIndex(tmp_path)
    assert json.loads(index.writer_schema(PINNED_ID)) == PREDICTION
    assert index.id_of("any.predictions-value", SCHEMA_TEXT) == PINNED_ID
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
