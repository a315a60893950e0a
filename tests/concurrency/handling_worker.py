"""Processes that run a handler, and end in the middle of it: at any statement, any commit, or in the handler itself."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, event, text

from sqlmq import Message, Retry
from tests.support.journal import Journal
from tests.support.processes import GROUP, TOPIC, Place, end_at_once
from tests.support.queue_state import QueueState
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

PATIENT = Retry(max_attempts=5, backoff_seconds=0.001)
KILLER, SLOW = b"killer", b"slow"
"""Values: ends the process always, waits to be let go."""
IDLE_SECONDS = 0.15
CRASHED = 9


class Crash:
    """Ends the process at the step number *at*, from 1, of those that its workers take; 0 is never."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._steps = 0

    def step(self, *_: object, **__: object) -> None:
        if threading.current_thread().name.startswith("sqlmq-run"):
            self._steps += 1
            if self._steps == self._at:
                end_at_once(CRASHED)

    def watch(self, engine: Engine) -> None:
        for when in ("before_cursor_execute", "after_cursor_execute", "commit"):
            event.listen(engine, when, self.step)


class Handler:
    """Journals what it has handled, and inserts it into a table where there is a session."""

    def __init__(self, journal: Path, crash: Crash) -> None:
        self._journal = Journal(journal)
        self._go = journal.parent / "go"
        self._crash = crash

    def __call__(self, given: Message | list[Message], session: Session | None = None) -> None:
        for message in given if isinstance(given, list) else [given]:
            self._handle(message, session)

    def _handle(self, message: Message, session: Session | None) -> None:
        self._crash.step()
        assert message.key is not None
        kind, key, number = message.value.split(b" ")
        self._journal.write("tried", key.decode(), int(number))
        if session is not None:
            session.execute(
                text("INSERT INTO effect (message_key, number) VALUES (:key, :number)"),
                {"key": key.decode(), "number": int(number)},
            )
        if kind == SLOW:
            until(self._go.exists, "to be let go")
        if kind == KILLER:
            end_at_once(CRASHED)
        self._journal.write("handled", key.decode(), int(number))
        self._crash.step()


def value(kind: bytes, key: str, number: int) -> bytes:
    return b"%s %s %d" % (kind, key.encode(), number)


class StopNoted(logging.Handler):
    """Creates the file *stopping* once the run has taken a signal, and begins no other message."""

    def __init__(self, stopping: Path) -> None:
        super().__init__()
        self._stopping = stopping

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "sqlmq_event", None) == "run stopping":
            self._stopping.touch()


def make_tables(connection: Connection) -> None:
    identity = "id INTEGER PRIMARY KEY" if connection.dialect.name == "sqlite" else "id bigserial PRIMARY KEY"
    connection.execute(text(f"CREATE TABLE effect ({identity}, message_key text, number integer)"))


def run(place: Place, journal: Path, crash_at: int, **options: Any) -> None:
    """Run the handler until nothing comes any more, or it has crashed."""
    crash = Crash(crash_at)
    log = logging.getLogger("sqlmq.consumer")
    log.setLevel(logging.INFO)
    log.addHandler(StopNoted(journal.parent / "stopping"))
    with place.open() as mq:
        crash.watch(mq.engine)
        consumer = mq.consumer(TOPIC, GROUP)
        consumer.run(
            Handler(journal, crash),
            **{"retry": PATIENT, "idle_seconds": IDLE_SECONDS, "handle_signals": False, **options},
        )


def bury(place: Place) -> None:
    """End the lease of the consumer that died."""
    with place.open() as mq:
        QueueState(mq.engine, mq.schema).expire_leases()
