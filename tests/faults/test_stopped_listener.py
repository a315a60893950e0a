"""A process that listens is stopped, as by a debugger or a container that is frozen: nobody who sends has to wait for it."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from sqlmq import Message
from tests.faults import holder
from tests.support.processes import GROUP, TOPIC, Processes, QueueUnderTest
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

NOTICES, TOGETHER = 100_000, 1_000
SEND_SECONDS = 2.0
"""How long a transaction with so many notices may take at the most, on a machine that is busy with other things."""

LISTENER = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
# Each its own payload, or Postgres would send one. None is a topic's: whoever hears them has nothing to look at.
NOTIFY = """SELECT pg_notify('sqlmq_' || CAST(CAST(to_regclass('sqlmq_topic') AS oid) AS text), repeat('x', 50) || number)
    FROM generate_series(1, :together) AS number"""

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="there is no SIGSTOP"),
    pytest.mark.parametrize("database", ["postgres"], indirect=True),
]


def test_senders_do_not_wait_for_a_listener_that_is_stopped_and_it_hears_again_afterwards(
    mq: MQ, engine: Engine, database: DatabaseUnderTest, tmp_path: Path
) -> None:
    mq.create_topic(TOPIC, 1)
    processes = Processes(QueueUnderTest(database.url, database.schema, lease_seconds=60.0), tmp_path)
    go_on = tmp_path / "go on"
    go_on.touch()
    name = processes.start("holder", holder.hold, go_on, time.monotonic() + 100)
    pid = processes.running[name].pid
    assert pid is not None
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:

            def number(query: str) -> float:
                return float(connection.execute(text(query)).scalar() or 0.0)

            until(lambda: number(LISTENER) > 0, "a listener")
            os.kill(pid, signal.SIGSTOP)
            slowest = 0.0
            for _ in range(NOTICES // TOGETHER):
                began = time.monotonic()
                connection.execute(text(NOTIFY), {"together": TOGETHER})
                slowest = max(slowest, time.monotonic() - began)
            mq.producer(TOPIC).produce(Message(b"1"))
            used = number("SELECT pg_notification_queue_usage()")
            os.kill(pid, signal.SIGCONT)

            until(lambda: processes.has_begun(name), "the message to come")
            until(lambda: number("SELECT pg_notification_queue_usage()") == 0, "an empty queue of notices")
        processes.wait(time.monotonic() + 60)
    finally:
        processes.close()

    print(f"{NOTICES} notices, {TOGETHER} in {slowest:.3f} s at the most; the queue was full to {used:.2%}")
    assert slowest <= SEND_SECONDS
    assert mq.admin.describe_group(TOPIC, GROUP).lag == 0
