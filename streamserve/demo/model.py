"""The demo's first version: trained on March through the pipeline that will serve it, exported, parity checked."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streamserve.adapters.onnx import OnnxSession
from streamserve.demo import train
from streamserve.features.catalogue import Catalogue
from streamserve.models.manifest import Training
from streamserve.pipeline.schemas import EventSchema
from streamserve.records import RawBatch
from streamserve.simulate.offline import MemoryStore, Offline, raw_batch, training_plan
from streamserve.simulate.recorded import to_json
from streamserve.simulate.view_files import view_rows

CHUNK = 10_000
APRIL = (dt.datetime(2013, 4, 1, tzinfo=dt.UTC), dt.datetime(2013, 5, 1, tzinfo=dt.UTC))
MARCH = (dt.datetime(2013, 3, 1, tzinfo=dt.UTC), dt.datetime(2013, 4, 1, tzinfo=dt.UTC))


def window(table: pa.Table, start: dt.datetime, end: dt.datetime | None) -> pa.Table:
    """The flights that were due to depart in [start, end)."""
    due = table.column("scheduled_departure")
    kind = due.type
    chosen = pc.greater_equal(due, pa.scalar(start.replace(tzinfo=None), kind))
    if end is not None:
        chosen = pc.and_(chosen, pc.less(due, pa.scalar(end.replace(tzinfo=None), kind)))
    return table.filter(chosen)


def train_version(
    catalogue: Catalogue,
    schema: EventSchema,
    folder: Path,
    name: str,
    *,
    between: tuple[dt.datetime, dt.datetime] = MARCH,
) -> Path:
    """Write `<name>.onnx`, `<name>.vocabularies.json` and `<name>.training.json` into the demo's folder.

    Only flights with a tail number are learned from: all 2,512 without one were cancelled, so that its absence tells
    the label, which no serving system could know.

    Raises:
        ModelError: the exported model does not answer as LightGBM does.
    """
    flights, labels = pq.read_table(folder / "flights.parquet"), pq.read_table(folder / "labels.parquet")
    flights = flights.append_column("late", labels.column("late"))
    chosen = window(flights, *between)
    chosen = chosen.filter(pc.is_valid(chosen.column("tailnum")))
    vocabularies = {
        atom.name: _by_frequency(chosen.column(atom.feature.path))
        for atom in catalogue.atoms.values()
        if atom.feature.kind == "category"
    }
    matrix, names = _matrix(catalogue, schema, chosen.drop_columns(["late"]), folder, vocabularies)
    late = chosen.column("late").to_numpy().astype(np.int8)
    booster = train.train(matrix, late, names)
    path = folder / f"{name}.onnx"
    train.export_onnx(booster, matrix.shape[1], path)
    parity = train.check_parity(booster, path, matrix, _run)
    spent = Training(
        start=between[0],
        end=between[1],
        rows=len(matrix),
        metrics={
            "auc_train": train.auc(np.asarray(booster.predict(matrix)), late),
            "parity_max_abs_diff": parity.max_abs_diff,
        },
        libraries=train.library_versions(),
        notes="Flights with a tail number; thresholds rounded down to float32 for parity with LightGBM.",
    )
    (folder / f"{name}.vocabularies.json").write_text(json.dumps(vocabularies, indent=1), "utf-8")
    (folder / f"{name}.training.json").write_text(spent.model_dump_json(indent=1), "utf-8")
    return path


def _by_frequency(column: pa.ChunkedArray) -> list[str]:
    counts = Counter(column.cast(pa.string()).drop_null().to_pylist())
    return [value for value, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _matrix(
    catalogue: Catalogue,
    schema: EventSchema,
    table: pa.Table,
    folder: Path,
    vocabularies: dict[str, list[str]],
) -> tuple[train.Floats32, list[str]]:
    rows: dict[bytes, bytes] = {}
    for view in catalogue.views.values():
        rows.update(view_rows(view, folder / f"{view.name}.parquet"))
    offline = Offline(catalogue, schema, MemoryStore(rows), as_json=True)
    plan = training_plan(catalogue, vocabularies)
    parts = []
    for batch in table.combine_chunks().to_batches(CHUNK):
        raw: RawBatch = raw_batch(catalogue.topology.source.topic, to_json(batch))
        _, matrix = offline.matrix(raw, plan)
        parts.append(matrix.inputs["features"])
    return np.concatenate(parts), list(plan.inputs[0].features)


def _run(path: Path, matrix: train.Floats32) -> train.Floats32:
    session = OnnxSession(path)
    (found,) = session.run({session.inputs[0].name: matrix}, ["probabilities"])
    return found.astype(np.float32)
