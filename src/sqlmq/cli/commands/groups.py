"""``sqlmq groups``: positions, lag and members of groups. ``reset`` has its own module."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

from sqlmq.cli.commands.reset import reset
from sqlmq.cli.output import json_option, printable, show
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.errors import UnknownGroupError, UnknownTopicError

if TYPE_CHECKING:
    from typing import Any

    from sqlmq.mq import MQ
    from sqlmq.reports.descriptions import GroupDescription
    from sqlmq.reports.problem import Problem


@click.group(epilog=example("sqlmq groups list", "sqlmq groups describe billing --topic orders"))
@database_options
def groups() -> None:
    """Show positions, lag and members of groups, and reset positions."""


groups.add_command(reset)


@groups.command("list", epilog=example("sqlmq groups list", "sqlmq groups list --topic orders --json"))
@click.option("-t", "--topic", metavar="NAME", help="Only the groups of this topic.")
@json_option
@database_options
@pass_settings
def list_groups(settings: Settings, topic: str | None, *, as_json: bool) -> None:
    """List the groups of one topic, or of all, with their live members and their lag.

    Lag is the number of messages that the group has not finished.
    """
    with settings.open() as mq:
        found = [
            described
            for name in ([topic] if topic else mq.admin.topics())
            for group in _groups(mq, name, must_exist=topic is not None)
            if (described := _described(mq, name, group))
        ]
    rows = [{"topic": one.topic, "group": one.name, "members": list(one.members), "lag": one.lag} for one in found]
    shown = rows if as_json else [row | {"members": len(one.members)} for row, one in zip(rows, found, strict=True)]
    empty = "There are no groups yet. The first consumer creates its group: `sqlmq consume TOPIC --group NAME`."
    show(shown, ["topic", "group", "members", "lag"], as_json=as_json, empty=empty)


@groups.command(epilog=example("sqlmq groups describe billing --topic orders", "sqlmq groups describe billing --json"))
@click.argument("group")
@click.option("-t", "--topic", metavar="NAME", help="Topic that the group reads. Default: all its topics.")
@click.option(
    "--stuck-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="A partition is stuck if a message waits and nothing was committed for this long.",
)
@json_option
@database_options
@pass_settings
def describe(settings: Settings, group: str, topic: str | None, stuck_seconds: float, *, as_json: bool) -> None:
    """Show position, lag and owner of each partition of the group GROUP, and why messages wait.

    `position` is the offset that the group reads next, `end` the offset that the next message gets, `lag` the
    difference, `seconds` the age of the oldest message between them. `waiting` counts the parked messages that wait for
    a retry, `dead` the dead letters. No member reads a partition without an owner.

    Below the table the command explains why messages wait, where it knows, and after -> what to do.
    """
    with settings.open() as mq:
        if topic is None:
            found = [one for name in mq.admin.topics() if (one := _described(mq, name, group))]
            if not found:
                raise click.ClickException(f"No topic has a group {group!r}. `sqlmq groups list` lists all groups.")
        else:
            found = [mq.admin.describe_group(topic, group)]
        problems = [problem for one in found for problem in _problems(mq, one, stuck_seconds)]
    rows: list[dict[str, Any]] = [
        {
            "topic": one.topic,
            "group": one.name,
            "partition": partition.partition,
            "position": partition.position,
            "end": partition.end_offset,
            "lag": partition.lag,
            "seconds": round(partition.lag_seconds, 1),
            "waiting": partition.waiting,
            "dead": partition.dead,
            "committed_at": partition.committed_at.isoformat() if partition.committed_at else None,
            "owner": partition.owner,
        }
        for one in found
        for partition in one.partitions
    ]
    if as_json:
        for row in rows:
            row["problems"] = [
                {"code": problem.code, "summary": problem.summary, "remedy": problem.remedy}
                for problem in problems
                if problem.topic == row["topic"] and problem.partition in (None, row["partition"])
            ]
    columns = ["topic", "partition", "position", "end", "lag", "seconds", "waiting", "dead", "committed_at", "owner"]
    show(rows, columns, as_json=as_json)
    for problem in [] if as_json else problems:
        where = problem.topic if problem.partition is None else f"{problem.topic}, partition {problem.partition}"
        click.echo(f"\n{where}: {printable(problem.summary)}\n  -> {printable(problem.remedy)}")


@groups.command(epilog=example("sqlmq groups members billing --topic orders"))
@click.argument("group")
@click.option("-t", "--topic", required=True, metavar="NAME", help="Topic that the group reads.")
@json_option
@database_options
@pass_settings
def members(settings: Settings, group: str, topic: str, *, as_json: bool) -> None:
    """List the members of the group GROUP, with their partitions and the age of the last heartbeat.

    A member that died is listed, with `live` false, until another member removes it. Consumers that only use
    transaction() are not members.
    """
    with settings.open() as mq:
        found = mq.admin.members(topic, group)
    rows = [
        {
            "member": one.name,
            "live": one.is_live,
            "heartbeat_seconds": round(one.heartbeat_seconds, 1),
            "lease_seconds": one.lease_seconds,
            "wants_partitions": one.wants_partitions,
            "partitions": list(one.partitions),
            "joined_at": one.joined_at.isoformat(),
        }
        for one in found
    ]
    columns = ["member", "live", "heartbeat_seconds", "lease_seconds", "wants_partitions", "partitions", "joined_at"]
    show(rows, columns, as_json=as_json, empty=f"Group {group!r} has no members now.")


def _groups(mq: MQ, topic: str, *, must_exist: bool) -> list[str]:
    try:
        return mq.admin.groups(topic)
    except UnknownTopicError:
        if must_exist:
            raise
        return []


def _problems(mq: MQ, group: GroupDescription, stuck_seconds: float) -> list[Problem]:
    """Return why messages of *group* wait; nothing if the group or its topic was deleted."""
    with suppress(UnknownTopicError, UnknownGroupError):
        return mq.admin.diagnose_group(group.topic, group.name, stuck_seconds=stuck_seconds)
    return []


def _described(mq: MQ, topic: str, group: str) -> GroupDescription | None:
    """Return the group, or None if the group or its topic does not exist."""
    with suppress(UnknownTopicError, UnknownGroupError):
        return mq.admin.describe_group(topic, group)
    return None
