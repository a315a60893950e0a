"""``sqlmq groups reset``: show what a reset changes, and reset a group."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from io import TextIOBase
from typing import TYPE_CHECKING, Any

import click

from sqlmq.cli.options import read_delay, read_moment
from sqlmq.cli.output import count, json_option, show
from sqlmq.cli.settings import Settings, database_options, example, pass_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq.reports.descriptions import PartitionReset


@click.command(
    epilog=example(
        "sqlmq groups reset billing --topic orders --to-earliest",
        "sqlmq groups reset billing --topic orders --by-duration 2h --partition 0 --execute",
        "sqlmq groups describe billing --topic orders --json > positions.json",
        "sqlmq groups reset billing --topic orders --from-file positions.json --execute",
    )
)
@click.argument("group")
@click.option("-t", "--topic", required=True, metavar="NAME", help="Topic that the group reads.")
@click.option("--to-earliest", is_flag=True, help="To the oldest message.")
@click.option("--to-latest", is_flag=True, help="After the newest message: skip all messages.")
@click.option("--to-offset", type=click.IntRange(min=0), metavar="OFFSET", help="To this offset, in each partition.")
@click.option(
    "--to-datetime",
    callback=read_moment,
    metavar="MOMENT",
    help="To the first message since this time, in ISO 8601 with an offset from UTC: 2030-01-31T08:00:00+01:00.",
)
@click.option(
    "--by-duration",
    callback=read_delay,
    metavar="TIME",
    help="To the first message not older than this: seconds, or a number with s, m, h, d or w, as in 1.5h.",
)
@click.option(
    "--shift-by", type=int, metavar="N", help="Forward by N messages, or back with -N. Stops at the ends of the log."
)
@click.option(
    "--from-file",
    type=click.File(),
    metavar="FILE",
    help="To the positions in FILE, or - for stdin: lines `partition,offset`, or what `groups describe --json` prints.",
)
@click.option(
    "-p",
    "--partition",
    "partitions",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="N",
    help="Only in this partition; may be repeated.",
)
@click.option("--execute", is_flag=True, help="Reset the group. Without it, only show what would change.")
@click.option(
    "--force",
    is_flag=True,
    help="Reset also while members are alive: they lose their partitions and continue at the new positions.",
)
@json_option
@database_options
@pass_settings
def reset(
    settings: Settings,
    /,
    group: str,
    topic: str,
    partitions: tuple[int, ...],
    *,
    execute: bool,
    force: bool,
    as_json: bool,
    **goals: object,
) -> None:
    """Move the group GROUP of a topic back, to read messages again, or forward, to skip them.

    The command shows the present and the new position of each partition, and how many parked messages are `forgotten`:
    those at or after the new position, also dead letters. They are delivered again. Without --execute nothing changes.

    Give exactly one of the options from --to-earliest to --from-file.
    """
    to, shift_by = _goal(goals)
    with settings.open() as mq:
        if isinstance(to, int):
            to = dict.fromkeys(partitions or range(len(mq.admin.describe_topic(topic).partitions)), to)
        elif isinstance(to, TextIOBase):
            to = _positions(to, topic, partitions)
        chosen = None if isinstance(to, dict) else partitions or None
        if execute:
            changes = mq.admin.reset_group(topic, group, to, shift_by=shift_by, partitions=chosen, force=force)
        else:
            changes = mq.admin.preview_reset(topic, group, to, shift_by=shift_by, partitions=chosen)
    rows = [
        {
            "topic": topic,
            "group": group,
            "partition": change.partition,
            "from": change.from_offset,
            "to": change.to_offset,
            "start": change.start_offset,
            "end": change.end_offset,
            "forgotten": change.forgotten,
            "executed": execute,
        }
        for change in changes
    ]
    show(rows, ["partition", "from", "to", "start", "end", "forgotten"], as_json=as_json)
    if not as_json:
        click.echo(_counts(changes), err=True)
        # A named place is there, or an error. Others are moved to where the log begins.
        if (to is None or isinstance(to, datetime | timedelta)) and (note := _note_on_retention(changes)) is not None:
            click.echo(note, err=True)
    if not execute and not as_json:
        click.echo("Nothing was changed. To reset the group, add --execute.", err=True)


def _counts(changes: Sequence[PartitionReset]) -> str:
    """Return in words how many messages are read again, and how many are skipped."""
    again = sum(max(0, change.from_offset - change.to_offset) for change in changes)
    skipped = sum(max(0, change.to_offset - change.from_offset) for change in changes)
    return f"{count(again, 'message')} to read again, {skipped:,} to skip."


def _note_on_retention(changes: Sequence[PartitionReset]) -> str | None:
    """Return a sentence about the partitions whose log begins at the new position, perhaps later than asked for."""
    cut = [change.partition for change in changes if change.start_offset == change.to_offset > 0]
    if not cut:
        return None
    return f"Retention has deleted the messages before the new position in partition {', '.join(map(str, cut))}."


def _goal(goals: dict[str, object]) -> tuple[Any, int | None]:
    """Return the arguments *to* and *shift_by* of ``Admin.reset_group``; *to* may also be an offset, or a file."""
    given = {name: value for name, value in goals.items() if value is not None and value is not False}
    if len(given) != 1:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in goals)
        raise click.UsageError(f"Give exactly one of {options}.")
    ((name, value),) = given.items()
    if name == "shift_by" and isinstance(value, int):
        return None, value
    if name == "by_duration" and isinstance(value, float):
        return timedelta(seconds=value), None
    return {"to_earliest": "earliest", "to_latest": "latest"}.get(name, value), None


def _positions(file: TextIOBase, topic: str, only: Sequence[int]) -> dict[int, int]:
    """Return the offsets in *file* by partition: those of *topic*, and, if *only* is not empty, of those partitions."""
    found: dict[int, int] = {}
    for number, text in enumerate(file, 1):
        try:
            row = _row(text)
        except (ValueError, KeyError, TypeError):
            message = (
                f"Line {number} is neither `partition,offset` nor an object with `partition` and `position`: {text!r}"
            )
            raise click.ClickException(message) from None
        if row is None or row[0] not in (None, topic) or (only and row[1] not in only):
            continue
        if row[1] in found:
            raise click.ClickException(
                f"Line {number} is the second one for partition {row[1]}. Keep the lines of one group."
            )
        found[row[1]] = row[2]
    if not found:
        raise click.ClickException(f"The file has no position for topic {topic!r}, or not for these partitions.")
    return found


def _row(text: str) -> tuple[str | None, int, int] | None:
    """Return topic, partition and offset of a line; the topic is None if the line has none. None for an empty line."""
    text = text.strip()
    if not text:
        return None
    if text.startswith("{"):
        facts = json.loads(text)
        return facts.get("topic"), int(facts["partition"]), int(facts["position" if "position" in facts else "offset"])
    *topic, partition, offset = text.split(",")
    return (topic[0].strip().strip('"') if topic else None), int(partition), int(offset)
