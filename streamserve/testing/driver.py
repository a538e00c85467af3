"""The test driver: events in, predictions and dead letters out, by the worker's own pipeline."""

from __future__ import annotations

import datetime as dt
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamserve import __version__
from streamserve.adapters.onnx import OnnxSession
from streamserve.errors import ConfigError
from streamserve.features.catalogue import Catalogue
from streamserve.features.rows import Answer
from streamserve.headers import header_column, unpack
from streamserve.models.registry import Registry
from streamserve.models.session import Session
from streamserve.pipeline.decode import EventDecoder
from streamserve.pipeline.emit import TimestampLimits
from streamserve.pipeline.pipeline import LoadedVersion, Pipeline
from streamserve.pipeline.pipeline import Result as BatchResult
from streamserve.pipeline.prediction import PINNED_ID
from streamserve.pipeline.schemas import EventSchema
from streamserve.records import ControlView, FeatureStatus, RawBatch, RoutingEpoch, binary
from streamserve.simulate.adding import NewVersion, add_version
from streamserve.simulate.describe import check_features
from streamserve.simulate.versions import LoadedVersions
from streamserve.testing.given import Encoder, Record, Schemas, ViewRows, Writers, event_schema, milliseconds, packed
from streamserve.testing.result import DeadLetter, Result, read_prediction
from streamserve.topology import Topology, load_topology

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


class TestDriver:
    """A topology with one model version in force, ready to be given events.

    Args:
        topology: a topology, or the file of one.
        model: an ONNX file, or a session such as `StubModel`.
        schemas: the folder of event schemas; or the schemas themselves, by file name.
        vocabularies: of each category, the values in the order that training used.
        views: rows of the stored views: {view: {key: (feature time, {field: value})}}. The time is milliseconds since
            1970, or a datetime with a zone. A composite key is a tuple; a field that is left out is unknown, and
            becomes the view's default.
        inputs: features of each model input, where they are not to be found by name.
        now: the wall clock of the worker; it stands still.

    `outage` plays a store that does not answer: set it to FeatureStatus.TIMEOUT or DEFAULTED, and back to None.

    Raises:
        StreamserveError: the topology, its schema, the model and the rows don't fit together; says where.
    """

    __test__ = False  # its name makes pytest think that it is a test

    def __init__(
        self,
        topology: Topology | str | Path,
        *,
        model: Session | str | Path,
        schemas: Schemas = "schemas",
        vocabularies: Mapping[str, Sequence[str]] | None = None,
        views: ViewRows | None = None,
        inputs: Mapping[str, Sequence[str]] | None = None,
        now: dt.datetime = NOON,
        version: str = "test",
    ) -> None:
        found = topology if isinstance(topology, Topology) else load_topology(Path(topology))
        catalogue, schema = Catalogue(found), event_schema(found, schemas)
        with tempfile.TemporaryDirectory() as folder:
            file = _model_file(model, Path(folder))
            new = NewVersion(
                version,
                file,
                NOON,
                {name: tuple(values) for name, values in (vocabularies or {}).items()},
                dict(inputs or {}),
            )
            registry = Registry(Path(folder) / "registry")

            def load(path: Path) -> Session:
                return OnnxSession(path) if isinstance(model, (str, Path)) else model

            add_version(registry, catalogue, schema, new, load=load, release=__version__)
            loaded = LoadedVersions(registry, catalogue, schema, load, warm_rows=())
            loaded.get(version)
        self._join(catalogue, schema, loaded, version, schemas, views or {}, now)

    @classmethod
    def from_registry(
        cls,
        topology: Topology | str | Path,
        version: str,
        *,
        registry: str | Path = "registry",
        schemas: Schemas = "schemas",
        views: ViewRows | None = None,
        now: dt.datetime = NOON,
    ) -> TestDriver:
        """A driver of a version as it stands in a registry: hash, signature and golden set checked."""
        found = topology if isinstance(topology, Topology) else load_topology(Path(topology))
        catalogue, schema = Catalogue(found), event_schema(found, schemas)
        loaded = LoadedVersions(Registry(Path(registry)), catalogue, schema, OnnxSession, warm_rows=())
        loaded.get(version)
        driver = cls.__new__(cls)
        driver._join(catalogue, schema, loaded, version, schemas, views or {}, now)  # noqa: SLF001  (its own class)
        return driver

    def _join(
        self,
        catalogue: Catalogue,
        schema: EventSchema,
        loaded: LoadedVersions,
        version: str,
        schemas: Schemas,
        views: ViewRows,
        now: dt.datetime,
    ) -> None:
        check_features(catalogue, schema)
        topology = catalogue.topology
        self.outage: FeatureStatus | None = None
        self._now = milliseconds(now)
        self._version: LoadedVersion = loaded.get(version)
        self._catalogue, self._source = catalogue, topology.source
        self._offsets = itertools.count()
        self._rows = dict(packed(catalogue.views, views))
        writers = Writers(topology, schema, schemas)
        self._encoder = Encoder(topology.source, schema, writers.own_id)
        decoder = EventDecoder(
            schema,
            format=topology.source.format,
            paths=catalogue.paths(),
            event_time=topology.source.event_time,
            writers=writers if topology.source.format == "avro" else None,
        )
        self._control = ControlView(topology.name, (RoutingEpoch(0, version),))
        self._pipeline = _Watched(
            catalogue,
            decoder,
            loaded,
            self,
            schema_id=PINNED_ID,
            limits=TimestampLimits(),
            release=__version__,
            clock_ns=lambda: 0,
        )

    def score(self, events: Sequence[Record | Mapping[str, Any] | bytes | None]) -> list[Result]:
        """What becomes of these events, given as one micro-batch; one result for each, in their order.

        Offsets go on from one call to the next.

        Raises:
            ConfigError: a dict can't be encoded. An Avro event must fit the event schema; a JSON event that does not
                becomes what a worker would make of it.
        """
        records = [event if isinstance(event, Record) else Record(event) for event in events]
        raw = self._raw(records)
        batch = self._pipeline.process(raw, self._control, self._now)
        fed = self._fed(self._pipeline.last)
        found: dict[int, Result] = {}
        for out in batch.outgoing:
            for at, row in enumerate(out.rows.tolist()):
                if row in found:
                    raise AssertionError(f"event {row} caused two records")
                key, value = out.keys[at].as_py(), out.values[at].as_py()
                headers = [] if out.headers is None else unpack(out.headers[at].as_py())
                if out.topic == self._catalogue.topology.topic("dead-letters"):
                    found[row] = Result(row, dead_letter=DeadLetter.read(key, value, headers))
                else:
                    stamp = int(out.timestamps[at])
                    said = read_prediction(value)
                    found[row] = Result(row, said, None, key, tuple(headers), stamp, fed[row])
        return [found[row] for row in range(len(records))]

    def fetch(self, keys: Sequence[bytes]) -> Answer:
        """The rows as a store has them; what the pipeline asks."""
        if self.outage is not None:
            return Answer(None, self.outage)
        return Answer([self._rows.get(key) for key in keys])

    def _raw(self, records: Sequence[Record]) -> RawBatch:
        count = len(records)
        stamps = [self._now if one.timestamp is None else milliseconds(one.timestamp) for one in records]
        return RawBatch(
            topic=self._source.topic,
            partitions=np.zeros(count, np.int32),
            offsets=np.array([next(self._offsets) for _ in records], np.int64),
            timestamps=np.array(stamps, np.int64),
            timestamp_types=np.ones(count, np.uint8),
            keys=binary([self._encoder.key(one) for one in records]),
            values=binary([self._encoder.value(place, one.value) for place, one in enumerate(records)]),
            headers=header_column([one.headers for one in records]),
        )

    def _fed(self, result: BatchResult) -> dict[int, dict[str, Any]]:
        """What the model was given of each scored event, by feature, under the event's place."""
        found: dict[int, dict[str, Any]] = {}
        for matrix in result.matrices:
            rows = result.events.rows[matrix.rows].tolist()
            found.update({row: {} for row in rows})
            for given in self._version.plan.inputs:
                flat, start = matrix.inputs[given.name].reshape(len(rows), -1) if rows else np.empty((0, 0)), 0
                for name in given.features:
                    stop = start + self._catalogue.pick(name).width
                    for row, values in zip(rows, flat[:, start:stop].tolist(), strict=True):
                        found[row][name] = values[0] if stop - start == 1 else values
                    start = stop
        return found


class _Watched(Pipeline):
    """The worker's pipeline; keeps what it knew of the last batch."""

    last: BatchResult

    def run(self, raw: RawBatch, view: ControlView) -> BatchResult:
        self.last = super().run(raw, view)
        return self.last


def _model_file(model: Session | str | Path, folder: Path) -> Path:
    if isinstance(model, (str, Path)):
        if not Path(model).is_file():
            raise ConfigError("there is no such model file", where=str(model), mend="name an ONNX file in model=")
        return Path(model)
    stand_in = folder / "stub"
    stand_in.write_bytes(b"")
    return stand_in
