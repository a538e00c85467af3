"""Explaining a prediction: its event read in full, its features and score computed again by the worker's own code.

Pure: records come as bytes, the store and the session from outside. What the store says is what it says *now*; where
the score differs from the recorded one, the differences that are known are told, and nothing is guessed.
"""

from __future__ import annotations

import base64
import datetime as dt
import io
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fastavro
import numpy as np

from streamserve.errors import ConfigError
from streamserve.features.buffers import Texts
from streamserve.features.catalogue import Catalogue
from streamserve.features.columns import BatchColumns
from streamserve.features.rows import Answer, FeatureStore, event_keys
from streamserve.models.manifest import Input, Manifest
from streamserve.models.plan import FeaturePlan
from streamserve.models.session import Session
from streamserve.pipeline.avro import refuse_bomb, walker
from streamserve.pipeline.enrich import build_matrix, open_columns
from streamserve.pipeline.framing import HEADER
from streamserve.pipeline.schemas import EventSchema, WriterSchemas, parse_node
from streamserve.pipeline.score import Scorer
from streamserve.records import EventBatch, FeatureMatrix, FeatureStatus, RawBatch, Scores
from streamserve.simulate.offline import Offline
from streamserve.topology import Source, View

EPOCH = dt.datetime.fromtimestamp(0, dt.UTC)


class UnreadableError(ValueError):
    """A record that is not what its topic promises. It says why."""


class FramedReader:
    """Avro values in the Confluent wire format as dicts, with all the fields that their writers wrote."""

    def __init__(self, writers: WriterSchemas) -> None:
        self._writers = writers
        self._parsed: dict[int, tuple[Callable[[bytes], None], Any]] = {}

    def read(self, value: bytes | None) -> dict[str, Any]:
        """Raises UnreadableError."""
        if value is None or len(value) < HEADER or value[0] != 0:
            raise UnreadableError("it is not in the Confluent wire format")
        check, schema = self._schema(int.from_bytes(value[1:HEADER], "big"))
        try:
            check(value[HEADER:])
            found = fastavro.schemaless_reader(io.BytesIO(value[HEADER:]), schema, None)
        except Exception as error:
            raise UnreadableError(f"{type(error).__name__}: {str(error)[:200]}") from error
        if not isinstance(found, dict):
            raise UnreadableError("it is no record")
        return found

    def _schema(self, schema_id: int) -> tuple[Callable[[bytes], None], Any]:
        """The schema, and a walk that refuses what would keep fastavro busy for ever: see `pipeline.avro`."""
        if schema_id not in self._parsed:
            text = self._writers.writer_schema(schema_id)
            if text is None:
                raise UnreadableError(f"nobody knows schema id {schema_id}")
            try:
                node = parse_node(text)
                refuse_bomb(node)
                self._parsed[schema_id] = walker(node), fastavro.parse_schema(json.loads(text))
            except Exception as error:
                raise UnreadableError(f"schema id {schema_id} is no Avro schema: {str(error)[:200]}") from error
        return self._parsed[schema_id]


def read_event(source: Source, value: bytes | None, reader: FramedReader) -> dict[str, Any]:
    """All fields of an event. Raises UnreadableError."""
    if source.format == "avro":
        return reader.read(value)
    try:
        found = json.loads(value or b"")
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"it is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UnreadableError("it is no JSON object")
    return found


def jsonable(value: Any) -> Any:
    """A decoded value as JSON holds it: ISO times in UTC, bytes as base64, NaN and infinities as strings."""
    if isinstance(value, dict):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, frozenset)):
        return [jsonable(inner) for inner in value]
    if isinstance(value, dt.datetime):
        return iso(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def iso(moment: dt.datetime | int) -> str:
    """A time in UTC to the millisecond. A number: milliseconds since 1970."""
    if isinstance(moment, int):
        try:
            moment = EPOCH + dt.timedelta(milliseconds=moment)
        except OverflowError:
            return f"{moment} ms"
    if moment.tzinfo is None:
        return moment.isoformat(timespec="milliseconds")
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def source_position(prediction_id: str, topic: str) -> tuple[int, int]:
    """Partition and offset of a prediction id, `<source topic>-<partition>-<offset>`.

    Raises:
        ConfigError: it is none, or of another topic.
    """
    named, _, offset = prediction_id.rpartition("-")
    named, _, partition = named.rpartition("-")
    if not (named and partition.isdecimal() and offset.isdecimal()):
        raise ConfigError(
            f"{prediction_id!r} is no prediction id",
            mend=f"write <source topic>-<partition>-<offset>, e.g. {topic}-0-12",
        )
    if named != topic:
        raise ConfigError(
            f"{prediction_id!r} is of topic {named!r}, the topology's source is {topic!r}",
            mend="name the topology that made this prediction",
        )
    return int(partition), int(offset)


@dataclass(frozen=True, slots=True)
class FedFeature:
    """One feature of one model input. value: before coding; fed: what the model's input holds, in `dtype`."""

    input: str
    dtype: str
    position: int
    name: str
    kind: str
    value: object
    fed: object
    view: str | None = None


@dataclass(frozen=True, slots=True)
class ViewState:
    """What a view has for this event now. age_ms: of the row at the event's own time; negative: from after it."""

    name: str
    key: tuple[str | None, ...]
    status: FeatureStatus
    recorded: str | None
    feature_time: int | None = None
    age_ms: int | None = None

    @property
    def differs(self) -> bool:
        return self.recorded is not None and self.recorded != self.status.name

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "name": self.name,
            "key": list(self.key),
            "status": self.status.name,
            "recorded_status": self.recorded,
            "feature_time": None if self.feature_time is None else iso(self.feature_time),
            "age_s": None if self.age_ms is None else self.age_ms / 1000,
        }


@dataclass(frozen=True, slots=True)
class ScorePair:
    name: str
    recorded: float | None
    recomputed: float | None

    @property
    def equal(self) -> bool:
        """Every bit the same."""
        if self.recorded is None or self.recomputed is None:
            return False
        return struct.pack("<d", self.recorded) == struct.pack("<d", self.recomputed)


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What a version says of one event now, beside what was recorded."""

    event_time: int
    features: tuple[FedFeature, ...] = ()
    views: tuple[ViewState, ...] = ()
    scores: tuple[ScorePair, ...] = ()
    decision: str | None = None
    reject: str | None = None
    grounds: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return bool(self.scores) and all(pair.equal for pair in self.scores)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "event_time": iso(self.event_time),
            "features": [jsonable(asdict(feature)) for feature in self.features],
            "views": [view.plain() for view in self.views],
            "scores": [jsonable({**asdict(pair), "equal": pair.equal}) for pair in self.scores],
            "decision": self.decision,
            "reject": self.reject,
            "equal": self.equal,
            "grounds": list(self.grounds),
        }


class Recomputing:
    """A version of a topology, ready to be asked again about single events."""

    def __init__(
        self,
        catalogue: Catalogue,
        schema: EventSchema,
        store: FeatureStore,
        writers: WriterSchemas,
        version: tuple[Manifest, Session],
    ) -> None:
        self._manifest, session = version
        self._plan = FeaturePlan.of(self._manifest, catalogue)
        self._pins = {view.name: view for view in self._plan.views}
        self._scorer = Scorer(self._manifest, session)
        self._watched = _Watched(store)
        self._catalogue = catalogue
        needs_writers = catalogue.topology.source.format == "avro"
        self._offline = Offline(catalogue, schema, self._watched, writers=writers if needs_writers else None)

    def of(self, raw: RawBatch, recorded: Mapping[str, Any]) -> Recomputed:
        """raw: the source record alone. recorded: its prediction, as it was read."""
        events = self._offline.decode(raw)
        if events.rejects:
            first = events.rejects[0]
            return Recomputed(-1, reject=f"{first.stage}: {first.error}: {first.message}")
        columns = open_columns(self._catalogue, events, [self._plan], self._watched)
        matrix = build_matrix(self._manifest.version, self._plan, columns, np.arange(1))
        scores = self._scorer.score(matrix, events.rows)
        rejects = (*matrix.rejects, *scores.rejects)
        views = self._views(events, columns, recorded)
        pairs = _pairs(scores, recorded.get("scores") or {})
        return Recomputed(
            event_time=int(events.event_times[0]),
            features=tuple(self._fed(matrix, columns)) if len(matrix.rows) else (),
            views=views,
            scores=pairs,
            decision=_decision(scores),
            reject=f"{rejects[0].stage}: {rejects[0].error}: {rejects[0].message}" if rejects else None,
            grounds=() if all(pair.equal for pair in pairs) else _grounds(views, recorded),
        )

    def _fed(self, matrix: FeatureMatrix, columns: BatchColumns) -> Sequence[FedFeature]:
        found: list[FedFeature] = []
        for given in self._plan.inputs:
            flat = matrix.inputs[given.name].reshape(-1)
            found += self._fed_input(given, flat, columns)
        return found

    def _fed_input(self, given: Input, flat: Any, columns: BatchColumns) -> Sequence[FedFeature]:
        position, found = 0, []
        for name in given.features:
            atom = self._catalogue.pick(name)
            part = flat[position : position + atom.width]
            kind, fed = atom.feature.kind, _plain(part if atom.width > 1 else part[0])
            view = atom.feature.view.name if atom.feature.kind == "stored" else None
            value = fed if view else _first(columns, name, self._pins)
            found.append(FedFeature(given.name, given.dtype, position, name, kind, value, fed, view))
            position += atom.width
        return found

    def _views(self, events: EventBatch, columns: BatchColumns, recorded: Mapping[str, Any]) -> tuple[ViewState, ...]:
        statuses = recorded.get("feature_status") or {}
        found = []
        for view in self._plan.views:
            [keys] = event_keys([view], Texts(events))
            row = self._watched.rows.get(keys.distinct[keys.index[0]]) if keys.index[0] >= 0 else None
            time = struct.unpack_from("<q", row)[0] if row is not None and len(row) >= struct.calcsize("<q") else None
            found.append(
                ViewState(
                    name=view.name,
                    key=tuple(_text(events.columns.column(path)[0].as_py()) for path in view.key),
                    status=FeatureStatus(int(columns.stored.view(view).status[0])),
                    recorded=statuses.get(view.name),
                    feature_time=time,
                    age_ms=None if time is None else int(events.event_times[0]) - time,
                )
            )
        return tuple(found)


class _Watched:
    """Passes questions on to the store and keeps the rows that came."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self.rows: dict[bytes, bytes] = {}

    def fetch(self, keys: Sequence[bytes]) -> Answer:
        answer = self._store.fetch(keys)
        self.rows.update({k: row for k, row in zip(keys, answer.values or (), strict=False) if row is not None})
        return answer


def _pairs(scores: Scores, recorded: Mapping[str, float]) -> tuple[ScorePair, ...]:
    found = dict(zip(scores.names, scores.values[0].tolist(), strict=True)) if len(scores.rows) else {}
    names = dict.fromkeys((*found, *recorded))
    return tuple(ScorePair(name, recorded.get(name), found.get(name)) for name in names)


def _decision(scores: Scores) -> str | None:
    place = int(scores.decisions[0]) if len(scores.rows) else -1
    return scores.labels[place] if place >= 0 else None


def _grounds(views: Sequence[ViewState], recorded: Mapping[str, Any]) -> tuple[str, ...]:
    """What is known of why a score is not the recorded one."""
    found = [
        f"view {v.name} was {v.recorded} when it was scored, and is {v.status.name} now" for v in views if v.differs
    ]
    scored = recorded.get("scored_at")
    if scored is not None:
        scored_ms = int(scored.timestamp() * 1000)
        found += [
            f"the row of view {v.name} is of a time after the scoring: it was written anew"
            for v in views
            if v.feature_time is not None and v.feature_time > scored_ms
        ]
    if views:
        found.append("rows of views may have been written anew since: the store keeps the latest only")
    return tuple(found)


def _first(columns: BatchColumns, name: str, pins: Mapping[str, View]) -> object:
    """A feature's own value, before it is coded or cast; None for null."""
    column = columns.column(name, pins)
    if column.valid is not None and not column.valid[0]:
        return None
    return _plain(column.values[0])


def _plain(value: Any) -> object:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _text(value: object) -> str | None:
    return None if value is None else str(value)
