"""Promise: a stream outlives each broker of a cluster, and what is refused is waited for: nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from cluster import Cluster, cluster
from conftest import Project, wait_until
from streams import DELIVERIES, NO_REDIS, Stream, flowing, stream

from streamserve.dev import Endpoints

pytestmark = pytest.mark.services
ROWS = 500  # of a batch
BACKLOG = 20_000
HANG_S = 45.0  # 11 to 28 s on a busy machine; a client that waits for a connection's default of 60 s is too late


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(scope="module")
def in_force(running: Cluster, tmp_path_factory: pytest.TempPathFactory) -> list[Stream]:
    """A topology of each delivery, side by side: a cluster's faults take long to come and to go."""
    project = Project(tmp_path_factory.mktemp("project"), Endpoints(running.bootstrap, NO_REDIS))
    (project.folder / "schemas").mkdir()
    return [stream(project, "cluster", delivery, "--replication", "3") for delivery in DELIVERIES]


@pytest.fixture
def three(running: Cluster) -> Cluster:
    """Whole, whatever the test before did to it."""
    running.mend()
    return running


@pytest.fixture
def both(in_force: list[Stream], three: Cluster) -> Iterator[list[Stream]]:
    yield in_force
    for one in in_force:
        one.kill()


def finish(some: list[Stream]) -> None:
    for one in some:
        one.wait_until_committed(one.ends())
        assert one.worker.stop() == 0, one.worker.log.read_text()
        one.check()


def waited(one: Stream) -> int:
    """Seconds, as /ready says them."""
    found = re.search(r"the broker has not confirmed a commit for (\d+) s", one.ready())
    return int(found[1]) if found else 0


def test_predictions_wait_while_too_few_replicas_are_there(both, three):
    """/ready says so, nothing is committed, and no more is read; with the replica the stream goes on by itself."""
    for one in both:
        three.demand(f"{one.name}.predictions", 3)
        one.start(STREAMSERVE_BATCH_ROWS=str(ROWS), STREAMSERVE_COMMIT_INTERVAL="0.1")
        one.send(1000)
        one.wait_until_committed(one.ends())
    before = [one.committed() for one in both]
    three.nodes[3].kill()
    for one in both:
        one.send(ROWS)
        wait_until(lambda one=one: waited(one) > 0, 60, "/ready to tell")
        one.send(BACKLOG)
    for one in both:
        now = waited(one)
        wait_until(lambda one=one, now=now: waited(one) > now + 3, 60, "/ready to tell how long")
        assert one.taken() <= 1000 + 5 * ROWS, "it goes on reading what it can't send"
    assert [one.committed() for one in both] == before
    three.nodes[3].start()
    finish(both)
    for one in both:
        three.demand(f"{one.name}.predictions", 2)


def test_each_broker_may_be_killed_while_events_flow(both, three):
    """In turn: so each leader, of events, predictions and the progress log, each coordinator, and the controller."""
    for one in both:
        one.start()
    with flowing(both):
        for one in both:
            one.wait_until_on()
        for node in three.nodes.values():
            node.kill()
            for one in both:
                one.wait_until_on()
            node.start()
            three.wait_until_whole()
    finish(both)


def test_a_broker_that_hangs_holds_the_stream_up_for_seconds(both, three):
    """Nobody tells that it is gone, neither to the other brokers nor to clients."""
    for one in both:
        one.start()
    with flowing(both):
        for one in both:
            one.wait_until_on()
        three.nodes[2].hang()
        for one in both:
            one.wait_until_on(HANG_S)
        three.mend()
    finish(both)
