"""Verifying a topology's predictions from its topics alone: both logs, source, outputs; no group is joined.

What is read in which order makes the comparison exact while workers go on: first how far the group has committed, then
the logs, then the outputs. Below a committed offset nothing is routed anew, so the logs that are read later hold every
cutover there, and the topics every answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from confluent_kafka import KafkaException, TopicPartition

from streamserve import __version__
from streamserve.adapters.control_log import PROGRESS, LogReader, LogRecord
from streamserve.adapters.kafka import Clients, broker_error
from streamserve.adapters.onnx import OnnxSession
from streamserve.adapters.reading import Start, TopicReader
from streamserve.adapters.redis_store import RedisStore
from streamserve.adapters.schema_ids import SchemaIds, schema_ids
from streamserve.control import fold
from streamserve.control.state import State
from streamserve.delivery.progress import Progress
from streamserve.errors import ControlError, RedisError
from streamserve.features.catalogue import Catalogue
from streamserve.features.rows import Answer, FeatureStore
from streamserve.headers import unpack
from streamserve.models.registry import Registry
from streamserve.models.session import SessionSettings
from streamserve.pipeline.decode import EventDecoder
from streamserve.pipeline.emit import TimestampLimits
from streamserve.pipeline.pipeline import Pipeline
from streamserve.pipeline.prediction import SCHEMA_TEXT
from streamserve.pipeline.schemas import EventSchema
from streamserve.records import ControlView, RawBatch, Stage
from streamserve.settings import Settings
from streamserve.simulate.describe import check_features
from streamserve.simulate.letters import Origin
from streamserve.simulate.load import load_schema
from streamserve.simulate.offline import MemoryStore
from streamserve.simulate.said import SaidReader, Wording
from streamserve.simulate.standing import Span, Standing
from streamserve.simulate.verify import Report, StableAlone, Trying, Verifier
from streamserve.simulate.versions import LoadedVersions
from streamserve.topology import Topology

READ = 10_000  # records of an output topic that are looked at together: some 5 MB
ASK_S = 10.0
PATIENCE_S = 10.0  # for Redis: nobody waits for an answer here, and a default would be taken for another feature
EARLIER_MS = 1_000  # predictions carry their events' timestamps; a little earlier costs little
BEGINNING = Start("beginning")
Tell = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Range:
    """Which source events. until: milliseconds since 1970, not among them. last: of each partition, so many."""

    start: Start = BEGINNING
    until: int | None = None
    last: int | None = None


class Patient:
    """A store that answers, or ends the comparison: a default here is not what a worker had."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store

    def fetch(self, keys: Sequence[bytes]) -> Answer:
        found = self._store.fetch(keys)
        if found.values is None:
            raise RedisError(
                "Redis did not answer: without its rows scores can't be compared",
                mend="start it, or compare routing alone: --ignore-scores",
            )
        return found


class Verifying:
    """One comparison. Not for several threads; close it.

    Raises:
        StreamserveError: what is needed is missing, wrong or unreachable.
    """

    def __init__(self, topology: Topology, settings: Settings, wanted: Range, *, ignore_scores: bool = False) -> None:
        self._topology, self._settings, self._ignore_scores = topology, settings, ignore_scores
        self._clients, self._catalogue = Clients(settings), Catalogue(topology)
        self._schema = load_schema(settings, topology)
        check_features(self._catalogue, self._schema)
        self._ids = schema_ids(settings)
        self._source = TopicReader(self._clients, topology.source.topic)
        self._committed = _committed(self._clients, topology, self._source.partitions)
        self._spans = self._choose(wanted)
        self._state, self._view = read_logs(self._clients, topology.name)
        self._wording = Wording()
        self._standing = Standing(self._spans)
        self._said = self._said_reader()
        self._store: RedisStore | None = None

    @property
    def count(self) -> int:
        """Offsets that are looked at; events there may be fewer."""
        return len(self._standing)

    def close(self) -> None:
        self._source.close()
        if self._store is not None:
            self._store.close()

    def read(self, tell: Tell) -> None:
        """Read what stands. tell: how many records were read."""
        self._tell, self._records = tell, 0
        with self._output("dead-letters") as letters:
            self._take_all(letters, letters.spans(BEGINNING), self._take_letters)
        with self._output("predictions") as predictions:
            self._read_predictions(predictions)

    def compare(self, batch_rows: int, tell: Tell) -> Report:
        """Score again in batches of so many events. tell: how many events are done."""
        verifier = self._verifier(batch_rows)
        for partition, span in self._spans.items():
            for raw in self._source.batches({partition: span}, batch_rows):
                verifier.take(raw)
                tell(verifier.report.events)
        report = verifier.finish()
        report.unreadable, report.unloadable = self._said.unreadable, self._trying.unloadable
        return report

    # ---- what is compared

    def _choose(self, wanted: Range) -> dict[int, Span]:
        """From where to where, and nothing that is not committed yet, where the group's offsets are known."""
        # Of a group that has committed anywhere, a partition without an offset has nothing that is sure
        ends = {
            p: min(end, self._committed.get(p, low if self._committed else end))
            for p, (low, end) in self._held(BEGINNING).items()
        }
        if wanted.until is not None:
            later = self._held(Start("time", wanted.until))
            ends = {p: min(end, later[p][0]) for p, end in ends.items()}
        first = {p: low for p, (low, _) in self._held(wanted.start).items()}
        if wanted.last is not None:
            first = {p: max(low, ends[p] - wanted.last) for p, low in first.items()}
        return {p: (low, max(ends[p], low)) for p, low in first.items()}

    def _held(self, start: Start) -> dict[int, Span]:
        return self._source.spans(start)

    def _since(self) -> Start:
        """From when on the predictions of these events may be, most of them: they carry their events' timestamps."""
        beginning = self._held(BEGINNING)
        if all(span[0] == beginning[p][0] for p, span in self._spans.items()):
            return BEGINNING
        stamps = [time.time_ns() // 1_000_000]
        for partition, (first, end) in self._spans.items():
            for raw in self._source.batches({partition: (first, min(first + 1, end))}, 1):
                stamps += raw.timestamps.tolist()
        return Start("time", max(0, min(stamps) - EARLIER_MS))

    # ---- what stands

    def _said_reader(self) -> SaidReader:
        number = self._ids.id_of(f"{self._topology.topic('predictions')}-value", SCHEMA_TEXT)
        return SaidReader(self._topology.source.topic, number, self._wording)

    def _output(self, name: str) -> TopicReader:
        return TopicReader(self._clients, self._topology.topic(name))

    def _read_predictions(self, reader: TopicReader) -> None:
        """From about where they begin to matter; and those before, if some are missing."""

        def take(raw: RawBatch) -> None:
            self._standing.predictions(self._said.read(raw.values))

        since = self._since()
        spans = reader.spans(since)
        self._take_all(reader, spans, take)
        # Beyond an open transaction nothing is shown; those of then have ended by now
        self._take_all(reader, {p: (spans[p][1], end) for p, (_, end) in reader.spans(BEGINNING).items()}, take)
        if since != BEGINNING and self._standing.unanswered():
            earlier = {p: (low, spans[p][0]) for p, (low, _) in reader.spans(BEGINNING).items()}
            self._take_all(reader, earlier, take)

    def _take_all(self, reader: TopicReader, spans: Mapping[int, Span], take: Callable[[RawBatch], None]) -> None:
        for raw in reader.batches(spans, READ):
            take(raw)
            self._records += len(raw)
            self._tell(self._records)

    def _take_letters(self, raw: RawBatch) -> None:
        """Letter by letter: they are few, and tell of their events in headers."""
        read = [unpack(one) for one in ([] if raw.headers is None else raw.headers.to_pylist())]
        found = [(headers, origin) for headers in read if (origin := Origin.of(headers)) is not None]
        mine = [(headers, origin) for headers, origin in found if origin.topic == self._topology.source.topic]
        self._standing.letters(
            np.array([origin.partition for _, origin in mine], np.int64),
            np.array([origin.offset for _, origin in mine], np.int64),
            np.array([_stage(headers) == Stage.EMIT for headers, _ in mine], np.bool_),
        )

    # ---- what is said again

    def _verifier(self, batch_rows: int) -> Verifier:
        settings, pinned = self._settings, dict(self._state.manifests)
        versions = LoadedVersions(
            Registry(settings.registry),
            self._catalogue,
            self._schema,
            partial(OnnxSession, settings=SessionSettings.of(settings)),
            warm_rows=(batch_rows,),
            pinned=lambda: pinned,
        )
        self._trying, alone = Trying(versions), StableAlone(versions)
        store = self._open_store()
        return Verifier(
            self._pipeline(self._trying, store),
            self._pipeline(alone, store),
            self._view,
            self._said_reader(),
            self._wording,
            self._standing,
            {p: self._committed.get(p, end) for p, end in self._standing.highest().items()},
            now_ms=time.time_ns() // 1_000_000,
            ignore_scores=self._ignore_scores,
        )

    def _pipeline(self, versions: Trying, store: FeatureStore) -> Pipeline:
        return Pipeline(
            self._catalogue,
            _decoder(self._catalogue, self._state, self._ids, self._schema),
            versions,
            store,
            schema_id=self._ids.id_of(f"{self._topology.topic('predictions')}-value", SCHEMA_TEXT),
            limits=TimestampLimits(),
            release=__version__,
            clock_ns=time.monotonic_ns,
        )

    def _open_store(self) -> FeatureStore:
        if not self._topology.views:
            return MemoryStore({})
        if self._ignore_scores and not self._settings.redis_url:
            return MemoryStore({})
        self._store = RedisStore(self._settings.model_copy(update={"store_timeout": PATIENCE_S}))
        self._store.check()
        return Patient(self._store)


def _stage(headers: Sequence[tuple[str, bytes | None]]) -> str:
    return next((value or b"").decode() for name, value in reversed(headers) if name == "streamserve.stage")


def _committed(clients: Clients, topology: Topology, partitions: int) -> dict[int, int]:
    """How far the workers' group has committed, by partition; one that it has no offset of is left out."""
    topic, group = topology.source.topic, f"streamserve.{topology.name}"
    # What is pending in a transaction is not committed: a reader of committed records would be told to wait for it
    asker = clients.consumer(group, isolation_level="read_uncommitted")
    try:
        found = asker.committed([TopicPartition(topic, p) for p in range(partitions)], ASK_S)
    except KafkaException as error:
        raise broker_error(error.args[0], f"committed offsets of group {group}") from None
    finally:
        asker.close()
    for tp in found:
        if tp.error is not None:
            raise broker_error(tp.error, f"committed offset of {topic}-{tp.partition} in group {group}")
    return {tp.partition: tp.offset for tp in found if tp.offset >= 0}


def read_logs(clients: Clients, topology: str) -> tuple[State, ControlView]:
    """Both logs folded to their ends.

    Raises:
        ControlError: no version was ever in force, or the fold can't go on here.
    """
    progress = Progress(topology)
    for record in _whole(clients, PROGRESS):
        progress.step(record.offset, record.value)
    state = State(topology)
    # Read after the other: a cutover is written by a worker that has read its command
    for command in _whole(clients):
        secrets = clients.settings.control_secrets
        state, _ = fold.step(state, command.offset, command.value, command.headers, secrets)
    if state.held:
        raise ControlError(
            f"the control log can't be followed any further here: {state.held}",
            where="topic streamserve.control",
            mend="give the secrets of the listed keys (STREAMSERVE_CONTROL_KEYS), or use a newer release",
        )
    if not state.initialised:
        raise ControlError(
            f"no version of {topology} is in force: the control log has no init of it",
            where="topic streamserve.control",
            mend="send one: `streamserve topology init <topology file> --version <version>`",
        )
    return state, state.view(progress.cutovers())


def _whole(clients: Clients, *topic: str) -> Iterator[LogRecord]:
    reader = LogReader(clients, *topic)
    try:
        yield from reader.to_end()
    finally:
        reader.close()


def _decoder(catalogue: Catalogue, state: State, ids: SchemaIds, schema: EventSchema) -> EventDecoder:
    source = catalogue.topology.source
    return EventDecoder(
        schema,
        format=source.format,
        paths={*catalogue.paths(), *state.segments},
        event_time=source.event_time,
        writers=ids if source.format == "avro" else None,
    )
