"""Options and output for the retention of a topic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import click

from sqlmq.cli.options import read_delay, read_size
from sqlmq.cli.output import count
from sqlmq.model.retention import Retention

if TYPE_CHECKING:
    from collections.abc import Callable


class RetentionArguments(TypedDict):
    """The values of ``retention_options``, as a command receives them."""

    retention: float | None
    retention_bytes: int | None
    retention_messages: int | None
    protect: bool
    max_retention: float | None
    group_expiry: float | None


def retention_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that ``read_retention`` reads."""
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
                help="Delete the oldest messages of a partition while its keys and values exceed this, as 500MB.",
            ),
            click.option(
                "--retention-messages",
                type=click.IntRange(min=1),
                metavar="N",
                help="Delete the oldest messages of a partition while it has more than N.",
            ),
            click.option(
                "--protect/--no-protect",
                default=True,
                show_default=True,
                help="Keep messages that a group has not committed, or has parked, beyond the limits.",
            ),
            click.option(
                "--max-retention",
                metavar="TIME",
                callback=read_delay,
                help="Keep protected messages for at most this time. Default: without limit.",
            ),
            click.option(
                "--group-expiry",
                metavar="TIME",
                callback=read_delay,
                help="Stop protecting for a group without members and commits for this long. Default: 7d.",
            ),
        )
    ):
        command = option(command)
    return command


def read_retention(arguments: RetentionArguments) -> Retention:
    """Make the retention of a topic from *arguments*."""
    expiry = {} if arguments["group_expiry"] is None else {"group_expiry_seconds": arguments["group_expiry"]}
    try:
        return Retention(
            arguments["retention"],
            arguments["retention_bytes"],
            arguments["retention_messages"],
            arguments["protect"],
            arguments["max_retention"],
            **expiry,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def retention_facts(retention: Retention) -> dict[str, object]:
    """Return what a topic keeps, for JSON."""
    return {
        "max_age_seconds": retention.max_age_seconds,
        "max_bytes": retention.max_bytes,
        "max_messages": retention.max_messages,
        "protect_groups": retention.protect_groups,
        "protect_max_seconds": retention.protect_max_seconds,
        "group_expiry_seconds": retention.group_expiry_seconds,
    }


def retention_sentence(retention: Retention) -> str:
    """Return what a topic keeps, as a sentence."""
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


def _time(seconds: float) -> str:
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            return count(int(seconds // length), unit)
    return f"{seconds:g} seconds"
