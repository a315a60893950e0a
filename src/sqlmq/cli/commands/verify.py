"""``sqlmq verify``: run the queue under faults and judge what its clients saw."""

from __future__ import annotations

from pathlib import Path

import click

from sqlmq.cli.commands.verify_run import run
from sqlmq.cli.output import json_option, say
from sqlmq.cli.settings import database_options, example
from sqlmq.verify import history, report
from sqlmq.verify.judge.verdict import judge

_USAGE = 64
"""The input cannot be read: EX_USAGE of sysexits.h."""

_EXIT_CODES = """

\b
Exit codes:
  0   valid: no anomaly was found
  1   invalid: a promise was broken
  2   liveness: something took too long
  3   unknown: the run proves too little
  64  the input cannot be read"""


@click.group(epilog=example("sqlmq verify run --duration 30 --out found", "sqlmq verify check found"))
@database_options
def verify() -> None:
    """Test whether the queue keeps its promises under faults.

    In a run, many processes produce and consume while some of them are killed. Each process records what it did and saw. A
    judge, which shares no code with the library, then checks all records against each other and the database.
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
    help="The final state, if it is not final.jsonl in the directory.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="NAME",
    help="Ignore an anomaly, by code, name or kind, for example lost-suffix; may be repeated.",
)
@click.option(
    "--least",
    type=click.IntRange(min=0),
    help="With fewer acknowledged messages the verdict is unknown. Default: what the run says, or 1000.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write result.json and report.md here. Default: the directory with the history.",
)
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), help="Also write a JUnit file.")
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
    """Judge the history of a run: a directory, or the files in it.

    Needs no database. Writes a report and prints a summary.
    """
    try:
        events, final = _read(paths, final_path)
    except (history.HistoryError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        click.get_current_context().exit(_USAGE)
    verdict = judge(events, final, allow=allow, least_acknowledged=least)
    directory = out or (paths[0] if paths[0].is_dir() else paths[0].parent)
    result = report.write(verdict, directory, junit)
    say(report.summary(verdict, directory), result, as_json=as_json)
    click.get_current_context().exit(verdict.exit_code)


verify.add_command(run)


def _read(paths: tuple[Path, ...], final_path: Path | None) -> tuple[list[history.Event], history.Final | None]:
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    finals = [path for path in files if path.name == history.FINAL_FILE] if final_path is None else [final_path]
    events = history.read(path for path in files if path.name != history.FINAL_FILE and path != final_path)
    if not events:
        message = "There is no history: no *.jsonl file has an event."
        raise history.HistoryError(message)
    return events, history.read_final(finals[0]) if finals else None
