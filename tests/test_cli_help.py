"""Promise: `-h` of every command tells each of its options, and a mistake is one message and an exit code."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from streamserve.cli import COMMANDS, cli, main
from streamserve.errors import StreamserveError


def commands():
    """Words and command of every command, groups too."""

    def below(words, command):
        yield words, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                yield from below((*words, name), command.get_command(context, name))

    return list(below((), cli))


ALL = commands()


@pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) or "streamserve" for words, _ in ALL])
def test_help_tells_what_a_command_is_for_and_each_of_its_options(words, command):
    for flag in ("-h", "--help"):
        done = CliRunner().invoke(cli, [*words, flag])
        assert done.exit_code == 0, done.output
        assert command.help
        assert command.help.split()[0] in done.output
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in done.output
                if parameter.name not in ("help", "version"):
                    assert parameter.help or parameter.metavar, f"{words} {parameter.name} says nothing"
            else:
                assert parameter.make_metavar(click.Context(command)).strip("[]") in done.output
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            assert f"  {name}" in done.output


def test_the_help_of_all_says_what_each_command_says_of_itself():
    done = CliRunner().invoke(cli, ["-h"])
    for name, (_, text) in COMMANDS.items():
        assert f"{name} " in done.output
        assert text in done.output


def test_help_imports_no_client_library():
    code = (
        "import sys; from click.testing import CliRunner; from streamserve.cli import cli; "
        "assert CliRunner().invoke(cli, ['-h']).exit_code == 0; "
        "print(sorted({'onnxruntime', 'confluent_kafka', 'faust', 'pyarrow', 'redis', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["check", "nowhere.py"], 2, "there is no such topology file"),
        (["worker", "nowhere.py"], 2, "mend:"),
        (["models", "show", "m", "v1"], 4, "is not in the registry"),
        (["models", "show", "../m", "v1"], 4, "is no name for a model or a version"),
        (["no-such-command"], 2, "No such command"),
        (["check"], 2, "Missing argument"),
    ],
)
def test_a_mistake_is_one_message_and_an_exit_code(words, code, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["streamserve", *words])
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr()
    assert left.value.code == code
    assert said in told.err
    assert "Traceback" not in told.err + told.out


def test_an_error_of_the_tree_leaves_with_its_own_code(monkeypatch, capsys):
    class OwnError(StreamserveError):
        exit_code = 42

    def fail(**_):
        raise OwnError("what [bold]broke", where="here", mend="so")

    monkeypatch.setattr(cli, "main", fail)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 42
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert lines == [["error:", "what", "[bold]broke"], ["where:", "here"], ["mend:", "so"]]
