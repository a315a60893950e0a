"""Processes that store, cancel and move delayed messages are killed at every step: nothing is lost, nothing doubled."""

from __future__ import annotations

import os
import random
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from tests.concurrency import delayed_worker
from tests.concurrency.delayed_worker import CANCELLED, CANCELLING, PARTITIONS, STORED, TOPIC, Step
from tests.support.delayed import Staged
from tests.support.processes import Place, start
from tests.support.queue_state import QueueState
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

CRASHES = int(os.environ.get("SQLMQ_DELAYED_CRASHES", "22"))
WORKERS = 2
CRASH_SECONDS = 1.0
"""Far more than one takes."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a crash is that of a forked child"),
]


@pytest.mark.timeout(120 + 2 * CRASHES * CRASH_SECONDS)
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_whatever_step_a_process_is_killed_at_each_delayed_message_is_in_the_log_once_or_cancelled(
    mq: MQ, engine: Engine, database: DatabaseUnderTest, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    staged = Staged(engine, database)
    mq.create_topic(TOPIC, PARTITIONS)
    place = Place(database.url, database.schema)
    journals = [tmp_path / f"worker-{number}.jsonl" for number in range(WORKERS)]
    processes = [
        start(delayed_worker.store_move_and_crash, place, path, number, CRASHES // WORKERS, seed + number)
        for number, path in enumerate(journals)
    ]
    for process in processes:
        process.join(60 + CRASHES * CRASH_SECONDS)
    assert [process.exitcode for process in processes] == [0] * WORKERS, f"seed {seed}"

    # What was on its way has arrived, and what is left is moved here.
    until(lambda: not is_anybody_there(engine, database), "the server has noticed the last crash")
    mq.consumer(TOPIC, "billing")
    staged.until_all_moved()
    lines = [line for path in journals for line in delayed_worker.read(path)]
    told = {
        kind: [name for line in lines if line[0] == kind for name in line[1]]
        for kind in (STORED, CANCELLING, CANCELLED)
    }
    crashes = Counter(line[1] for line in lines if line[0] == "crashed")
    log = Counter(value for values in QueueState(engine, database.schema).texts(TOPIC).values() for value in values)
    print(
        f"{database.kind}: {sum(crashes.values())} crashes, seed {seed}, {len(told[STORED])} stored, "
        f"{len(told[CANCELLED])} of {len(told[CANCELLING])} cancelled, {len(log)} in the log: {dict(crashes)}"
    )
    assert set(crashes) == {step.name for step in Step}
    assert [name for name, count in log.items() if count > 1] == [], f"doubled, seed {seed}"
    assert set(told[STORED]) - set(told[CANCELLING]) - set(log) == set(), f"lost, seed {seed}"
    assert set(told[CANCELLED]) & set(log) == set(), f"cancelled and delivered, seed {seed}"
    if not database.is_postgres:
        file = sqlite3.connect(database.url.removeprefix("sqlite:///"))
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        file.close()


def is_anybody_there(engine: Engine, database: DatabaseUnderTest) -> bool:
    if not database.is_postgres:
        return False
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    with engine.connect() as connection:
        return bool(connection.execute(query).scalar_one())
