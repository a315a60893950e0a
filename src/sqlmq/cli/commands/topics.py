"""``sqlmq topics``: create, list, describe, grow and delete topics; their retention and evictions."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Unpack

import click

from sqlmq.cli.options import yes_option
from sqlmq.cli.output import confirm, count, json_option, line, say, show
from sqlmq.cli.retention_options import read_retention, retention_facts, retention_options, retention_sentence
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.errors import UnknownTopicError
from sqlmq.model.partitioner import PARTITIONERS
from sqlmq.model.retention import Retention

if TYPE_CHECKING:
    from sqlmq.cli.retention_options import RetentionArguments


@click.group(epilog=example("sqlmq topics create orders --partitions 6", "sqlmq topics list"))
@database_options
def topics() -> None:
    """Create, list, describe, grow and delete topics, and set their retention."""


@topics.command(
    epilog=example("sqlmq topics create orders --partitions 6", "sqlmq topics create clicks --retention 7d")
)
@click.argument("name")
@click.option("--partitions", type=int, help="The number of partitions. Default: 3.")
@click.option(
    "--partitioner",
    type=click.Choice(sorted(PARTITIONERS)),
    help="The hash that maps a key to its partition. Default: murmur2, as in Kafka's Java client.",
)
@retention_options
@json_option
@database_options
@pass_settings
def create(
    settings: Settings,
    name: str,
    partitions: int | None,
    partitioner: str | None,
    *,
    as_json: bool,
    **terms: Unpack[RetentionArguments],
) -> None:
    """Create the topic NAME. An existing topic stays as it is; that is no error.

    More partitions let more consumers of a group work in parallel. Order is kept within a partition. Without a limit,
    messages stay until the topic is deleted.
    """
    retention = read_retention(terms)
    with settings.open() as mq:
        made = mq.create_topic(name, partitions, partitioner=partitioner, retention=retention)
        topic = mq.admin.describe_topic(name)
    what = f"{count(len(topic.partitions), 'partition')}, keys placed by {topic.partitioner}"
    if topic.retention.is_limited:
        what += f", {retention_sentence(topic.retention)}"
    facts = {"topic": name, "created": made, "partitions": len(topic.partitions), "partitioner": topic.partitioner}
    say(
        f"Created topic {name!r}: {what}." if made else f"Topic {name!r} is there already: {what}.",
        facts,
        as_json=as_json,
    )


@topics.command("list", epilog=example("sqlmq topics list", "sqlmq topics list --json | jq -r .topic"))
@json_option
@database_options
@pass_settings
def list_topics(settings: Settings, *, as_json: bool) -> None:
    """List all topics, with the messages they hold and the groups that read them."""
    rows = []
    with settings.open() as mq:
        for name in mq.admin.topics():
            # A topic that is deleted meanwhile is not listed.
            with suppress(UnknownTopicError):
                topic = mq.admin.describe_topic(name)
                rows.append(
                    {
                        "topic": name,
                        "partitions": len(topic.partitions),
                        "messages": topic.messages,
                        "groups": list(topic.groups),
                    }
                )
    empty = "There are no topics yet. Create one with `sqlmq topics create NAME`."
    show(rows, ["topic", "partitions", "messages", "groups"], as_json=as_json, empty=empty)


@topics.command(epilog=example("sqlmq topics describe orders"))
@click.argument("name")
@json_option
@database_options
@pass_settings
def describe(settings: Settings, name: str, *, as_json: bool) -> None:
    """Show the partitions of the topic NAME and the lag of its groups.

    `start` is the oldest offset, `end` the offset that the next message gets, `per second` the rate over the last
    minute, `estimated bytes` the size of the messages, estimated from the 100 newest. With --json it prints one object.
    """
    with settings.open() as mq:
        topic = mq.admin.describe_topic(name)
        groups = [mq.admin.describe_group(name, group) for group in topic.groups]
    partitions = [
        {
            "partition": one.partition,
            "start": one.start_offset,
            "end": one.end_offset,
            "messages": one.messages,
            "per_second": round(one.messages_per_second, 2),
            "estimated_bytes": one.estimated_bytes,
            "newest_at": one.newest_at.isoformat() if one.newest_at else None,
        }
        for one in topic.partitions
    ]
    readers = [
        {
            "group": one.name,
            "members": len(one.members),
            "lag": one.lag,
            "seconds": round(one.lag_seconds, 1),
            "waiting": one.waiting,
            "dead": one.dead,
        }
        for one in groups
    ]
    if as_json:
        facts = {"topic": name, "partitioner": topic.partitioner, "messages": topic.messages} | {
            "retention": retention_facts(topic.retention)
        }
        click.echo(line(facts | {"partitions": partitions, "groups": readers}))
        return
    click.echo(f"{name}: {count(topic.messages, 'message')}, keys placed by {topic.partitioner}")
    click.echo(f"It {retention_sentence(topic.retention)}.\n")
    columns = ["partition", "start", "end", "messages", "per_second", "estimated_bytes", "newest_at"]
    show(partitions, columns, as_json=False)
    click.echo()
    columns = ["group", "members", "lag", "seconds", "waiting", "dead"]
    show(readers, columns, as_json=False, empty="No group reads it yet.")


@topics.command(
    "add-partitions",
    epilog=example(
        "sqlmq topics add-partitions orders --partitions 8", "sqlmq topics add-partitions orders --partitions 8 --json"
    ),
)
@click.argument("name")
@click.option(
    "--partitions", type=int, required=True, help="The new number of partitions: a multiple of the present number."
)
@json_option
@database_options
@pass_settings
def add_partitions(settings: Settings, name: str, partitions: int, *, as_json: bool) -> None:
    """Grow the topic NAME to more partitions while it is used. It is no error if it has that many already.

    A key stays in its partition or moves to a new one, and its messages stay in order: a group reads a new partition
    after it has finished the older messages of the partition that the keys come from. Programs need no restart.
    """
    with settings.open() as mq:
        added = mq.admin.add_partitions(name, partitions)
    sentence = (
        f"Topic {name!r} has {count(partitions, 'partition')} now."
        if added
        else (f"Topic {name!r} has {count(partitions, 'partition')} already.")
    )
    say(sentence, {"topic": name, "partitions": partitions, "added": added}, as_json=as_json)


@topics.command(
    "set-retention",
    epilog=example(
        "sqlmq topics set-retention orders --retention 7d --max-retention 30d",
        "sqlmq topics set-retention orders --keep-everything",
    ),
)
@click.argument("name")
@retention_options
@click.option("--keep-everything", is_flag=True, help="Remove all limits.")
@json_option
@database_options
@pass_settings
def set_retention(
    settings: Settings, name: str, *, keep_everything: bool, as_json: bool, **terms: Unpack[RetentionArguments]
) -> None:
    """Replace the retention of the topic NAME. An option that is not given gets its default.

    Programs with a consumer delete the messages that exceed it, about once a minute. Without a consumer, run
    `sqlmq maintain`.
    """
    retention = read_retention(terms)
    if retention.is_limited == keep_everything:
        raise click.UsageError(
            "Give a limit: --retention, --retention-bytes, --retention-messages; or --keep-everything."
        )
    with settings.open() as mq:
        mq.admin.set_retention(name, Retention() if keep_everything else retention)
    facts = {"topic": name, "retention": retention_facts(retention)}
    say(f"Topic {name!r} {retention_sentence(retention)}.", facts, as_json=as_json)


@topics.command(epilog=example("sqlmq topics evictions orders", "sqlmq topics evictions orders --json | tail -1"))
@click.argument("name")
@json_option
@database_options
@pass_settings
def evictions(settings: Settings, name: str, *, as_json: bool) -> None:
    """List the messages of the topic NAME that groups have lost to retention, the newest loss last.

    `kind` is `unread` for messages that the group had not committed, and `parked` for parked ones. `from` and `to` are the
    first and the last offset.
    """
    with settings.open() as mq:
        found = mq.admin.evictions(name)
    rows = [
        {
            "group": one.group,
            "partition": one.partition,
            "kind": one.kind,
            "from": one.start_offset,
            "to": one.end_offset - 1,
            "messages": one.messages,
            "evicted_at": one.evicted_at.isoformat(),
        }
        for one in found
    ]
    columns = ["group", "partition", "kind", "from", "to", "messages", "evicted_at"]
    show(rows, columns, as_json=as_json, empty=f"No group has lost anything of {name!r}.")


@topics.command(epilog=example("sqlmq topics delete orders", "sqlmq topics delete orders invoices --yes"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@yes_option
@json_option
@database_options
@pass_settings
def delete(settings: Settings, names: tuple[str, ...], *, yes: bool, as_json: bool) -> None:
    """Delete the topics NAME..., with their messages and groups. A topic that does not exist is no error."""
    confirm(f"Delete {', '.join(names)}, with all messages and groups?", yes=yes)
    with settings.open() as mq:
        deleted = mq.delete_topics(*names)
    for name in dict.fromkeys(names):
        sentence = f"Deleted topic {name!r}." if name in deleted else f"There was no topic {name!r}."
        say(sentence, {"topic": name, "deleted": name in deleted}, as_json=as_json)
