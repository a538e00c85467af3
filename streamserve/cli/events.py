"""`streamserve events`: recorded events into a topology's source topic."""

from __future__ import annotations

from pathlib import Path

import click

from streamserve.cli.common import out, settings, topology_argument
from streamserve.cli.progress import INTERRUPTED, progress, stopping
from streamserve.topology import Topology


@click.group()
def events() -> None:
    """Send recorded events."""


@events.command()
@topology_argument
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Events a second; unset: as fast as it goes.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many events.")
@click.option(
    "--loop", "loops", type=click.IntRange(min=1), default=1, show_default=True, help="How often to send the file."
)
def replay(topology: Topology, file: Path, rate: float | None, limit: int | None, loops: int) -> None:
    """Send the events of FILE (.parquet, .avro or .jsonl) to the source topic of TOPOLOGY_FILE.

    In the order of the file, in the source's format, keyed by its entity key and stamped with the present. --rate is
    a schedule: what a slow moment delayed is caught up with. Ends when the broker has acknowledged every event;
    Ctrl-C stops sending and still waits for what was sent.
    """
    from streamserve.adapters.kafka import Clients
    from streamserve.adapters.replay import Replay, to_come
    from streamserve.adapters.schema_ids import schema_ids
    from streamserve.simulate.load import load_schema

    found = settings()
    clients, schema = Clients(found), load_schema(found, topology)
    total = to_come(file, schema, limit=limit, loops=loops)
    with stopping() as stop, progress(total, "events", "sent") as on_progress:
        done = Replay(clients, topology, schema, schema_ids(found)).run(
            file, rate=rate, limit=limit, loops=loops, on_progress=on_progress, stop=stop
        )
    out().print(
        f"{done.acknowledged:,} events acknowledged by {topology.source.topic} "
        f"in {done.seconds:.1f} s ({done.rate:,.0f} events/s)",
        highlight=False,
    )
    if stop.is_set():
        of = "" if total is None else f" of {total:,}"
        out().print(f"stopped after {done.sent:,}{of}", highlight=False)
        raise click.exceptions.Exit(INTERRUPTED)
