"""What every command group shares: settings with the local services filled in, logging, the topology argument."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from streamserve.settings import Settings
from streamserve.topology import Topology, load_topology

WIDEST = 10_000  # columns, where no terminal limits a line
_Command = TypeVar("_Command", bound=Callable[..., Any])


def out() -> Console:
    """The console for results. Made at each call, so that a redirected stdout is honoured."""
    return Console(soft_wrap=not sys.stdout.isatty())


def settings() -> Settings:
    """The settings; where no broker or Redis is named, those of `streamserve dev up`, if they run.

    Raises:
        SettingsError: a variable's value does not fit.
    """
    from streamserve.dev import running

    found = Settings.load()
    if found.bootstrap and found.redis_url:
        return found
    local = running(found.home)
    if local is None:
        return found
    return found.model_copy(
        update={
            "bootstrap": found.bootstrap or local.bootstrap,
            "redis_url": found.redis_url or local.redis_url,
        }
    )


def set_up_logging(level: str) -> None:
    """One line a record, to stderr. Faust and its libraries speak up from WARNING on."""
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    for name in ("faust", "mode", "aiohttp", "asyncio", "streamserve.adapters.batch_topic"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def topology_argument(command: _Command) -> _Command:
    """`TOPOLOGY_FILE`, loaded and validated, as the argument `topology`."""

    def load(_ctx: click.Context, _param: click.Parameter, value: str) -> Topology:
        return load_topology(Path(value))

    return click.argument("topology", metavar="TOPOLOGY_FILE", callback=load)(command)


def html_option(command: _Command) -> _Command:
    """`--html FILE` of a report."""
    return click.option(
        "--html",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Write a page with plots to this file, and only the headline here.",
    )(command)


@contextlib.contextmanager
def quiet_pipe() -> Iterator[None]:
    """A reader that goes away (`| head`) and Ctrl-C are ordinary ends of a listing: exit code 0, no word."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # What is left in the buffer would be flushed into the pipe again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_whole(console: Console, table: Table) -> None:
    """On a terminal cells are folded to fit; elsewhere lines are as long as they must be."""
    if not console.is_terminal:
        options = console.options.update(max_width=WIDEST)
        console.width = Measurement.get(console, options, table).maximum
    console.print(table, crop=False)
