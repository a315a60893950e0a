"""Consumers that handle messages in transactions, for processes that are stopped or killed.

Effects are rows without a unique key, so that one that happened twice is seen, and a counter.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from sqlalchemy import text

from sqlmq import SqlmqError, Transaction
from tests.support.journal import Journal
from tests.support.processes import GROUP, TOPIC, QueueUnderTest

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

ENTERED, ENDED, REFUSED = "entered", "ended", "refused"


def make_tables(connection: Connection) -> None:
    key = "SERIAL PRIMARY KEY" if connection.dialect.name == "postgresql" else "INTEGER PRIMARY KEY AUTOINCREMENT"
    connection.execute(text(f"CREATE TABLE effect (id {key}, partition_number INTEGER, message_offset INTEGER)"))
    connection.execute(text("CREATE TABLE counter (total INTEGER)"))
    connection.execute(text("INSERT INTO counter VALUES (0)"))


def have_effects(tx: Transaction) -> None:
    for message in tx:
        tx.session.execute(
            text("INSERT INTO effect (partition_number, message_offset) VALUES (:p, :o)"),
            {"p": message.partition, "o": message.offset},
        )
        tx.session.execute(text("UPDATE counter SET total = total + 1"))


def handle(queue: QueueUnderTest, threads: int, messages: int) -> None:
    """Handle messages in several threads until all *messages* are done with."""
    with queue.open() as mq:

        def run() -> None:
            with mq.consumer(TOPIC, GROUP) as consumer:
                while sum(one.position for one in mq.admin.describe_group(TOPIC, GROUP).partitions) < messages:
                    with consumer.transaction(max_messages=7, timeout=0.1) as tx:
                        have_effects(tx)

        running = [threading.Thread(target=run) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()


def hold(queue: QueueUnderTest, journal_path: Path, max_poll_seconds: float, go_on: Path, until: float) -> None:
    """Take messages, have their effects, and stay in the block until *go_on* is there; journal how it ended."""
    journal = Journal(journal_path)
    pause = threading.Event()
    with queue.open(max_poll_seconds=max_poll_seconds) as mq, mq.consumer(TOPIC, GROUP) as consumer:
        try:
            with consumer.transaction(timeout=60) as tx:
                have_effects(tx)
                journal.write(ENTERED, len(tx.messages))
                while not go_on.exists() and time.monotonic() < until:
                    pause.wait(0.01)
        except SqlmqError as error:
            journal.write(REFUSED, type(error).__name__)
        else:
            journal.write(ENDED)
