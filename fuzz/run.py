"""`make fuzz`: so many inputs, in one process or several, and a verdict."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from fuzz import lane, streams, ways
from fuzz.report import LEAST_SCORED, Report, finding
from fuzz.supervisor import supervise

FEW = 1000  # inputs below which a share says nothing


@dataclass(frozen=True)
class Options:
    """lanes: processes; 0: this one, which a crash would end and in which nothing watches for a hang.

    models: where `streams.prepare` has written; None: it is done here.
    """

    inputs: int = 100_000
    seed: int = 0
    format: str = "both"
    lanes: int = 2
    batch: int = -1
    replay: Path | None = None
    limit: float = 30.0
    growth: int = 250
    tries: int = 12
    findings: Path = Path(".streamserve/fuzz")
    models: Path | None = None
    planted: str = ""


def run(options: Options, say: Callable[[str], None]) -> int:
    """0: every promise held. 1: one did not, or too few inputs reached a model."""
    if options.models is not None:
        return _run(options, options.models, say)
    with tempfile.TemporaryDirectory() as folder:
        streams.prepare(Path(folder))
        return _run(options, Path(folder), say)


def _run(options: Options, models: Path, say: Callable[[str], None]) -> int:
    say(f"seed {options.seed}; compiled way: {'yes' if ways.is_built() else 'not built, Python serves both'}")
    report = Report(options.inputs, say)
    for message in _messages(options, models):
        if message["kind"] == "finding":
            say(finding(message, options.seed, options.format))
            return 1
        if message["kind"] == "died":
            say(f"a process ended in batch {message['number']}: looking for the inputs that do it")
        if message["kind"] == "end":
            report.take(message)
    report.table()
    if report.done >= FEW and report.scored < LEAST_SCORED:
        say(f"FOUND: too few inputs reached a model: {report.scored:.1%}, expected {LEAST_SCORED:.0%}")
        return 1
    return 0


def _messages(options: Options, models: Path) -> Iterator[dict[str, Any]]:
    one = options.batch >= 0 or options.replay is not None
    lanes = 1 if one else max(options.lanes, 1)
    task = lane.Task(
        models=str(models),
        findings=str(options.findings.resolve()),
        format=options.format,
        seed=options.seed,
        inputs=options.inputs // lanes,
        lanes=lanes,
        only=options.batch,
        replay=str(options.replay.resolve()) if options.replay else "",
        limit=options.limit if options.lanes else 0.0,
        growth=options.growth,
        planted=options.planted,
    )
    if options.lanes:
        yield from supervise([replace(task, lane=at) for at in range(lanes)], options.tries)
        return
    told: list[dict[str, Any]] = []
    lane.run(task, told.append)
    yield from told


@click.command()
@click.option("--inputs", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--seed", type=int, help="What is drawn follows from it; a new one unless told.")
@click.option("--format", type=click.Choice(("avro", "json", "both")), default="both", show_default=True)
@click.option("--lanes", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
@click.option("--batch", type=click.IntRange(-1), default=-1, help="This batch alone.")
@click.option(
    "--replay", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The batch that a finding wrote."
)
@click.option("--limit", type=click.FloatRange(1), default=30.0, show_default=True, help="Seconds a batch may take.")
@click.option("--growth", type=click.IntRange(1), default=250, show_default=True, help="MiB a process may grow by.")
@click.option(
    "--findings",
    type=click.Path(path_type=Path, file_okay=False),
    default=Options.findings,
    show_default=True,
    help="Where the batch of a finding is written to.",
)
@click.option("--planted", default="", hidden=True)
@click.pass_context
def main(context: click.Context, seed: int | None, **given: Any) -> None:
    """Broken, odd and good events through the whole pipeline; exit code 1 where a promise is not kept."""
    options = Options(seed=secrets.randbelow(10**9) if seed is None else seed, **given)
    context.exit(run(options, click.echo))
