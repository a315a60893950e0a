from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import sqlmq
from sqlmq.cli import main

DOCS = Path(__file__).parent.parent.parent / "docs"
GUIDE = DOCS / "cli.md"
REFERENCE = DOCS / "reference" / "cli.md"
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
    _, _, rest = REFERENCE.read_text(encoding="utf-8").partition(f"\n## {path}\n")
    return rest.partition("\n#")[0]


def row(path: str, option: click.Option) -> str:
    """The line of the reference about an option of a command."""
    text = section("Options of every command" if option.name in SHARED else path)
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    return next((line for line in text.splitlines() if line.startswith(f"| {names} |")), "")


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


@pytest.mark.parametrize("path", COMMANDS)
def test_the_reference_has_every_command_with_all_its_options(path: str) -> None:
    found = options(COMMANDS[path])

    assert section(path) or path == "sqlmq", f"docs/reference/cli.md has no heading '## {path}'"
    assert [option.opts for option in found if option.name != "version" and not row(path, option)] == []


@pytest.mark.parametrize("path", LEAVES)
def test_the_reference_tells_the_arguments_environment_and_choices_of_a_command(path: str) -> None:
    usage = section(path).partition("```\n")[2].partition("\n```")[0]

    assert usage == " ".join([path, *LEAVES[path].collect_usage_pieces(click.Context(LEAVES[path]))])
    for option in options(LEAVES[path]):
        told = row(path, option)
        assert not option.envvar or f"`{option.envvar}`" in told
        assert not option.required or "| required |" in told
        if isinstance(option.type, click.Choice) and option.metavar is None:
            assert "\\|".join(option.type.choices) in told


@pytest.mark.parametrize("path", LEAVES)
def test_the_guide_leads_to_every_command(path: str) -> None:
    assert f"[`{path}`](reference/cli.md#{path.replace(' ', '-')})" in GUIDE.read_text(encoding="utf-8")


def test_the_guide_has_the_options_that_all_commands_share() -> None:
    text = GUIDE.read_text(encoding="utf-8")

    names = [name for option in options(main) for name in option.opts]
    assert [name for name in names if f"`{name}" not in text] == []


def test_the_reference_has_no_command_that_is_not_there() -> None:
    headings = [line[3:] for line in REFERENCE.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]

    assert headings == list(dict.fromkeys(headings))
    assert set(headings) == {*COMMANDS, "Options of every command"} - {"sqlmq"}


def test_help_tells_what_the_exit_codes_mean() -> None:
    result = CliRunner().invoke(main, ["--help"])

    for code in ("0  ", "1  ", "2  ", "3  ", "10+", "130"):
        assert f"\n    {code}" in result.output


def test_the_version_is_the_librarys() -> None:
    result = CliRunner().invoke(main, ["--version"])

    assert result.output == f"sqlmq {sqlmq.__version__}\n"
