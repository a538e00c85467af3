"""`streamserve dead-letters replay`: events that could not be scored, into their source topic once more."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from streamserve.cli.common import out, print_whole, settings, topology_argument
from streamserve.cli.letters import Chosen, harmless, letter_options
from streamserve.cli.progress import INTERRUPTED, progress, stopping
from streamserve.errors import BrokerError
from streamserve.simulate.explain import iso
from streamserve.simulate.letters import spell_ranges
from streamserve.topology import Topology

if TYPE_CHECKING:
    from streamserve.adapters.letters import Plan


@click.command()
@topology_argument
@letter_options
@click.option("--limit", type=click.IntRange(min=1), help="So many at most, the oldest.")
@click.option("--again", is_flag=True, help="Also letters whose event came of a replay already.")
@click.option("--yes", is_flag=True, help="Write. Without it nothing is written: what would be is told.")
def replay(topology: Topology, chosen: Chosen, limit: int | None, again: bool, yes: bool) -> None:
    """Send the events of dead letters to the source topic of TOPOLOGY_FILE once more.

    A dry run unless --yes is given. Key, value and headers are written as they came, byte for byte, with the event's
    own timestamp, clamped to what the topic takes; the worker's grounds are left out, and one header is added,
    streamserve.replayed-from, which names the letter. Each is a new record: it has a new position, and its prediction
    a new id. A record with a key goes where its key belongs, one without to the partition that it had.

    What came of another topic, and what a worker did not write, is never replayed. An event that was replayed and
    failed again is left out as well, unless --again is given; of its letters only the last is sent then.

    The letters stay where they are, and a success leaves no trace among them: run twice, the command sends what
    succeeded twice. Both runs say at their end which offsets they are about: --offsets and --until bound a replay.
    """
    from streamserve.adapters.kafka import Clients
    from streamserve.adapters.letters import LetterReplay
    from streamserve.adapters.rights import check_replay_rights

    clients = Clients(settings())
    if yes:
        check_replay_rights(clients, topology)
    letters = LetterReplay(clients, topology)
    with progress(None, "letters", "looked at") as on_progress:
        plan = letters.survey(chosen.start, chosen.selection, again=again, limit=limit, on_progress=on_progress)
    _tell(plan, topology, yes=yes)
    if not len(plan):
        return
    if not yes:
        out().print(f"nothing is written; to write exactly these, add: {_exactly(plan)} --yes", highlight=False)
        return
    with stopping() as stop, progress(len(plan), "letters", "sent") as on_progress:
        outcome = letters.send(plan, on_progress=on_progress, stop=stop)
    told = f"{outcome.confirmed:,} of {len(plan):,} letters are confirmed by {topology.source.topic}"
    on = f"--offsets {spell_ranges(outcome.left)}"
    if outcome.fault is not None:
        raise BrokerError(
            f"{told}, then: {outcome.fault.what}",
            where=outcome.fault.where,
            mend=f"{outcome.fault.mend}; then go on, with the same filters, with {on}",
        )
    out().print(told, highlight=False)
    if chosen.selection.until is not None and limit is None and not stop.is_set():
        on = f"--since {iso(chosen.selection.until)}"  # what was left out for its time is not skipped then
    out().print(f"to go on behind them: {on}", highlight=False)
    if stop.is_set():
        raise click.exceptions.Exit(INTERRUPTED)


def _tell(plan: Plan, topology: Topology, *, yes: bool) -> None:
    console, source = out(), topology.source.topic
    if len(plan):
        console.print(f"{'to be' if yes else 'would be'} sent to {source}:", highlight=False)
        print_whole(console, _kinds(plan))
        print_whole(console, _ends(plan, topology.topic("dead-letters")))
    for why, count in plan.skipped.items():
        console.print(Text(f"left out: {count:,} {harmless(why)}"))
    if not len(plan):
        console.print("nothing to replay")
        return
    now = time.time_ns() // 1_000_000
    for count, what in (
        (plan.clamped(now), f"{'get' if yes else 'would get'} another timestamp: {source} does not take their own"),
        (
            plan.expiring(now),
            f"are older than retention.ms of {source}, which may delete them at once: have a worker running",
        ),
    ):
        if count:
            console.print(Text(f"note: {count:,} of {len(plan):,} {what}", style="yellow"))


def _kinds(plan: Plan) -> Table:
    table = Table("stage", "error", box=None, pad_edge=False, header_style="bold", show_footer=True)
    rows = plan.by_kind()
    table.columns[0].footer = "in all"
    for name, total in (("letters", len(plan)), ("bytes", int(plan.sizes.sum()))):
        table.add_column(name, justify="right", footer=f"{total:,}")
    for stage, error, count, size in rows:
        table.add_row(stage, Text(harmless(error)), f"{count:,}", f"{size:,}")
    return table


def _ends(plan: Plan, topic: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for word, row in (("first", plan.oldest), ("last", plan.newest)):
        place = f"{topic}-{plan.partitions[row]}-{plan.offsets[row]}"
        table.add_row(word, Text(place), f"of {iso(int(plan.stamps[row]))}")
    return table


def _exactly(plan: Plan) -> str:
    return f"--offsets {spell_ranges(plan.spans())}"
