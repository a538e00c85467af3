"""Schema ids: from a Confluent-compatible registry where one is configured, otherwise from `schemas/index.json`.

The index pins ids to files: {"schemas": {"1": {"subject": "flights-value", "file": "flight.avsc"}}}. An id that
nobody knows is the event's fault; a registry that does not answer is not, and stops the worker instead.
"""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Protocol

from streamserve.errors import SchemaError, SchemaRegistryError
from streamserve.pipeline import drift_window, pane_chunk, prediction, shadow_decision
from streamserve.pipeline.schemas import EventSchema
from streamserve.settings import Settings

INDEX = "index.json"
NOT_FOUND = 404
TIMEOUT_S = 5.0


class SchemaIds(Protocol):
    def writer_schema(self, schema_id: int) -> str | None: ...

    def id_of(self, subject: str, schema: str) -> int:
        """The id under which records of this schema are written to this subject (`<topic>-value`)."""
        ...


class PinnedIndex:
    """Ids from a file. Nothing is asked of the network."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / INDEX
        self._files: dict[int, tuple[str, str]] = {  # id: (subject, text)
            prediction.PINNED_ID: ("", prediction.SCHEMA_TEXT),
            shadow_decision.PINNED_ID: ("", shadow_decision.SCHEMA_TEXT),
            pane_chunk.PINNED_ID: ("", pane_chunk.SCHEMA_TEXT),
            drift_window.PINNED_ID: ("", drift_window.SCHEMA_TEXT),
        }
        if not self._path.exists():
            return
        try:
            entries = json.loads(self._path.read_text("utf-8"))["schemas"]
            for number, entry in entries.items():
                self._files[int(number)] = (entry["subject"], (folder / entry["file"]).read_text("utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SchemaError(
                f"the index of schema ids can't be read: {error}",
                where=str(self._path),
                mend='write {"schemas": {"1": {"subject": "<topic>-value", "file": "<name>.avsc"}}}, '
                "or set STREAMSERVE_SCHEMA_REGISTRY_URL",
            ) from None

    def writer_schema(self, schema_id: int) -> str | None:
        found = self._files.get(schema_id)
        return None if found is None else found[1]

    def id_of(self, subject: str, schema: str) -> int:
        wanted = EventSchema.parse(schema, where=subject)
        same = [
            number
            for number, (_, text) in self._files.items()
            if EventSchema.parse(text, where=str(self._path)).text == wanted.text
        ]
        named = [number for number in same if self._files[number][0] == subject]
        if not same:
            raise SchemaError(
                f"no id is pinned for the schema {wanted.name!r} of {subject}",
                where=str(self._path),
                mend="add the schema's file to the index under a free id",
            )
        return (named or same)[0]


class HttpRegistry:
    """A registry that speaks the Confluent REST API. Answers are kept: a schema id never changes its meaning."""

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            parts, host, port = urllib.parse.urlsplit(""), "", None
        netloc = f"{host}:{port}" if port else host
        self._base = urllib.parse.urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
        if parts.scheme not in ("http", "https") or not host:
            raise SchemaRegistryError(
                "STREAMSERVE_SCHEMA_REGISTRY_URL is no http(s) URL",
                mend="write it as https://user:password@host/path",
            )
        self._headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
        if parts.username:
            pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        self._tls = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        self._known: dict[int, str] = {}

    def writer_schema(self, schema_id: int) -> str | None:
        if schema_id not in self._known:
            answer = self._ask(f"/schemas/ids/{schema_id}")
            if answer is None:
                return None
            if answer.get("schemaType", "AVRO") != "AVRO":
                return None
            self._known[schema_id] = str(answer["schema"])
        return self._known[schema_id]

    def id_of(self, subject: str, schema: str) -> int:
        path = f"/subjects/{urllib.parse.quote(subject, safe='')}/versions"
        answer = self._ask(path, {"schema": schema}) or {}
        if "id" not in answer:
            raise self._error("it answered without an id")
        return int(str(answer["id"]))

    def _ask(self, path: str, body: dict[str, object] | None = None) -> dict[str, object] | None:
        """One request; None for "not found".

        Raises:
            SchemaRegistryError: no answer, or a refusal.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data=data, headers=self._headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=self._tls) as reply:  # noqa: S310
                found = json.load(reply)
        except urllib.error.HTTPError as error:
            if error.code == NOT_FOUND and body is None:
                return None
            raise self._error(f"it answered {error.code} {error.reason}") from None
        except (OSError, ValueError) as error:
            raise self._error(str(error)) from None
        if not isinstance(found, dict):
            raise self._error("it answered something that is no JSON object")
        return found

    def _error(self, what: str) -> SchemaRegistryError:
        return SchemaRegistryError(
            f"the schema registry does not help: {what}",
            where=self._base,
            mend="check STREAMSERVE_SCHEMA_REGISTRY_URL, or unset it to use the pinned schemas/index.json",
        )


def _port(parts: urllib.parse.SplitResult) -> int | None:
    try:
        return parts.port
    except ValueError:  # its text quotes what stands there: a part of a password with a / or # in it
        raise SchemaRegistryError(
            "STREAMSERVE_SCHEMA_REGISTRY_URL names no port that is a number",
            mend="write it as https://user:password@host:8081/path, with %2F for a / in the password",
        ) from None


def schema_ids(settings: Settings) -> SchemaIds:
    if settings.schema_registry_url:
        return HttpRegistry(settings.schema_registry_url, settings.schema_registry_ca)
    return PinnedIndex(settings.schemas)
