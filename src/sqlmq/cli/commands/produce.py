"""``sqlmq produce``: send lines or files as messages."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from sqlmq.cli.commands.delayed import facts_of
from sqlmq.cli.options import read_delay, read_moment
from sqlmq.cli.output import count, descriptor_of, forget_stdout, json_option, line
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.cli.signals import Stop
from sqlmq.errors import SqlmqError
from sqlmq.model.message import Message
from sqlmq.model.validation import check_due

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlmq.producer.producer import Producer


_AT_MOST = 1_000
"""Messages in one transaction."""
_READ_BYTES = 256 * 1024


@click.command(
    epilog=example(
        "echo hello | sqlmq produce greetings",
        "sqlmq produce orders --key-separator : --header source=import orders.txt",
        "find . -name '*.json' -print0 | xargs -0 sqlmq produce documents --whole-files",
        "echo 'pay, please' | sqlmq produce reminders --delay 1.5h",
    )
)
@click.argument("topic")
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("-k", "--key", metavar="KEY", help="Give every message this key.")
@click.option(
    "-K",
    "--key-separator",
    metavar="TEXT",
    help="The key is the part of each line before the first TEXT. A line without TEXT is an error.",
)
@click.option("-p", "--partition", type=click.IntRange(min=0), help="Send to this partition, whatever the key.")
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME=TEXT", help="Add a header; may be repeated.")
@click.option(
    "--delay",
    "delay_seconds",
    metavar="TIME",
    callback=read_delay,
    help="Deliver the messages this much later: seconds, or a number with s, m, h, d or w, as in 90, 10m, 1.5h.",
)
@click.option(
    "--deliver-at",
    metavar="MOMENT",
    callback=read_moment,
    help="Deliver the messages at this time, in ISO 8601 with an offset from UTC: 2030-01-31T08:00:00+01:00.",
)
@click.option("-0", "--null-delimited", is_flag=True, help="Messages end with a NUL byte, not with a newline.")
@click.option("--whole-files", is_flag=True, help="Send each FILE as one message.")
@click.option(
    "--max-message-bytes",
    type=click.IntRange(min=1),
    default=1024 * 1024,
    show_default=True,
    help="Refuse messages that are larger.",
)
@json_option
@database_options
@pass_settings
def produce(
    settings: Settings,
    topic: str,
    files: tuple[str, ...],
    key: str | None,
    key_separator: str | None,
    partition: int | None,
    headers: tuple[str, ...],
    delay_seconds: float | None,
    deliver_at: datetime | None,
    max_message_bytes: int,
    *,
    null_delimited: bool,
    whole_files: bool,
    as_json: bool,
) -> None:
    """Send each line of stdin, or of the FILEs, as a message to TOPIC.

    A message is every byte of its line except the newline; an empty line is an empty message. `-` is stdin. Lines are
    sent as they arrive; lines that arrive together are sent in one transaction. A missing topic is created with 3
    partitions. If a line can't be sent, the command ends: the lines before it were sent, that line and the later ones
    were not.

    With --delay or --deliver-at the messages are stored. Any program with a consumer moves them to the topic when they
    are due. Until then, `sqlmq delayed` lists and cancels them.

    With --json, the command prints topic, partition and offset of each message after the commit. For a delayed message
    it prints id, topic, partition and deliver_at.
    """
    is_delayed = delay_seconds is not None or deliver_at is not None
    if is_delayed:
        try:
            check_due(delay_seconds, deliver_at)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    if key is not None and key_separator is not None:
        raise click.UsageError("--key and --key-separator exclude each other.")
    if key_separator == "":
        raise click.UsageError("--key-separator can't be empty.")
    if whole_files and (key_separator is not None or null_delimited):
        raise click.UsageError("--whole-files does not read lines. Remove --key-separator and --null-delimited.")
    cut = _Cut(
        key=None if key is None else _bytes(key),
        separator=None if key_separator is None else _bytes(key_separator),
        delimiter=None if whole_files else b"\0" if null_delimited else b"\n",
        headers=_parsed(headers),
        max_message_bytes=max_message_bytes,
    )
    with settings.open(max_message_bytes=max_message_bytes) as mq:
        if topic not in mq.admin.topics():
            click.echo(f"Topic {topic!r} did not exist and was created, with 3 partitions.", err=True)
        producer = mq.producer(topic)
        sender = _InputSender(producer, partition, delay_seconds=delay_seconds, deliver_at=deliver_at, as_json=as_json)
        try:
            with Stop() as stop, _progress(files or ("-",)) as advance:
                for name in files or ("-",):
                    for lines in cut.batches(name, stop, advance):
                        sender.send(lines)
                        stop.check()
        finally:
            click.echo(
                f"{count(sender.sent, 'message')} {'delayed for' if is_delayed else 'produced to'} {topic!r}.", err=True
            )


class _Cut:
    """Cuts the input into messages."""

    def __init__(
        self,
        *,
        key: bytes | None,
        separator: bytes | None,
        delimiter: bytes | None,
        headers: Mapping[str, str],
        max_message_bytes: int,
    ) -> None:
        self._key = key
        self._separator = separator
        self._delimiter = delimiter
        self._headers = headers
        self._max_message_bytes = max_message_bytes

    def batches(self, name: str, stop: Stop, advance: Callable[[int], None]) -> Iterator[list[Message]]:
        """Yield the messages in the file *name* as they arrive, in batches.

        An error in a line is raised after the messages before it.
        """
        number = 0
        with ExitStack() as closing:
            stream = sys.stdin.buffer if name == "-" else closing.enter_context(Path(name).open("rb"))
            for lines in self._read(stream, stop, advance):
                for first in range(0, len(lines), _AT_MOST):
                    messages: list[Message] = []
                    for text in lines[first : first + _AT_MOST]:
                        number += 1
                        try:
                            messages.append(self._message(text))
                        except (SqlmqError, ValueError) as error:
                            if messages:
                                yield messages
                            where = "standard input" if name == "-" else name
                            raise click.ClickException(f"{where}, line {number}: {error}") from error
                    yield messages

    def _read(self, stream: BinaryIO, stop: Stop, advance: Callable[[int], None]) -> Iterator[list[bytes]]:
        """Yield the lines that have arrived; wait only for the first."""
        # `read` would wait until the buffer is full; `read1` returns the bytes that have arrived.
        read = cast("io.BufferedReader", stream).read1
        descriptor = descriptor_of(stream)
        longest = 2 * self._max_message_bytes + len(self._separator or b"")
        rest = b""
        while True:
            if descriptor is not None:
                stop.wait(reading=descriptor)
            with stop.raising():
                arrived = read(_READ_BYTES)
            if not arrived:
                break
            advance(len(arrived))
            if self._delimiter is None:
                rest += arrived
            else:
                *lines, rest = (rest + arrived).split(self._delimiter)
                if lines:
                    yield lines
            if len(rest) > longest:
                break  # this message is too large and will be refused, so its other bytes need not be read
        if rest or self._delimiter is None:
            yield [rest]

    def _message(self, text: bytes) -> Message:
        key, value = self._key, text
        if self._separator is not None:
            key, found, value = text.partition(self._separator)
            if not found:
                raise ValueError(
                    f"the separator {self._separator.decode(errors='replace')!r} after the key is missing."
                )
        message = Message(value, key, self._headers)
        message.check_size(self._max_message_bytes)
        return message


class _InputSender:
    """Sends batches, or stores them until they are due. Counts the messages and, with ``--json``, prints the results."""

    def __init__(
        self,
        producer: Producer,
        partition: int | None,
        *,
        delay_seconds: float | None,
        deliver_at: datetime | None,
        as_json: bool,
    ) -> None:
        self.sent = 0
        self._producer = producer
        self._partition = partition
        self._delay_seconds = delay_seconds
        self._deliver_at = deliver_at
        self._as_json = as_json

    def send(self, messages: Sequence[Message]) -> None:
        if self._delay_seconds is None and self._deliver_at is None:
            results = self._producer.produce_many(messages, partition=self._partition)
            self._note([result._asdict() for result in results])
        else:
            stored = self._producer.schedule_many(
                messages,
                delay_seconds=self._delay_seconds,
                deliver_at=self._deliver_at,
                partition=self._partition,
            )
            self._note([facts_of(message) for message in stored])

    def _note(self, results: Sequence[Mapping[str, object]]) -> None:
        self.sent += len(results)
        if not self._as_json:
            return
        try:
            click.echo("\n".join(map(line, results)))
        except BrokenPipeError:
            # Other commands end silently when their reader closes the pipe. Here the remaining messages would be lost silently.
            forget_stdout()
            raise click.ClickException(
                "the reader of the results has closed the pipe; the remaining lines were not sent."
            ) from None


def _parsed(headers: Sequence[str]) -> dict[str, str]:
    parsed = {}
    for header in headers:
        name, found, text = header.partition("=")
        if not found or not name:
            raise click.BadParameter(f"{header!r} is not NAME=TEXT.", param_hint="--header")
        parsed[name] = text
    return parsed


def _bytes(text: str) -> bytes:
    """The bytes that the user typed, also those that are not valid text."""
    return text.encode(errors="surrogateescape")


@contextmanager
def _progress(files: Sequence[str]) -> Iterator[Callable[[int], None]]:
    """Show a progress bar over the bytes of *files* on a terminal, unless the messages are typed there."""
    is_typed = "-" in files and sys.stdin.isatty()
    if is_typed or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    total = None if "-" in files else sum(Path(file).stat().st_size for file in files)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda arrived: progress.advance(task, arrived)
