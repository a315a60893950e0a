"""``sqlmq consume``: messages written to stdout as bytes, as JSON, or in a format."""

from __future__ import annotations

import os
import select
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import click

from sqlmq.cli import formats
from sqlmq.cli.options import on_evicted_option, reader_options, start_option
from sqlmq.cli.output import count, descriptor_of
from sqlmq.cli.settings import Settings, database_options, example, lease_option, pass_settings
from sqlmq.cli.signals import Stop
from sqlmq.errors import ConsumerClosedError, FencedError, SqlmqError

if TYPE_CHECKING:
    from sqlmq.consumer.consumer import Consumer
    from sqlmq.model.positions import Start

_BATCH_MESSAGES = 100
"""The most messages that are written and committed together, and so are delivered again after a `kill -9`."""

_PIPE_BYTES = getattr(select, "PIPE_BUF", 4096)


@click.command(
    epilog=example(
        "sqlmq consume orders --group billing",
        "sqlmq consume orders --group audit --json --timeout 5 | jq .value",
        r"sqlmq consume orders --group look --limit 10 --format '%p@%o %k: %v\n'",
    )
)
@click.argument("topic")
@click.option("-g", "--group", required=True, metavar="NAME", help="Group to read as; its position is kept.")
@start_option
@on_evicted_option
@reader_options
@click.option("-0", "--null-delimited", is_flag=True, help="Write a NUL byte after each value instead of a newline.")
@click.option("--raw", is_flag=True, help="Write the values as they are, with nothing in between.")
@lease_option
@database_options
@pass_settings
def consume(
    settings: Settings,
    topic: str,
    group: str,
    limit: int | None,
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
    A newline follows each value, unless an option changes that. A message is committed after it has been written. A message
    that was not written, because of a broken pipe or a signal, is delivered again next time.

    With --json, a key or value that is not UTF-8 is written in base64 as `key_base64` or `value_base64`.
    """
    writer = _writer(pattern, as_json=as_json, null_delimited=null_delimited, raw=raw)
    with settings.open(lease_seconds=lease_seconds) as mq:
        if topic not in mq.admin.topics():
            click.echo(f"Topic {topic!r} did not exist and was created.", err=True)
        consumer = mq.consumer(topic, group, start=start, on_evicted=on_evicted)
        if sys.stderr.isatty():
            click.echo(f"Reading {topic!r} as group {group!r}; Ctrl-C ends.", err=True)
        with Stop() as stop:
            _run(consumer, stop, writer, limit, timeout)
    stop.check()


def _writer(pattern: str | None, *, as_json: bool, null_delimited: bool, raw: bool) -> formats.Writer:
    if sum((pattern is not None, as_json, null_delimited, raw)) > 1:
        raise click.UsageError("--format, --json, --null-delimited and --raw exclude each other.")
    if pattern is not None:
        return formats.formatted(pattern)
    if as_json:
        return formats.as_json
    return formats.ending_with(b"\0" if null_delimited else b"" if raw else b"\n")


def _run(consumer: Consumer, stop: Stop, writer: formats.Writer, limit: int | None, timeout: float | None) -> None:
    written = 0

    def close_soon() -> None:
        # In a thread of its own: the interrupted thread may hold the consumer's lock.
        threading.Thread(target=_close, args=[consumer], name="sqlmq-close").start()

    try:
        while limit is None or written < limit:
            try:
                with stop.calling(close_soon):
                    messages = consumer.poll(min(_BATCH_MESSAGES, (limit or sys.maxsize) - written), timeout=timeout)
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
    """Write *data* to stdout without a buffer: the interpreter must not write the rest again when it ends.

    Handles a signal only while it waits for a reader, so that the number of written bytes is certain.
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
        # A write of PIPE_BUF bytes or less does not block after select.
        rest = rest[os.write(descriptor, rest[:_PIPE_BYTES]) :]
