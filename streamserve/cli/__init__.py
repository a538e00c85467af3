"""The command line: one thin file a command group; each group is imported when it is called.

Nothing is decided here: a command reads its options, calls a room and prints. Errors of the tree in
`streamserve.errors` become one message and the exit code of their class, never a traceback.
"""

from __future__ import annotations

import importlib
import sys

import click
from rich.console import Console
from rich.text import Text

from streamserve.errors import StreamserveError

COMMANDS = {
    "check": "check:check",
    "control": "control:control",
    "dead-letters": "dead_letters:dead_letters",
    "demo": "demo:demo",
    "dev": "dev:dev",
    "events": "events:events",
    "explain": "explain:explain",
    "features": "features:features",
    "models": "models:models",
    "predictions": "predictions:predictions",
    "topics": "topics:topics",
    "topology": "topology:topology",
    "worker": "worker:worker",
}


class LazyGroup(click.Group):
    """A group whose commands live in `streamserve.cli.<file>:<name>`, imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(f"streamserve.cli.{module}"), attribute)
        assert isinstance(command, click.Command)  # noqa: S101  (a slip in the table above)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="streamserve")
def cli() -> None:
    """Score Kafka event streams with ONNX models."""


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
    sys.exit(code if isinstance(code, int) else 0)


def show_error(error: StreamserveError) -> None:
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text("error: ", style="bold red") + Text(error.what))
    for label, text in (("where", error.where), ("mend", error.mend)):
        if text:
            console.print(Text(f"  {label}: ".ljust(10), style="dim") + Text(text))
