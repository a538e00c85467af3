"""What a user writes: one typed Python file a topology, checked as it is read.

Import the words from here, name one `Topology`, and hand the file to `streamserve check`. Nothing in this module
opens a connection, reads a model or knows how a feature is computed.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from streamserve.errors import TopologyError

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=120)]
TopicName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]+$", max_length=200)]
Path_ = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")]
Names = Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)]
Part = Literal["minute", "hour", "weekday", "day", "month", "dayofyear"]
Column: TypeAlias = NDArray[np.generic]
MOST_PANES = 1_000  # of a drift window
FLOAT32_MAX = float(np.finfo(np.float32).max)


class _Word(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Source(_Word):
    """Where events come from.

    Args:
        topic: the source topic.
        schema: Avro schema file of the events, relative to the schemas folder; describes JSON events too.
        format: "avro" (Confluent wire format) or "json".
        key: path of the entity key; the record key where the producers set it from this path.
        event_time: path of the event's own time; None: the record's timestamp.
        id: path of the event's own id, carried into predictions; None: no id but the position.
        partitions: how many `streamserve topics apply` creates.
    """

    topic: TopicName
    schema_file: str = Field(alias="schema")
    format: Literal["avro", "json"] = "avro"
    key: Path_ | None = None
    event_time: Path_ | None = None
    id: Path_ | None = None
    partitions: int = Field(default=6, ge=1, le=10_000)

    def __init__(self, topic: str, **data: Any) -> None:
        data["topic"] = topic
        super().__init__(**data)


class View(_Word):
    """A feature view: rows of float32 in Redis, a row a key.

    Args:
        key: event path, or several, whose values make the row's key.
        max_age: how old a row may be at the event's own time before it is STALE; None: any age.
        stale: whether a STALE row's values are used or replaced by the defaults.
        future: the same for a row computed after the event's own time.
        default: what stands in where there is no value: one number for all fields, or one a field in their order.
    """

    name: Name
    key: Names = Field(min_length=1)
    fields: tuple[Name, ...] = Field(min_length=1, max_length=4096)
    max_age: timedelta | None = Field(default=None, ge=timedelta(0))
    stale: Literal["use", "default"] = "default"
    future: Literal["use", "default"] = "use"
    default: float | tuple[float, ...] = float("nan")

    def __init__(self, name: str, **data: Any) -> None:
        data["name"] = name
        super().__init__(**data)

    @model_validator(mode="after")
    def _defaults_fit_fields(self) -> Self:
        if isinstance(self.default, tuple) and len(self.default) != len(self.fields):
            raise ValueError(f"view {self.name}: {len(self.default)} defaults for {len(self.fields)} fields")
        if len(set(self.fields)) != len(self.fields):
            raise ValueError(f"view {self.name}: a field is named twice")
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        if large := [value for value in values if FLOAT32_MAX < abs(value) < math.inf]:
            raise ValueError(f"view {self.name}: default {large[0]} is more than a float32 holds")
        return self

    def defaults(self) -> NDArray[np.float32]:
        """The default row, float32 [len(fields)]."""
        return np.broadcast_to(np.array(self.default, np.float32), (len(self.fields),))


class FieldFeature(_Word):
    kind: Literal["field"] = "field"
    name: Name
    path: Path_
    default: float | None = None


class TextFeature(_Word):
    kind: Literal["text"] = "text"
    name: Name
    path: Path_
    default: str = ""


class CategoryFeature(_Word):
    kind: Literal["category"] = "category"
    name: Name
    path: Path_


class PartsFeature(_Word):
    kind: Literal["parts"] = "parts"
    path: Path_
    parts: tuple[Part, ...] = Field(min_length=1)
    tz: str = "UTC"
    prefix: str = ""


class VectorFeature(_Word):
    kind: Literal["vector"] = "vector"
    name: Name
    path: Path_
    length: int = Field(ge=1, le=1_000_000)


class DerivedFeature(_Word):
    kind: Literal["derived"] = "derived"
    name: Name
    function: Callable[..., Column] = Field(exclude=True)
    of: Names
    version: int = 1


class StoredFeature(_Word):
    kind: Literal["stored"] = "stored"
    view: View


Feature = Annotated[
    FieldFeature | TextFeature | CategoryFeature | PartsFeature | VectorFeature | DerivedFeature | StoredFeature,
    Field(discriminator="kind"),
]


def field(path: str, *, name: str | None = None, default: float | None = None) -> FieldFeature:
    """A number or boolean of the event. A null becomes `default`, or NaN where the model's input is a float."""
    return FieldFeature(name=name or path, path=path, default=default)


def text(path: str, *, name: str | None = None, default: str = "") -> TextFeature:
    """A string of the event, handed to a model whose input is a string. A null becomes `default`."""
    return TextFeature(name=name or path, path=path, default=default)


def category(path: str, *, name: str | None = None) -> CategoryFeature:
    """A string, integer or boolean coded by the version's vocabulary: 0 missing, 1 unseen, 2.. known values."""
    return CategoryFeature(name=name or path, path=path)


def parts(path: str, *wanted: Part, tz: str = "UTC", prefix: str = "") -> PartsFeature:
    """Parts of a timestamp, each a feature of its own; weekday counts from Monday = 0."""
    return PartsFeature(path=path, parts=wanted, tz=tz, prefix=prefix)


def vector(path: str, length: int, *, name: str | None = None) -> VectorFeature:
    """An array<float|double|int> of exactly this length; an event with another length is a dead letter."""
    return VectorFeature(name=name or path, path=path, length=length)


def derived(
    name: str, function: Callable[..., Column], *, of: str | tuple[str, ...], version: int = 1
) -> DerivedFeature:
    """Columns in, column out: `function` gets one numpy array for each name in `of`, returns one as long.

    `of` names features or event paths. Numbers arrive as float64 with NaN for null, strings as object arrays.
    Raise `version` when the function's meaning changes: model versions pin it.
    """
    return DerivedFeature(name=name, function=function, of=of, version=version)


def stored(view: View) -> StoredFeature:
    """All fields of a view, each a feature named `view.field`."""
    return StoredFeature(view=view)


class Output(_Word):
    """One named score: a column of a model output, or the whole row of it (column None)."""

    tensor: str
    column: int | None = Field(default=None, ge=0)


def output(tensor: str, *, column: int | None = None) -> Output:
    """A model output by name; one column of it, or all of them."""
    return Output(tensor=tensor, column=column)


class Threshold(_Word):
    kind: Literal["threshold"] = "threshold"
    output: str
    at: float
    labels: tuple[str, str] = ("false", "true")


class Argmax(_Word):
    kind: Literal["argmax"] = "argmax"
    output: str
    labels: tuple[str, ...] | None = None


Decision = Annotated[Threshold | Argmax, Field(discriminator="kind")]


def threshold(output: str, at: float, *, labels: tuple[str, str] = ("false", "true")) -> Threshold:
    """The second label where the score is at least `at`, the first below; no decision for NaN."""
    return Threshold(output=output, at=at, labels=labels)


def argmax(output: str, *, labels: tuple[str, ...] | None = None) -> Argmax:
    """The label of the largest column of a whole-row output (the first of equals); its number without labels."""
    return Argmax(output=output, labels=labels)


class Drift(_Word):
    """What is watched for drift: windows of event time, by version. Each version is held against its own reference.

    Args:
        window: how much event time a window spans.
        slide: a window begins so often; None: where the one before ends.
        lateness: event time for which a window takes late events, and is told again.
        share: of the entity keys whose events are counted, above 0 and up to 1.
        segment: an event field (text, number or flag) whose most frequent values have windows of their own, beside
            those of all events. A feature or key is read from it.
        min_rows: a window with fewer events says nothing.
        threshold: how far the PSI of a window must be above what it is without drift, on average.
        alpha: the chance of a false alert, of any measure, in `per` windows.
        per: the windows that `alpha` is the chance of: 24 are a day of hours.
        in_a_row: windows that exceed both limits before there is an alert.
        clear: windows in a row that do not end it.
    """

    window: timedelta = timedelta(hours=1)
    slide: timedelta | None = None
    lateness: timedelta = Field(default=timedelta(0), ge=timedelta(0))
    share: float = Field(default=1.0, ge=0.0001, le=1)
    segment: Path_ | None = None
    min_rows: int = Field(default=100, ge=50)
    threshold: float = Field(default=0.005, ge=0, allow_inf_nan=False)
    alpha: float = Field(default=0.002, gt=0, lt=1)
    per: int = Field(default=24, le=10_000)
    in_a_row: int = Field(default=2, ge=1, le=10)
    clear: int = Field(default=3, ge=1, le=10)

    @model_validator(mode="after")
    def _panes_fit(self) -> Self:
        slide = self.window if self.slide is None else self.slide
        if not timedelta(seconds=1) <= slide <= self.window:
            raise ValueError("slide is at least a second, and at most the window")
        if self.window % timedelta(milliseconds=1) or slide % timedelta(milliseconds=1):
            raise ValueError("window and slide are whole milliseconds")
        if self.window / self.pane > MOST_PANES:
            raise ValueError(f"window and slide share no part longer than {self.pane}: let one be a multiple of it")
        if (self.window + self.lateness) / self.pane > 2 * MOST_PANES:
            raise ValueError(
                f"so long a lateness is {self.lateness / self.pane:,.0f} panes of {self.pane}: let it be shorter, or "
                "windows slide by more"
            )
        return self

    @property
    def pane(self) -> timedelta:
        """The longest span that windows and slides are both made of: what is counted at once."""
        slide = self.window if self.slide is None else self.slide
        unit = timedelta(milliseconds=1)
        return math.gcd(self.window // unit, slide // unit) * unit


class Topology(_Word):
    """A stream from a source topic through a model to `<name>.predictions`.

    Args:
        features: the catalogue; each model version picks from it, by name and in its own order.
        model: name in the registry; which version is in force stands in the control log.
        outputs: names of the scores that predictions carry.
        decision: threshold, argmax, or None.
        delivery: after a crash an event may be predicted again (`at_least_once`), or not (`exactly_once`, for readers
            with isolation.level=read_committed).
        target_p99_ms: latency that micro-batching aims at, from a record's arrival to its prediction.
        segments: event fields that rules of rollouts may name (these carriers always, those never). `topology init`
            writes them into the control log, where they stay.
        drift: windows of what the model is fed and says, held against a reference; None: nothing is counted.
    """

    name: TopicName
    source: Source
    features: tuple[Feature, ...] = Field(min_length=1)
    model: Name
    outputs: Mapping[str, Output] = Field(min_length=1)
    decision: Decision | None = None
    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    target_p99_ms: float = Field(default=20.0, gt=0)
    segments: tuple[Path_, ...] = ()
    drift: Drift | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.decision is not None:
            self._check_decision(self.decision)
        seen: dict[str, View] = {}
        for view in self.views:
            if view.name in seen:
                raise ValueError(f"two views are named {view.name!r}; give each its own name")
            seen[view.name] = view
        return self

    def _check_decision(self, decision: Threshold | Argmax) -> None:
        chosen = self.outputs.get(decision.output)
        if chosen is None:
            raise ValueError(f"decision is on output {decision.output!r}; the outputs are {sorted(self.outputs)}")
        if decision.kind == "argmax" and chosen.column is not None:
            raise ValueError(f"argmax needs the whole row of {decision.output!r}: leave out column=")

    @property
    def views(self) -> tuple[View, ...]:
        return tuple(f.view for f in self.features if f.kind == "stored")

    def topic(self, suffix: str) -> str:
        """The name of one of its output topics, by suffix: "predictions", "dead-letters", ..."""
        return f"{self.name}.{suffix}"


def days(count: float) -> timedelta:
    return timedelta(days=count)


def hours(count: float) -> timedelta:
    return timedelta(hours=count)


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


def load_topology(path: Path) -> Topology:
    """Run a topology file and return the one `Topology` that it names.

    Raises:
        TopologyError: no such file, it fails, or it names none or several; says which line or field.
    """
    if not path.is_file():
        raise TopologyError("there is no such topology file", where=str(path), mend="see topologies/ for examples")
    if path.suffix != ".py":
        raise TopologyError(
            "it is no Python file", where=str(path), mend="name a .py file; see topologies/ for examples"
        )
    # The absolute path is what tracebacks name: `_line_of` finds the file's own lines by it.
    file, name = str(path.absolute()), f"streamserve_topology_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, file, loader=_AsItStands(name, file))
    assert spec is not None  # noqa: S101  (a .py file always has a loader)
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ValidationError as error:
        raise TopologyError(
            _explain(error), where=str(path), mend="see the docstrings of streamserve.topology"
        ) from None
    except (Exception, SystemExit) as error:
        line = _line_of(error, path)
        raise TopologyError(
            f"the file fails as it is read: {type(error).__name__}: {error}",
            where=f"{path}:{line}" if line else str(path),
            mend="run it with python to see the whole traceback",
        ) from error
    found = [value for value in vars(module).values() if isinstance(value, Topology)]
    if len(found) != 1:
        raise TopologyError(
            f"the file names {len(found)} topologies, expected exactly one",
            where=str(path),
            mend="assign one Topology(...) to a name at the top level",
        )
    return found[0]


class _AsItStands(SourceFileLoader):
    """No bytecode is kept: what was edited twice in a second, to the same size, would be run as it was before."""

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
        return self.source_to_code(self.get_data(self.path), self.path)


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False)[:5]:
        place = ".".join(str(part) for part in item["loc"])
        lines.append(f"{error.title}{'.' + place if place else ''}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)


def _line_of(error: BaseException, path: Path) -> int | None:
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == str(path.absolute()):
            line = frame.tb_lineno
        frame = frame.tb_next
    return getattr(error, "lineno", None) if isinstance(error, SyntaxError) else line
