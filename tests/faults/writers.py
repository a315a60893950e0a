"""Writers of a SQLite file, for processes of their own that may be killed at any moment."""

from __future__ import annotations

import sqlite3
import threading
import time
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from sqlmq import Message
from tests.support.journal import FAILED, PRODUCED, TROUBLE, Journal
from tests.support.processes import TOPIC

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.processes import QueueUnderTest

WAITED = "waited"
LARGE = b"x" * 10_000


def checkpoint(queue: QueueUnderTest, journal_path: Path, until: float) -> None:
    """Let the journal of the file grow, then write it back into the file, again and again until the moment *until*."""
    journal = Journal(journal_path)
    reading = sqlite3.connect(make_url(queue.url).database or "", isolation_level=None)
    with queue.open() as mq:
        producer = mq.producer(TOPIC)
        while time.monotonic() < until:
            # While somebody reads an old state, nothing is written back.
            reading.execute("BEGIN")
            reading.execute("SELECT count(*) FROM sqlmq_partition").fetchone()
            for result in producer.produce_many([Message(LARGE)] * 200):
                journal.write(PRODUCED, result.partition, result.offset, LARGE.decode())
            reading.execute("ROLLBACK")
            journal.write(TROUBLE, "checkpoint")
            with mq.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def contend(queue: QueueUnderTest, journal_path: Path, until: float) -> None:
    """Write without a pause until the moment *until*; journal how often, and the longest that a commit took."""
    journal = Journal(journal_path)
    count, longest = 0, 0.0
    try:
        with queue.open() as mq:
            producer = mq.producer(TOPIC)
            journal.write(WAITED, 0, 0.0)
            while (began := time.monotonic()) < until:
                producer.produce(Message(b"1"))
                count += 1
                longest = max(longest, time.monotonic() - began)
    except Exception as error:
        journal.write(FAILED, f"{type(error).__name__}: {error}")
        raise
    journal.write(WAITED, count, longest)


def hold_lock(queue: QueueUnderTest, journal_path: Path, until: float) -> None:
    """Be the file's writer until the moment *until*, as a program that is not ours."""
    connection = sqlite3.connect(make_url(queue.url).database or "", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    Journal(journal_path).write(TROUBLE, "locked")
    threading.Event().wait(max(0.0, until - time.monotonic()))
    connection.execute("ROLLBACK")
