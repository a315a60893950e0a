"""``sqlmq verify run``: a run under faults, judged."""

from __future__ import annotations

import multiprocessing
import secrets
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sqlmq.cli.output import json_option, say
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.verify import history, report
from sqlmq.verify.judge.verdict import judged
from sqlmq.verify.plan import FAULTS, MODES, Plan

if TYPE_CHECKING:
    from sqlmq.verify.plan import Fault

_DEFAULTS = Plan("sqlite://", None, "", Path())


class _Range(click.ParamType[tuple[int, int]]):
    """Two whole numbers, the least and the most, or one that is both."""

    name = "range"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Read ``LEAST..MOST``."""
        if isinstance(value, tuple):
            return value
        least, _, most = str(value).partition("..")
        try:
            found = int(least), int(most or least)
        except ValueError:
            self.fail(f"{value!r} is no range, as 64..2000.", param, ctx)
        if not 1 <= found[0] <= found[1]:
            self.fail(f"{value!r} is no range from 1 up, as 64..2000.", param, ctx)
        return found


class _Faults(click.ParamType["tuple[Fault, ...]"]):
    """Names of faults, with commas between."""

    name = "faults"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Fault, ...]:
        """Read ``kill,pause``, or ``none``."""
        if isinstance(value, tuple):
            return value
        if value == "none":
            return ()
        names = str(value).split(",")
        found = tuple(fault for fault in FAULTS if fault in names)
        if unknown := sorted(set(names).difference(FAULTS)):
            self.fail(f"There is no fault {unknown[0]!r}; there are {', '.join(FAULTS)}, or none.", param, ctx)
        return found


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
    help="How long processes send and read; what is left is read after that.",
)
@click.option("--seed", type=int, help="Choose as a run before did; by default each is another.")
@click.option("--mode", type=click.Choice(MODES), default=_DEFAULTS.mode, show_default=True, help="How groups read.")
@click.option(
    "--producers",
    type=click.IntRange(min=1),
    default=_DEFAULTS.producers,
    show_default=True,
    help="Processes that send, with two threads each.",
)
@click.option(
    "--consumers", type=click.IntRange(min=1), default=_DEFAULTS.consumers, show_default=True, help="Of each group."
)
@click.option(
    "--groups", type=click.IntRange(min=1), default=_DEFAULTS.groups, show_default=True, help="For each way of reading."
)
@click.option(
    "--partitions",
    type=click.IntRange(min=1),
    default=_DEFAULTS.partitions,
    show_default=True,
    help="Of the topic that all groups read.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=1, max=10_000),
    default=_DEFAULTS.rate,
    show_default=True,
    help="Messages in a second, of all producers together, at most.",
)
@click.option("--payload", type=_Range(), default=_DEFAULTS.payload, metavar="LEAST..MOST", help="Bytes of a value.")
@click.option("--batch", type=_Range(), default=_DEFAULTS.batch, metavar="LEAST..MOST", help="Messages of a batch.")
@click.option(
    "--abort",
    type=click.FloatRange(0, 1),
    default=_DEFAULTS.abort,
    show_default=True,
    help="Share of transactions rolled back.",
)
@click.option(
    "--savepoint",
    type=click.FloatRange(0, 1),
    default=_DEFAULTS.savepoint,
    show_default=True,
    help="Share of transactions with a savepoint rolled back.",
)
@click.option(
    "--faults",
    type=_Faults(),
    default=",".join(_DEFAULTS.faults),
    show_default=True,
    metavar="NAMES",
    help="What happens to the processes: kill, pause, end; terminate sessions of theirs, on Postgres. Or none.",
)
@click.option(
    "--every",
    "fault_seconds",
    type=click.FloatRange(min=0.1),
    default=_DEFAULTS.fault_seconds,
    show_default=True,
    metavar="SECONDS",
    help="About how long it is from one fault to the next. A killed process takes a second of a processor to come back.",
)
@click.option(
    "--out",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where history and report go; by default verify-<id>.",
)
@click.option("--keep", is_flag=True, help="Leave the schema, or the file, as it is in the end.")
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
    """Send and read under faults, and judge what was seen.

    Processes of their own send, read, and are killed, paused and cut off meanwhile. In the end everything is healed, fresh
    members read what is left, and the history is judged: lost, duplicated, skipped, torn, out of order.

    It keeps to a schema of its own on Postgres, sqlmq_verify_<id>, and to a file of its own on SQLite, removed in the end;
    where there is a queue already it begins nothing. Faults are of its own processes and sessions only.
    """
    from sqlmq.verify.workload import run as workload_run

    name = secrets.token_hex(4)
    directory = directory or Path(f"verify-{name}")
    if any(directory.glob("*.jsonl")):
        message = f"{directory} has a history already. Name another directory with --out."
        raise click.UsageError(message)
    check_system()
    chosen = secrets.randbelow(1_000_000) if seed is None else seed
    plan = Plan.of(settings.url, settings.schema, name, directory, seed=chosen, **options)
    click.echo(f"Run {name} with seed {chosen}; history and report go to {directory}.", err=True)
    ran = workload_run.perform(plan, keep=keep, say=lambda line: click.echo(line, err=True))
    verdict = judged(*history.read_directory(directory))
    told = report.write(verdict, directory, None)
    click.echo(f"{ran.lives} processes lived, and {ran.faults} faults happened to them.", err=True)
    for who in ran.broken:
        click.echo(f"{who} ended by an error that it should not meet: see {directory / who}.stderr", err=True)
    for who in ran.late:
        click.echo(f"{who} did not end when it was asked to, and was killed.", err=True)
    say(report.summary(verdict, directory), told, as_json=as_json)
    click.get_current_context().exit(verdict.exit_code or (1 if ran.broken or ran.late else 0))


def check_system() -> None:
    """Raise ClickException where processes can't be killed and forked."""
    if not hasattr(signal, "SIGKILL") or "forkserver" not in multiprocessing.get_all_start_methods():
        message = "Runs need kill -9 and fork, which this system does not have. Use Linux or macOS."
        raise click.ClickException(message)
