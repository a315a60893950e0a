"""``sqlmq parked``: what groups have set aside, and what is to become of it."""

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

_group_option = click.option("-g", "--group", required=True, metavar="NAME", help="Group that has set them aside.")
_partition_option = click.option("-p", "--partition", type=click.IntRange(min=0), help="Only those of this partition.")
_key_option = click.option("-k", "--key", metavar="KEY", help="Only those with this key.")
_state_option = click.option("--state", type=_STATES, help="Only those in this state.")
_limit_option = click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Print so many at the most."
)


def _place(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """A partition and an offset, as in ``2@1041``."""
    if value is None:
        return None
    partition, _, offset = value.partition("@")
    if not (partition.isdecimal() and offset.isdecimal()):
        message = f"{value!r} is no partition and offset, as in 2@1041."
        raise click.BadParameter(message, ctx, param)
    return int(partition), int(offset)


_after_option = click.option(
    "--after",
    callback=_place,
    metavar="PARTITION@OFFSET",
    help="Go on behind this one, the last of the page before.",
)


class _Which(TypedDict):
    """Which messages are meant, as the library takes it."""

    partition: int | None
    offset: int | None
    key: bytes | None
    state: ParkedState | None
    everything: bool


def _which_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which messages are meant; the command gets them together, as *which*."""

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
            raise click.UsageError("--all leaves nothing to choose: say it alone, or say which messages.")
        if not everything and not is_narrowed:
            raise click.UsageError("Say which messages: --partition and --offset, --key, --state; or --all.")
        if offset is not None and partition is None:
            raise click.UsageError("--offset means nothing without its --partition.")
        which = _Which(partition=partition, offset=offset, key=_bytes(key), state=state, everything=everything)
        command(*arguments, which=which, **options)

    for option in (
        click.option("--all", "everything", is_flag=True, help="All that the group has set aside."),
        _state_option,
        _key_option,
        click.option("--offset", type=click.IntRange(min=0), help="Only the one at this offset of --partition."),
        _partition_option,
    ):
        collect = option(collect)
    return collect


@click.group(epilog=example("sqlmq parked list orders --group billing", "sqlmq parked retry orders -g billing --key 7"))
@database_options
def parked() -> None:
    """Look at what groups have set aside, retry it, discard it, copy it elsewhere.

    Messages whose handler has failed. `waiting`: aside, tried again when due, and with it the later ones of its key.
    `held`: tried again in its place, and the partition waits. `stopped`: the partition waits for you to decide.
    `dead`: a dead letter, which nobody tries again unless you say so.
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
    """List the messages of TOPIC that a group has set aside, in order of partition and offset, without their values.

    With --json, a key that is no UTF-8 stands in base64 as `key_base64`, and moments are in UTC.
    """
    with settings.open() as mq:
        found = mq.admin.parked(topic, group).list(
            state, partition=partition, key=_bytes(key), limit=limit, after=after
        )
    rows = [_facts(one) for one in found]
    shown = rows if as_json else [row | {"key": _key(one.key)} for row, one in zip(rows, found, strict=True)]
    columns = ["partition", "offset", "key", "state", "attempts", "due_at", "error_type", "error"]
    show(shown, columns, as_json=as_json, empty=f"Group {group!r} has set aside nothing of that kind.")
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
    """Show one parked message of TOPIC: what is known about it, its last traceback, its headers and its value.

    A value that is no text is shown in base64; so is one with --json, as `value_base64`.
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
    """List the keys of TOPIC whose messages wait for one that has failed, with how many wait and since when.

    State, attempts and due time are those of the first message, which the others wait for.
    """
    with settings.open() as mq:
        found = mq.admin.parked(topic, group).blocked_keys(limit=limit, after=after)
    rows = [_blocked(one) for one in found]
    shown = rows if as_json else [row | {"key": _key(one.key)} for row, one in zip(rows, found, strict=True)]
    columns = ["partition", "key", "messages", "first_offset", "state", "attempts", "due_at", "blocked_since"]
    show(shown, columns, as_json=as_json, empty=f"Group {group!r} has no key that waits.")
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
    """Retry parked messages of TOPIC now, with all their attempts.

    Those of a key come in their order, and before any later one of it. A consumer that runs the group finds them
    within some seconds.
    """
    with settings.open() as mq:
        retried = mq.admin.parked(topic, group).retry(**which)
    say(f"{count(retried, 'message')} to be tried again.", {"retried": retried}, as_json=as_json)


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

    The next one of their key is tried, and a partition that stopped for one goes on behind it.
    """
    confirm(f"Have group {group!r} never handle these messages of {topic!r}?", yes=yes)
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
@click.option("--discard", is_flag=True, help="Discard the originals, in the same transaction: move them.")
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

    A copy has key, value and headers of the original, and headers that say where it comes from: `sqlmq-topic`,
    `sqlmq-partition`, `sqlmq-offset`, `sqlmq-group`, `sqlmq-error`. A topic that does not exist is made.

    With --json, prints topic, partition and offset of each copy.
    """
    if discard:
        confirm(f"Have group {group!r} never handle these messages of {topic!r}, once they are copied?", yes=yes)
    with settings.open() as mq:
        parked_messages = mq.admin.parked(topic, group)
        results = (parked_messages.move_to if discard else parked_messages.copy_to)(to_topic, **which)
    if as_json:
        show([result._asdict() for result in results], [], as_json=True)
    else:
        click.echo(f"{count(len(results), 'message')} {'moved' if discard else 'copied'} to {to_topic!r}.")


def _bytes(text: str | None) -> bytes | None:
    # Bytes of the command line that were no text come through as they were.
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
    """*text* that can't move the cursor but for ending lines."""
    return "\n".join(map(printable, text.expandtabs().split("\n"))).rstrip("\n")
