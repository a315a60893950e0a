"""``sqlmq produce``: messages in, a line each."""

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
    help="In each line, what stands before the first TEXT is the key. A line without TEXT is an error.",
)
@click.option("-p", "--partition", type=click.IntRange(min=0), help="Send to this partition, whatever the key.")
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME=TEXT", help="Add a header; may be repeated.")
@click.option(
    "--delay",
    "delay_seconds",
    metavar="TIME",
    callback=read_delay,
    help="Deliver the messages so much later: seconds, or a number with s, m, h, d or w behind it, as 90, 10m, 1.5h.",
)
@click.option(
    "--deliver-at",
    metavar="MOMENT",
    callback=read_moment,
    help="Deliver the messages at this moment, ISO 8601 with its offset from UTC: 2030-01-31T08:00:00+01:00.",
)
@click.option("-0", "--null-delimited", is_flag=True, help="Messages end with a NUL byte, not with a newline.")
@click.option("--whole-files", is_flag=True, help="Each FILE is one message, whatever is in it.")
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
    sent as they arrive, those that arrive together in one transaction. A topic that does not exist is made, with 3
    partitions. If a line can't be sent the command ends there: every line before it was sent, it and those behind it
    were not.

    With --delay or --deliver-at they are stored, and go to the topic when they are due, by way of any program that has a
    consumer then. `sqlmq delayed` lists them until then, and cancels.

    With --json, prints topic, partition and offset of each message once it is committed; of a delayed one its id,
    topic, partition and deliver_at.
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
        raise click.UsageError("--whole-files knows no lines: leave --key-separator and --null-delimited out.")
    cut = _Cut(
        key=None if key is None else _bytes(key),
        separator=None if key_separator is None else _bytes(key_separator),
        delimiter=None if whole_files else b"\0" if null_delimited else b"\n",
        headers=_parsed(headers),
        max_message_bytes=max_message_bytes,
    )
    with settings.open(max_message_bytes=max_message_bytes) as mq:
        if topic not in mq.admin.topics():
            click.echo(f"Topic {topic!r} did not exist and is made, with 3 partitions.", err=True)
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
    """Makes messages of what is read."""

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
        """The messages in the file *name*, as they arrive, some at a time; what is wrong is raised behind the rest."""
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
        """Lines, as many as have arrived, waiting only for the first."""
        # One read of what is there, where `read` would wait until the buffer is full.
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
                break  # the message that is made of it will be refused; the rest of it need not be read
        if rest or self._delimiter is None:
            yield [rest]

    def _message(self, text: bytes) -> Message:
        key, value = self._key, text
        if self._separator is not None:
            key, found, value = text.partition(self._separator)
            if not found:
                raise ValueError(f"there is no {self._separator.decode(errors='replace')!r} that would end the key.")
        message = Message(value, key, self._headers)
        message.check_size(self._max_message_bytes)
        return message


class _InputSender:
    """Sends batches, or stores them until they are due; counts messages, and prints places if asked to."""

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
            # Elsewhere a reader who has gone has had enough; here the rest of the messages would be lost quietly.
            forget_stdout()
            raise click.ClickException(
                "nobody reads the results any more; the rest of the lines was not sent."
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
    """What was typed, byte for byte, also where that was no text."""
    return text.encode(errors="surrogateescape")


@contextmanager
def _progress(files: Sequence[str]) -> Iterator[Callable[[int], None]]:
    """A progress bar over the bytes of *files*, on a terminal where nobody types the messages."""
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
