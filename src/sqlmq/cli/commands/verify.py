"""``sqlmq verify``: histories of what clients did, judged; and the judge put to the test."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sqlmq.cli.commands.verify_run import check_system, run
from sqlmq.cli.output import json_option, say, show
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.verify import history, report
from sqlmq.verify.judge.verdict import judged
from sqlmq.verify.selftest import edits
from sqlmq.verify.selftest.cases import checked

if TYPE_CHECKING:
    from sqlmq.verify.selftest.cases import Control

_USAGE = 64
"""What is given can't be judged: as sysexits.h has it."""

_EXIT_CODES = """

\b
Exit codes:
  0   valid: nothing is wrong
  1   invalid: a promise was broken
  2   liveness: something took longer than it may
  3   unknown: too little happened to say anything
  64  what was given can't be read"""


@click.group(
    epilog=example("sqlmq verify run --duration 30 --out found", "sqlmq verify check found", "sqlmq verify selftest")
)
@database_options
def verify() -> None:
    """Find out by trial whether the queue keeps its promises.

    A run has many processes send and read while some of them are killed. Each writes down what it did. A judge that knows
    nothing of the library compares what they saw.
    """


@verify.command(
    epilog=example(
        "sqlmq verify check found",
        "sqlmq verify check found/producer-1.jsonl found/consumer-1.jsonl --final found/final.jsonl",
        "sqlmq verify check found --allow lost-suffix --junit verify.xml",
    )
    + _EXIT_CODES
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="DIR|FILE...")
@click.option(
    "--final",
    "final_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The state at the end, if it is not the directory's final.jsonl.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="NAME",
    help="An anomaly that does not count, by code, name or kind, as lost-suffix; may be given again.",
)
@click.option(
    "--least",
    type=click.IntRange(min=0),
    help="With fewer acknowledged messages the verdict is unknown; by default what the run says, or 1000.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where result.json and report.md go; by default to the directory that is judged.",
)
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), help="Write a JUnit file, too.")
@json_option
@database_options
def check(
    paths: tuple[Path, ...],
    final_path: Path | None,
    allow: tuple[str, ...],
    least: int | None,
    out: Path | None,
    junit: Path | None,
    *,
    as_json: bool,
) -> None:
    """Judge what a run has left: a directory, or files of histories.

    Needs no database. Writes a report, and prints what was found.
    """
    try:
        events, final = _read(paths, final_path)
    except (history.HistoryError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        click.get_current_context().exit(_USAGE)
    verdict = judged(events, final, allow=allow, least_acknowledged=least)
    directory = out or (paths[0] if paths[0].is_dir() else paths[0].parent)
    told = report.write(verdict, directory, junit)
    say(report.summary(verdict, directory), told, as_json=as_json)
    click.get_current_context().exit(verdict.exit_code)


@verify.command(
    epilog=example(
        "sqlmq verify selftest",
        "sqlmq verify selftest --only lost-message --seed 3",
        "sqlmq verify selftest --sabotage --only unbroken --only effects-apart",
    )
)
@click.option("--seed", type=int, default=0, show_default=True, help="Choose the histories by this number.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this one; may be given again.")
@click.option(
    "--sabotage",
    is_flag=True,
    help="Break the library itself, one thing after the other, in runs of some seconds; on SQLite, or at --url.",
)
@json_option
@database_options
@pass_settings
def selftest(settings: Settings, /, seed: int, only: tuple[str, ...], *, sabotage: bool, as_json: bool) -> None:
    """Give the judge wrong histories, each of a kind, and see whether it catches them all.

    The exit code is 0 if it caught each by its name, and accepted the correct one; else 1.
    """
    known = _sabotaged(settings.url) if sabotage else list(edits.controls())
    controls = [one for one in known if not only or one.name in only]
    if not controls:
        message = f"There is no control of that name; there are {', '.join(one.name for one in known)}."
        raise click.BadParameter(message, param_hint="--only")
    rows = []
    for control in controls:
        with tempfile.TemporaryDirectory() as directory:
            one = checked(control, Path(directory), seed)
        expected = ", ".join(sorted(control.expected)) or "nothing"
        found = ", ".join(sorted(one.found)) or "nothing"
        rows.append({"control": control.name, "expected": expected, "found": found, "caught": one.is_right})
    show(
        [row | {"caught": row["caught"] if as_json else "yes" if row["caught"] else "NO"} for row in rows],
        ("control", "expected", "found", "caught"),
        as_json=as_json,
    )
    if not all(row["caught"] for row in rows):
        click.get_current_context().exit(1)


verify.add_command(run)


def _sabotaged(url: str | None) -> list[Control]:
    from sqlmq.verify.selftest import mutation_runs

    check_system()
    return mutation_runs.controls(url)


def _read(paths: tuple[Path, ...], final_path: Path | None) -> tuple[list[history.Event], history.Final | None]:
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    finals = [path for path in files if path.name == history.FINAL_FILE] if final_path is None else [final_path]
    events = history.read(path for path in files if path.name != history.FINAL_FILE and path != final_path)
    if not events:
        message = "There is no history: no event in any *.jsonl."
        raise history.HistoryError(message)
    return events, history.read_final(finals[0]) if finals else None
