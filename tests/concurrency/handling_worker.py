"""A process that runs a handler, which waits in slow messages to be let go."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from sqlmq import Message, Retry
from tests.support.journal import Journal
from tests.support.processes import GROUP, TOPIC, QueueUnderTest
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

PATIENT = Retry(max_attempts=5, backoff_seconds=0.001)
SLOW = b"slow"


class Handler:
    """Journals what it has handled, and inserts it into a table where there is a session."""

    def __init__(self, journal: Path) -> None:
        self._journal = Journal(journal)
        self._go = journal.parent / "go"

    def __call__(self, message: Message, session: Session | None = None) -> None:
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
        self._journal.write("handled", key.decode(), int(number))


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


def run(queue: QueueUnderTest, journal: Path, **options: Any) -> None:
    """Run the handler until a signal comes."""
    log = logging.getLogger("sqlmq.consumer")
    log.setLevel(logging.INFO)
    log.addHandler(StopNoted(journal.parent / "stopping"))
    with queue.open() as mq:
        mq.consumer(TOPIC, GROUP).run(Handler(journal), retry=PATIENT, **options)
