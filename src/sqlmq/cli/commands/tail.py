"""``sqlmq tail``: watch a topic without a group."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import click

from sqlmq.cli import formats
from sqlmq.cli.options import reader_options
from sqlmq.cli.output import printable
from sqlmq.cli.settings import Settings, database_options, example, pass_settings

if TYPE_CHECKING:
    from sqlmq.model.message import ReceivedMessage


@click.command(
    epilog=example(
        "sqlmq tail orders",
        "sqlmq tail orders --last 10 --partition 0",
        "sqlmq tail orders --partition 0 --offset 1041 --limit 1",
        "sqlmq tail orders --json | jq .value",
    )
)
@click.argument("topic")
@click.option(
    "--last",
    type=click.IntRange(min=0, max=1_000),
    default=0,
    metavar="N",
    help="Begin with the last N messages.",
)
@click.option(
    "--offset", type=click.IntRange(min=0), metavar="OFFSET", help="Begin at this offset in each partition instead."
)
@click.option(
    "-p",
    "--partition",
    "partitions",
    type=click.IntRange(min=0),
    multiple=True,
    help="Only this partition; may be repeated.",
)
@reader_options
@database_options
@pass_settings
def tail(
    settings: Settings,
    topic: str,
    last: int,
    offset: int | None,
    partitions: tuple[int, ...],
    limit: int | None,
    timeout: float | None,
    pattern: str | None,
    *,
    as_json: bool,
) -> None:
    """Watch TOPIC: write the messages that arrive from now on, until Ctrl-C.

    Joins no group, commits nothing, and takes no message from any consumer. A line has time, partition@offset, key and
    value; control characters are escaped.
    """
    if pattern is not None and as_json:
        raise click.UsageError("--format and --json exclude each other.")
    if last and offset is not None:
        raise click.UsageError("--last and --offset exclude each other.")
    writer = formats.as_json if as_json else _for_people if pattern is None else formats.formatted(pattern)
    with settings.open() as mq:
        messages = mq.admin.tail(topic, last=last, offset=offset, partitions=partitions or None, timeout=timeout)
        for message in islice(messages, limit):
            click.echo(writer(message), nl=False)


def _for_people(message: ReceivedMessage) -> bytes:
    moment = message.timestamp.isoformat(timespec="milliseconds")
    key = "-" if message.key is None else _text(message.key)
    return f"{moment} {message.partition}@{message.offset} {key} {_text(message.value)}\n".encode()


def _text(data: bytes) -> str:
    return printable(data.decode(errors="backslashreplace"))
