"""The command line: one thin file a command group; each group is imported when it is called.

Nothing is decided here: a command reads its options, calls a room and prints. Errors of the tree in
`streamserve.errors` become one message and the exit code of their class, never a traceback.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys

import click
from rich.console import Console
from rich.text import Text

from streamserve.errors import StreamserveError

# name: (file:attribute, help). The help stands here so that `streamserve -h` imports none of them.
COMMANDS = {
    "bench": ("bench:bench", "Measure what an event costs, in a checkout."),
    "check": ("check:check", "Validate a topology file, and draw it."),
    "dead-letters": ("dead_letters:dead_letters", "Look at events that could not be scored, and send them again."),
    "control": ("control:control", "Send, check and follow commands."),
    "demo": ("demo:demo", "Score nine months of real flights, end to end."),
    "dev": ("dev:dev", "Run a local Kafka and Redis."),
    "drift": ("drift:drift", "Watch what a model is fed, and what it says, for drift."),
    "events": ("events:events", "Feed recorded events to a source topic."),
    "explain": ("explain:explain", "Show where a prediction came from."),
    "features": ("features:features", "Load precomputed features into Redis."),
    "models": ("models:models", "Add model versions to the registry, and look at them."),
    "predictions": ("predictions:predictions", "Follow a topology's predictions, and verify them."),
    "rollout": ("rollout:rollout", "Try, promote and take back a model version."),
    "shadow": ("shadow:shadow", "Look at what a candidate says of events that stable answers for."),
    "topics": ("topics:topics", "Create and check the topics of a topology."),
    "topology": ("topology:topology", "Put a topology's first version in force."),
    "worker": ("worker:worker", "Score a topology's stream."),
}


class LazyGroup(click.Group):
    """A group whose commands live in `streamserve.cli.<file>:<name>`, imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"streamserve.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(COMMANDS.items())])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="streamserve")
def cli() -> None:
    """Score Kafka event streams with ONNX models."""
    # The clients' own log is for the worker's log; elsewhere what matters arrives as an error of ours
    logging.basicConfig(level=logging.CRITICAL)


def main() -> None:
    try:
        code = cli.main(standalone_mode=False)
    except StreamserveError as error:
        show_error(error)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("STREAMSERVE_LOG_LEVEL") == "DEBUG":
            raise
        what = f"unexpected {type(error).__name__}: {error}"
        show_error(
            StreamserveError(what, mend="this is a fault of streamserve; STREAMSERVE_LOG_LEVEL=DEBUG shows where")
        )
        sys.exit(StreamserveError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def show_error(error: StreamserveError) -> None:
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text("error: ", style="bold red") + Text(error.what))
    for label, text in (("where", error.where), ("mend", error.mend)):
        if text:
            console.print(Text(f"  {label}: ".ljust(10), style="dim") + Text(text))
