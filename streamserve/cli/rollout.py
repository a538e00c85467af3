"""`streamserve rollout`: another version under a running stream, and back, by commands on the control topic."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from streamserve.adapters.control_sender import Readiness
from streamserve.adapters.onnx import OnnxSession
from streamserve.cli.common import out
from streamserve.cli.rollout_show import history, status
from streamserve.cli.sending import Session, said
from streamserve.cli.weights import Share, percent, where
from streamserve.control.commands import (
    Kill,
    Pause,
    Prepare,
    Promote,
    Resume,
    Revive,
    Rollback,
    Segment,
    Shadow,
    Shift,
)
from streamserve.errors import ControlError
from streamserve.features.catalogue import Catalogue
from streamserve.models.plan import FeaturePlan
from streamserve.models.registry import Registry
from streamserve.simulate.versions import open_version
from streamserve.topology import Topology


@click.group()
def rollout() -> None:
    """Shadow, try, promote and take back a model version under a running stream."""


@rollout.command()
@said
@click.argument("candidate")
@click.option("--id", "name", help="The rollout's name; made of candidate and time unless told.")
@click.option("--salt", help="Of its buckets; of its own unless told. The same salt picks the same keys.")
@click.option("--always", multiple=True, metavar="FIELD=VALUES", help="The candidate answers for these, at any weight.")
@click.option("--never", multiple=True, metavar="FIELD=VALUES", help="Stable answers for these; goes before --always.")
def start(
    topology: Topology,
    candidate: str,
    name: str | None,
    salt: str | None,
    always: tuple[str, ...],
    never: tuple[str, ...],
    actor: str,
    reason: str,
    timeout: float,
) -> None:
    """Open a rollout of version CANDIDATE: every worker loads and warms it. No event goes to it yet."""
    session = Session(topology, actor, reason, timeout)
    registry = Registry(session.settings.registry)
    manifest, _ = open_version(registry, topology.model, candidate, OnnxSession)
    FeaturePlan.of(manifest, Catalogue(topology))
    rules = [
        *(Segment(name=f"never {one}", where=where([one]), answer="stable") for one in never),
        *(Segment(name=f"always {one}", where=where([one]), answer="candidate") for one in always),
    ]
    command = Prepare(
        **session.common(),
        rollout_id=name or f"{candidate}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
        candidate=candidate,
        manifest=registry.manifest_sha256(topology.model, candidate),
        salt=salt,
        rules=tuple(rules) or None,
    )
    session.send(command)
    if timeout and not session.wait_until_ready(candidate).whole:
        raise ControlError(
            f"version {candidate} is not ready on every worker after {timeout:g} s",
            where=f"topology {topology.name}",
            mend="the rollout is open and workers try on; `streamserve rollout status` shows how far they are",
        )


@rollout.command()
@said
@click.argument("share", type=Share())
@click.option("--where", "segment", multiple=True, metavar="FIELD=VALUES", help="Of these events alone.")
def shadow(topology: Topology, share: int, segment: tuple[str, ...], actor: str, reason: str, timeout: float) -> None:
    """Let the candidate score a SHARE of the stream (5%, 100%) beside stable, without answering; 0% ends it."""
    session = Session(topology, actor, reason, timeout)
    found = session.open()
    session.send(Shadow(**session.of_rollout(), percent_bp=share, where=where(segment) or None))
    if share and timeout and not session.wait_until_shadowed(found.id, share).whole:
        raise ControlError(
            f"version {found.candidate} does not shadow on every worker after {timeout:g} s",
            where=f"topology {topology.name}",
            mend="the command is in force and workers try on; `streamserve rollout status` shows why",
        )
    out().print(f"{found.candidate} shadows {percent(share)} of the stream", highlight=False)


@rollout.command()
@said
@click.argument("weight", type=Share())
@click.option("--override", default="", metavar="WHY", help="Shift although not every worker is ready.")
def shift(topology: Topology, weight: int, override: str, actor: str, reason: str, timeout: float) -> None:
    """Let the candidate answer for WEIGHT (5%, 0.5%, 50bp) of the keys: absolute, so a later one replaces it.

    A key that is in at 5% stays in at 20%.
    """
    session = Session(topology, actor, reason, timeout)
    candidate = session.open().candidate
    found = session.wait_until_ready(candidate) if weight else Readiness((), {})
    if weight and not found.whole and not override:
        raise ControlError(
            f"version {candidate} is not ready on every worker: "
            + ("; ".join(f"{worker}: {why}" for worker, why in found.missing.items()) or "no worker lives"),
            where=f"topology {topology.name}",
            mend="wait for them, or name your reason: --override '...'; stable answers where it is not ready",
        )
    session.send(Shift(**session.of_rollout(), weight_bp=weight, ready=found.ready, override=override))
    out().print(f"{candidate} answers for {percent(weight)} of the keys", highlight=False)


@rollout.command()
@said
def promote(topology: Topology, actor: str, reason: str, timeout: float) -> None:
    """Make the candidate stable, and end the rollout."""
    session = Session(topology, actor, reason, timeout)
    candidate = session.open().candidate
    session.send(Promote(**session.of_rollout()))
    out().print(f"{candidate} is stable", highlight=False)


@rollout.command()
@said
def rollback(topology: Topology, actor: str, reason: str, timeout: float) -> None:
    """Let stable answer for everything, and end the rollout."""
    session = Session(topology, actor, reason, timeout)
    session.send(Rollback(**session.of_rollout()))
    out().print(f"{session.desk.state.stable} answers for everything", highlight=False)


@rollout.command()
@said
def pause(topology: Topology, actor: str, reason: str, timeout: float) -> None:
    """Refuse shifts and promotion until `resume`; what is in force stays."""
    session = Session(topology, actor, reason, timeout)
    session.send(Pause(**session.of_rollout()))


@rollout.command()
@said
def resume(topology: Topology, actor: str, reason: str, timeout: float) -> None:
    """Take shifts and promotion again."""
    session = Session(topology, actor, reason, timeout)
    session.send(Resume(**session.of_rollout()))


@rollout.command()
@said
@click.argument("version")
def kill(topology: Topology, version: str, actor: str, reason: str, timeout: float) -> None:
    """Let VERSION answer for nothing any more, at once, whatever else goes on; until `revive`."""
    session = Session(topology, actor, reason, timeout)
    session.send(Kill(**{**session.common(), "expected_generation": None}, version=version))
    out().print(f"{session.desk.state.stable} answers instead of {version}", highlight=False)


@rollout.command()
@said
@click.argument("version")
def revive(topology: Topology, version: str, actor: str, reason: str, timeout: float) -> None:
    """End the kill of VERSION. A candidate gets no event by it; a stable version answers again."""
    session = Session(topology, actor, reason, timeout)
    session.send(Revive(**session.common(), version=version))
    out().print(f"{session.desk.state.stable} is stable", highlight=False)


rollout.add_command(status)
rollout.add_command(history)
