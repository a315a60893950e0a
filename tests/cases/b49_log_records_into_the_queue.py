"""A ``logging.Handler`` sends log records into the queue, as people do with Kafka. ``produce`` must not wait for itself.

The records of the library and of SQLAlchemy arise inside ``produce``.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from typing import TYPE_CHECKING

from sqlalchemy import create_engine

from case import Case, crowding, end, run
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import Producer

CHILD_SECONDS, HANG_SECONDS = 60, 25
LOCKED_SECONDS = 3


class QueueHandler(logging.Handler):
    """Sends each record as a message, but for the records that arise while it does so."""

    def __init__(self, producer: Producer) -> None:
        super().__init__()
        self._producer = producer
        self._inside = threading.local()
        self.sent = 0

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(self._inside, "is_sending", False):
            return
        self._inside.is_sending = True
        try:
            self._producer.produce(Message(record.getMessage().encode()[:500], key=b"k"))
            self.sent += 1
        finally:
            self._inside.is_sending = False


def judge(case: Case) -> None:
    for name in RECORDS:
        case.run_child(name, seconds=CHILD_SECONDS)


def live(case: Case, name: str) -> None:
    log = logging.getLogger()
    mq = RECORDS[name](case)
    mq.create_topic("logs", 1)
    producer = mq.producer("logs")
    handler = QueueHandler(producer)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if name == "debug" else logging.INFO)

    def tell() -> None:
        print(f"produce() waits for itself, after {handler.sent} records")
        end(1)

    limit = threading.Timer(HANG_SECONDS * crowding(), tell)
    limit.daemon = True
    limit.start()
    if name == "warning":
        disturb(case, producer)
    for _ in range(5):
        producer.produce(Message(b"of the application", key=b"k"))
    log.handlers.clear()
    limit.cancel()


def open_with_echo(case: Case) -> MQ:
    return MQ(create_engine(case.url, echo=True))


def open_plain(case: Case) -> MQ:
    return MQ(create_engine(case.url))


def open_with_short_timeout(case: Case) -> MQ:
    """Open an MQ that soon tries again when the SQLite file is locked."""
    arguments = {"timeout": 0.2} if case.is_sqlite else {}
    return MQ(create_engine(case.url, connect_args=arguments))


RECORDS: dict[str, Callable[[Case], MQ]] = {
    "echo": open_with_echo,
    "warning": open_with_short_timeout,
    "debug": open_plain,
}
"""Where records arise: in SQLAlchemy, in the library when it tries again, and everywhere."""


def disturb(case: Case, producer: Producer) -> None:
    """Have the next ``produce`` try again, which it logs: lock the file for a while, or end the sessions."""
    if case.is_sqlite:
        connection = sqlite3.connect(case.sqlite_path, isolation_level=None, check_same_thread=False)
        connection.execute("BEGIN IMMEDIATE")
        threading.Timer(LOCKED_SECONDS, connection.execute, args=["ROLLBACK"]).start()
        return
    producer.produce(Message(b"warm"))
    case.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


if __name__ == "__main__":
    run(judge, child=live)
