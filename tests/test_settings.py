"""Promise: every knob is read from its variable, what does not fit is named, and no secret is ever printed."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as pure
from hypothesis import strategies as st

from streamserve.errors import SettingsError
from streamserve.settings import Settings

SECRET = "hunter2-very-secret"  # noqa: S105


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No variable of the caller's, and a folder without .env."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"STREAMSERVE_{name}".upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def load(monkeypatch, **environ):
    for name, value in environ.items():
        monkeypatch.setenv(f"STREAMSERVE_{name}".upper(), value)
    return Settings.load()


VALUES = {
    "home": ("/h", Path("/h")), "bootstrap": ("a:1,b:2", "a:1,b:2"), "redis_url": ("redis://r", "redis://r"),
    "kafka": ('{"a": "b"}', {"a": "b"}), "kafka_config": ("/k", Path("/k")), "redis": ('{"x": "y"}', {"x": "y"}),
    "schema_registry_url": ("http://s", "http://s"), "schema_registry_ca": ("/ca", Path("/ca")),
    "registry": ("/m", Path("/m")), "schemas": ("/s", Path("/s")), "web_host": ("0.0.0.0", "0.0.0.0"),  # noqa: S104
    "web_port": ("0", 0), "start": ("latest", "latest"), "batch_rows": ("7", 7), "batches_in_flight": ("2", 2),
    "commit_interval": ("0.5", 0.5), "transaction_interval": ("0.2", 0.2), "dead_letter_share": ("0.1", 0.1),
    "store_timeout": ("0.1", 0.1), "drain_timeout": ("3", 3.0),
    "start_timeout": ("4", 4.0), "log_level": ("debug", "DEBUG"),
    "provider": ("cuda", "cuda"), "device_id": ("1", 1), "model_cache": ("true", True),
    "compiled_trees": ("false", False),
    "core_hour_price": ("0.1", 0.1), "batch_bytes": ("4096", 4096), "native": ("false", False),
    "candidate_deadline": ("0.5", 0.5), "control_keys": ("/c", Path("/c")), "sign_with": ("k1", "k1"),
    "shadow_rows": ("5", 5), "shadow_bytes": ("4096", 4096), "shadow_deadline": ("3", 3.0),
    "shadow_memory": ("1048576", 1 << 20),
    "pacing": ("false", False), "store_failures": ("5", 5), "store_pause": ("0.5", 0.5), "store_pause_max": ("9", 9.0),
}  # fmt: skip


def test_each_setting_is_read_from_its_variable(monkeypatch):
    found = load(monkeypatch, **{name: text for name, (text, _) in VALUES.items()})
    known = {name: getattr(found, name) for name in VALUES}
    assert known == {name: value for name, (_, value) in VALUES.items()}


def test_each_setting_is_tried_here_and_tells_what_it_is_for():
    fields = dict(Settings.model_fields)
    assert {name for name in fields if name not in VALUES} == set()
    assert all(field.description for field in fields.values())


def test_the_defaults_name_no_host_but_this_one():
    found = Settings.load()
    assert (found.bootstrap, found.redis_url, found.schema_registry_url) == (None, None, None)
    assert found.web_host == "127.0.0.1"
    assert found.kafka_properties == {}


def test_a_variable_goes_before_the_file_and_others_are_left_alone(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("STREAMSERVE_WEB_PORT=1\nSTREAMSERVE_BATCH_ROWS=9\nOTHER=1\n")
    found = load(monkeypatch, web_port="2", no_such_setting="x")
    assert (found.web_port, found.batch_rows) == (2, 9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("web_port", "65536"),
        ("web_port", "http"),
        ("batch_rows", "0"),
        ("batches_in_flight", "65"),
        ("commit_interval", "0"),
        ("transaction_interval", "0"),
        ("dead_letter_share", "1.1"),
        ("store_timeout", "-1"),
        ("store_failures", "0"),
        ("store_pause", "0"),
        ("store_pause_max", "0"),
        ("log_level", "LOUD"),
        ("kafka", "{"),
        ("kafka", "[]"),
        ("kafka", '{"a": null}'),
        ("kafka", '{"sasl.password": {"nested": 1}}'),
        ("redis", "5"),
        ("provider", "gpu"),
        ("device_id", "-1"),
        ("core_hour_price", "inf"),
    ],
)
def test_what_does_not_fit_is_named_by_its_variable(monkeypatch, name, value):
    with pytest.raises(SettingsError) as told:
        load(monkeypatch, **{name: value})
    assert told.value.what.startswith(f"STREAMSERVE_{name.upper()} does not fit: ")
    assert told.value.mend


def test_numbers_and_booleans_of_client_settings_become_the_text_that_clients_take(monkeypatch):
    value = {"socket.timeout.ms": 60000, "enable.idempotence": True, "linger.ms": 0.5, "ssl.ca": "x"}
    found = load(monkeypatch, kafka=json.dumps(value))
    expected = {"socket.timeout.ms": "60000", "enable.idempotence": "true", "linger.ms": "0.5", "ssl.ca": "x"}
    assert found.kafka == found.kafka_properties == expected


def test_the_environment_goes_before_the_properties_file(monkeypatch, tmp_path):
    path = tmp_path / "client.properties"
    path.write_text("# comment\n! comment\n\n a.b = c=d \nx=file\nempty=\n")
    found = load(monkeypatch, kafka_config=str(path), kafka='{"x": "env"}')
    assert found.kafka_properties == {"a.b": "c=d", "x": "env", "empty": ""}


@pytest.mark.parametrize("content", [f"good=1\n{SECRET}\n".encode(), b"\xff\xfe", None])
def test_a_properties_file_that_can_not_be_read_is_told_by_its_place(monkeypatch, tmp_path, content):
    path = tmp_path / "client.properties"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as told:
        _ = load(monkeypatch, kafka_config=str(path)).kafka_properties
    assert told.value.where.startswith(str(path))
    assert SECRET not in str(told.value)
    assert told.value.where.endswith(":2") == (content is not None and content.startswith(b"good"))


def test_an_env_file_that_is_no_text_is_an_error_of_the_tree(tmp_path):
    (tmp_path / ".env").write_bytes(b"STREAMSERVE_HOME=\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        Settings.load()


def test_no_secret_is_in_what_is_printed(monkeypatch, tmp_path):
    path = tmp_path / "client.properties"
    path.write_text(f"sasl.password={SECRET}\n")
    found = load(
        monkeypatch, kafka_config=str(path), kafka=json.dumps({"ssl.key.password": SECRET}),
        redis=json.dumps({"password": SECRET}), redis_url=f"redis://:{SECRET}@host",
        schema_registry_url=f"https://u:{SECRET}@host",
    )  # fmt: skip
    assert SECRET in found.kafka_properties["sasl.password"]
    assert SECRET not in repr(found) + str(found) + f"{found.model_copy(update={'web_port': 1})}"


def test_the_secrets_of_control_keys_come_from_a_file_and_are_not_printed(monkeypatch, tmp_path):
    path = tmp_path / "control.keys"
    path.write_text(f"# ours\nk1={SECRET}\nk2 = x=y\n")
    found = load(monkeypatch, control_keys=str(path), sign_with="k1")
    assert found.control_secrets == {"k1": SECRET.encode(), "k2": b"x=y"}
    assert SECRET not in repr(found) + str(found)
    with pytest.raises(SettingsError) as told:
        _ = load(monkeypatch, control_keys=str(tmp_path / "none")).control_secrets
    assert "STREAMSERVE_CONTROL_KEYS" in told.value.mend


@pytest.mark.parametrize("name", ["kafka", "redis"])
@pytest.mark.parametrize("value", [f'{{"p": "{SECRET}"', f'["{SECRET}"]', f'{{"p": ["{SECRET}"]}}', SECRET])
def test_no_secret_is_in_an_error_or_its_causes(monkeypatch, name, value):
    with pytest.raises(SettingsError) as told:
        load(monkeypatch, **{name: value})
    assert SECRET not in str(told.value) + repr(told.value)
    assert SECRET not in "".join(traceback.format_exception_only(told.value))
    assert told.value.__cause__ is None
    assert told.value.__suppress_context__


@pure(deadline=None, derandomize=True)
@given(st.dictionaries(st.text(), st.text()))
def test_any_client_settings_come_back_as_they_were_written(value):
    assert Settings(kafka=json.dumps(value), _env_file=None).kafka == value
