"""`streamserve predictions`: what a topology's workers say, as it comes."""

from __future__ import annotations

import click

from streamserve.cli.common import topology_argument
from streamserve.cli.tailing import Row, Tail, conditions, tail_options, text_of, value_of
from streamserve.cli.verify import verify
from streamserve.simulate.explain import iso
from streamserve.topology import Topology

COLUMNS = ("prediction", "event", "event time", "scores", "decision", "version", "variant", "reason", "features")
ALIASES = {"version": "model_version", "event": "event_id", "epoch": "control_epoch", "rollout": "rollout_id"}
MAPS = {"status": "feature_status"}  # --where status.<view>=MISSING


@click.group()
def predictions() -> None:
    """Look at predictions, and verify them."""


predictions.add_command(verify)


@predictions.command()
@topology_argument
@tail_options
@click.option(
    "--where",
    "wheres",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Only these, e.g. version=v2, decision=late, reason=FALLBACK, status.plane=MISSING; "
    "given several times, all must hold.",
)
def tail(topology: Topology, tail: Tail, wheres: tuple[str, ...]) -> None:
    """Show the predictions of TOPOLOGY_FILE: the last ten, and then each as it comes.

    Only views that were not PRESENT are shown under "features". Order is kept within each partition.
    """
    wanted = conditions(wheres, ALIASES, "decision=late")

    def fits(prediction: Row) -> bool:
        return all(value_of(prediction, name, MAPS, "predictions") == value for name, value in wanted)

    tail.show(topology.topic("predictions"), fits, COLUMNS, _cells)


def _cells(prediction: Row) -> tuple[str, ...]:
    time = prediction.get("event_time")
    scores = prediction.get("scores") or {}
    statuses = prediction.get("feature_status") or {}
    return (
        text_of(prediction, "prediction_id"),
        text_of(prediction, "event_id"),
        "-" if time is None else iso(time),
        " ".join(f"{name}={score:.6g}" for name, score in scores.items()),
        text_of(prediction, "decision"),
        text_of(prediction, "model_version"),
        text_of(prediction, "variant"),
        text_of(prediction, "reason"),
        " ".join(f"{view}:{status}" for view, status in statuses.items() if status != "PRESENT"),
    )
