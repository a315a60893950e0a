"""``sqlmq parked``: list, retry, discard and copy parked messages."""

from __future__ import annotations

import base64
import functools
from typing import TYPE_CHECKING, TypedDict

import click

from sqlmq.cli.formats import text_or_base64
from sqlmq.cli.options import yes_option
from sqlmq.cli.output import confirm, count, json_option, line, printable, say, show
from sqlmq.cli.settings import Settings, database_options, example, pass_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlmq.model.config import ParkedState
    from sqlmq.reports.descriptions import BlockedKey, ParkedDetails, ParkedMessage

_STATES = click.Choice(["waiting", "held", "stopped", "dead"])

_group_option = click.option("-g", "--group", required=True, metavar="NAME", help="Group that parked the messages.")
_partition_option = click.option(
    "-p", "--partition", type=click.IntRange(min=0), help="Only messages of this partition."
)
_key_option = click.option("-k", "--key", metavar="KEY", help="Only messages with this key.")
_state_option = click.option("--state", type=_STATES, help="Only messages in this state.")
_limit_option = click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The largest number of lines."
)


def _place(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Parse a partition and an offset, such as ``2@1041``."""
    if value is None:
        return None
    partition, _, offset = value.partition("@")
    if not (partition.isdecimal() and offset.isdecimal()):
        message = f"{value!r} is not a partition and an offset, as in 2@1041."
        raise click.BadParameter(message, ctx, param)
    return int(partition), int(offset)


_after_option = click.option(
    "--after",
    callback=_place,
    metavar="PARTITION@OFFSET",
    help="Continue after this message, the last of the page before.",
)


class _Which(TypedDict):
    """The arguments of the library that choose messages."""

    partition: int | None
    offset: int | None
    key: bytes | None
    state: ParkedState | None
    everything: bool


def _which_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose messages. The command gets them together, as *which*."""

    @functools.wraps(command)
    def collect(
        *arguments: object,
        partition: int | None,
        offset: int | None,
        key: str | None,
        state: ParkedState | None,
        everything: bool,
        **options: object,
    ) -> None:
        is_narrowed = any(narrowing is not None for narrowing in (partition, offset, key, state))
        if everything and is_narrowed:
            raise click.UsageError("--all excludes --partition, --offset, --key and --state.")
        if not everything and not is_narrowed:
            raise click.UsageError("Choose messages with --partition and --offset, --key, --state; or give --all.")
        if offset is not None and partition is None:
            raise click.UsageError("--offset needs --partition.")
        which = _Which(partition=partition, offset=offset, key=_bytes(key), state=state, everything=everything)
        command(*arguments, which=which, **options)

    for option in (
        click.option("--all", "everything", is_flag=True, help="All parked messages of the group."),
        _state_option,
        _key_option,
        click.option("--offset", type=click.IntRange(min=0), help="Only the message at this offset of --partition."),
        _partition_option,
    ):
        collect = option(collect)
    return collect


@click.group(epilog=example("sqlmq parked list orders --group billing", "sqlmq parked retry orders -g billing --key 7"))
@database_options
def parked() -> None:
    """List, retry, discard and copy parked messages.

    A message is parked after its handler has failed. `waiting`: it is retried when due, and the later messages of its
    key after it. `held`: it is retried in its place, and the partition waits. `stopped`: the partition waits for your
    decision. `dead`: a dead letter, which is handled again only after `sqlmq parked retry`.
    """


@parked.command(
    "list",
    epilog=example(
        "sqlmq parked list orders --group billing --state dead",
        "sqlmq parked list orders --group billing --json | jq -r .error_type | sort | uniq -c",
    ),
)
@click.argument("topic")
@_group_option
@_state_option
@_partition_option
@_key_option
@_limit_option
@_after_option
@json_option
@database_options
@pass_settings
def list_parked(
    settings: Settings,
    topic: str,
    group: str,
    state: ParkedState | None,
    partition: int | None,
    key: str | None,
    limit: int,
    after: tuple[int, int] | None,
    *,
    as_json: bool,
) -> None:
    """List the parked messages of a group in TOPIC, in order of partition and offset, without their values.

    With --json, a key that is not UTF-8 is written in base64 as `key_base64`, and times are in UTC.
    """
    with settings.open() as mq:
        found = mq.admin.parked(topic, group).list(
            state, partition=partition, key=_bytes(key), limit=limit, after=after
        )
    rows = [_facts(one) for one in found]
    shown = rows if as_json else [row | {"key": _key(one.key)} for row, one in zip(rows, found, strict=True)]
    columns = ["partition", "offset", "key", "state", "attempts", "due_at", "error_type", "error"]
    show(shown, columns, as_json=as_json, empty=f"Group {group!r} has no such parked messages.")
    if len(found) == limit and not as_json:
        click.echo(f"There may be more: --after {found[-1].partition}@{found[-1].offset}", err=True)


@parked.command("show", epilog=example("sqlmq parked show orders 0 1041 --group billing"))
@click.argument("topic")
@click.argument("partition", type=click.IntRange(min=0))
@click.argument("offset", type=click.IntRange(min=0))
@_group_option
@json_option
@database_options
@pass_settings
def show_parked(settings: Settings, topic: str, partition: int, offset: int, group: str, *, as_json: bool) -> None:
    """Show one parked message of TOPIC with its state, last traceback, headers and value.

    A value that is not UTF-8 is shown in base64; with --json, as `value_base64`.
    """
    with settings.open() as mq:
        details = mq.admin.parked(topic, group).get(partition, offset)
    if as_json:
        click.echo(line(_facts(details) | {"traceback": details.traceback} | _contents(details)))
        return
    facts = _facts(details) | {"key": _key(details.key)}
    width = max(map(len, facts)) + 2
    for name, fact in facts.items():
        click.echo(f"{name.replace('_', ' '):{width}}{'-' if fact is None else printable(str(fact))}")
    if details.traceback:
        click.echo(f"\n{_lines(details.traceback)}")
    if details.message is None:
        click.echo("\nThe message is not in the log any more.")
        return
    for header, text in details.message.headers.items():
        click.echo(f"\n{printable(header)}: {printable(text)}", nl=False)
    click.echo(
        f"\n\n{_value(details.message.value)}" if details.message.headers else f"\n{_value(details.message.value)}"
    )


@parked.command(
    epilog=example("sqlmq parked keys orders --group billing", "sqlmq parked keys orders --group billing --json")
)
@click.argument("topic")
@_group_option
@_limit_option
@_after_option
@json_option
@database_options
@pass_settings
def keys(
    settings: Settings, topic: str, group: str, limit: int, after: tuple[int, int] | None, *, as_json: bool
) -> None:
    """List the keys of TOPIC whose messages wait for a failed message, with their number and the start of the wait.

    State, attempts and due time are those of the first message, for which the others wait.
    """
    with settings.open() as mq:
        found = mq.admin.parked(topic, group).blocked_keys(limit=limit, after=after)
    rows = [_blocked(one) for one in found]
    shown = rows if as_json else [row | {"key": _key(one.key)} for row, one in zip(rows, found, strict=True)]
    columns = ["partition", "key", "messages", "first_offset", "state", "attempts", "due_at", "blocked_since"]
    show(shown, columns, as_json=as_json, empty=f"Group {group!r} has no keys that wait.")
    if len(found) == limit and not as_json:
        click.echo(f"There may be more: --after {found[-1].partition}@{found[-1].first_offset}", err=True)


@parked.command(
    epilog=example(
        "sqlmq parked retry orders --group billing --partition 0 --offset 1041",
        "sqlmq parked retry orders --group billing --state dead",
    )
)
@click.argument("topic")
@_group_option
@_which_options
@json_option
@database_options
@pass_settings
def retry(settings: Settings, topic: str, group: str, *, which: _Which, as_json: bool) -> None:
    """Retry parked messages of TOPIC now, with no attempts counted.

    Messages of a key are handled in order, before any later message of the key. A running consumer of the group finds
    them within some seconds.
    """
    with settings.open() as mq:
        retried = mq.admin.parked(topic, group).retry(**which)
    say(f"{count(retried, 'message')} will be retried.", {"retried": retried}, as_json=as_json)


@parked.command(
    epilog=example(
        "sqlmq parked discard orders --group billing --partition 0 --offset 1041",
        "sqlmq parked discard orders --group billing --state dead --yes",
    )
)
@click.argument("topic")
@_group_option
@_which_options
@yes_option
@json_option
@database_options
@pass_settings
def discard(settings: Settings, topic: str, group: str, *, which: _Which, yes: bool, as_json: bool) -> None:
    """Discard parked messages of TOPIC without handling them. They stay in the log.

    Then the next message of the key is handled, and a partition that was stopped continues after the message.
    """
    confirm(f"Discard these messages of {topic!r}? Group {group!r} will never handle them.", yes=yes)
    with settings.open() as mq:
        discarded = mq.admin.parked(topic, group).discard(**which)
    say(f"{count(discarded, 'message')} discarded.", {"discarded": discarded}, as_json=as_json)


@parked.command(
    epilog=example(
        "sqlmq parked copy orders orders-failed --group billing --state dead",
        "sqlmq parked copy orders orders-failed --group billing --state dead --discard --yes",
    )
)
@click.argument("topic")
@click.argument("to_topic")
@_group_option
@_which_options
@click.option("--discard", is_flag=True, help="Discard the originals in the same transaction.")
@yes_option
@json_option
@database_options
@pass_settings
def copy(
    settings: Settings,
    topic: str,
    to_topic: str,
    group: str,
    *,
    discard: bool,
    yes: bool,
    as_json: bool,
    which: _Which,
) -> None:
    """Send copies of parked messages of TOPIC to TO_TOPIC, all or none.

    A copy has the key, value and headers of the original, and headers with its origin: `sqlmq-topic`,
    `sqlmq-partition`, `sqlmq-offset`, `sqlmq-group`, `sqlmq-error`. A missing topic is created.

    With --json, the command prints topic, partition and offset of each copy.
    """
    if discard:
        confirm(f"Move these messages of {topic!r}? Group {group!r} will never handle them.", yes=yes)
    with settings.open() as mq:
        parked_messages = mq.admin.parked(topic, group)
        results = (parked_messages.move_to if discard else parked_messages.copy_to)(to_topic, **which)
    if as_json:
        show([result._asdict() for result in results], [], as_json=True)
    else:
        click.echo(f"{count(len(results), 'message')} {'moved' if discard else 'copied'} to {to_topic!r}.")


def _bytes(text: str | None) -> bytes | None:
    # Bytes of the command line that are not valid text are kept unchanged.
    return None if text is None else text.encode(errors="surrogateescape")


def _facts(one: ParkedMessage) -> dict[str, object]:
    return {
        "topic": one.topic,
        "group": one.group,
        "partition": one.partition,
        "offset": one.offset,
        **text_or_base64("key", one.key),
        "state": one.state,
        "attempts": one.attempts,
        "due_at": _moment(one.due_at),
        "parked_at": _moment(one.parked_at),
        "first_failed_at": _moment(one.first_failed_at),
        "last_failed_at": _moment(one.last_failed_at),
        "error_type": one.error_type,
        "error": one.error,
    }


def _blocked(one: BlockedKey) -> dict[str, object]:
    return {
        "topic": one.topic,
        "group": one.group,
        "partition": one.partition,
        **text_or_base64("key", one.key),
        "messages": one.messages,
        "first_offset": one.first_offset,
        "state": one.state,
        "attempts": one.attempts,
        "due_at": _moment(one.due_at),
        "blocked_since": _moment(one.blocked_since),
    }


def _contents(details: ParkedDetails) -> dict[str, object]:
    if details.message is None:
        return {"headers": None, "value": None}
    return {"headers": dict(details.message.headers), **text_or_base64("value", details.message.value)}


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds")


def _key(key: bytes | None) -> str | None:
    return None if key is None else key.decode(errors="backslashreplace")


def _value(value: bytes) -> str:
    try:
        return _lines(value.decode())
    except UnicodeDecodeError:
        return f"in base64: {base64.b64encode(value).decode()}"


def _lines(text: str) -> str:
    """Return *text* with escapes for control characters, except the ends of lines."""
    return "\n".join(map(printable, text.expandtabs().split("\n"))).rstrip("\n")
