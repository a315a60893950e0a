"""``sqlmq doctor``: report problems and their remedies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sqlmq.cli.output import json_option, say
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.reports.doctor import DoctorLimits
from sqlmq.reports.problem import PROBLEM_KINDS

if TYPE_CHECKING:
    from sqlmq.reports.problem import Problem

_DEFAULTS = DoctorLimits()


@click.command(
    epilog=example(
        "sqlmq doctor",
        "sqlmq doctor --json --ignore clock --ignore isolation",
        "sqlmq doctor --only no-owner --only dead-letters --stuck-seconds 600",
        "sqlmq doctor --max-transaction-seconds 3600 || echo look at the database",
    )
)
@click.option(
    "--only",
    "wanted",
    multiple=True,
    type=click.Choice(sorted(PROBLEM_KINDS)),
    metavar="CODE",
    help="Only this problem; may be repeated.",
)
@click.option(
    "--ignore",
    "ignored",
    multiple=True,
    type=click.Choice(sorted(PROBLEM_KINDS)),
    metavar="CODE",
    help="Leave this problem out; may be repeated.",
)
@click.option(
    "--max-transaction-seconds",
    type=click.FloatRange(min=0),
    default=_DEFAULTS.transaction_seconds,
    show_default=True,
    metavar="SECONDS",
    help="How long a transaction may be open.",
)
@click.option(
    "--stuck-seconds",
    type=click.FloatRange(min=0),
    default=_DEFAULTS.stuck_seconds,
    show_default=True,
    metavar="SECONDS",
    help="How long a message may wait in a partition without an owner, or a due message for its move into the log.",
)
@json_option
@database_options
@pass_settings
def doctor(
    settings: Settings,
    wanted: tuple[str, ...],
    ignored: tuple[str, ...],
    max_transaction_seconds: float,
    stuck_seconds: float,
    *,
    as_json: bool,
) -> None:
    """Report the problems of the database and its groups, with remedies.

    Changes nothing. Checks the version of the tables, settings, poolers, whether notifications arrive, old transactions,
    replication slots, dead rows, clocks, groups without members, dead letters and overdue delayed messages; on SQLite the
    library, the file and its file system.

    The exit code is 0 if nothing is wrong, 1 if the database does not answer, and otherwise the code of the worst problem, from
    10 on.
    """
    limits = DoctorLimits(transaction_seconds=max_transaction_seconds, stuck_seconds=stuck_seconds)
    with settings.open() as mq:
        codes = set(wanted or PROBLEM_KINDS).difference(ignored)
        found = [problem for problem in mq.admin.diagnose(limits) if problem.code in codes]
    for problem in found:
        _show(problem, as_json=as_json)
    if all(problem.severity == "info" for problem in found) and not as_json:
        click.echo("Nothing is wrong.", err=True)
    if found:
        click.get_current_context().exit(found[0].exit_code)


def _show(problem: Problem, *, as_json: bool) -> None:
    sentence = f"{problem.severity}: {problem.summary}  [{problem.code}]\n    {problem.remedy}"
    fields = ("code", "severity", "exit_code", "summary", "remedy", "topic", "group", "partition")
    facts = {name: getattr(problem, name) for name in fields} | {"details": dict(problem.details)}
    say(sentence, facts, as_json=as_json)
