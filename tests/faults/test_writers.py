"""Processes that write one SQLite file: killed while it is written back, kept waiting, and beside each other."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from sqlmq import MQ, DatabaseBusyError, Message
from sqlmq.database import retrying
from sqlmq.dialects.sqlite import dialect
from tests.faults import writers
from tests.support.journal import check_acknowledged
from tests.support.processes import END_SECONDS, TOPIC, Processes, QueueUnderTest
from tests.support.queue_state import check_sqlite_file
from tests.support.waiting import read_texts, slack_seconds, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import DatabaseUnderTest

CHECKPOINT_KILLS = int(os.environ.get("SQLMQ_CHECKPOINT_KILLS", "10"))
CONTEND_SECONDS = float(os.environ.get("SQLMQ_CONTEND_SECONDS", "4"))

pytestmark = [
    pytest.mark.faults,
    pytest.mark.parametrize("database", ["sqlite"], indirect=True),
    pytest.mark.skipif(os.name == "nt", reason="kill -9 does not exist there"),
]


@pytest.fixture
def queue(database: DatabaseUnderTest) -> QueueUnderTest:
    queue = QueueUnderTest(database.url)
    with queue.open() as mq:
        mq.create_topic(TOPIC, 1)
    return queue


@pytest.mark.slow
@pytest.mark.timeout(60 + 5 * CHECKPOINT_KILLS)
def test_a_file_survives_the_killing_of_those_who_write_its_journal_back(
    queue: QueueUnderTest, processes: Processes, tmp_path: Path
) -> None:
    chosen = random.Random(5)
    pause = threading.Event()

    for _ in range(CHECKPOINT_KILLS):
        name = processes.start("writer", writers.checkpoint, time.monotonic() + END_SECONDS)
        journal = tmp_path / f"{name}.journal"
        until(lambda journal=journal: journal.exists() and b"checkpoint" in journal.read_bytes(), "a checkpoint")  # type: ignore[misc]
        pause.wait(chosen.uniform(0, 0.03))
        processes.kill(name)
        check_sqlite_file(queue.url)

    with queue.open() as mq:
        check_acknowledged(read_texts(mq, TOPIC), processes.stories("writer"))


def test_a_lock_that_somebody_else_keeps_is_waited_for_as_long_as_was_said(
    queue: QueueUnderTest, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialect, "_BUSY_TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr(retrying, "_RETRY_SECONDS", 1.0)
    with MQ(queue.url) as mq:
        producer = mq.producer(TOPIC)
        name = processes.start("holder", writers.hold_lock, time.monotonic() + END_SECONDS)
        until((tmp_path / f"{name}.journal").exists, "a lock that is held")
        began = time.monotonic()

        with pytest.raises(DatabaseBusyError, match="Another transaction has been writing for too long"):
            producer.produce(Message(b"1"))

        assert 2.0 * 0.8 <= time.monotonic() - began <= 2.0 * 1.2 + slack_seconds()
        processes.kill(name)
        assert producer.produce(Message(b"1")).offset == 0


@pytest.mark.slow
@pytest.mark.timeout(90 + CONTEND_SECONDS)
def test_eight_writers_all_get_their_turn(queue: QueueUnderTest, processes: Processes, tmp_path: Path) -> None:
    end = time.monotonic() + CONTEND_SECONDS + 3.0  # 3 to start in
    names = [processes.start("writer", writers.contend, end) for _ in range(8)]

    processes.wait(time.monotonic() + END_SECONDS)

    lines = [(tmp_path / f"{name}.journal").read_text().splitlines()[-1] for name in names]
    told = [json.loads(line) for line in lines]
    assert {kind for kind, *_ in told} == {writers.WAITED}
    counts, waits = [count for _, count, _ in told], [longest for *_, longest in told]
    jain = sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts))
    print(f"{sum(counts)} commits, {min(counts)} to {max(counts)} each, Jain {jain:.2f}, longest {max(waits):.2f} s")
    assert min(counts) > 0
    assert max(waits) < dialect._BUSY_TIMEOUT_SECONDS / 2
    assert jain > 0.8
    with queue.open() as mq:
        assert mq.admin.describe_topic(TOPIC).messages == sum(counts)
