"""Schema ids come from a registry where one is configured, otherwise from the pinned index."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from streamserve.adapters.schema_ids import HttpRegistry, PinnedIndex, schema_ids
from streamserve.errors import SchemaError, SchemaRegistryError
from streamserve.pipeline.prediction import PINNED_ID, SCHEMA_TEXT
from streamserve.settings import Settings

USER = {"type": "record", "name": "User", "fields": [{"name": "id", "type": "long"}]}


def pin(folder: Path, **schemas: object) -> PinnedIndex:
    entries = {}
    for number, (name, schema) in enumerate(schemas.items(), 7):
        (folder / f"{name}.avsc").write_text(json.dumps(schema))
        entries[str(number)] = {"subject": f"{name}-value", "file": f"{name}.avsc"}
    (folder / "index.json").write_text(json.dumps({"schemas": entries}))
    return PinnedIndex(folder)


def test_a_pinned_id_gives_its_schema_and_an_unknown_one_nothing(tmp_path: Path) -> None:
    ids = pin(tmp_path, users=USER)
    assert json.loads(ids.writer_schema(7) or "") == USER
    assert ids.writer_schema(8) is None


def test_the_id_of_a_schema_is_found_whatever_its_docs_say(tmp_path: Path) -> None:
    assert pin(tmp_path, users={**USER, "doc": "people"}).id_of("users-value", json.dumps(USER)) == 7


def test_of_two_ids_of_one_schema_the_one_of_the_subject_is_taken(tmp_path: Path) -> None:
    assert pin(tmp_path, admins=USER, users=USER).id_of("users-value", json.dumps(USER)) == 8


def test_a_schema_that_is_not_pinned_is_an_error_that_names_the_index(tmp_path: Path) -> None:
    with pytest.raises(SchemaError) as caught:
        pin(tmp_path).id_of("users-value", json.dumps(USER))
    assert "User" in str(caught.value)
    assert "index.json" in caught.value.where


def test_predictions_have_an_id_without_any_index(tmp_path: Path) -> None:
    assert PinnedIndex(tmp_path).id_of("t.predictions-value", SCHEMA_TEXT) == PINNED_ID


@pytest.mark.parametrize("text", ["", "[]", '{"schemas": {"x": {}}}', '{"schemas": {"1": {"file": "no.avsc"}}}'])
def test_a_broken_index_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(SchemaError, match="can't be read"):
        PinnedIndex(tmp_path)


class Registry(BaseHTTPRequestHandler):
    """The part of the Confluent REST API that is spoken."""

    schemas: dict[int, str]
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        number = int(self.path.rsplit("/", 1)[1])
        found = self.schemas.get(number)
        self.answer(200, {"schema": found}) if found else self.answer(404, {"error_code": 40403})

    def do_POST(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = max(self.schemas, default=0) + 1
        self.schemas[number] = body["schema"]
        self.answer(200, {"id": number})

    def answer(self, status: int, body: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def registry() -> Iterator[tuple[str, type[Registry]]]:
    handler = type("Handler", (Registry,), {"schemas": {3: json.dumps(USER)}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def test_a_registry_is_asked_once_an_id(registry: tuple[str, type[Registry]]) -> None:
    address, handler = registry
    ids = HttpRegistry(f"http://{address}/apis/ccompat/v7/")
    assert [json.loads(ids.writer_schema(3) or "") for _ in range(3)] == [USER] * 3
    assert handler.asked == [("/apis/ccompat/v7/schemas/ids/3", None)]


def test_an_id_that_the_registry_does_not_know_is_the_events_fault(registry: tuple[str, type[Registry]]) -> None:
    assert HttpRegistry(f"http://{registry[0]}").writer_schema(99) is None


def test_a_schema_is_registered_under_its_subject(registry: tuple[str, type[Registry]]) -> None:
    address, handler = registry
    ids = schema_ids(Settings(schema_registry_url=f"http://{address}"))
    number = ids.id_of("a/b-value", SCHEMA_TEXT)
    assert handler.schemas[number] == SCHEMA_TEXT
    assert handler.asked == [("/subjects/a%2Fb-value/versions", None)]


def test_user_and_password_go_into_the_header_and_nowhere_else(registry: tuple[str, type[Registry]]) -> None:
    address, handler = registry
    ids = HttpRegistry(f"http://me:se%3Acret@{address}")
    ids.writer_schema(3)
    assert handler.asked[0][1] == "Basic bWU6c2U6Y3JldA=="
    handler.schemas[3] = ""
    with pytest.raises(SchemaRegistryError) as caught:
        HttpRegistry("http://me:secret@127.0.0.1:1").writer_schema(1)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://x", "registry:8081", "http://", "http://host:port"])
def test_what_is_no_url_is_one_clear_error(url: str) -> None:
    with pytest.raises(SchemaRegistryError, match="no http"):
        HttpRegistry(url)
