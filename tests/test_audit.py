"""Promise: what became of every command stands in `streamserve.rollouts`, whoever died meanwhile."""

from __future__ import annotations

import json

import pytest
from conftest import wait_until
from support import Broker, Record
from test_rollout_stream import Feed, stop, topology  # noqa: F401  (a fixture)

pytestmark = pytest.mark.services
LOOK_S = 0.5


def audited(broker: Broker, name: str) -> list[dict[str, object]]:
    """Of this topology, from its init on: a malformed command that names none is everybody's."""
    found = [json.loads(record.value) for record in broker.read("streamserve.rollouts")]
    mine = [one for one in found if one["topology"] == name]
    begun = next((at for at, one in enumerate(mine) if one["event"] == "command" and one["accepted"]), len(mine))
    return mine[begun:]


def of(found: list[dict[str, object]], event: str) -> dict[int, dict[str, object]]:
    return {one["offset"]: one for one in found if one["event"] == event}


def test_every_command_and_when_it_was_in_force_is_written_down(topology):  # noqa: F811
    project, file, name = topology
    broker = Broker(project.endpoints.bootstrap)
    with Feed(broker, f"{name}.events"):
        first, second = project.worker(file), project.worker(file)
        project.ok("rollout", "start", file, "v2", "--id", "r1", "--reason", "a try")
        project.ok("rollout", "shift", file, "5%")
        refused = project.run("rollout", "start", file, "v3", "--id", "r2", "--timeout", "0")
        assert "BUSY" in refused.stderr
        first.process.kill()
        project.ok("rollout", "kill", file, "v2")
        broker.produce(
            "streamserve.control", [Record(None, f'{{"topology": "{name}", "kind": "shift"'.encode(), partition=0)]
        )
        project.ok("rollout", "rollback", file)
        sent = {
            record.offset for record in broker.read("streamserve.control") if name.encode() in (record.value or b"")
        }
        wait_until(lambda: of(audited(broker, name), "command").keys() >= sent, 60, "the audit", LOOK_S)
        commands = of(audited(broker, name), "command")
        epochs = sorted(offset for offset, one in commands.items() if one["epoch"])
        wait_until(lambda: epochs[-1] in of(audited(broker, name), "in_force"), 60, "the last epoch in force", LOOK_S)
    stop(second)
    found = audited(broker, name)
    verdicts = [commands[offset]["rejection"] for offset in sorted(commands)]
    assert verdicts == [None, None, None, "BUSY", None, "MALFORMED", None]
    shift = commands[epochs[1]]
    assert (shift["kind"], shift["command"]["weight_bp"], shift["epoch"]["candidate"]) == ("shift", 500, "v2")
    assert next(one for one in commands.values() if one["kind"] == "prepare")["reason"] == "a try"
    in_force = of(found, "in_force")
    assert in_force.keys() <= set(epochs)
    assert {one["partitions"] for one in in_force.values()} == {4}
    assert len(found) == len(commands) + len(in_force), "a record that is there twice"


def test_an_audit_goes_on_after_what_is_there(topology):  # noqa: F811
    project, file, name = topology
    broker = Broker(project.endpoints.bootstrap)
    for _ in range(2):
        worker = project.worker(file)
        wait_until(lambda: of(audited(broker, name), "in_force"), 60, "the first epoch in force", LOOK_S)
        stop(worker)
    assert [one["event"] for one in audited(broker, name)] == ["command", "in_force"]
