"""Starts a supervisor from another process; the spec that the two agree on is written and read here.

Apart from `supervisor`, which is run as a program and therefore must not be imported.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from streamserve.dev.place import Place
from streamserve.dev.process import Process, spawn_detached
from streamserve.dev.servers import Plan

if TYPE_CHECKING:
    from collections.abc import Iterable

STOP_SECONDS = 15.0  # Kafka takes 1 s to close its logs; what needs more than 15 is stuck


def launch(place: Place, plans: Iterable[Plan], owner: Process | None) -> int:
    """Start a supervisor for these plans, detached from this process. Returns its pid."""
    spec = {
        "root": str(place.root),
        "owner": None if owner is None else asdict(owner),
        "plans": [asdict(plan) for plan in plans],
    }
    # The caller may have found this package by its own path: the new interpreter finds the same one.
    above = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH")
    environ = {**os.environ, "PYTHONPATH": f"{above}{os.pathsep}{known}" if known else above}
    argv = [sys.executable, "-P", "-m", "streamserve.dev.supervisor", json.dumps(spec)]
    return spawn_detached(argv, environ, place.log("supervisor"))


def read_spec(text: str) -> tuple[Place, list[Plan], Process | None]:
    """The other end of `launch`, in the supervisor."""
    spec = json.loads(text)
    owner = spec["owner"]
    return (
        Place(Path(spec["root"])),
        [Plan(**plan) for plan in spec["plans"]],
        None if owner is None else Process(**owner),
    )
