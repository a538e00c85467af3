"""`streamserve shadow tail`: what a candidate would have said, beside what stable said, as it comes."""

from __future__ import annotations

import click

from streamserve.cli.common import topology_argument
from streamserve.cli.letters import harmless
from streamserve.cli.tailing import Row, Tail, conditions, tail_options, text_of, value_of
from streamserve.simulate.explain import iso
from streamserve.topology import Topology

COLUMNS = ("prediction", "compared at", "stable", "decided", "scores", "candidate", "decided", "scores", "segments")
ALIASES = {"rollout": "rollout_id", "event": "event_id", "stable": "stable_version", "candidate": "candidate_version"}
MAPS = {"segment": "segments"}  # --where segment.<field>=<value>


@click.command()
@topology_argument
@tail_options
@click.option("--disagreements", is_flag=True, help="Only events that were decided otherwise, or where it failed.")
@click.option(
    "--where",
    "wheres",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Only these, e.g. rollout=r1, stable_decision=late, error=DeadlineError, segment.carrier=B6; "
    "given several times, all must hold.",
)
def tail(topology: Topology, tail: Tail, disagreements: bool, wheres: tuple[str, ...]) -> None:
    """Show the shadow decisions of TOPOLOGY_FILE: the last ten, and then each as it comes.

    Where the candidate failed, the error stands for its decision. Order is kept within each partition.
    """
    wanted = conditions(wheres, ALIASES, "stable_decision=late")

    def fits(one: Row) -> bool:
        if disagreements and one.get("agreement") is not False and one.get("error") is None:
            return False
        return all(value_of(one, name, MAPS, "shadow decisions") == value for name, value in wanted)

    tail.show(topology.topic("shadow-decisions"), fits, COLUMNS, _cells)


def _cells(one: Row) -> tuple[str, ...]:
    error = one.get("error")
    cells = (
        text_of(one, "prediction_id"),
        iso(one["compared_at"]),
        text_of(one, "stable_version"),
        text_of(one, "stable_decision"),
        _scores(one, "stable_scores"),
        text_of(one, "candidate_version"),
        text_of(one, "candidate_decision") if error is None else f"({error})",
        _scores(one, "candidate_scores"),
        " ".join(f"{field}={value}" for field, value in (one.get("segments") or {}).items()),
    )
    return tuple(map(harmless, cells))


def _scores(one: Row, side: str) -> str:
    return " ".join(f"{name}={score:.6g}" for name, score in (one.get(side) or {}).items()) or "-"
