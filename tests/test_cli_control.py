"""Promise: a command that somebody wrote by hand is judged first, and none shuts its sender out by mistake."""

from __future__ import annotations

import json
import shutil
import uuid

import pytest
from conftest import ROOT
from support import linear_model, renamed

pytestmark = pytest.mark.services
HERE = ROOT / "tests" / "topologies"


@pytest.fixture
def desk(project):
    """A topology that was initialised, and who writes commands for it."""
    name = f"by-hand-{uuid.uuid4().hex[:6]}"
    shutil.copy(HERE / "reading.avsc", project.folder / "schemas")
    file = renamed(project, HERE / "readings.py", name)
    project.ok("topics", "apply", file)
    project.ok("models", "add", file, "v1", linear_model(project.folder / "v1.onnx", [1, 1, 1]))
    project.ok("topology", "init", file, "--version", "v1")
    (project.folder / "keys").write_text("ann=" + "a1" * 16 + "\n")
    (project.folder / "keys").chmod(0o600)

    secrets = {"STREAMSERVE_CONTROL_KEYS": str(project.folder / "keys")}

    def command(what, kind, generation, *options, key=None, **more):
        said = {
            "kind": kind,
            "command_id": str(uuid.uuid4()),
            "topology": name,
            "actor": name,
            "expected_generation": generation,
            **more,
        }
        written = project.folder / "command.json"
        written.write_text(json.dumps(said))
        signs = {"STREAMSERVE_SIGN_WITH": key} if key else {}
        return project.run("control", what, file, written, *options, environ=secrets | signs)

    def tail():
        """Of what it prints, what is of this topology: malformed records name none, and are shown as everybody's."""
        done = project.run("control", "tail", file, "--json", environ=secrets)
        said = map(json.loads, done.stdout.splitlines())
        return [one for one in said if one["actor"] == name or one["kind"] == "init"]

    command.tail = tail
    return command


def test_what_is_validated_is_not_sent_and_what_is_sent_is_judged(desk):
    keys = {"mode": "off", "add": ["ann"]}
    assert "as generation 2" in desk("validate", "keys", 1, **keys).stdout
    stale = desk("validate", "keys", 0, **keys)
    assert (stale.returncode, "STALE" in stale.stderr) == (5, True)
    assert len(desk.tail()) == 1
    assert "generation 2" in desk("send", "keys", 1, **keys).stdout
    again = desk("send", "keys", 1, **keys)
    assert (again.returncode, "STALE" in again.stderr) == (5, True)
    assert [(one["accepted"], one["kind"]) for one in desk.tail()] == [(True, "init"), (True, "keys"), (False, "keys")]


def test_nobody_shuts_himself_out_by_mistake(desk):
    required = {"mode": "required", "add": ["bob"]}
    for key, why in ((None, "nothing that is sent from here is signed"), ("ann", "not by key 'ann'")):
        shut = desk("send", "keys", 1, key=key, **required)
        assert (shut.returncode, "shut yourself out" in shut.stderr) == (5, True)
        assert why in " ".join(shut.stderr.split())
    higher = desk("send", "upgrade", 1, accepts=99)
    assert (higher.returncode, "hold at it for good" in higher.stderr) == (5, True)
    assert len(desk.tail()) == 1, "nothing was sent"
    assert desk("send", "keys", 1, key="ann", mode="required", add=["ann", "bob"]).returncode == 0
    unsigned = desk("send", "keys", 2, mode="off")
    assert (unsigned.returncode, "UNSIGNED" in unsigned.stderr) == (5, True)
    gone = desk("send", "keys", 2, key="ann", mode="required", remove=["ann"])
    assert (gone.returncode, "shut yourself out" in gone.stderr) == (5, True)
    assert desk("send", "keys", 2, "--anyway", key="ann", mode="required", remove=["ann"]).returncode == 0
    assert [one["accepted"] for one in desk.tail()] == [True, True, False, True]
