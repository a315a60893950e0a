"""Members that are stopped for longer than their lease, or killed, and those who go on with their partitions."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sqlalchemy import text

from sqlmq import SqlmqError
from sqlmq.hooks import failpoints
from tests.faults.nursery import Nursery
from tests.support.processes import GROUP, TOPIC, ended, fork, in_child
from tests.support.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from sqlmq import Message
    from tests.faults.lives import Life
    from tests.support.processes import QueueUnderTest

ACCEPTED, REFUSED = "accepted", "refused"
READY, HOLDING, KILLED, TAKEN = "ready", "holding", "killed", "taken"
ZOMBIE, SUCCESSOR = "zombie", "successor"


class Work:
    """Handles the only message there is, and tells whether that was accepted. A zombie stops at a failpoint on the way."""

    def __init__(self, life: Life, point: str | None) -> None:
        self._life = life
        self._point = point
        self._armed = ExitStack()

    def read(self) -> None:
        """By lease: handle it, and commit."""
        with self._life.open_beside_others() as mq, self._armed:
            consumer = mq.consumer(TOPIC, GROUP)
            assert consumer.poll(1, timeout=PATIENCE_SECONDS)
            self._arm()
            try:
                consumer.commit()
            except SqlmqError as error:
                self._life.tell(REFUSED, type(error).__name__)
            else:
                self._life.tell(ACCEPTED)

    def run(self) -> None:
        """By a handler, which fails in the zombie."""
        with self._life.open_beside_others() as mq, self._armed:
            consumer = mq.consumer(TOPIC, GROUP)

            def handle(_: Message) -> None:
                consumer.stop()
                self._arm()
                if self._point is not None:
                    raise ArithmeticError

            summary = consumer.run(handle, handle_signals=False)
            self._life.tell(ACCEPTED if summary.handled or summary.failures else REFUSED)

    def run_in_transactions(self) -> None:
        """By a handler with an effect, in the transaction of its attempt."""
        with self._life.open_beside_others() as mq, self._armed:
            consumer = mq.consumer(TOPIC, GROUP)

            def handle(_: Message, session: Session) -> None:
                consumer.stop()
                self._have_effect(session.connection())
                self._arm()

            summary = consumer.run(handle, transaction=True, handle_signals=False)
            self._life.tell(ACCEPTED if summary.handled else REFUSED)

    def _arm(self) -> None:
        if self._point is not None:
            self._armed.enter_context(failpoints.armed(self._point, failpoints.stopping(), nth=1))

    def _have_effect(self, connection: Connection) -> None:
        connection.execute(text("INSERT INTO customer_order (note) VALUES (:note)"), {"note": self._life.name})


def outlive(queue: QueueUnderTest, directory: Path, way: str, point: str) -> None:
    """Have a zombie stop at *point*, a successor do the work, and the zombie go on after that."""
    nursery = Nursery(queue, directory)

    def work(name: str, at: str | None = None) -> None:
        getattr(Work(nursery.life(name), at), way)()

    zombie = fork(lambda: work(ZOMBIE, point))
    _, status = os.waitpid(zombie, os.WUNTRACED)
    assert os.WIFSTOPPED(status), status
    try:
        assert in_child(lambda: work(SUCCESSOR)) == 0
    finally:
        os.kill(zombie, signal.SIGCONT)
    assert ended(zombie) == 0


def hold(life: Life, *, transaction: bool) -> None:
    """Have the message in hand, for ever."""
    with life.open_beside_others() as mq, mq.consumer(TOPIC, GROUP) as consumer, ExitStack() as block:
        if transaction:
            assert block.enter_context(consumer.transaction(max_messages=1, timeout=PATIENCE_SECONDS)).messages
        else:
            assert consumer.poll(1, timeout=PATIENCE_SECONDS)
        life.tell(HOLDING)
        threading.Event().wait(PATIENCE_SECONDS)


def inherit(life: Life, holds: Callable[[], bool], *, transaction: bool) -> None:
    """Ask for the message as soon as somebody *holds* it, and tell when it came."""
    with life.open_beside_others() as mq, ExitStack() as stack:
        # In a transaction on SQLite the holder is the only one who may write; by lease, whoever is there first has it.
        joined = stack.enter_context(mq.consumer(TOPIC, GROUP)) if transaction else None
        life.tell(READY)
        until(holds, "somebody to inherit from")
        consumer = joined or stack.enter_context(mq.consumer(TOPIC, GROUP))
        if transaction:
            with consumer.transaction(max_messages=1, timeout=PATIENCE_SECONDS) as tx:
                life.tell(TAKEN, time.monotonic(), len(tx.messages))
        else:
            messages = consumer.poll(1, timeout=PATIENCE_SECONDS)
            life.tell(TAKEN, time.monotonic(), len(messages))


def kill_holder(queue: QueueUnderTest, directory: Path, *, transaction: bool) -> None:
    """Kill somebody who has a message in hand, while somebody else waits for it."""
    nursery = Nursery(queue, directory)
    journal = directory / "journal"

    def has_told(what: str) -> bool:
        return journal.exists() and f'"{what}"' in journal.read_text()

    heir = fork(lambda: inherit(nursery.life("heir"), lambda: has_told(HOLDING), transaction=transaction))
    until(lambda: has_told(READY), "an heir")
    holder = fork(lambda: hold(nursery.life("holder"), transaction=transaction))
    until(lambda: has_told(HOLDING), "the message in hand")
    os.kill(holder, signal.SIGKILL)
    nursery.life("nursery").tell(KILLED, time.monotonic())
    assert ended(holder) == -signal.SIGKILL
    assert ended(heir) == 0
