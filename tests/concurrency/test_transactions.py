"""Transactions in many processes, some of which are killed or stopped: effects equal messages."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, text

from sqlmq import Message
from tests.concurrency import transacting
from tests.concurrency.transacting import ENDED, ENTERED, REFUSED, have_effects, make_tables
from tests.support.processes import GROUP, TOPIC, QueueUnderTest
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

PARTITIONS = 3
PATIENCE_SECONDS = 60.0
LONG_LEASE_SECONDS = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="kill -9 does not exist there")]
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)


@pytest.fixture
def queue(database: DatabaseUnderTest, engine: Engine) -> QueueUnderTest:
    queue = QueueUnderTest(database.url, database.schema, LONG_LEASE_SECONDS)
    with queue.open() as mq:
        mq.create_topic(TOPIC, PARTITIONS)
        mq.consumer(TOPIC, GROUP).close()
    with engine.begin() as connection:
        make_tables(connection)
    return queue


@pytest.fixture
def start(queue: QueueUnderTest, start_process: Callable[..., BaseProcess]) -> Callable[..., BaseProcess]:
    """Starts a process that does some work at the queue."""
    return lambda work, *arguments: start_process(work, queue, *arguments)


def fill(mq: MQ, count: int) -> None:
    producer = mq.producer(TOPIC)
    producer.produce_many([Message(b"", b"%d" % key) for key in range(count)])


def assert_that_effects_equal_messages(mq: MQ, engine: Engine) -> None:
    with engine.connect() as connection:
        effects = [
            (row[0], row[1])
            for row in connection.execute(text("SELECT partition_number, message_offset FROM effect ORDER BY id"))
        ]
        total = connection.execute(text("SELECT total FROM counter")).scalar_one()
    sent = mq.admin.describe_topic(TOPIC).partitions
    for partition in sent:
        own = [offset for number, offset in effects if number == partition.partition]
        assert own == list(range(partition.end_offset))
    assert total == len(effects) == sum(partition.end_offset for partition in sent)


@BOTH
def test_threads_and_processes_at_once_have_each_effect_once_and_in_order(
    queue: QueueUnderTest, start: Callable[..., BaseProcess], engine: Engine
) -> None:
    with queue.open() as mq:
        fill(mq, 300)

        working = [start(transacting.handle, 2, 300) for _ in range(3)]
        for process in working:
            process.join(PATIENCE_SECONDS)

        assert [process.exitcode for process in working] == [0, 0, 0]
        assert_that_effects_equal_messages(mq, engine)


def read(journal: Path) -> list[list[object]]:
    return [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()] if journal.exists() else []


@BOTH
@pytest.mark.faults
def test_after_kill_9_another_consumer_goes_on_at_once_without_waiting_for_the_lease(
    queue: QueueUnderTest, start: Callable[..., BaseProcess], engine: Engine, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    with queue.open() as mq, mq.consumer(TOPIC, GROUP) as consumer:
        mq.producer(TOPIC).produce_with_partition(Message(b""), 0)
        holder = start(transacting.hold, journal, 300.0, tmp_path / "never", time.monotonic() + PATIENCE_SECONDS)
        until(lambda: bool(read(journal)), "the holder to be in its block")

        holder.kill()
        killed_at = time.monotonic()
        with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
            took_seconds = time.monotonic() - killed_at
            have_effects(tx)

        assert read(journal) == [[ENTERED, 1]]
        assert took_seconds < LONG_LEASE_SECONDS / 6
        assert_that_effects_equal_messages(mq, engine)


@POSTGRES
@pytest.mark.faults
def test_a_process_that_was_stopped_for_too_long_is_refused_and_its_effects_are_undone(
    queue: QueueUnderTest, start: Callable[..., BaseProcess], engine: Engine, tmp_path: Path
) -> None:
    journal, go_on = tmp_path / "journal", tmp_path / "go on"
    with queue.open() as mq, mq.consumer(TOPIC, GROUP) as consumer:
        mq.producer(TOPIC).produce_with_partition(Message(b""), 0)
        zombie = start(transacting.hold, journal, 0.5, go_on, time.monotonic() + PATIENCE_SECONDS)
        until(lambda: bool(read(journal)), "the holder to be in its block")
        assert zombie.pid is not None

        os.kill(zombie.pid, signal.SIGSTOP)
        with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
            assert len(tx.messages) == 1
            have_effects(tx)
        go_on.touch()
        os.kill(zombie.pid, signal.SIGCONT)
        zombie.join(PATIENCE_SECONDS)

        assert read(journal) == [[ENTERED, 1], [REFUSED, "DatabaseUnavailableError"]]
        assert ENDED not in str(read(journal))
        assert_that_effects_equal_messages(mq, engine)
