from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import sqlmq
from sqlmq.cli import main

REFERENCE = Path(__file__).parent.parent.parent / "docs" / "cli.md"
SHARED = {"url", "schema", "verbosity", "help"}


def walk(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    below = command.commands if isinstance(command, click.Group) else {}
    return [(path, command), *(found for name, one in sorted(below.items()) for found in walk(one, f"{path} {name}"))]


COMMANDS = dict(walk(main, "sqlmq"))
LEAVES = {path: command for path, command in COMMANDS.items() if not isinstance(command, click.Group)}


def options(command: click.Command) -> list[click.Option]:
    return [param for param in command.params if isinstance(param, click.Option)]


def section(path: str) -> str:
    """What the reference says of a command: from its heading to the next."""
    _, _, rest = REFERENCE.read_text(encoding="utf-8").partition(f"\n### {path}\n")
    return rest.partition("\n#")[0]


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_explains_itself_with_an_example(path: str) -> None:
    result = CliRunner().invoke(main, [*path.split()[1:], "--help"], prog_name="sqlmq")

    assert result.exit_code == 0
    assert COMMANDS[path].help
    assert "\n  Example:\n    " in result.output
    assert "sqlmq" in result.output.partition("Example:")[2]


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_has_help(path: str) -> None:
    assert [option.name for option in options(COMMANDS[path]) if not option.help] == []


@pytest.mark.parametrize("path", LEAVES)
def test_every_command_takes_the_options_that_name_the_database(path: str) -> None:
    assert {"url", "schema", "verbosity"} <= {option.name for option in options(LEAVES[path])}


@pytest.mark.parametrize("path", LEAVES)
def test_the_reference_has_every_command_with_all_its_options(path: str) -> None:
    text = section(path)

    assert text, f"docs/cli.md has no heading '### {path}'"
    names = [name for option in options(LEAVES[path]) if option.name not in SHARED for name in option.opts]
    assert [name for name in names if f"`{name}" not in text and f" {name}`" not in text] == []


def test_the_reference_has_the_options_that_all_commands_share() -> None:
    text = REFERENCE.read_text(encoding="utf-8")

    names = [name for option in options(main) for name in option.opts]
    assert [name for name in names if f"`{name}" not in text] == []


def test_the_reference_has_no_command_that_is_not_there() -> None:
    headings = [line[4:] for line in REFERENCE.read_text(encoding="utf-8").splitlines() if line.startswith("### ")]

    assert headings == list(dict.fromkeys(headings))
    assert set(headings) == set(LEAVES)


def test_help_tells_what_the_exit_codes_mean() -> None:
    result = CliRunner().invoke(main, ["--help"])

    for code in ("0  ", "1  ", "2  ", "3  ", "130"):
        assert f"\n    {code}" in result.output


def test_the_version_is_the_librarys() -> None:
    result = CliRunner().invoke(main, ["--version"])

    assert result.output == f"sqlmq {sqlmq.__version__}\n"
