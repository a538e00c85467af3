"""Promise: a candidate in shadow is compared event by event, and whatever it does, stable answers as if it were not."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import bad_models
import numpy as np
import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from conftest import Project, Worker, wait_until
from shadow_support import decision, gone
from support import Broker
from test_rollout_stream import Feed, caught_up, lawful, said_of, stop, topology  # noqa: F401  (a fixture)

from streamserve.adapters.onnx import OnnxSession
from streamserve.features.catalogue import Catalogue
from streamserve.models.registry import Registry
from streamserve.pipeline.schemas import EventSchema
from streamserve.rollouts.shadow import sampled
from streamserve.simulate.adding import NewVersion, add_version
from streamserve.topology import load_topology

pytestmark = pytest.mark.services
OUTCOMES = ("compared", "failed", "unanswered", "shed")


def shadowed(broker: Broker, name: str) -> dict[str, dict[str, object]]:
    """By prediction, what was said of it under its highest epoch; where that was said twice, both times alike."""
    found: dict[tuple[str, int], dict[str, object]] = {}
    for record in broker.read(f"{name}.shadow-decisions"):
        said = decision(record.value)
        before = found.setdefault((said["prediction_id"], said["control_epoch"]), said)
        assert {**before, "compared_at": None} == {**said, "compared_at": None}
    return {place: found[place, epoch] for place, epoch in sorted(found)}


def add(project: Project, file: Path, name: str, model: Path) -> None:
    """As `models add`, in this process."""
    catalogue = Catalogue(load_topology(file))
    schema = EventSchema.parse((project.folder / "schemas" / "reading.avsc").read_text())
    new = NewVersion(name, model, dt.datetime.now(dt.UTC))
    add_version(Registry(project.folder / "registry"), catalogue, schema, new, load=OnnxSession, release="test")


def children(worker: Worker) -> list[int]:
    """The processes of its candidates."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == worker.process.pid and b"isolated_child" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def counts(*workers: Worker) -> Counter[str]:
    name = "streamserve_shadow_events_total"
    return +Counter({one: int(sum(worker.metric(name, outcome=one) for worker in workers)) for one in OUTCOMES})


def feed(broker: Broker, name: str, count: int, enough: Callable[[], bool] = lambda: True) -> list[tuple[int, int]]:
    """Where so many more events went, or more until it was enough, that came one after the other."""
    with Feed(broker, f"{name}.events") as coming:
        wait_until(lambda: len(coming.places) >= count and enough(), 60, "events, and what they are to cause")
    return coming.places


def well(worker: Worker) -> bool:
    return worker.process.poll() is None and worker.get("/ready")[0] == 200


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
    for pid in (worker.process.pid, *children(worker)):  # 55 MB of it that would serve nobody
        assert "/pandas/" not in Path(f"/proc/{pid}/maps").read_text()
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


SHADOW = ("--timeout", "0")  # what does not run for long may not be seen running
ILL = {
    "at_least_once": {"slow": ("compared", "shed"), "raises": ("compared", "failed"),
                      "loses_rows": ("compared", "failed")},
    "exactly_once": {"hangs": ("unanswered",), "crashes": ("unanswered",), "leaks": ("unanswered",),
                     "nan": ("compared",)},
}  # fmt: skip
WHY = {"hangs": "hangs can't shadow: it did not answer in time", "crashes": "ended by SIGFPE", "leaks": "MiB of memory"}
ROOM = {
    "at_least_once": {"STREAMSERVE_SHADOW_ROWS": "200"},
    "exactly_once": {"STREAMSERVE_SHADOW_DEADLINE": "3", "STREAMSERVE_SHADOW_MEMORY": str(450 << 20)},
}


def test_whatever_a_candidate_does_stable_answers_as_if_it_were_not(topology, request):  # noqa: F811
    project, file, name = topology
    broker, delivery = Broker(project.endpoints.bootstrap), request.node.callspec.params["topology"]
    for version in ILL[delivery]:
        bad = bad_models.BAD[version](project.folder / f"{version}.onnx")
        if version == "slow":
            bad_models.slow(bad, 40_000)
        add(project, file, version, bad)
    worker = project.worker(file, **ROOM[delivery])
    for version, outcomes in ILL[delivery].items():
        project.ok("rollout", "start", file, version, "--id", version)
        project.ok("rollout", "shadow", file, "100%", *SHADOW)
        wait_until(lambda: children(worker), 30, "the candidate's process")
        places = feed(broker, name, 2500, lambda asked=outcomes: set(asked) <= set(counts(worker)))
        wait_until(lambda places=places: sum(counts(worker).values()) == len(places), 60, f"counts of {version}")
        found = {name for name, count in counts(worker).items() if count}
        assert set(outcomes) <= found <= {*outcomes, "shed"}, version
        assert well(worker)
        assert WHY.get(version, "") in worker.log.read_text()
        project.ok("rollout", "rollback", file)
        wait_until(lambda: not children(worker), 30, "the end of the candidate's process")
    caught_up(broker, name)
    stop(worker)
    lawful(broker, name)
    for one in shadowed(broker, name).values():
        assert (one["candidate_decision"] is None) == bool(one["error"] or np.isnan(one["candidate_scores"]["alarm"]))


def test_kills_of_workers_and_of_candidates_lose_nothing_of_stable(topology):  # noqa: F811
    project, file, name = topology
    broker = Broker(project.endpoints.bootstrap)
    workers = [project.worker(file), project.worker(file)]
    project.ok("rollout", "start", file, "v3", "--id", "r1")
    project.ok("rollout", "shadow", file, "100%")
    with Feed(broker, f"{name}.events"):
        (first,), (second,) = (children(worker) for worker in workers)
        wait_until(lambda: counts(workers[0])["compared"] and counts(workers[1])["compared"], 30, "both compare")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: counts(workers[0])["unanswered"], 30, "the candidate's end is counted")
        workers[1].process.kill()
        wait_until(lambda: gone(second), 10, "a killed worker's candidate is gone")
        wait_until(lambda: children(workers[0]) not in ([], [first]), 30, "it is begun again")
        before = counts(workers[0])["compared"]
        wait_until(lambda: counts(workers[0])["compared"] > before, 30, "it compares again")
        assert well(workers[0])
        project.ok("rollout", "shift", file, "50%")
        assert "v3 is stable" in project.ok("rollout", "promote", file)
        wait_until(lambda: not children(workers[0]), 30, "who answers is not shadowed")
    caught_up(broker, name)
    stop(workers[0])
    assert lawful(broker, name).stable == "v3"
    stables = {f"{name}.events-{p}-{o}": said for (p, o), said in said_of(broker, f"{name}.predictions").items()}
    found = shadowed(broker, name)
    assert len(found) > 1000
    for place, one in found.items():
        assert (one["stable_version"], one["candidate_version"]) == ("v1", "v3")
        assert stables[place]["model_version"] != "v1" or one["stable_scores"] == stables[place]["scores"]


def test_share_and_segment_are_what_was_asked_for_and_none_is_the_end(topology):  # noqa: F811
    project, file, name = topology
    broker = Broker(project.endpoints.bootstrap)
    worker = project.worker(file)
    project.ok("rollout", "start", file, "v3", "--id", "r1")
    project.ok("rollout", "shadow", file, "30%")
    first = feed(broker, name, 4000)
    partitions, offsets = np.array(first).T
    thirty = np.flatnonzero(sampled(partitions.astype(np.int32), offsets.astype(np.int64), 3000)).tolist()
    wanted = {first[at] for at in thirty}
    assert 0.25 < len(wanted) / len(first) < 0.35
    wait_until(lambda: counts(worker) == {"compared": len(wanted)}, 30, "30%")
    project.ok("rollout", "shadow", file, "100%", "--where", "value=3,5")
    second = feed(broker, name, 1000)
    values = {r.position: json.loads(r.value)["value"] for r in broker.read(f"{name}.events")}
    wanted |= {place for place in second if values[place] in (3, 5)}
    wait_until(lambda: counts(worker) == {"compared": len(wanted)}, 30, "a segment")
    (child,) = children(worker)
    project.ok("rollout", "shadow", file, "0%")
    wait_until(lambda: gone(child), 30, "the end of the candidate's process")
    feed(broker, name, 1000)
    caught_up(broker, name)
    assert children(worker) == []
    stop(worker)
    lawful(broker, name)
    assert shadowed(broker, name).keys() == {f"{name}.events-{p}-{o}" for p, o in wanted}


def test_topic_of_shadow_that_refuses_or_is_gone_harms_nobody(topology):  # noqa: F811
    project, file, name = topology
    broker, admin = Broker(project.endpoints.bootstrap), AdminClient({"bootstrap.servers": project.endpoints.bootstrap})
    worker = project.worker(file)
    project.ok("rollout", "start", file, "v3", "--id", "r1")
    project.ok("rollout", "shadow", file, "100%")
    tiny = ConfigEntry("max.message.bytes", "100", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, f"{name}.shadow-decisions", incremental_configs=[tiny])
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(20)
    refused = feed(broker, name, 1000)
    wait_until(lambda: worker.metric("streamserve_shadow_records_lost_total") == len(refused), 60, "what is refused")
    for done in admin.delete_topics([f"{name}.shadow-decisions"]).values():
        done.result(20)
    more = feed(broker, name, 2000)
    caught_up(broker, name)
    wait_until(lambda: counts(worker) == {"compared": len(refused) + len(more)}, 30, "comparisons")
    assert well(worker)
    stop(worker)
    lawful(broker, name)
