"""Promise: a broker whose disk is full loses nothing of a stream, and with room on it everything is predicted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, cluster
from conftest import wait_until
from disk import MIB, Disk, small_disk
from streams import DELIVERIES, NO_REDIS, flowing, stream

from streamserve.dev import Endpoints

pytestmark = pytest.mark.services
BACKLOG = 20_000  # their predictions take more room than is left


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", 96 * MIB) as made:
        yield made


@pytest.fixture
def alone(tmp_path: Path, disk: Disk) -> Iterator[Cluster]:
    """A single broker: there is nobody who stands in for it."""
    with cluster(tmp_path / "kafka", 1, disk.folder) as made:
        yield made


@pytest.fixture
def endpoints(alone: Cluster) -> Endpoints:
    return Endpoints(alone.bootstrap, NO_REDIS)


def test_predictions_on_their_way_are_made_again_where_the_disk_refused_them(project, alone, disk):
    """Such a refusal is no worker's end: what was not taken is predicted anew, by the same process."""
    both = [stream(project, "full-on-the-way", delivery) for delivery in DELIVERIES]
    [node] = alone.nodes.values()
    for one in both:
        one.start()
        one.send(100)
        one.wait_until_committed(one.ends())
    for one in both:
        one.worker.process.send_signal(signal.SIGSTOP)
        one.send(BACKLOG)
    disk.fill(leave=MIB // 4)
    for one in both:
        one.worker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: not node.runs(), 60, "the end of the broker")
    told = node.log.read_text()
    assert "No space left on device" in told
    assert any(f"{one.name}.predictions" in told for one in both), "it was not a prediction that found no room"
    disk.make_room()
    node.start()
    alone.wait_until_whole()
    for one in both:
        one.wait_until_committed(one.ends())
        assert one.worker.stop() == 0, one.worker.log.read_text()
        one.check()


def test_events_wait_while_the_brokers_disk_is_full(project, alone, disk):
    """Kafka ends where its disk does not take a record; the worker waits, says so, and goes on by itself."""
    both = [stream(project, "full-disk", delivery) for delivery in DELIVERIES]
    [node] = alone.nodes.values()
    for one in both:
        one.start()
    with flowing(both):
        for one in both:
            one.wait_until_on()
        disk.fill(leave=MIB // 2)
        wait_until(lambda: not node.runs(), 60, "the end of the broker")
        assert "No space left on device" in node.log.read_text()
        for one in both:
            wait_until(lambda one=one: "the broker has not" in one.ready(), 30, "/ready to tell")
        disk.make_room()
        node.start()
        alone.wait_until_whole()
    for one in both:
        one.wait_until_committed(one.ends())
        assert one.worker.stop() == 0, one.worker.log.read_text()
        one.check()
