"""Drift on a worker: references of its versions, the chunks that go beside its commits, and the agent that judges."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
import time
from collections.abc import Callable
from functools import partial

from streamserve.adapters.batch_topic import App, BatchTopic, batches
from streamserve.adapters.drift_metrics import DriftReading
from streamserve.adapters.kafka import Clients
from streamserve.adapters.output import RECORD_OVERHEAD
from streamserve.adapters.pane_chunks import PaneChunks
from streamserve.adapters.schema_ids import SchemaIds
from streamserve.adapters.side_output import SideOutput
from streamserve.adapters.topics import Topics
from streamserve.agents.drift import DriftAgent
from streamserve.delivery.custody import Custody
from streamserve.drift.chunks import ALL_BP
from streamserve.features.catalogue import Catalogue
from streamserve.models.registry import Registry
from streamserve.pipeline import drift_window, pane_chunk
from streamserve.pipeline.tally import Panes
from streamserve.records import TopicPartition
from streamserve.simulate.tallying import VersionTallies
from streamserve.simulate.versions import LoadedVersions

MS = dt.timedelta(milliseconds=1)
LOOK_S = 1.0  # between two looks for references that are new
LINGER_MS = 0  # chunks come together, and a commit waits for them
CLOSE_S = 2.0


class Drifting:
    """tallying: for the pipeline. hook: for whoever commits. agent: of windows."""

    def __init__(
        self,
        versions: LoadedVersions,
        tallying: VersionTallies,
        hook: PaneChunks,
        output: SideOutput,
        agent: DriftAgent,
    ) -> None:
        self._versions, self._output = versions, output
        self.tallying, self.hook, self.agent = tallying, hook, agent
        self._topic: BatchTopic | None = None

    def reading(self) -> DriftReading:
        """What the metrics show."""
        agent = self.agent
        return DriftReading(
            self.hook.chunks, self._output.lost, agent.troubles, dict(agent.told), dict(agent.changes)
        )  # fmt: skip

    def join(self, app: App) -> None:
        """Give the Faust app its agent."""
        self._topic = batches(app, 1)
        app.agent(self._topic, name="drift")(self.agent.agent)

    def refresh(self) -> None:
        self.tallying.refresh(self._versions.loaded())

    def run(self, closing: threading.Event) -> None:
        """Look for new references, in a thread of its own, until the worker closes."""
        while not closing.wait(LOOK_S):
            self.refresh()

    def read(self, closing: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        """Read for the agent, in a thread of its own, until the worker closes."""
        assert self._topic is not None  # noqa: S101
        self.agent.run(closing, self._topic, loop)

    def close(self) -> None:
        self._output.close(CLOSE_S)


def make_drifting(
    clients: Clients,
    catalogue: Catalogue,
    topics: Topics,
    ids: SchemaIds,
    versions: LoadedVersions,
    custody: Custody,
    worker: str,
    end_of: Callable[[TopicPartition], int | None],
    stable: Callable[[], str],
) -> Drifting | None:
    """A worker's; None where its topology does not ask for it.

    Raises:
        StreamserveError: its topics can't be looked at.
    """
    topology, admin = catalogue.topology, clients.admin()
    drift, source = topology.drift, topology.source.topic
    if drift is None:
        return None
    topic = topology.topic("panes")
    panes = Panes(drift.pane // MS, round(drift.share * ALL_BP), drift.segment)
    most_bytes = topics.max_bytes([topic])[topic]
    output = SideOutput(clients, most_bytes, LINGER_MS)
    chunk = partial(
        pane_chunk.encode,
        topology=topology.name,
        worker=worker,
        schema_id=ids.id_of(f"{topic}-value", pane_chunk.SCHEMA_TEXT),
    )
    hook = PaneChunks(
        output, topic, chunk, most_bytes - RECORD_OVERHEAD, panes.share_bp, end_of, time.monotonic, time.thread_time
    )
    custody.hooks.append(hook)
    tallying = VersionTallies(Registry(clients.settings.registry), catalogue, versions.ready, panes)
    agent = DriftAgent(
        clients,
        topology,
        drift,
        worker=worker,
        schema_id=ids.id_of(f"{topology.topic('drift')}-value", drift_window.SCHEMA_TEXT),
        sources=lambda: {source: clients.partitions(admin, source)},
        owns=lambda: (source, 0) in custody.partitions,
        reference=lambda series: tallying.reference(series.version, series.reference),
        stable=stable,
    )
    found = Drifting(versions, tallying, hook, output, agent)
    found.refresh()
    return found
