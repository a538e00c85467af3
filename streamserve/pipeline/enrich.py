"""Enrich: the columns of a batch become one feature matrix a version.

One round trip to the store for the views of every version at hand, then each version's inputs by column. What two
versions share is computed once. An event that a version can't be given is a reject of that event alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from streamserve.features.buffers import Texts
from streamserve.features.catalogue import Catalogue
from streamserve.features.columns import BatchColumns, Fault
from streamserve.features.rows import FeatureStore, StoredRows
from streamserve.models.plan import FeaturePlan
from streamserve.pipeline.columns import MAX_MESSAGE
from streamserve.records import EventBatch, FeatureMatrix, Reject, Stage
from streamserve.topology import View


def open_columns(
    catalogue: Catalogue, events: EventBatch, plans: Sequence[FeaturePlan], store: FeatureStore
) -> BatchColumns:
    """The batch's columns, with the stored rows of every view that one of the plans reads."""
    views: dict[str, View] = {}
    for plan in plans:
        views.update({view.name: catalogue.views[view.name] for view in plan.views})
    texts = Texts(events)
    return BatchColumns(catalogue, events, texts, StoredRows(list(views.values()), events, texts, store))


def build_matrix(
    version: str, plan: FeaturePlan, columns: BatchColumns, rows: np.ndarray[tuple[int], np.dtype[np.intp]]
) -> FeatureMatrix:
    """The inputs of one version for these events (indices into the EventBatch, ascending)."""
    filled, faults = plan.fill(columns)
    inputs: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = filled
    chosen, rejects = rows, tuple[Reject, ...]()
    if faults:
        # Of these rows only: what this version can't be given may be just right for the one that answers there
        bad = np.isin(rows, np.fromiter(faults, np.intp, len(faults)))
        chosen, rejects = rows[~bad], tuple(_reject(columns.events, row, faults[row]) for row in rows[bad].tolist())
    if len(chosen) != len(columns.events):
        inputs = {name: values[chosen] for name, values in inputs.items()}
    names = tuple(view.name for view in plan.views)
    status = np.empty((len(chosen), len(names)), np.uint8)
    for place, view in enumerate(plan.views):
        status[:, place] = columns.stored.view(view).status[chosen]
    return FeatureMatrix(version, chosen, inputs, names, status, rejects)


def _reject(events: EventBatch, row: int, fault: Fault) -> Reject:
    error, message = fault
    return Reject(int(events.rows[row]), Stage.ENRICH, error, message[:MAX_MESSAGE])
