"""``sqlmq demo``: run producers and consumers, kill a consumer, and check that nothing was lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import click
from sqlalchemy import StaticPool

from sqlmq.cli.demo import journal
from sqlmq.cli.demo.worker import LEASE_SECONDS, MESSAGES_PER_PRODUCER
from sqlmq.cli.output import count
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.cli.signals import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlmq.cli.demo.view import View
    from sqlmq.mq import MQ
    from sqlmq.reports.descriptions import GroupDescription

PARTITIONS = 6
PRODUCERS = ("web-1", "web-2")
GROUPS = {"billing": ("billing-1", "billing-2", "billing-3"), "audit": ("audit-1", "audit-2")}
VICTIMS = "billing"
"""The group that loses a consumer."""
_TOTAL = len(PRODUCERS) * MESSAGES_PER_PRODUCER
_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 60.0
"""The longest time for one step, also on a slow machine."""


@click.command(epilog=example("sqlmq demo", "sqlmq demo --url postgresql://user@host/name"))
@click.option("--keep", is_flag=True, help="Keep the topic, its database file and the journals of the processes.")
@database_options
@pass_settings
def demo(settings: Settings, *, keep: bool) -> None:
    """Run a demonstration: two groups read one topic, a consumer is killed, nothing is lost.

    It takes about ten seconds. It uses SQLite in a temporary directory, or the database of --url (not SQLMQ_URL) with a
    new topic. Every producer and consumer is a process. At the end the demo compares the messages that were sent with
    those that were handled, and exits with 1 if a message is missing or out of order.
    """
    directory = Path(tempfile.mkdtemp(prefix="sqlmq-demo-"))
    if not settings.is_url_on_command_line:
        settings.url, settings.schema = f"sqlite:///{directory / 'demo.db'}", None
    try:
        with Stop() as stop, stop.raising(), settings.open() as mq:
            if isinstance(mq.engine.pool, StaticPool):
                raise click.UsageError(
                    "The demo runs in several processes, which cannot share a database in memory. Use a file."
                )
            topic = f"demo-{uuid4().hex[:8]}" if settings.is_url_on_command_line else "orders"
            try:
                _Demo(mq, settings, directory, topic).run()
            finally:
                if settings.is_url_on_command_line and not keep:
                    mq.delete_topics(topic)
    finally:
        if keep:
            where = f"--url {settings.url}" if not settings.is_url_on_command_line else "the same --url"
            click.echo(f"\nKept {directory}. Inspect the queue with `sqlmq topics list` and {where}.")
        else:
            shutil.rmtree(directory, ignore_errors=True)


class _Demo:
    """The demonstration, with a method for each part."""

    def __init__(self, mq: MQ, settings: Settings, directory: Path, topic: str) -> None:
        # Imported here: it takes 60 ms, which other commands save.
        from sqlmq.cli.demo.view import View

        self._mq = mq
        self._settings = settings
        self._directory = directory
        self._topic = topic
        self._view: View = View()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._killed: str | None = None

    def run(self) -> None:
        """Run the demonstration. Raises click.ClickException if it fails."""
        tell = self._view.tell
        self._mq.create_topic(self._topic, PARTITIONS)
        tell(
            f"Topic {self._topic!r} with {PARTITIONS} partitions in {self._mq!r}.",
            "A message's key decides its partition; within a partition, offsets 0, 1, 2, ... keep the order.",
        )
        with self._all_ended():
            self._start_consumers()
            with self._view.moving():
                self._start_producers()
                self._kill_one()
                self._see_takeover()
                self._drain()
            self._stop()
        self._judge()

    def _start_consumers(self) -> None:
        for group, names in GROUPS.items():
            for name in names:
                self._start("consume", name, group)
        self._until("all consumers have joined", self._all_own_something)
        for described in self._groups():
            shares = (f"{name} reads {_listed(_owned(described, name))}" for name in GROUPS[described.name])
            self._view.tell(f"Group {described.name!r}: {'; '.join(shares)}.")
        self._view.tell(
            "Each group gets every message; its consumers share the partitions. In a group, each partition has one",
            "owner, which keeps it while its heartbeats arrive.",
        )

    def _start_producers(self) -> None:
        for name in PRODUCERS:
            self._start("produce", name)
        self._view.tell(f"{len(PRODUCERS)} producers start to send {_TOTAL:,} messages.")

    def _kill_one(self) -> None:
        self._until("a third is handled", lambda: self._position(VICTIMS) >= _TOTAL // 3)
        group = self._group(VICTIMS)
        self._killed = max(GROUPS[VICTIMS], key=lambda name: len(_owned(group, name)))
        self._processes[self._killed].kill()
        self._processes[self._killed].wait()
        self._view.tell(
            f"Killed {self._killed} with SIGKILL. It still owns {_listed(_owned(group, self._killed))},",
            f"until its lease of {LEASE_SECONDS:g} s expires. The other consumers continue meanwhile.",
        )

    def _see_takeover(self) -> None:
        killed_at, before = time.monotonic(), self._group(VICTIMS)
        killed = self._killed or ""
        self._until("the others have its partitions", self._all_owned_by_the_living)
        after = self._group(VICTIMS)
        gone = set(_owned(before, killed))
        moves = "; ".join(
            f"{_listed(moved)} to {name}"
            for name in GROUPS[VICTIMS]
            if (moved := [number for number in _owned(after, name) if number in gone])
        )
        self._view.tell(
            f"{time.monotonic() - killed_at:.1f} s after the kill the others have taken over its partitions: {moves}.",
            "They continue at the last committed offset, so messages handled but not committed are delivered again.",
        )

    def _drain(self) -> None:
        self._until("all is sent", lambda: all(self._processes[name].poll() == 0 for name in PRODUCERS))
        self._view.tell("The producers have finished. The groups read until their lag is 0.")
        self._until("the lag is 0", lambda: all(group.lag == 0 for group in self._groups()))
        self._view.show(self._groups(), self._killed, is_final=True)

    def _stop(self) -> None:
        for name, process in self._processes.items():
            if name != self._killed and process.stdin is not None:
                process.stdin.close()
        self._until("all consumers have left", lambda: all(one.poll() is not None for one in self._processes.values()))
        self._check_processes()

    def _judge(self) -> None:
        produced = [entry for name in PRODUCERS for entry in journal.read(self._directory / name)]
        in_topic = self._mq.admin.describe_topic(self._topic).messages
        click.echo(
            f"\nThe journals of the processes:\n  producers: {count(len(produced), 'message')} acknowledged, {in_topic:,} "
            "in the topic"
        )
        verdicts = []
        for group, names in GROUPS.items():
            handled = {name: journal.read(self._directory / name) for name in names}
            verdict = journal.judge(group, produced, handled, self._killed)
            verdicts.append(verdict)
            click.echo(
                f"  {group + ':':<10} {verdict.handled:,} handled, {verdict.lost:,} lost, "
                f"{verdict.out_of_order:,} out of order; {verdict.again_after_kill + verdict.again_otherwise:,} delivered "
                "twice"
            )
            if verdict.again_after_kill:
                click.echo(
                    f"{'':13}{count(verdict.again_after_kill, 'message')} came twice because {self._killed} had handled "
                    "but not committed them"
                )
            if verdict.again_otherwise:
                click.echo(
                    f"{'':13}{count(verdict.again_otherwise, 'message')} came twice because a consumer was too slow to "
                    "keep its lease"
                )
        if in_topic != len(produced) or len(produced) != _TOTAL or not all(verdict.is_good for verdict in verdicts):
            raise click.ClickException("The counts above show an error. Run the demo with --keep to inspect it.")
        click.echo(
            f"\nNothing was lost: each group handled all {_TOTAL:,} messages, every key in order, although a consumer "
            f"was\nkilled. ({self._view.seconds:.0f} seconds, {len(self._processes)} processes.)\n\n"
            "Next:  echo hello | sqlmq produce greetings\n"
            "       sqlmq consume greetings --group readers --timeout 1"
        )

    def _start(self, role: str, name: str, *more: str) -> None:
        # The URL may have a password, and all users of the machine can read command lines, so it goes into the environment.
        environment = os.environ | {"SQLMQ_URL": self._settings.database_url()}
        environment.pop("SQLMQ_SCHEMA", None)
        if self._settings.schema is not None:
            environment["SQLMQ_SCHEMA"] = self._settings.schema
        with (self._directory / f"{name}.stderr").open("wb") as errors:
            self._processes[name] = subprocess.Popen(  # noqa: S603 - the same Python, and names from this module
                [sys.executable, "-m", "sqlmq.cli.demo.worker", role, str(self._directory), name, self._topic, *more],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
                # Ctrl-C reaches only this process, which ends the others.
                start_new_session=True,
            )

    @contextmanager
    def _all_ended(self) -> Iterator[None]:
        """End all remaining processes after the block, also after an error."""
        with ExitStack() as ending:
            ending.callback(self._end_all)
            yield

    def _end_all(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()
            process.wait()

    def _until(self, what: str, is_reached: Callable[[], bool]) -> None:
        """Wait until *is_reached*, and show the state. Fail if a process dies or the wait takes too long."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not is_reached():
            self._check_processes()
            if time.monotonic() > deadline:
                raise click.ClickException(f"Timed out after {_PATIENCE_SECONDS:g} s, before {what}.")
            if PRODUCERS[0] in self._processes:
                self._view.show(self._groups(), self._killed)
            time.sleep(_LOOK_SECONDS)

    def _check_processes(self) -> None:
        for name, process in self._processes.items():
            if name != self._killed and process.poll():
                said = (self._directory / f"{name}.stderr").read_text(encoding="utf-8", errors="replace")
                raise click.ClickException(f"{name} ended with exit code {process.returncode}:\n{said}")

    def _group(self, name: str) -> GroupDescription:
        return self._mq.admin.describe_group(self._topic, name)

    def _groups(self) -> list[GroupDescription]:
        return [self._group(name) for name in GROUPS]

    def _position(self, group: str) -> int:
        return sum(partition.position for partition in self._group(group).partitions)

    def _all_own_something(self) -> bool:
        if any(group not in self._mq.admin.groups(self._topic) for group in GROUPS):
            return False
        return all(
            len(_owned(self._group(group), name)) == PARTITIONS // len(names)
            for group, names in GROUPS.items()
            for name in names
        )

    def _all_owned_by_the_living(self) -> bool:
        owners = {partition.owner for partition in self._group(VICTIMS).partitions}
        return None not in owners and self._killed not in owners


def _owned(group: GroupDescription, name: str) -> list[int]:
    return [partition.partition for partition in group.partitions if partition.owner == name]


def _listed(numbers: list[int]) -> str:
    """Return partition numbers in words."""
    return f"partition{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers)) or 'none'}"
