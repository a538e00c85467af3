"""`streamserve rollout status|history`: what is in force and how far it took hold; and who sent which command when."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from streamserve.adapters.control_sender import ControlDesk, Effects, workers
from streamserve.adapters.kafka import Clients
from streamserve.cli.common import out, print_whole, quiet_pipe, settings, topology_argument
from streamserve.cli.weights import percent, segment
from streamserve.control.commands import WHOLE_WEIGHT
from streamserve.control.outcome import Outcome
from streamserve.control.state import State
from streamserve.rollouts.heartbeat import Heartbeat, ShadowBeat
from streamserve.topology import Topology

REFRESH_S = 1.0
GOOD, BAD, DIM = "green", "red", "dim"
LABELS = {"kind", "command_id", "topology", "expected_generation", "actor", "reason", "schema_version", "manifest"}


@click.command()
@topology_argument
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
def status(topology: Topology, watch: bool) -> None:
    """Show versions, weights, workers and how far the last command took hold."""
    clients = Clients(settings())
    desk = ControlDesk(clients, topology.name)
    effects = Effects(clients, topology.name, topology.source.topic)
    try:
        with quiet_pipe():
            if not watch:
                out().print(_look(clients, topology, desk, effects))
                return
            with Live(console=out(), auto_refresh=False, screen=False) as live:
                while True:
                    live.update(_look(clients, topology, desk, effects), refresh=True)
                    time.sleep(REFRESH_S)
    finally:
        effects.close()
        desk.close()


def _look(clients: Clients, topology: Topology, desk: ControlDesk, effects: Effects) -> Group:
    for _ in desk.judged():
        pass
    if not desk.state.initialised:
        return Group(Text(f"{topology.name}: no version is in force; `streamserve topology init` puts one"))
    effect = effects.look(desk.state)
    return tree(desk.state, str(effect), effect.whole, effects.epochs(desk.state), workers(clients, topology.name))


def tree(state: State, effect: str, whole: bool, epochs: dict[int, int], living: Sequence[Heartbeat]) -> Group:
    """Everything, drawn. effect: how far the last epoch took hold."""
    root = Tree(Text(f"{state.topology}  model {state.model}  generation {state.generation}", style="bold"))
    last = state.epochs[-1]
    root.add(Text.assemble(f"control epoch {last.number}  ", (effect, GOOD if whole else "yellow")))
    if not whole:
        behind = {at for at in epochs.values() if at < last.number}
        for at in sorted(behind):
            root.children[-1].add(f"at epoch {at}: partitions {spans(p for p, e in epochs.items() if e == at)}")
    root.add(_stable(state))
    root.add(_rollout(state))
    if state.held:
        root.add(Text(f"held: {state.held}", style=BAD))
    root.add(_fleet(state, living))
    return Group(root)


def spans(numbers: Iterable[int]) -> str:
    """Runs of numbers: `0-5, 8`; a topic may have hundreds of partitions."""
    given = sorted(set(numbers))
    starts = [n for n in given if n - 1 not in given]
    ends = [n for n in given if n + 1 not in given]
    found = [f"{start}-{end}" if end > start else str(start) for start, end in zip(starts, ends, strict=True)]
    return ", ".join(found) or "none"


def _stable(state: State) -> Text:
    killed = f"  instead of {state.instead_of}, which is killed" if state.instead_of else ""
    others, weight = sorted(state.killed - {state.instead_of}), _weight(state)
    return Text.assemble(
        ("stable ", DIM),
        (state.stable, GOOD),
        "" if weight is None else f"  answers for {percent(WHOLE_WEIGHT - weight)}",
        killed,
        f"  killed: {', '.join(others)}" if others else "",
    )


def _weight(state: State) -> int | None:
    """Basis points that the candidate answers for by the split; None: no candidate is routed to."""
    now = state.routing(state.epochs[-1].number)
    return None if not now.candidate else 0 if now.candidate in now.killed else now.weight_bp


def _rollout(state: State) -> Tree:
    found = state.rollout
    if found is None:
        return Tree(Text("no rollout is open", style=DIM))
    branch = Tree(
        Text.assemble(("rollout ", DIM), (found.id, "bold"), f"  {found.phase.value}, since offset {found.opened_at}")
    )
    why = "" if found.shifted else ", nothing was shifted"
    share = percent(_weight(state) or 0) + (", it is killed" if found.candidate in state.killed else why)
    branch.add(Text.assemble(("candidate ", DIM), (found.candidate, "cyan"), f"  answers for {share}"))
    if found.shadow_bp:
        of = f" of {segment(dict(found.shadow_where))}" if found.shadow_where else ""
        branch.add(Text(f"shadows {percent(found.shadow_bp)}{of}"))
    for rule in found.rules:
        branch.add(Text(f"{'always' if rule.candidate else 'never'} {segment(dict(rule.where))}"))
    return branch


def _fleet(state: State, living: Sequence[Heartbeat]) -> Tree:
    wanted = [state.stable, *([state.rollout.candidate] if state.rollout else [])]
    count = "no worker lives" if not living else "1 worker lives" if len(living) == 1 else f"{len(living)} workers live"
    branch = Tree(Text(count, style="" if living else BAD))
    for one in living:
        node = branch.add(
            Text.assemble(
                (one.worker, GOOD if one.ready else BAD),
                f"  partitions {spans(one.partitions)}  lag {one.lag:,}" + (f"  {one.why}" if one.why else ""),
            )
        )
        if (shadow := one.shadow) is not None and state.rollout and shadow.rollout == state.rollout.id:
            node.add(_shadow(shadow))
        for version in wanted:
            if version not in one.versions:
                node.add(Text.assemble(f"{version} ", (one.failed.get(version, "loading"), BAD)))
                continue
            took = one.batch_ms.get(version)
            times = f"  {took[0]:g} ms a batch, p99 {took[1]:g}" if took else ""
            node.add(Text.assemble(f"{version} ", ("ready", GOOD), (times, DIM)))
    return branch


def _shadow(found: ShadowBeat) -> Text:
    agreement = f", agrees in {found.agreed / found.decided:.2%} of {found.decided:,}" if found.decided else ""
    troubles = {"failed": found.failed, "unanswered": found.unanswered, "shed": found.shed, "lost": found.lost}
    return Text.assemble(
        ("shadow ", DIM),
        (f"{found.candidate} ", GOOD if found.running else BAD),
        f"scored {found.compared:,}{agreement}",
        ("".join(f", {count:,} {what}" for what, count in troubles.items() if count), BAD),
        (f"  {found.why}" if found.why and not found.running else "", BAD),
    )


@click.command()
@topology_argument
def history(topology: Topology) -> None:
    """List every command of the topology: who, when, what, why, and what became of it."""
    clients = Clients(settings())
    desk = ControlDesk.unread(clients, topology.name)
    table = Table("offset", "time (UTC)", "who", "what", "why", "became", box=None, header_style="bold")
    try:
        for record, outcome in desk.judged():
            if outcome.accepted or outcome.rejection is not None or outcome.held:
                at = datetime.fromtimestamp(record.timestamp / 1000, UTC)
                table.add_row(str(record.offset), f"{at:%Y-%m-%d %H:%M:%S}", *described(outcome))
    finally:
        desk.close()
    with quiet_pipe():
        print_whole(out(), table)


def described(outcome: Outcome) -> tuple[str, str, str, Text]:
    """Who, what, why, and what became of it."""
    label = outcome.label
    if outcome.held:
        became = Text(f"held: {outcome.detail}", style=BAD)
    elif outcome.rejection is not None:
        became = Text(f"{outcome.rejection.value}: {outcome.detail}", style=BAD)
    elif outcome.epoch is not None:
        became = Text(f"epoch {outcome.epoch.number}", style=GOOD)
    else:
        became = Text("accepted", style=GOOD)
    return label.actor or "", what(outcome), label.reason or "", became


def what(outcome: Outcome) -> str:
    """A command in a few words."""
    command = outcome.command
    if command is None:
        return outcome.label.kind or "?"
    fields = command.model_dump(mode="json", exclude_none=True, exclude=LABELS, exclude_defaults=True)
    return " ".join([command.kind, *(f"{name}={value}" for name, value in fields.items())])
