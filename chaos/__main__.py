"""`python -m chaos`: runs, one after the other; exit code 1 if a promise was broken."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import click

from bench.run import alone
from chaos import prove, report
from chaos.points import AT_LEAST_ONCE, EXACTLY_ONCE, UnknownPlaceError, points_of
from chaos.run import Options, Result, run
from streamserve.errors import StreamserveError
from streamserve.settings import Settings

BOTH = "both"
BROKEN, UNABLE, INTERRUPTED = 1, 2, 130  # exit codes: a promise was broken; nothing is known; Ctrl-C


def tell(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--faults", default=100, show_default=True, type=click.IntRange(0), help="How many.")
@click.option("--seed", default=1, show_default=True, help="Of the schedule and the events; a run is made again by it.")
@click.option("--delivery", default=BOTH, show_default=True, type=click.Choice((AT_LEAST_ONCE, EXACTLY_ONCE, BOTH)))
@click.option("--rate", default=400.0, show_default=True, help="Events a second, beside the bursts.")
@click.option("--burst", default=4000, show_default=True, help="Events of the burst that each fault lands in.")
@click.option("--commands/--no-commands", default=True, show_default=True, help="Versions are switched all the while.")
@click.option("--prove", "events", type=click.IntRange(1000), help="The first law, over so many events, instead.")
@click.option("--setting", "given", multiple=True, metavar="NAME=VALUE", help="An environment variable of the workers.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Of logs and results.")
@click.option(
    "--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write all results to this file too."
)
def main(
    faults: int,
    seed: int,
    delivery: str,
    rate: float,
    burst: int,
    *,
    commands: bool,
    events: int | None,
    given: tuple[str, ...],
    folder: Path | None,
    file: Path | None,
) -> None:
    """Hold delivery, or with --prove the first law, against faults, on a Kafka and a Redis of its own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    above = (folder or Settings.load().home / "chaos").resolve()
    settings = dict(one.partition("=")[::2] for one in given)
    results, wanted = list[Result | prove.Proven](), (AT_LEAST_ONCE, EXACTLY_ONCE) if delivery == BOTH else (delivery,)
    for one in wanted:
        points_of(one)
    with alone(above):
        for one in wanted:
            options = Options(
                above / f"{one}-seed-{seed}", one, seed, faults, rate, burst, commands=commands, settings=settings
            )
            results.append(run(options, tell) if events is None else prove.prove(options, events, tell))
    if file is not None:
        told = [report.as_dict(one) if isinstance(one, Result) else prove.as_dict(one) for one in results]
        file.write_text(json.dumps(told, indent=1) + "\n")
    if not all(one.good for one in results):
        sys.exit(BROKEN)


def end(code: int) -> None:
    """Everything is cleaned up. Not by the interpreter's own end: a Kafka client's may never come (see Broker)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
        end(0)
    except SystemExit as asked:
        end(asked.code if isinstance(asked.code, int) else 0)
    except click.exceptions.Abort:
        end(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        end(error.exit_code)
    except (StreamserveError, UnknownPlaceError) as error:
        print(f"error: {error}", file=sys.stderr)
        end(UNABLE)
    except BaseException:  # noqa: BLE001  (the interpreter would say the same, and then end)
        traceback.print_exc()
        end(UNABLE)
