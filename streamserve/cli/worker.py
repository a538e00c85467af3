"""`streamserve worker`: one process that scores a topology's stream."""

from __future__ import annotations

import os
import signal

import click

from streamserve.cli.common import set_up_logging, settings, topology_argument
from streamserve.cli.progress import INTERRUPTED
from streamserve.topology import Topology


@click.command()
@topology_argument
@click.option(
    "--web-port",
    type=click.IntRange(0, 65535),
    help="Port of /live, /ready and /metrics; 0 takes a free one.",
)
@click.option("--start", help="Where a new group starts: earliest, latest, or an ISO time.")
def worker(topology: Topology, web_port: int | None, start: str | None) -> None:
    """Score the events of TOPOLOGY_FILE until SIGTERM.

    Needs the topology's topics (`streamserve topics apply`), a version in force (`streamserve topology init`), and
    the version in the registry. Run it several times to share the partitions.
    """
    # Until the worker has its own: nothing is in flight yet, and as a container's first process it has no default.
    # No exception: one that is raised inside a client's callback or a finalizer is dropped, and the signal with it
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from streamserve.agents.worker import Worker

    found = settings()
    changes = {"web_port": web_port, "start": start}
    found = found.model_copy(update={name: value for name, value in changes.items() if value is not None})
    set_up_logging(found.log_level)
    Worker(topology, found).run()
