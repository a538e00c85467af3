"""A worker: the Faust app with its agent, intake, versions and web pages, from start to a clean stop.

It joins its group only when everything that it needs is there and warm: topics, control log, model, store. What is
missing is one error that says how to mend it. SIGTERM finishes what is in flight, commits, leaves, exits 0; a second
one stops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from streamserve import __version__
from streamserve.adapters import memory
from streamserve.adapters.batch_topic import App, batches, make_app
from streamserve.adapters.control_state import Control
from streamserve.adapters.incarnation import Incarnations, worker_name
from streamserve.adapters.intake import Intake
from streamserve.adapters.kafka import Clients
from streamserve.adapters.metrics import CONTENT_TYPE, Metrics, Reading, Sent
from streamserve.adapters.onnx import OnnxSession
from streamserve.adapters.progress_log import ProgressLog
from streamserve.adapters.redis_store import RedisStore
from streamserve.adapters.rights import check_rights
from streamserve.adapters.schema_ids import schema_ids
from streamserve.adapters.topics import Topics, refuse
from streamserve.agents.audit import Audit
from streamserve.agents.drifting import make_drifting
from streamserve.agents.isolated import isolation
from streamserve.agents.preparing import Preparing
from streamserve.agents.presence import Presence
from streamserve.agents.scoring import Scoring
from streamserve.agents.shadowing import make_shadowing
from streamserve.agents.starting import about, decoder, faust_folder, unwritable
from streamserve.agents.trials import Trials
from streamserve.agents.web import Health, add_pages
from streamserve.control.state import State
from streamserve.delivery.custody import Custody
from streamserve.errors import ControlError, SettingsError, StreamserveError
from streamserve.features.catalogue import Catalogue
from streamserve.models.registry import Registry
from streamserve.models.session import SessionSettings
from streamserve.pipeline.pipeline import Pipeline
from streamserve.pipeline.prediction import SCHEMA_TEXT
from streamserve.records import ControlView, OutputBatch, RawBatch, Routed, TopicPartition
from streamserve.settings import Settings
from streamserve.simulate.describe import check_features
from streamserve.simulate.load import load_schema
from streamserve.simulate.versions import LoadedVersions
from streamserve.topology import Topology

LOG = logging.getLogger("streamserve.worker")
CONTROL_POLL_S = 0.2
EXIT_AT_ONCE = 130
JOIN_S = 3.0  # what the intake may take beyond the drain timeout, to leave its group


class Worker:
    """One process of a topology.

    Raises:
        StreamserveError: (from the constructor) something that it needs is missing, wrong or unreachable.
    """

    def __init__(self, topology: Topology, settings: Settings) -> None:
        memory.leave_pandas_out()
        self.topology, self.settings = topology, settings
        self.health = Health()
        self._failure: BaseException | None = None
        self._custody = Custody()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = threading.Event()
        catalogue = Catalogue(topology)
        schema = load_schema(settings, topology)
        check_features(catalogue, schema)
        self._clients = Clients(settings)
        topics = Topics(self._clients)
        group = f"streamserve.{topology.name}"
        check_rights(self._clients, topology, group)
        refuse(topics.plan(topology), unapplied=True)
        self._store = RedisStore(settings)
        if topology.views:
            self._store.check()
            self.health.store = self._store.reading
        self._progress = ProgressLog(self._clients, topology.name)
        self._control = Control(self._clients, topology.name, self._progress)
        self._check_control(catalogue)
        isolate = isolation(settings, topology, lambda: self._control.state, self._closing.is_set)
        versions = LoadedVersions(
            Registry(settings.registry),
            catalogue,
            schema,
            partial(OnnxSession, settings=SessionSettings.of(settings)),
            warm_rows=(1, settings.batch_rows),
            pinned=lambda: dict(self._control.state.manifests),
            isolate=lambda version: contextlib.closing(isolate(version)),
            proven=lambda: self._control.state.stables,
        )
        versions.get(self._control.state.stable)  # without it there is nothing to serve
        self._presence = Presence(self._clients, topology.name, worker_name(), self._progress, self._control)
        self._versions, self._preparing = versions, Preparing(versions, self._wanted, self._presence.prepared)
        self._preparing.serve()  # who joins later warms every version in force first
        ids = schema_ids(settings)
        predictions = topology.topic("predictions")
        self._drifting = make_drifting(
            self._clients, catalogue, topics, ids, versions, self._custody, worker_name(),
            lambda place: self._intake.end_of(place),  # noqa: PLW0108  (which is made later)
            lambda: self._control.state.stable,
        )  # fmt: skip
        pipeline = Pipeline(
            catalogue,
            decoder(catalogue, schema, ids, self._control.state.segments),
            Trials(versions, settings.candidate_deadline, settings.batches_in_flight),
            self._store,
            schema_id=ids.id_of(f"{predictions}-value", SCHEMA_TEXT),
            limits=topics.limits(predictions),
            release=__version__,
            clock_ns=time.monotonic_ns,
            tallying=None if self._drifting is None else self._drifting.tallying,
        )
        self.metrics = Metrics(topology.name, about(topology, settings), price=settings.core_hour_price)
        limits = topics.max_bytes([predictions, topology.topic("dead-letters")])
        admin = self._clients.admin()
        self._intake = Intake(
            Incarnations(self._clients, topology, group, self._progress, limits),
            topology,
            settings,
            self._control,
            lambda topic: self._clients.partitions(admin, topic),
            self._hand_over,
            self._fail,
            self._custody,
        )
        self.health.trouble = lambda: self._progress.silence() or self._intake.trouble()
        self._shadowing = make_shadowing(self._clients, topology, topics, self._control, versions, isolate)
        first = (topology.source.topic, 0)
        self._audit = Audit(
            self._clients, topology.name, topology.source.topic, self._control, worker_name(),
            lambda: first in self._custody.partitions,
        )  # fmt: skip
        self._scoring = Scoring(
            pipeline,
            self._intake,
            record=self._record,
            on_failure=self._fail,
            in_flight=settings.batches_in_flight,
            beside=self._shadowing.offer,
        )
        self._app = self._make_app()

    # ---- control

    def _check_control(self, catalogue: Catalogue) -> None:
        state = self._control.state
        self._refuse_held()
        if not state.initialised:
            raise ControlError(
                f"no version of {self.topology.name} is in force: the control log has no init of it",
                where="topic streamserve.control",
                mend="send one: `streamserve topology init <topology file> --version <version>`",
            )
        if state.model != self.topology.model:
            raise ControlError(
                f"the control log says that {self.topology.name} runs model {state.model!r}, "
                f"the topology file names {self.topology.model!r}",
                where="topic streamserve.control",
                mend="name the same model; another model is another topology",
            )
        if state.fingerprint and state.fingerprint != catalogue.fingerprint():
            LOG.warning("the topology file changed since init; versions are compared feature by feature")

    def _refuse_held(self) -> None:
        """A worker that can't judge a command must not reject what others accept: it leaves the group.

        Raises:
            ControlError: it holds.
        """
        if self._control.state.held:
            raise ControlError(
                f"this worker can't follow the control log any further: {self._control.state.held}",
                where="topic streamserve.control",
                mend="give it the secrets of the listed keys (STREAMSERVE_CONTROL_KEYS), or a newer release",
            )

    def _follow(self, log: Control | ProgressLog, read: Callable[[], None]) -> None:
        try:
            while not self._closing.is_set():
                read()
        except BaseException as error:  # noqa: BLE001  (a worker without its logs does not serve)
            self._fail(error)
        finally:
            log.close()

    def _beside(self, run: Callable[..., None], *args: object) -> None:
        try:
            run(*args)
        except BaseException as error:  # noqa: BLE001  (who can't prepare versions, or be heard, is no worker)
            self._fail(error)

    def _read_control(self) -> None:
        # A log that never comes to its end is no reason to stay
        self._control.read(CONTROL_POLL_S, until=self._closing.is_set)
        self._refuse_held()

    def _wanted(self) -> tuple[State, ControlView, Mapping[TopicPartition, int]]:
        """What versions are to be loaded by."""
        return self._control.state, self._control.view(), self._custody.begins()

    # ---- between the threads

    def _record(self, batch: OutputBatch, sent: Sent) -> None:
        self.metrics.record(batch, sent)
        self._presence.record(batch)

    def _hand_over(self, batch: RawBatch, view: ControlView) -> None:
        assert self._loop is not None  # noqa: S101  (the intake starts after the loop)
        self.metrics.took(batch)
        self._topic.hand_over(Routed(batch, view), self._loop)

    def _fail(self, error: BaseException) -> None:
        """From any thread: stop the worker with this error; what is not committed will be scored again."""
        self._failure = self._failure or error
        self._intake.abandon()
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    # ---- the app

    def _make_app(self) -> App:
        settings = self.settings
        app = make_app(
            f"streamserve-{self.topology.name}",
            web_host=settings.web_host,
            web_port=settings.web_port,
            datadir=str(faust_folder(settings.home)),
        )
        self._topic = batches(app, settings.batches_in_flight + 1)
        app.agent(self._topic, name="scoring")(self._agent)
        if self._drifting is not None:
            self._drifting.join(app)
        add_pages(app, self.health, self._exposition, CONTENT_TYPE)
        return app

    async def _agent(self, stream: Any) -> None:
        await self._scoring.agent(stream)

    def _exposition(self) -> bytes:
        intake = self._intake
        return self.metrics.exposition(
            Reading(
                partitions=intake.partitions,
                in_flight=intake.in_flight,
                commits=intake.custody.commits,
                aborts=intake.custody.aborts,
                incarnations=intake.incarnations,
                trouble=bool(self.health.why),
                lag=intake.lag(),
                store=self._store.reading(),
                shadow=self._shadowing.tally(),
                shadow_waiting=self._shadowing.waiting,
                shadow_lost=self._shadowing.lost,
                drift=None if self._drifting is None else self._drifting.reading(),
            )
        )

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            StreamserveError: what stopped it, if it was not a signal.
        """
        asyncio.run(self._main())
        if isinstance(self._failure, StreamserveError):
            raise self._failure
        if self._failure is not None:
            raise StreamserveError(
                f"the worker stopped: {type(self._failure).__name__}: {self._failure}",
                mend="nothing unfinished was committed; run with STREAMSERVE_LOG_LEVEL=DEBUG to see more",
            ) from self._failure

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        try:
            await self._app.start()
        except OSError as error:
            self._failure = (
                unwritable(error, str(error.filename))
                if error.filename is not None
                else SettingsError(
                    f"the pages can't be served: {error.strerror or error}",
                    where=f"{self.settings.web_host}:{self.settings.web_port}",
                    mend="name another port: --web-port, or STREAMSERVE_WEB_PORT; 0 takes a free one",
                )
            )
            await self._app.stop()
            return
        memory.set_up()
        gc.collect()
        gc.freeze()
        self._app.flow_control.resume()
        followers = [
            threading.Thread(target=self._follow, args=args, name=name, daemon=True)
            for name, *args in (
                ("control", self._control, self._read_control),
                ("progress", self._progress, self._progress.read),
            )
        ]
        followers += [
            threading.Thread(target=self._beside, args=args, name=name, daemon=True)
            for name, *args in (
                ("versions", self._preparing.run, self._closing),
                (
                    "status", self._presence.run, self._closing, self._intake, self._versions, self._preparing,
                    self.health, self._shadowing,
                ),
                ("shadow", self._shadowing.run, self._closing),
                ("audit", self._audit.run, self._closing),
                ("memory", memory.keep_trimmed, self._closing),
            )
        ]  # fmt: skip
        if self._drifting is not None:
            followers += [
                threading.Thread(target=self._beside, args=args, name=name, daemon=True)
                for name, *args in (
                    ("references", self._drifting.run, self._closing),
                    ("drift", self._drifting.read, self._closing, self._loop),
                )
            ]
        for follower in followers:
            follower.start()
        self._intake.start()
        self.health.serving = True
        pages = f"http://{self.settings.web_host}:{self._app.conf.web_port}"
        LOG.info(
            "serving %s, control epoch %d, pages at %s",
            self.topology.name,
            self._control.state.epochs[-1].number,
            pages,
        )
        await self._stop.wait()
        self.health.serving = False
        self._intake.stop()
        done = await asyncio.to_thread(self._intake.join, self.settings.drain_timeout + JOIN_S)
        if not done:
            self._fail(
                StreamserveError(
                    f"the worker did not come to rest within {self.settings.drain_timeout + JOIN_S:g} s",
                    where=self._clients.bootstrap,
                    mend="nothing is lost, what is not committed is scored again; check the broker",
                )
            )
        self._closing.set()
        for follower in followers:
            follower.join(2)
        self._scoring.close()
        self._store.close()
        if self._drifting is not None:
            self._drifting.close()
        with contextlib.suppress(asyncio.CancelledError):
            await self._app.stop()
        LOG.info("stopped after %d commits", self._intake.custody.commits)

    def _on_signal(self) -> None:
        assert self._stop is not None  # noqa: S101
        if self._stop.is_set():
            os._exit(EXIT_AT_ONCE)
        LOG.info("stopping: finishing what is in flight")
        self._stop.set()
