"""``sqlmq top``: all topics and groups on one screen, with their rates."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import click

from sqlmq.cli.commands.lag import group_facts
from sqlmq.cli.options import watch_options
from sqlmq.cli.output import json_option, line, put, table
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.errors import UnknownTopicError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlmq.mq import MQ

_TOPIC = ["topic", "partitions", "messages", "in_per_second", "estimated_bytes"]
_GROUP = ["topic", "group", "members", "messages", "seconds", "out_per_second", "unowned", "waiting", "dead"]


class _Positions(NamedTuple):
    """The total position of each group at a time of the monotonic clock."""

    at: float
    of_groups: Mapping[tuple[str, str], int]


@click.command(epilog=example("sqlmq top", "sqlmq top --interval 5", "sqlmq top --once --json | jq .groups"))
@watch_options(2.0)
@json_option
@database_options
@pass_settings
def top(settings: Settings, interval: float, *, once: bool, as_json: bool) -> None:
    """Show all topics and groups, repeatedly, until Ctrl-C.

    `in per second` is the rate of new messages over the last minute, `out per second` the rate of commits since the frame
    before; the first frame has none. `messages` and `seconds` are the lag, `unowned` the partitions without a live owner.
    The group that is furthest behind comes first. With --json, each frame is an object on a line.
    """
    with settings.open() as mq:
        before: _Positions | None = None
        with _Screen(as_json=as_json, moving=not once) as screen:
            while True:
                frame, before = _look(mq, before)
                screen.show(frame)
                if once:
                    return
                time.sleep(interval)


def _look(mq: MQ, before: _Positions | None) -> tuple[dict[str, Any], _Positions]:
    topics = []
    for name in mq.admin.topics():
        # A topic that is deleted meanwhile is not shown.
        with suppress(UnknownTopicError):
            topic = mq.admin.describe_topic(name)
            rate = round(topic.messages_per_second, 1)
            facts = (name, len(topic.partitions), topic.messages, rate, topic.estimated_bytes)
            topics.append(dict(zip(_TOPIC, facts, strict=True)))
    lags, now = mq.admin.lag(), time.monotonic()
    positions: dict[tuple[str, str], int] = {}
    for one in lags:
        positions[one.topic, one.group] = positions.get((one.topic, one.group), 0) + one.position
    groups = [row | {"out_per_second": _rate(row, positions, before, now)} for row in group_facts(lags)]
    groups.sort(key=lambda row: (-row["seconds"], -row["messages"]))
    return {"topics": topics, "groups": groups}, _Positions(now, positions)


def _rate(
    row: Mapping[str, Any], positions: Mapping[tuple[str, str], int], before: _Positions | None, now: float
) -> float | None:
    key = (row["topic"], row["group"])
    if before is None or key not in before.of_groups:
        return None
    return round((positions[key] - before.of_groups[key]) / (now - before.at), 1)


class _Screen:
    """Shows frames: in place on a terminal, one below the other elsewhere, or as lines of JSON."""

    def __init__(self, *, as_json: bool, moving: bool) -> None:
        # The import takes 50 ms, which --json does not need.
        from rich.console import Console
        from rich.live import Live

        self._as_json = as_json
        self._live: Live | None = None
        if moving and not as_json and sys.stdout.isatty():
            self._live = Live(console=Console(file=sys.stdout, highlight=False), screen=True, auto_refresh=False)

    def show(self, frame: Mapping[str, Any]) -> None:
        """Show one frame."""
        if self._as_json:
            click.echo(line(frame))
            sys.stdout.flush()
            return
        parts = (table(frame["topics"], _TOPIC), "", table(frame["groups"], _GROUP))
        if self._live is not None:
            from rich.console import Group

            self._live.update(Group(*parts), refresh=True)
        else:
            put(*parts)
        sys.stdout.flush()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live is not None:
            self._live.stop()
