"""``sqlmq maintain``: apply retention where no consumer runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sqlmq.cli.options import watch_options
from sqlmq.cli.output import json_option, show
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.cli.signals import Stop
from sqlmq.errors import SqlmqError

if TYPE_CHECKING:
    from sqlmq.mq import MQ


@click.command(epilog=example("sqlmq maintain", "sqlmq maintain --once --topic orders --json"))
@click.option("-t", "--topic", metavar="NAME", help="Only this topic.")
@watch_options(60.0)
@json_option
@database_options
@pass_settings
def maintain(settings: Settings, topic: str | None, interval: float, *, once: bool, as_json: bool) -> None:
    """Delete the messages that exceed the retention of topics, until Ctrl-C; show the counts by partition.

    Every program with a consumer does the same about once a minute. Use this command where no such program runs for long;
    it may also run beside them. Messages that groups lost unread are reported on stderr.
    """
    with settings.open() as mq, Stop() as stop:
        if once:
            _maintain(mq, topic, as_json=as_json)
            return
        while True:
            try:
                _maintain(mq, topic, as_json=as_json)
            except ExceptionGroup as group:
                # A lock or an outage may have caused it: the next round continues.
                ours, others = group.split(SqlmqError)
                if others is not None or ours is None:
                    raise
                click.echo("\n".join(f"Warning: {error}" for error in ours.exceptions), err=True)
            stop.wait(interval)


def _maintain(mq: MQ, topic: str | None, *, as_json: bool) -> None:
    rows = [
        {"topic": one.topic, "partition": one.partition, "start": one.start_offset, "deleted": one.messages}
        for one in mq.admin.apply_retention(topic)
    ]
    show(rows, ["topic", "partition", "start", "deleted"], as_json=as_json, empty="Nothing to delete.")
