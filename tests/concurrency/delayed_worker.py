"""Processes that store, cancel and move delayed messages, and that are killed at a chosen step.

Each crash is one of a child of its own, forked from a process that has everything imported and nothing opened.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import threading
from datetime import UTC, datetime
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Any

from sqlmq import Message
from sqlmq.dialects.postgresql.dialect import Postgresql
from sqlmq.dialects.sqlite.dialect import Sqlite
from sqlmq.operations import staging
from sqlmq.store import staged
from tests.support.journal import Journal
from tests.support.processes import in_child

if TYPE_CHECKING:
    from pathlib import Path

    from sqlmq import MQ, Producer
    from tests.support.processes import Place

TOPIC = "reminders"
PARTITIONS = 3
APPLICATION = "sqlmq-crash"
STORED, CANCELLING, CANCELLED = "stored", "cancelling", "cancelled"
PATIENCE_SECONDS = 30.0


class Step(IntEnum):
    """Where a child is killed."""

    BEFORE_STORING = auto()
    STORED_NOT_COMMITTED = auto()
    STORED = auto()
    CANCELLED_NOT_COMMITTED = auto()
    CANCELLED = auto()
    BEFORE_MOVING = auto()
    TAKEN = auto()
    APPENDED = auto()
    REMOVED = auto()
    COMMIT_ON_THE_WAY = auto()
    MOVED = auto()


class Crash:
    """Kills this process when the step is reached that is armed, the armed number of times."""

    def __init__(self) -> None:
        self._armed: Step | None = None
        self._times = 0

    def arm(self, step: Step, times: int) -> None:
        self._armed, self._times = step, times

    def at(self, step: Step) -> None:
        if self._armed is step:
            self._times -= 1
            if self._times <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
                threading.Event().wait()


def store_move_and_crash(place: Place, journal_path: Path, number: int, count: int, seed: int) -> None:
    """Have *count* children crash, one after the other; journal how many did at each step."""
    chosen = random.Random(seed)
    logging.getLogger("sqlmq").setLevel(logging.CRITICAL)
    journal = Journal(journal_path)
    crash = Crash()
    _crash_inside(crash)
    for child in range(count):
        step = list(Step)[child % len(Step)]
        child_seed = chosen.getrandbits(32)
        name = f"{number}.{child}"
        status = in_child(
            lambda step=step, name=name, seed=child_seed: _work(  # type: ignore[misc]
                place, journal, crash, name, step, random.Random(seed)
            )
        )
        assert status == -signal.SIGKILL, (step.name, status)
        journal.write("crashed", step.name)


def _work(place: Place, journal: Journal, crash: Crash, name: str, step: Step, chosen: random.Random) -> None:
    mq = place.open(notify=False)
    _crash_at_commit(mq, crash)
    producer = mq.producer(TOPIC)
    if step < Step.CANCELLED_NOT_COMMITTED:
        # Of several calls, not always in the first.
        crash.arm(step, chosen.randint(1, 3))
        for call in range(4):
            _store(journal, crash, producer, f"{name}.{call}", chosen)
        return
    _store(journal, crash, producer, name, chosen)
    crash.arm(step, chosen.randint(1, 2) if step > Step.CANCELLED else 1)
    if step <= Step.CANCELLED:
        _cancel(mq, journal, producer, name, step)
        crash.at(Step.CANCELLED)
        return
    # There is something due, of others or of this one, again and again until the crash comes.
    mq._background.scheduler.watch()
    ended = threading.Event()
    for call in range(1_000):
        _store(journal, crash, producer, f"{name}.due.{call}", chosen, is_due=True)
        if ended.wait(0.02):
            break


def _cancel(mq: MQ, journal: Journal, producer: Producer, name: str, step: Step) -> None:
    """Store some that are due, which somebody may be moving, and cancel them."""
    names = [f"{name}.cancelled.{number}" for number in range(4)]
    batch = [Message(one.encode(), one.encode()) for one in names]
    stored = producer.schedule_many(batch, deliver_at=datetime.now(UTC))
    journal.write(STORED, names)
    if step is Step.CANCELLED:  # or the crash is to undo it
        journal.write(CANCELLING, names)
    cancelled = mq.admin.cancel_delayed(*[one.id for one in stored])
    journal.write(CANCELLED, [one for one, message in zip(names, stored, strict=True) if message.id in cancelled])


def _store(
    journal: Journal, crash: Crash, producer: Producer, name: str, chosen: random.Random, *, is_due: bool = False
) -> None:
    crash.at(Step.BEFORE_STORING)
    names = [f"{name}.{number}" for number in range(chosen.randint(1, 5))]
    batch = [Message(one.encode(), chosen.choice([None, b"a", b"b", b"c"])) for one in names]
    producer.schedule_many(batch, delay_seconds=0.0 if is_due else chosen.choice([0.0, 0.05, 0.5]))
    journal.write(STORED, names)
    crash.at(Step.STORED)


def _crash_inside(crash: Crash) -> None:
    """Have the library pass the steps in what it calls."""

    def after(module: Any, function: str, step: Step) -> None:
        original = getattr(module, function)

        def run(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            crash.at(step)
            return result

        setattr(module, function, run)

    take, move = staged.lock_due, staging.move

    def take_or_crash(*arguments: Any) -> Any:
        taken = take(*arguments)
        if taken.ids:
            crash.at(Step.TAKEN)
        return taken

    def move_or_crash(*arguments: Any) -> Any:
        crash.at(Step.BEFORE_MOVING)
        moved = move(*arguments)
        if moved.messages:
            crash.at(Step.REMOVED)
            _moving.is_moving = True
        return moved

    staged.lock_due = take_or_crash  # type: ignore[assignment]
    staging.move = move_or_crash  # type: ignore[assignment]
    for dialect in (Postgresql, Sqlite):
        after(dialect, "append", Step.APPENDED)
    after(staged, "add", Step.STORED_NOT_COMMITTED)
    after(staged, "cancel", Step.CANCELLED_NOT_COMMITTED)


class _Moving(threading.local):
    """Whether this thread's transaction has moved something."""

    is_moving = False


_moving = _Moving()


def _crash_at_commit(mq: MQ, crash: Crash) -> None:
    dialect: Any = mq.engine.dialect
    commit = dialect.do_commit

    def do_commit(connection: Any) -> None:
        is_moving, _moving.is_moving = _moving.is_moving, False
        if is_moving and dialect.name == "postgresql":
            server = connection.driver_connection.pgconn
            if crash._armed is Step.COMMIT_ON_THE_WAY:
                server.send_query(b"COMMIT")
                while server.flush():
                    pass
                os.kill(os.getpid(), signal.SIGKILL)
                threading.Event().wait()
        if is_moving and dialect.name != "postgresql":
            crash.at(Step.COMMIT_ON_THE_WAY)
        commit(connection)
        if is_moving:
            crash.at(Step.MOVED)

    dialect.do_commit = do_commit


def read(path: Path) -> list[list[Any]]:
    """What a journal tells; the last line may be cut off where the process was killed."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
