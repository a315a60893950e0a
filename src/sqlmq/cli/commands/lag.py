"""``sqlmq lag``: show the lag of groups, with an exit code for monitoring."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from sqlmq.cli.output import count, json_option, show
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.cli.watching import repeat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlmq.reports.descriptions import PartitionLag

_TOO_FAR_BEHIND = 3


@click.command(
    epilog=example(
        "sqlmq lag",
        "sqlmq lag orders --group billing --partitions --watch 2",
        "sqlmq lag --max-seconds 60 || echo a group is behind",
    )
)
@click.argument("topic", required=False)
@click.option("-g", "--group", metavar="NAME", help="Only this group.")
@click.option(
    "--partitions", "by_partition", is_flag=True, help="Print a line for each partition instead of each group."
)
@click.option(
    "--watch",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Show it again every SECONDS, until Ctrl-C.",
)
@click.option(
    "--max-lag", type=click.IntRange(min=0), metavar="N", help="Exit with 3 if a group is more than N messages behind."
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Exit with 3 if a group has an uncommitted message that is older than this.",
)
@json_option
@database_options
@pass_settings
def lag(
    settings: Settings,
    topic: str | None,
    group: str | None,
    watch: float | None,
    max_lag: int | None,
    max_seconds: float | None,
    *,
    by_partition: bool,
    as_json: bool,
) -> None:
    """Show the lag of groups: of TOPIC, or of all topics.

    `messages` is the number of messages that the group has not committed, `seconds` the age of the oldest of them.
    `waiting` counts parked messages, `dead` dead letters; neither is part of the lag.

    With --max-lag or --max-seconds the exit code is 3 if any group exceeds it, and stderr names the group.
    """
    if watch is not None and (max_lag is not None or max_seconds is not None):
        raise click.UsageError("--watch does not end, so it excludes --max-lag and --max-seconds.")
    empty = "There are no groups yet. The first consumer creates its group: `sqlmq consume TOPIC --group NAME`."
    found: list[PartitionLag] = []
    with settings.open() as mq:

        def look() -> None:
            found[:] = mq.admin.lag(topic, group)
            rows = [partition_facts(one) for one in found] if by_partition else group_facts(found)
            show(rows, list(rows[0]) if rows else [], as_json=as_json, empty=empty)

        repeat(look, watch)
    behind = list(_groups_behind(found, max_lag, max_seconds))
    for row in behind:
        click.echo(
            f"{row['topic']}/{row['group']} is {count(row['messages'], 'message')} and {row['seconds']} s behind.",
            err=True,
        )
    if behind:
        click.get_current_context().exit(_TOO_FAR_BEHIND)


def group_facts(lags: Sequence[PartitionLag]) -> list[dict[str, Any]]:
    """Return the lag of each group, over its partitions."""
    facts = []
    for (topic, group), parts in groupby(lags, key=_group_of):
        of_group = list(parts)
        facts.append(
            {
                "topic": topic,
                "group": group,
                "messages": sum(one.lag for one in of_group),
                "seconds": round(max(one.lag_seconds for one in of_group), 1),
                "members": len({one.owner for one in of_group} - {None}),
                "unowned": sum(one.owner is None for one in of_group),
                "waiting": sum(one.waiting for one in of_group),
                "dead": sum(one.dead for one in of_group),
            }
        )
    return facts


def partition_facts(one: PartitionLag) -> dict[str, Any]:
    """Return the lag of a group in one partition."""
    return {
        "topic": one.topic,
        "group": one.group,
        "partition": one.partition,
        "position": one.position,
        "end": one.end_offset,
        "messages": one.lag,
        "seconds": round(one.lag_seconds, 1),
        "owner": one.owner,
        "committed_at": one.committed_at.isoformat() if one.committed_at else None,
        "waiting": one.waiting,
        "dead": one.dead,
    }


def _groups_behind(
    lags: Sequence[PartitionLag], max_lag: int | None, max_seconds: float | None
) -> Iterator[dict[str, Any]]:
    """Yield the lag of each group that exceeds a limit. Ages are compared as measured, not as they are shown."""
    for _, parts in groupby(lags, key=_group_of):
        of_group = list(parts)
        (facts,) = group_facts(of_group)
        too_many = max_lag is not None and facts["messages"] > max_lag
        too_old = max_seconds is not None and max(one.lag_seconds for one in of_group) > max_seconds
        if too_many or too_old:
            yield facts


def _group_of(lag: PartitionLag) -> tuple[str, str]:
    return lag.topic, lag.group
