"""``sqlmq verify run``: run the queue under faults and judge it."""

from __future__ import annotations

import multiprocessing
import secrets
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sqlmq.cli.output import json_option, say
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.database.engines import read_url
from sqlmq.dialects import blocking
from sqlmq.verify import history, report
from sqlmq.verify.judge.verdict import judge
from sqlmq.verify.plan import FAULTS, MODES, Plan

if TYPE_CHECKING:
    from sqlmq.verify.plan import Fault

_DEFAULTS = Plan("sqlite://", None, "", Path())


def _read_range(_ctx: click.Context, _option: click.Parameter, typed: str) -> tuple[int, int]:
    """Parse ``64..2000``, the smallest and the largest number, or ``64`` for both."""
    least, _, most = typed.partition("..")
    try:
        found = int(least), int(most or least)
    except ValueError:
        raise click.BadParameter(f"{typed!r} is not a range. Expected for example 64..2000.") from None
    if not 1 <= found[0] <= found[1]:
        raise click.BadParameter(f"{typed!r} is not a range of numbers from 1 up. Expected for example 64..2000.")
    return found


def _read_faults(_ctx: click.Context, _option: click.Parameter, typed: str) -> tuple[Fault, ...]:
    """Parse ``kill,pause``, names of faults, or ``none``."""
    if typed == "none":
        return ()
    names = typed.split(",")
    if unknown := sorted(set(names).difference(FAULTS)):
        raise click.BadParameter(f"Unknown fault {unknown[0]!r}. Expected {', '.join(FAULTS)}, or none.")
    return tuple(fault for fault in FAULTS if fault in names)


@click.command(
    "run",
    epilog=example(
        "sqlmq verify run --duration 30",
        "sqlmq verify run --url postgresql://user@host/staging --duration 300 --faults kill,pause --out found",
        "sqlmq verify run --seed 7 --mode transaction --faults none",
        "sqlmq verify run --duration 3600 --rate 30 --every 5",
    ),
)
@click.option(
    "--duration",
    "seconds",
    type=click.FloatRange(min=1),
    default=_DEFAULTS.seconds,
    show_default=True,
    metavar="SECONDS",
    help="How long processes produce and consume. The remaining messages are read afterwards.",
)
@click.option("--seed", type=int, help="Repeat the random choices of an earlier run. Default: a new seed.")
@click.option("--mode", type=click.Choice(MODES), default=_DEFAULTS.mode, show_default=True, help="How groups read.")
@click.option(
    "--producers",
    type=click.IntRange(min=1),
    default=_DEFAULTS.producers,
    show_default=True,
    help="Producer processes, with two threads each.",
)
@click.option(
    "--consumers",
    type=click.IntRange(min=1),
    default=_DEFAULTS.consumers,
    show_default=True,
    help="Members of each group.",
)
@click.option(
    "--groups",
    type=click.IntRange(min=1),
    default=_DEFAULTS.groups,
    show_default=True,
    help="Groups for each way of reading.",
)
@click.option(
    "--partitions",
    type=click.IntRange(min=1),
    default=_DEFAULTS.partitions,
    show_default=True,
    help="Partitions of the topic that all groups read.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=1, max=10_000),
    default=_DEFAULTS.rate,
    show_default=True,
    help="The most messages that all producers together send in a second.",
)
@click.option(
    "--payload",
    callback=_read_range,
    default="{}..{}".format(*_DEFAULTS.payload),
    show_default=True,
    metavar="LEAST..MOST",
    help="Size of a value in bytes.",
)
@click.option(
    "--batch",
    callback=_read_range,
    default="{}..{}".format(*_DEFAULTS.batch),
    show_default=True,
    metavar="LEAST..MOST",
    help="Messages in a batch.",
)
@click.option(
    "--abort",
    type=click.FloatRange(0, 1),
    default=_DEFAULTS.abort,
    show_default=True,
    help="Share of transactions that are rolled back.",
)
@click.option(
    "--savepoint",
    type=click.FloatRange(0, 1),
    default=_DEFAULTS.savepoint,
    show_default=True,
    help="Share of transactions with a savepoint that is rolled back.",
)
@click.option(
    "--faults",
    callback=_read_faults,
    default=",".join(_DEFAULTS.faults),
    show_default=True,
    metavar="NAMES",
    help="Faults of the processes: kill, pause, end; on Postgres also terminate, for their sessions. Or none.",
)
@click.option(
    "--every",
    "fault_seconds",
    type=click.FloatRange(min=0.1),
    default=_DEFAULTS.fault_seconds,
    show_default=True,
    metavar="SECONDS",
    help="Average time from one fault to the next. Replacing a killed process takes about a second of CPU time.",
)
@click.option(
    "--out",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Directory for the history and the report. Default: verify-<id>.",
)
@click.option("--keep", is_flag=True, help="Keep the schema or the file after the run.")
@json_option
@database_options
@pass_settings
def run(
    settings: Settings,
    /,
    seed: int | None,
    directory: Path | None,
    *,
    keep: bool,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the fields of a plan
) -> None:
    """Produce and consume under faults, and judge the history.

    Processes produce and consume while they are killed, paused and disconnected. Then all faults end, new members read the
    remaining messages, and the judge checks for lost, duplicated, skipped, torn and reordered messages.

    The run uses its own schema on Postgres, sqlmq_verify_<id>, or its own file on SQLite, and removes it in the end. It does
    not start in a schema or file that already has a queue. Faults hit only its own processes and sessions.
    """
    from sqlmq.verify.workload import run as workload_run

    name = secrets.token_hex(4)
    directory = directory or Path(f"verify-{name}")
    if any(directory.glob("*.jsonl")):
        message = f"{directory} already has a history. Name another directory with --out."
        raise click.UsageError(message)
    check_system()
    chosen = secrets.randbelow(1_000_000) if seed is None else seed
    url = settings.given_url()
    if url is not None:
        url = blocking(read_url(url), is_made=False).render_as_string(hide_password=False)
    plan = Plan.of(url, settings.schema, name, directory, seed=chosen, **options)
    click.echo(f"Run {name} with seed {chosen}; history and report are written to {directory}.", err=True)
    outcome = workload_run.perform(plan, keep=keep, say=lambda line: click.echo(line, err=True))
    verdict = judge(*history.read_directory(directory))
    result = report.write(verdict, directory, None)
    click.echo(f"{outcome.processes} processes were started, and {outcome.faults} faults injected.", err=True)
    for who in outcome.broken:
        click.echo(f"{who} failed with an unexpected error, see {directory / who}.stderr.", err=True)
    for who in outcome.late:
        click.echo(f"{who} did not end on request and was killed.", err=True)
    say(report.summary(verdict, directory), result, as_json=as_json)
    click.get_current_context().exit(verdict.exit_code or (1 if outcome.broken or outcome.late else 0))


def check_system() -> None:
    """Raise ClickException on systems without kill -9 or fork."""
    if not hasattr(signal, "SIGKILL") or "forkserver" not in multiprocessing.get_all_start_methods():
        message = "A run needs kill -9 and fork, which this system does not have. Use Linux or macOS."
        raise click.ClickException(message)
