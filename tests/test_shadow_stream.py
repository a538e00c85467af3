"""Promise: a candidate in shadow is compared event by event, and whatever it does, stable answers as if it were not."""

from __future__ import annotations

import io
import json
from collections import Counter

import fastavro
import pytest
from conftest import wait_until
from support import Broker, Record
from test_rollout_stream import VERSIONS, Feed, caught_up, lawful, stop, topology  # noqa: F401  (a fixture)

from streamserve.pipeline.shadow_decision import PINNED_ID, SCHEMA

pytestmark = pytest.mark.services
PARSED = fastavro.parse_schema(SCHEMA)


def decision(record: Record) -> dict[str, object]:
    assert record.value[:5] == b"\x00" + PINNED_ID.to_bytes(4)
    return fastavro.schemaless_reader(io.BytesIO(record.value[5:]), PARSED)


def shadowed(broker: Broker, name: str) -> dict[str, dict[str, object]]:
    return {one["prediction_id"]: one for one in map(decision, broker.read(f"{name}.shadow-decisions"))}


def test_every_event_is_compared_and_the_pairs_are_what_both_versions_say(topology):  # noqa: F811
    project, file, name = topology
    broker = Broker(project.endpoints.bootstrap)
    worker = project.worker(file)
    project.ok("rollout", "start", file, "v3", "--id", "r1")
    assert "v3 shadows 100%" in project.ok("rollout", "shadow", file, "100%")
    with Feed(broker, f"{name}.events") as feed:
        wait_until(lambda: len(feed.places) > 5000, 30, "events")
    caught_up(broker, name)
    total = len(feed.places)
    wait_until(lambda: worker.metric("streamserve_shadow_events_total", outcome="compared") == total, 30, "pairs")
    status = project.ok("rollout", "status", file)
    assert "shadow v3 scored" in status
    stop(worker)
    lawful(broker, name)
    events = {f"{name}.events-{r.partition}-{r.offset}": r for r in broker.read(f"{name}.events")}
    found = shadowed(broker, name)
    assert found.keys() == events.keys()
    for at, one in found.items():
        value = json.loads(events[at].value)["value"]
        assert (one["stable_version"], one["candidate_version"], one["rollout_id"]) == ("v1", "v3", "r1")
        assert {path: float(text) for path, text in one["segments"].items()} == {"value": value}
        alarm = {side: one[f"{side}_scores"]["alarm"] for side in ("stable", "candidate")}
        assert one["difference"] == abs(alarm["stable"] - alarm["candidate"])
        assert one["agreement"] == (one["stable_decision"] == one["candidate_decision"])
    agreements = Counter(one["agreement"] for one in found.values())
    assert agreements[False] > total / 2
    report = json.loads(project.ok("shadow", "report", file, "--json"))
    assert (report["events"], report["unreadable"], report["failures"]) == (total, {}, {})
    agreement = report["decisions"]["agreement"]
    assert (agreement["count"], agreement["of"]) == (agreements[True], agreements.total() - agreements[None])
