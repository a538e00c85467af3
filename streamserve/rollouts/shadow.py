"""Shadow: which events a share of the stream has, and what became of them. Pure.

They are picked by their place in the stream, so that after a crash, and at a second reading, they are the same. Not by
key, as a canary does: the same few keys over and over would tell less of the stream. Of a larger share the smaller one
is a part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamserve.records import Int32s, Int64s, Shadow

WHOLE_BP = 10_000


def sampled(partitions: Int32s, offsets: Int64s, share_bp: int) -> NDArray[np.bool_]:
    """Whether each record is in a share of so many basis points.

    Partition and offset go through the finaliser of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom
    number generators" (2014), with the constants of Stafford's variant 13.
    """
    if share_bp >= WHOLE_BP:
        return np.ones(len(offsets), bool)
    mixed = offsets.astype(np.uint64) ^ (partitions.astype(np.uint64) << np.uint64(44))
    mixed += np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: NDArray[np.bool_] = (mixed ^ (mixed >> np.uint64(31))) % np.uint64(WHOLE_BP) < share_bp
    return found


@dataclass(frozen=True, slots=True)
class ShadowTally:
    """What became of the events of one rollout's shadow on this worker.

    compared: both versions scored them. agreed: of `decided`, those on which both decided alike. failed: the candidate
    gave an error. unanswered: it hung, died or could not run. shed: it was too slow. why: its last trouble.
    """

    shadow: Shadow
    compared: int = 0
    agreed: int = 0
    decided: int = 0
    failed: int = 0
    unanswered: int = 0
    shed: int = 0
    why: str = ""
    running: bool = False
