"""`streamserve features`: the rows of a topology's views."""

from __future__ import annotations

from pathlib import Path

import click

from streamserve.adapters.redis_store import RedisStore
from streamserve.cli.common import out, settings, topology_argument
from streamserve.errors import ConfigError
from streamserve.features.catalogue import view_fingerprint
from streamserve.simulate.view_files import view_rows
from streamserve.topology import Topology


@click.group()
def features() -> None:
    """Load precomputed features into Redis."""


@features.command()
@topology_argument
@click.argument("files", nargs=-1, required=True, metavar="VIEW=FILE...")
def load(topology: Topology, files: tuple[str, ...]) -> None:
    """Load view rows from Parquet files: the key columns, `feature_time` (a timestamp), and the fields.

    A row is written whole, and may be loaded again at any time.
    """
    views = {view.name: view for view in topology.views}
    store = RedisStore(settings())
    store.check()
    for given in files:
        name, sep, path = given.partition("=")
        if not sep or name not in views:
            raise ConfigError(
                f"{given!r} names no view of {topology.name}; the views are {', '.join(views) or 'none'}",
                mend="write VIEW=FILE, e.g. carrier=carrier.parquet",
            )
        count = store.load(view_rows(views[name], Path(path)))
        out().print(f"{name}: {count} rows, layout {view_fingerprint(views[name])}")
