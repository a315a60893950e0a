"""``sqlmq delayed``: list and cancel delayed messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sqlmq.cli.formats import text_or_base64
from sqlmq.cli.output import json_option, line, say, show
from sqlmq.cli.settings import Settings, database_options, example, pass_settings

if TYPE_CHECKING:
    from sqlmq.model.message import DelayedMessage


def facts_of(message: DelayedMessage) -> dict[str, object]:
    """The JSON fields of a delayed message after it was stored."""
    return {
        "id": message.id,
        "topic": message.topic,
        "partition": message.partition,
        "deliver_at": message.deliver_at.isoformat(),
    }


@click.group(epilog=example("sqlmq delayed list reminders", "sqlmq delayed cancel 17"))
@database_options
def delayed() -> None:
    """List delayed messages that are not due yet, and cancel them."""


@delayed.command("list", epilog=example("sqlmq delayed list reminders", "sqlmq delayed list reminders --json | jq .id"))
@click.argument("topic")
@json_option
@database_options
@pass_settings
def list_delayed(settings: Settings, topic: str, *, as_json: bool) -> None:
    """List the delayed messages of TOPIC, the earliest first.

    A message that is due and still listed will soon be moved to the topic, unless no program with a consumer is running.
    With --json, a key that is not UTF-8 is written in base64 as `key_base64`.
    """
    with settings.open() as mq:
        found = mq.admin.delayed(topic)
    rows = [facts_of(one) | text_or_base64("key", one.key) | {"value_bytes": one.value_bytes} for one in found]
    if as_json:
        for row in rows:
            click.echo(line(row))
        return
    shown = [
        row | {"key": None if one.key is None else one.key.decode(errors="replace")}
        for row, one in zip(rows, found, strict=True)
    ]
    columns = ["id", "partition", "deliver_at", "key", "value_bytes"]
    show(shown, columns, as_json=False, empty=f"Topic {topic!r} has no delayed messages.")


@delayed.command(epilog=example("sqlmq delayed cancel 17", "sqlmq delayed cancel 17 18 19 --json"))
@click.argument("ids", nargs=-1, required=True, metavar="ID...", type=click.IntRange(min=1))
@json_option
@database_options
@pass_settings
def cancel(settings: Settings, ids: tuple[int, ...], *, as_json: bool) -> None:
    """Cancel the delayed messages with these IDs, as `produce --json` and `delayed list` show them.

    A message that was delivered already, or never existed, can't be cancelled; that is no error.
    """
    with settings.open() as mq:
        cancelled = mq.admin.cancel_delayed(*ids)
    for id_ in dict.fromkeys(ids):
        is_cancelled = id_ in cancelled
        sentence = (
            f"Cancelled message {id_}."
            if is_cancelled
            else f"Message {id_} is not delayed: it was delivered, or never existed."
        )
        say(sentence, {"id": id_, "cancelled": is_cancelled}, as_json=as_json)
