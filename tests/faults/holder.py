"""A consumer that takes one message and says later that it is done, for a process that is paused meanwhile."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from sqlmq import SqlmqError
from tests.concurrency.workers import COMMITTED, DELIVERED, FAILED, GROUP, TOPIC, TROUBLE, Journal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.concurrency.workers import Place


def hold(place: Place, journal_path: Path, go_on: Path, until: float) -> None:
    """Take messages, and commit them when *go_on* is there."""
    journal = Journal(journal_path)
    pause = threading.Event()
    with place.open() as mq, mq.consumer(TOPIC, GROUP) as consumer:
        got = consumer.poll(timeout=60)
        journal.write(DELIVERED, 0.0, 0.0, [(message.partition, message.offset, "") for message in got])
        while not go_on.exists() and time.monotonic() < until:
            pause.wait(0.01)
        try:
            consumer.commit()
        except SqlmqError as error:
            journal.write(TROUBLE, type(error).__name__)
        except BaseException as error:
            journal.write(FAILED, repr(error))
            raise
        else:
            journal.write(COMMITTED, time.monotonic(), [])
