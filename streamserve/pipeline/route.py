"""Route: which version answers for each event, from the control view alone. Stable only, for now."""

from __future__ import annotations

import numpy as np

from streamserve.records import Assignment, ControlView, EventBatch, Reason, Variant


def route(events: EventBatch, view: ControlView) -> Assignment:
    """Assign every event of a batch by the routing epoch in force at its offset. Pure."""
    raw, rows = events.raw, events.rows
    if view.cutovers:
        index = view.epochs_at(raw.topic, raw.partitions[rows], raw.offsets[rows])
    else:
        index = np.zeros(len(events), np.intp)
    versions = tuple(dict.fromkeys(epoch.stable for epoch in view.epochs))
    place = np.array([versions.index(epoch.stable) for epoch in view.epochs], np.int32)
    numbers = np.array([epoch.number for epoch in view.epochs], np.int64)
    count = len(events)
    return Assignment(
        versions=versions,
        rollouts=(None,),
        version=place[index],
        variant=np.full(count, Variant.STABLE, np.uint8),
        reason=np.full(count, Reason.STATIC, np.uint8),
        rollout=np.zeros(count, np.int32),
        control_epoch=numbers[index],
    )
