from __future__ import annotations

from pathlib import Path

import click
from click.testing import CliRunner

import sqlmq
from sqlmq.cli.root import main

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


def usage(path: str) -> str:
    """The line of the reference that shows how to call a command."""
    return section(path).partition("```\n")[2].partition("\n```")[0]


def has_facts_of(option: click.Option, line: str) -> bool:
    """Return whether *line* names the option's environment variable and choices, and that it is required."""
    choices = option.type.choices if isinstance(option.type, click.Choice) and option.metavar is None else ()
    return (
        (not option.envvar or f"`{option.envvar}`" in line)
        and (not option.required or "| required |" in line)
        and "\\|".join(choices) in line
    )


def test_every_command_explains_itself_with_an_example() -> None:
    silent = []
    for path, command in COMMANDS.items():
        result = CliRunner().invoke(main, [*path.split()[1:], "--help"], prog_name="sqlmq")
        _, heading, example = result.output.partition("\n  Example:\n    ")
        if result.exit_code != 0 or not command.help or not heading or "sqlmq" not in example:
            silent.append(path)

    assert silent == []


def test_every_option_has_help() -> None:
    assert [(path, option.name) for path in COMMANDS for option in options(COMMANDS[path]) if not option.help] == []


def test_every_command_takes_the_options_that_name_the_database() -> None:
    wanted = {"url", "schema", "verbosity"}

    assert [path for path in LEAVES if not wanted <= {option.name for option in options(LEAVES[path])}] == []


def test_the_reference_has_every_command_with_all_its_options() -> None:
    assert [path for path in COMMANDS if path != "sqlmq" and not section(path)] == []
    assert [
        (path, option.opts)
        for path, command in COMMANDS.items()
        for option in options(command)
        if option.name != "version" and not row(path, option)
    ] == []


def test_the_reference_has_the_usage_of_every_command() -> None:
    expected = {
        path: " ".join([path, *command.collect_usage_pieces(click.Context(command))])
        for path, command in LEAVES.items()
    }

    assert {path: usage(path) for path in LEAVES} == expected


def test_the_reference_names_the_environment_and_choices_of_every_option() -> None:
    assert [
        (path, option.name)
        for path, command in LEAVES.items()
        for option in options(command)
        if not has_facts_of(option, row(path, option))
    ] == []


def test_the_guide_leads_to_every_command() -> None:
    text = GUIDE.read_text(encoding="utf-8")

    assert [path for path in LEAVES if f"[`{path}`](reference/cli.md#{path.replace(' ', '-')})" not in text] == []


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
