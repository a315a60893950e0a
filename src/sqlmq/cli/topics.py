"""``sqlmq topics``: made, listed, described, deleted."""

from __future__ import annotations

from contextlib import suppress

import click

from sqlmq.cli.database import confirm
from sqlmq.cli.output import count, json_option, line, say, show
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.errors import UnknownTopicError
from sqlmq.partitioner import PARTITIONERS


@click.group(epilog=example("sqlmq topics create orders --partitions 6", "sqlmq topics list"))
@database_options
def topics() -> None:
    """Make, list, describe and delete topics."""


@topics.command(epilog=example("sqlmq topics create orders --partitions 6"))
@click.argument("name")
@click.option("--partitions", type=int, default=3, show_default=True, help="How many; they are numbered from 0.")
@click.option(
    "--partitioner",
    type=click.Choice(sorted(PARTITIONERS)),
    help="What decides which partition a key goes to; murmur2 (as Kafka's Java client) if not given.",
)
@json_option
@database_options
@pass_settings
def create(settings: Settings, name: str, partitions: int, partitioner: str | None, *, as_json: bool) -> None:
    """Make the topic NAME. One that is there already stays as it is, and is no error.

    More partitions let more consumers of a group work side by side. Order is kept within a partition.
    """
    with settings.open() as mq:
        made = mq.create_topic(name, partitions, partitioner=partitioner)
        topic = mq.describe_topic(name)
    what = f"{count(len(topic.partitions), 'partition')}, keys placed by {topic.partitioner}"
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
        for name in mq.topics():
            # One that is deleted in between is simply not in the list.
            with suppress(UnknownTopicError):
                topic = mq.describe_topic(name)
                rows.append(
                    {
                        "topic": name,
                        "partitions": len(topic.partitions),
                        "messages": topic.messages,
                        "groups": list(topic.groups),
                    }
                )
    empty = "There are no topics yet. Make one with `sqlmq topics create NAME`."
    show(rows, ["topic", "partitions", "messages", "groups"], as_json=as_json, empty=empty)


@topics.command(epilog=example("sqlmq topics describe orders"))
@click.argument("name")
@json_option
@database_options
@pass_settings
def describe(settings: Settings, name: str, *, as_json: bool) -> None:
    """Show the partitions of the topic NAME and the lag of its groups.

    `start` is the oldest offset kept, `end` the offset that the next message gets. With --json it is one object.
    """
    with settings.open() as mq:
        topic = mq.describe_topic(name)
        groups = [mq.describe_group(name, group) for group in topic.groups]
    partitions = [
        {"partition": one.number, "start": one.start_offset, "end": one.end_offset, "messages": one.messages}
        for one in topic.partitions
    ]
    readers = [{"group": one.name, "members": len(one.members), "lag": one.lag} for one in groups]
    if as_json:
        facts = {"topic": name, "partitioner": topic.partitioner, "messages": topic.messages}
        click.echo(line(facts | {"partitions": partitions, "groups": readers}))
        return
    click.echo(f"{name}: {count(topic.messages, 'message')}, keys placed by {topic.partitioner}\n")
    show(partitions, ["partition", "start", "end", "messages"], as_json=False)
    click.echo()
    show(readers, ["group", "members", "lag"], as_json=False, empty="No group reads it yet.")


@topics.command(epilog=example("sqlmq topics delete orders", "sqlmq topics delete orders invoices --yes"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--yes", is_flag=True, help="Do it without asking. Needed where there is no terminal to ask on.")
@json_option
@database_options
@pass_settings
def delete(settings: Settings, names: tuple[str, ...], *, yes: bool, as_json: bool) -> None:
    """Delete the topics NAME..., with their messages and groups. One that does not exist is no error."""
    confirm(f"Delete {', '.join(names)}, with all messages and groups?", yes=yes)
    with settings.open() as mq:
        deleted = mq.delete_topics(*names)
    for name in dict.fromkeys(names):
        sentence = f"Deleted topic {name!r}." if name in deleted else f"There was no topic {name!r}."
        say(sentence, {"topic": name, "deleted": name in deleted}, as_json=as_json)
