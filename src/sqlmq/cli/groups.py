"""``sqlmq groups``: how far each group has come, and who reads what; ``reset`` is apart."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

from sqlmq.cli.output import json_option, show
from sqlmq.cli.reset import reset
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.errors import UnknownGroupError, UnknownTopicError

if TYPE_CHECKING:
    from sqlmq.description import GroupDescription
    from sqlmq.mq import MQ


@click.group(epilog=example("sqlmq groups list", "sqlmq groups describe billing --topic orders"))
@database_options
def groups() -> None:
    """Show how far groups have come, and who reads what; move them."""


groups.add_command(reset)


@groups.command("list", epilog=example("sqlmq groups list", "sqlmq groups list --topic orders --json"))
@click.option("--topic", metavar="NAME", help="Only the groups of this topic.")
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
            for name in ([topic] if topic else mq.topics())
            for group in _groups(mq, name, must_exist=topic is not None)
            if (described := _described(mq, name, group))
        ]
    rows = [{"topic": one.topic, "group": one.name, "members": list(one.members), "lag": one.lag} for one in found]
    shown = rows if as_json else [row | {"members": len(one.members)} for row, one in zip(rows, found, strict=True)]
    empty = "There are no groups yet. A group is made by its first consumer: `sqlmq consume TOPIC --group NAME`."
    show(shown, ["topic", "group", "members", "lag"], as_json=as_json, empty=empty)


@groups.command(epilog=example("sqlmq groups describe billing --topic orders", "sqlmq groups describe billing --json"))
@click.argument("group")
@click.option("--topic", metavar="NAME", help="Topic that the group reads; all that it reads if not given.")
@json_option
@database_options
@pass_settings
def describe(settings: Settings, group: str, topic: str | None, *, as_json: bool) -> None:
    """Show where the group GROUP is in each partition, how far behind, and which member reads it.

    `position` is the offset it reads next, `end` the offset that the next message gets, `lag` the difference. A
    partition without an owner is read by nobody at this moment.
    """
    with settings.open() as mq:
        if topic is None:
            found = [one for name in mq.topics() if (one := _described(mq, name, group))]
            if not found:
                raise click.ClickException(
                    f"No topic has a group {group!r}. `sqlmq groups list` shows those there are."
                )
        else:
            found = [mq.describe_group(topic, group)]
    rows = [
        {
            "topic": one.topic,
            "group": one.name,
            "partition": partition.number,
            "position": partition.position,
            "end": partition.end_offset,
            "lag": partition.lag,
            "owner": partition.owner,
        }
        for one in found
        for partition in one.partitions
    ]
    show(rows, ["topic", "partition", "position", "end", "lag", "owner"], as_json=as_json)


def _groups(mq: MQ, topic: str, *, must_exist: bool) -> list[str]:
    try:
        return mq.groups(topic)
    except UnknownTopicError:
        if must_exist:
            raise
        return []


def _described(mq: MQ, topic: str, group: str) -> GroupDescription | None:
    """The group, or None if it, or its topic, is not there (any more)."""
    with suppress(UnknownTopicError, UnknownGroupError):
        return mq.describe_group(topic, group)
    return None
