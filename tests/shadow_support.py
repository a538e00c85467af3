"""What the tests of shadow share: batches that stable has answered for, and candidates in a registry."""

from __future__ import annotations

import datetime as dt
import io
from pathlib import Path

import fastavro
import pyarrow as pa
from test_pipeline import CATALOGUE, NOW, ONE, TOPOLOGY, pipeline, raw, version

from streamserve.adapters.onnx import OnnxSession
from streamserve.agents.isolated import Isolated, Order
from streamserve.features.columns import BatchColumns
from streamserve.features.rows import FeatureStore
from streamserve.models.manifest import Input, Manifest
from streamserve.models.plan import FeaturePlan
from streamserve.models.registry import Registry, file_ref
from streamserve.models.session import ON_CPU
from streamserve.pipeline.pipeline import LoadedVersion
from streamserve.pipeline.score import Scorer
from streamserve.pipeline.shadow import Shadowed, Sheet, sheets
from streamserve.pipeline.shadow_compare import Compared, compare
from streamserve.pipeline.shadow_decision import PINNED_ID, SCHEMA
from streamserve.records import ControlView, RoutingEpoch, Shadow
from streamserve.simulate.versions import open_version
from streamserve.topology import output

PARSED = fastavro.parse_schema(SCHEMA)
THREE_FEATURES = ("x", "n", "d")
WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = ("float32", "float64", "float16", *WHOLE, "bool", "string")
LATER = 1_800_000_000_123  # by the candidate's clock


def shadow(share_bp=10_000, candidate="v9", rollout="r1", **more) -> Shadow:
    return Shadow(candidate, rollout, share_bp, **more)


def under(wanted: Shadow | None, *epochs: RoutingEpoch) -> ControlView:
    return ControlView("t", epochs or (RoutingEpoch(3, "v1"),), shadow=wanted)


def answered(values, wanted: Shadow, versions=None, partitions=None, **more) -> Shadowed | None:
    """What stable's pipeline leaves of a batch for the candidate."""
    made = pipeline(versions or {"v1": ONE})
    return made.process(raw(values, partitions, **more), under(wanted), NOW).shadowed


def beside(shadowed: Shadowed, plan: FeaturePlan, store: FeatureStore) -> BatchColumns:
    """The columns that a candidate is fed from."""
    columns = shadowed.columns
    more = [view for view in plan.views if not columns.stored.knows(view)]
    return columns.with_more(more, store) if more else columns


def compared(
    shadowed: Shadowed, candidate: LoadedVersion, store: FeatureStore | None = None
) -> list[dict[str, object]]:
    """The shadow decisions of a batch, as any Avro reader has them."""
    columns = shadowed.columns if store is None else beside(shadowed, candidate.plan, store)
    found = []
    for sheet in sheets([(shadowed, columns)], candidate.plan):
        found += decisions(compare(sheet.table, candidate.scorer, PINNED_ID, LATER), sheet)
    return found


def decisions(told: Compared, sheet: Sheet) -> list[dict[str, object]]:
    assert len(told.values) == len(sheet) == len(sheet.keys) == len(sheet.table)
    return [decision(value) for value in told.values.to_pylist()]


def decision(value: bytes) -> dict[str, object]:
    assert value[:5] == b"\x00" + PINNED_ID.to_bytes(4)
    body = io.BytesIO(value[5:])
    found = fastavro.schemaless_reader(body, PARSED)
    assert not body.read(), "bytes are left over"
    return found


# ---- candidates that run in a process of their own


def add(root: Path, file: Path, name: str = "v9", features=THREE_FEATURES, **more) -> Registry:
    """A model file as a version of model m, its manifest written by hand."""
    registry, session = Registry(root / "registry"), OnnxSession(file)
    inputs = tuple(Input(**tensor.model_dump(), features=features) for tensor in session.inputs)
    words = {"scores": {"y": output("probabilities", column=1)}, "decision": TOPOLOGY.decision, **more}
    manifest = Manifest(
        model="m", version=name, created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), release="test",
        file=file_ref("model.onnx", file), inputs=inputs, outputs=session.outputs, features={}, **words,
    )  # fmt: skip
    registry.add(manifest, {"model.onnx": file})
    return registry


def order(registry: Registry, name: str = "v9", manifest: str = "") -> Order:
    return Order(str(registry.root), "m", name, manifest, PINNED_ID, ON_CPU)


def begun(registry: Registry, name: str = "v9", most: int = 2 << 30, **more) -> Isolated:
    made = Isolated(order(registry, name), most, **more)
    made.start()
    return made


def stub(session, features=THREE_FEATURES, name="v9", **more) -> LoadedVersion:
    return version(name, features, session, **more)


def told_to(registry: Registry, values, name: str = "v9") -> tuple[list[pa.RecordBatch], Scorer]:
    """What a version of the registry is told of these events, and its scorer in this process."""
    manifest, session = open_version(registry, "m", name, OnnxSession)
    batch = answered(values, shadow(candidate=name))
    made = sheets([(batch, batch.columns)], FeaturePlan.of(manifest, CATALOGUE))
    return [sheet.table for sheet in made], Scorer(manifest, session)


def gone(pid: int) -> bool:
    """Not there any more, nor a zombie."""
    return not Path(f"/proc/{pid}").exists()
