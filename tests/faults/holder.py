"""A consumer that takes one message and says later that it is done, for a process that is paused meanwhile."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from sqlmq import SqlmqError
from tests.support.journal import COMMITTED, DELIVERED, FAILED, TROUBLE, Journal
from tests.support.processes import GROUP, TOPIC

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlmq import ReceivedMessage
    from tests.support.processes import QueueUnderTest


def go_to(network: Path) -> None:
    """Have this thread, and those it starts, be in another *network* namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with network.open("rb") as file:
        if libc.setns(file.fileno(), 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def hold(queue: QueueUnderTest, journal_path: Path, go_on: Path, until: float, network: Path | None = None) -> None:
    """Take messages, and commit them when *go_on* is there; from another *network*, if there is one."""
    journal = Journal(journal_path)
    if network is not None:
        go_to(network)
    with queue.open() as mq, mq.consumer(TOPIC, GROUP) as consumer:
        _tell(journal, consumer.poll(timeout=60))
        _wait(go_on, until)
        _try(journal, consumer.commit)


def hold_in_transaction(queue: QueueUnderTest, journal_path: Path, go_on: Path, until: float, network: Path) -> None:
    """Take messages in a transaction, from another *network*, and have an effect when *go_on* is there."""
    journal = Journal(journal_path)
    go_to(network)
    with queue.open(max_poll_seconds=queue.lease_seconds) as mq, mq.consumer(TOPIC, GROUP) as consumer:

        def take() -> None:
            with consumer.transaction(timeout=60) as tx:
                _tell(journal, tx.messages)
                _wait(go_on, until)
                tx.connection.execute(text("INSERT INTO effect (what) VALUES ('too late')"))

        _try(journal, take)


def _tell(journal: Journal, got: list[ReceivedMessage]) -> None:
    journal.write(DELIVERED, 0.0, 0.0, [(message.partition, message.offset, "") for message in got])


def _wait(go_on: Path, until: float) -> None:
    pause = threading.Event()
    while not go_on.exists() and time.monotonic() < until:
        pause.wait(0.01)


def _try(journal: Journal, finish: Callable[[], object]) -> None:
    try:
        finish()
    except (SqlmqError, SQLAlchemyError) as error:
        journal.write(TROUBLE, type(error).__name__)
    except BaseException as error:
        journal.write(FAILED, repr(error))
        raise
    else:
        journal.write(COMMITTED, time.monotonic(), [])
