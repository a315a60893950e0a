"""``sqlmq consume``: messages out, as bytes, JSON, or what a format says."""

from __future__ import annotations

import os
import select
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import click

from sqlmq.cli import formats
from sqlmq.cli.commands.delayed import read_start
from sqlmq.cli.output import count, descriptor_of
from sqlmq.cli.settings import Settings, database_options, example, lease_option, pass_settings
from sqlmq.cli.signals import Stop
from sqlmq.errors import ConsumerClosedError, FencedError, SqlmqError

if TYPE_CHECKING:
    from sqlmq.consumer.consumer import Consumer
    from sqlmq.model.positions import Start

_AT_MOST = 100
"""Messages that are written and committed together: as many, at the most, come again after a `kill -9`."""

_PIPE_BYTES = getattr(select, "PIPE_BUF", 4096)


@click.command(
    epilog=example(
        "sqlmq consume orders --group billing",
        "sqlmq consume orders --group audit --json --timeout 5 | jq .value",
        r"sqlmq consume orders --group look --max 10 --format '%p@%o %k: %v\n'",
    )
)
@click.argument("topic")
@click.option(
    "-g", "--group", required=True, metavar="NAME", help="Group to read as; it remembers how far it has come."
)
@click.option("-n", "--max", "at_most", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="End, with exit code 0, when no message has come for so long; 0 looks once. For ever if not given.",
)
@click.option(
    "--from",
    "start",
    callback=read_start,
    default="earliest",
    show_default=True,
    metavar="earliest|latest|MOMENT",
    help="Where a new group begins; a MOMENT by ISO 8601. One that is there goes on where it was.",
)
@click.option(
    "--on-evicted",
    type=click.Choice(["raise", "earliest"]),
    default="raise",
    show_default=True,
    help="Where retention has deleted what the group had not read: end with an error, or go on with the earliest.",
)
@click.option(
    "-f",
    "--format",
    "pattern",
    metavar="FORMAT",
    help="Write each message so: %t topic, %p partition, %o offset, %k key, %v or %s value, %h headers, %T timestamp "
    "in milliseconds since 1970, %K and %S length of key and value, %% and \\n \\t \\r \\0 \\\\ \\xFF. No newline is added.",
)
@click.option("--json", "as_json", is_flag=True, help="Write each message as a JSON object on a line.")
@click.option("-0", "--null-delimited", is_flag=True, help="Write a NUL byte after each value instead of a newline.")
@click.option("--raw", is_flag=True, help="Write the values as they are, with nothing in between.")
@lease_option
@database_options
@pass_settings
def consume(
    settings: Settings,
    topic: str,
    group: str,
    at_most: int | None,
    timeout: float | None,
    start: Start,
    on_evicted: Literal["raise", "earliest"],
    pattern: str | None,
    *,
    as_json: bool,
    null_delimited: bool,
    raw: bool,
    lease_seconds: float,
) -> None:
    """Read the messages of TOPIC as a member of a group, and write them to stdout.

    Several of these commands with the same group share the topic's partitions; each message goes to one of them.
    Each value is followed by a newline, unless an option says otherwise. A message counts as done when it has been
    written, and only then; what was not, because of a broken pipe or a signal, comes again next time.

    With --json, a key or value that is no UTF-8 stands in base64 as `key_base64` or `value_base64`.
    """
    writer = _writer(pattern, as_json=as_json, null_delimited=null_delimited, raw=raw)
    with settings.open(lease_seconds=lease_seconds) as mq:
        if topic not in mq.admin.topics():
            click.echo(f"Topic {topic!r} did not exist and is made.", err=True)
        consumer = mq.consumer(topic, group, start=start, on_evicted=on_evicted)
        if sys.stderr.isatty():
            click.echo(f"Reading {topic!r} as group {group!r}; Ctrl-C ends.", err=True)
        with Stop() as stop:
            _run(consumer, stop, writer, at_most, timeout)
    stop.check()


def _writer(pattern: str | None, *, as_json: bool, null_delimited: bool, raw: bool) -> formats.Writer:
    if sum((pattern is not None, as_json, null_delimited, raw)) > 1:
        raise click.UsageError("--format, --json, --null-delimited and --raw exclude each other.")
    if pattern is not None:
        return formats.formatted(pattern)
    if as_json:
        return formats.as_json
    return formats.ending_with(b"\0" if null_delimited else b"" if raw else b"\n")


def _run(consumer: Consumer, stop: Stop, writer: formats.Writer, at_most: int | None, timeout: float | None) -> None:
    written = 0

    def close_soon() -> None:
        # In a thread of its own: the one that the signal interrupted may hold the consumer's lock.
        threading.Thread(target=_close, args=[consumer], name="sqlmq-close").start()

    try:
        while at_most is None or written < at_most:
            try:
                with stop.calling(close_soon):
                    messages = consumer.poll(min(_AT_MOST, (at_most or sys.maxsize) - written), timeout=timeout)
            except ConsumerClosedError:
                break
            if stop.is_requested or not messages:
                break
            _write(b"".join(map(writer, messages)), stop)
            written += len(messages)
            _commit(consumer)
    finally:
        click.echo(f"{count(written, 'message')} consumed.", err=True)


def _commit(consumer: Consumer) -> None:
    try:
        consumer.commit()
    except FencedError as error:
        click.echo(f"Warning: {error}", err=True)


def _close(consumer: Consumer) -> None:
    # Closing the MQ reports the error.
    with suppress(SqlmqError):
        consumer.close()


def _write(data: bytes, stop: Stop) -> None:
    """Write *data* to stdout, past all buffers: what could not be written must not be tried again at the end.

    Lets a signal in only while it waits for a reader, so that it is certain what was written.
    """
    descriptor = descriptor_of(sys.stdout)
    if descriptor is None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return
    rest = memoryview(data)
    while rest:
        if os.name != "nt" and not select.select([], [descriptor], [], 0)[1]:
            stop.wait(writing=descriptor)
        # So much never blocks once there is room for anything.
        rest = rest[os.write(descriptor, rest[:_PIPE_BYTES]) :]
