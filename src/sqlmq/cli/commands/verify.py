"""``sqlmq verify``: run the queue under faults and judge what its clients saw."""

from __future__ import annotations

from pathlib import Path

import click

from sqlmq.cli.commands.verify_run import run
from sqlmq.cli.output import json_option, say
from sqlmq.cli.settings import database_options, example
from sqlmq.verify import history, report
from sqlmq.verify.judge.verdict import judged

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


@click.group(epilog=example("sqlmq verify run --duration 30 --out found", "sqlmq verify check found"))
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


verify.add_command(run)


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
