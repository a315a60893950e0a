"""What a topic keeps, as it is typed and shown; and ``sqlmq maintain``, which deletes what exceeds it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypedDict

import click

from sqlmq.cli.commands.delayed import read_delay
from sqlmq.cli.output import count, json_option, show
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.cli.signals import Stop
from sqlmq.errors import SqlmqError
from sqlmq.model.retention import Retention

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq.mq import MQ

_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(k|m|g|t)?i?b?", re.ASCII)
_UNIT_BYTES = {None: 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class RetentionOptions(TypedDict):
    """The options of ``retention_options``, as a command gets them."""

    retention: float | None
    retention_bytes: int | None
    retention_messages: int | None
    protect: bool
    max_retention: float | None
    group_expiry: float | None


def read_size(_ctx: click.Context, _option: click.Parameter, typed: str | None) -> int | None:
    """The bytes of a size that was typed as ``5000``, ``500MB`` or ``1.5g``."""
    if typed is None:
        return None
    found = _SIZE.fullmatch(typed.strip().lower())
    if found is None:
        raise click.BadParameter(f"{typed!r} is no size. Write bytes, or a number with kB, MB, GB or TB, as in 500MB.")
    return int(float(found[1]) * _UNIT_BYTES[found[2]])


def retention_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of which ``read_retention`` makes what a topic keeps."""
    for option in reversed(
        (
            click.option(
                "--retention",
                metavar="TIME",
                callback=read_delay,
                help="Delete messages older than this, as 7d or 12h.",
            ),
            click.option(
                "--retention-bytes",
                metavar="SIZE",
                callback=read_size,
                help="Delete the oldest of a partition while its keys and values are more than this, as 500MB.",
            ),
            click.option(
                "--retention-messages",
                type=click.IntRange(min=1),
                metavar="N",
                help="Delete the oldest of a partition while there are more than N.",
            ),
            click.option(
                "--protect/--no-protect",
                default=True,
                show_default=True,
                help="Keep, beyond the limits, what a group has not committed or has set aside.",
            ),
            click.option(
                "--max-retention",
                metavar="TIME",
                callback=read_delay,
                help="Keep what is protected for no longer than this; as long as it takes if not given.",
            ),
            click.option(
                "--group-expiry",
                metavar="TIME",
                callback=read_delay,
                help="A group that for so long had no member and committed nothing protects nothing; 7d if not given.",
            ),
        )
    ):
        command = option(command)
    return command


def read_retention(terms: RetentionOptions) -> Retention:
    """What the options *terms* say."""
    expiry = {} if terms["group_expiry"] is None else {"group_expiry_seconds": terms["group_expiry"]}
    try:
        return Retention(
            terms["retention"],
            terms["retention_bytes"],
            terms["retention_messages"],
            terms["protect"],
            terms["max_retention"],
            **expiry,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def retention_facts(retention: Retention) -> dict[str, object]:
    """What to tell programs of what a topic keeps."""
    return {
        "max_age_seconds": retention.max_age_seconds,
        "max_bytes": retention.max_bytes,
        "max_messages": retention.max_messages,
        "protect_groups": retention.protect_groups,
        "protect_max_seconds": retention.protect_max_seconds,
        "group_expiry_seconds": retention.group_expiry_seconds,
    }


def retention_sentence(retention: Retention) -> str:
    """What to tell people of it."""
    if not retention.is_limited:
        return "keeps everything"
    limits = [
        *([] if retention.max_age_seconds is None else [f"for {_time(retention.max_age_seconds)}"]),
        *([] if retention.max_bytes is None else [f"up to {count(retention.max_bytes, 'byte')} in a partition"]),
        *(
            []
            if retention.max_messages is None
            else [f"up to {count(retention.max_messages, 'message')} in a partition"]
        ),
    ]
    protection = "whatever groups have read"
    if retention.protect_groups:
        most = (
            "" if retention.protect_max_seconds is None else f", for {_time(retention.protect_max_seconds)} at the most"
        )
        protection = f"and longer what groups still need{most}"
    return f"keeps messages {', '.join(limits)}; {protection}"


@click.command(epilog=example("sqlmq maintain", "sqlmq maintain --once --topic orders --json"))
@click.option("--once", is_flag=True, help="End after one round.")
@click.option("-t", "--topic", metavar="NAME", help="Only this topic.")
@click.option(
    "--every",
    "every_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait between two rounds.",
)
@json_option
@database_options
@pass_settings
def maintain(settings: Settings, topic: str | None, every_seconds: float, *, once: bool, as_json: bool) -> None:
    """Delete what exceeds the retention of topics, until Ctrl-C; show what was deleted of which partition.

    Every program that has a consumer does the same about once a minute. This is for where none runs for long, and may run
    beside those. What groups have lost unread is said on stderr.
    """
    with settings.open() as mq, Stop() as stop:
        if once:
            _maintain(mq, topic, as_json=as_json)
            return
        while True:
            try:
                _maintain(mq, topic, as_json=as_json)
            except ExceptionGroup as group:
                # What fails now may be locked, or the database away: the next round goes on.
                ours, others = group.split(SqlmqError)
                if others is not None or ours is None:
                    raise
                click.echo("\n".join(f"Warning: {error}" for error in ours.exceptions), err=True)
            stop.wait(every_seconds)


def _maintain(mq: MQ, topic: str | None, *, as_json: bool) -> None:
    rows = [
        {"topic": one.topic, "partition": one.partition, "start": one.start_offset, "deleted": one.messages}
        for one in mq.admin.apply_retention(topic)
    ]
    show(rows, ["topic", "partition", "start", "deleted"], as_json=as_json, empty="Nothing to delete.")


def _time(seconds: float) -> str:
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            return count(int(seconds // length), unit)
    return f"{seconds:g} seconds"
