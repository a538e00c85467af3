"""A topology as text, and the comparison of its features with the event schema."""

from __future__ import annotations

from collections.abc import Callable
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pyarrow as pa

from streamserve.errors import TopologyError
from streamserve.features.catalogue import Atom, Catalogue, view_fingerprint
from streamserve.models.manifest import Manifest
from streamserve.models.signature import describe
from streamserve.pipeline.schemas import ColumnType, EventSchema
from streamserve.topology import Feature, PartsFeature

types = pa.types


def _number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind))


def _scalar_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_integer(kind) or types.is_boolean(kind))


def _time(kind: pa.DataType) -> bool:
    return bool(types.is_timestamp(kind) or types.is_date(kind))


def _moment(kind: pa.DataType) -> bool:
    return _time(kind) or bool(types.is_int64(kind))


def _numbers(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) and _number(kind.value_type))


EXPECTED: dict[str, tuple[Callable[[pa.DataType], bool], str, str]] = {
    "field": (_number, "a number or a boolean", "use category() or text() for strings, parts() for times"),
    "category": (_scalar_text, "a string, an enum, an integer or a boolean", "use field() for numbers"),
    "text": (lambda kind: bool(types.is_string(kind)), "a string or an enum", "use field() or category()"),
    "parts": (_time, "a timestamp or a date", "give the field a logical type in the schema"),
    "vector": (_numbers, "an array of numbers", "use field() for one number"),
}


def check_features(catalogue: Catalogue, schema: EventSchema) -> None:
    """Is every path that the topology reads in the schema, with a type that its feature can take?

    Raises:
        TopologyError, SchemaError: names the feature, what was found and what was expected.
    """
    topology = catalogue.topology
    for feature in topology.features:
        if feature.kind in EXPECTED:
            _check_one(topology.name, feature, schema)
        if feature.kind == "parts":
            _check_zone(topology.name, feature)
    source = topology.source
    keys = [(f"key of view {view.name!r}", path) for view in topology.views for path in view.key]
    for what, path in (*keys, ("the entity key", source.key), ("the event id", source.id)):
        if path:
            _expect(topology.name, what, path, schema, _scalar_text, "a string or an integer", "")
    if source.event_time:
        expected = "a timestamp, a date or a long of milliseconds"
        _expect(topology.name, "the event time", source.event_time, schema, _moment, expected, "")
    for path in (*catalogue.paths(), *topology.segments):
        schema.column_type(path)


def _check_zone(where: str, feature: PartsFeature) -> None:
    try:
        ZoneInfo(feature.tz)
    except (ZoneInfoNotFoundError, ValueError):
        raise TopologyError(
            f"feature parts({feature.path!r}): there is no time zone {feature.tz!r}",
            where=where,
            mend="use a name such as Europe/Berlin, or UTC",
        ) from None


def _check_one(name: str, feature: Feature, schema: EventSchema) -> None:
    fits, expected, mend = EXPECTED[feature.kind]
    path = getattr(feature, "path")  # noqa: B009  (the kinds in EXPECTED all have one)
    label = getattr(feature, "name", path)
    _expect(name, f"feature {label!r} ({feature.kind})", path, schema, fits, expected, mend)


def _expect(
    where: str,
    what: str,
    path: str,
    schema: EventSchema,
    fits: Callable[[pa.DataType], bool],
    expected: str,
    mend: str,
) -> None:
    found: ColumnType = schema.column_type(path)
    if not fits(found.arrow):
        raise TopologyError(
            f"{what}: found {found.avro} at {path!r}, expected {expected}",
            where=where,
            mend=mend or "name another path, or change the schema",
        )


def draw(catalogue: Catalogue, schema: EventSchema, manifest: Manifest | None) -> str:
    """The topology as a tree of text, the same for the same files."""
    topology = catalogue.topology
    source = topology.source
    lines = [
        f"topology {topology.name}  ({catalogue.fingerprint()})",
        f"├─ source   {source.topic}  {source.format}, {schema.name}, {source.partitions} partitions",
        f"│           key {source.key or '-'}, event time {source.event_time or 'record'}, id {source.id or '-'}",
        f"├─ features {len(catalogue.atoms)}",
    ]
    branches = [
        [f"{atom.name:<28} {_origin(atom, schema, manifest)}"]
        for atom in catalogue.atoms.values()
        if atom.feature.kind != "stored"
    ]
    for view in catalogue.views.values():
        age = "any age" if view.max_age is None else f"at most {view.max_age.total_seconds() / 86_400:g} days old"
        about = f"{view.name}.*  {len(view.fields)} stored by {' + '.join(view.key)}, {age}"
        branches.append([about, f"   {', '.join(view.fields)}  (layout {view_fingerprint(view)})"])
    lines.extend(_grow(branches))
    lines.extend(_model_lines(topology.model, manifest))
    lines.append("├─ outputs  " + ", ".join(_output(n, o.tensor, o.column) for n, o in topology.outputs.items()))
    lines.append(f"├─ decision {_decision(catalogue)}")
    lines.append(f"└─ emits    {topology.topic('predictions')}, {topology.topic('dead-letters')}")
    return "\n".join(lines)


def _model_lines(model: str, manifest: Manifest | None) -> list[str]:
    if manifest is None:
        return [f"├─ model    {model}"]
    return [
        f"├─ model    {model} {manifest.version}  (sha256 {manifest.file.sha256[:12]})",
        *_grow(
            [[f"in  {t.name}: {describe(t)} from {len(t.features)} features"] for t in manifest.inputs]
            + [[f"out {t.name}: {describe(t)}"] for t in manifest.outputs]
        ),
    ]


def _grow(branches: list[list[str]]) -> list[str]:
    """The branches below a node; of a branch with several lines the first is its head."""
    lines = []
    for number, (head, *rest) in enumerate(branches, 1):
        last = number == len(branches)
        lines.append(f"│  {'└─' if last else '├─'} {head}")
        lines.extend(f"│  {' ' if last else '│'}  {line}" for line in rest)
    return lines


def _origin(atom: Atom, schema: EventSchema, manifest: Manifest | None) -> str:
    feature = atom.feature
    if feature.kind == "derived":
        return f"derived   of {', '.join(feature.of)}"
    if feature.kind == "stored":
        return ""
    text = f"{feature.kind:<9} {feature.path}: {schema.column_type(feature.path).avro}"
    if feature.kind == "parts":
        return f"{text} ({atom.part}, {feature.tz})"
    if feature.kind == "category" and manifest is not None:
        return f"{text} ({len(manifest.vocabularies.get(atom.name, ()))} known values)"
    return f"{text} x {feature.length}" if feature.kind == "vector" else text


def _output(name: str, tensor: str, column: int | None) -> str:
    return f"{name} = {tensor}" + ("" if column is None else f"[{column}]")


def _decision(catalogue: Catalogue) -> str:
    decision = catalogue.topology.decision
    if decision is None:
        return "none"
    if decision.kind == "threshold":
        return f"{decision.labels[1]} where {decision.output} >= {decision.at:g}, else {decision.labels[0]}"
    return f"argmax of {decision.output}"
