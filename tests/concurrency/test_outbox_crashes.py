"""An application that crashes anywhere around its commit: afterwards there is an event for each order, and no other."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from tests.concurrency import outbox_worker
from tests.concurrency.outbox_worker import TOPICS, Step
from tests.support.processes import Place, start
from tests.support.queue_state import QueueState
from tests.support.shop import Shop
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

CRASHES = int(os.environ.get("SQLMQ_OUTBOX_CRASHES", "14"))
WORKERS = 2
CRASH_SECONDS = 0.5
"""Far more than one takes."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a crash is that of a forked child"),
]


@pytest.mark.timeout(120 + 2 * CRASHES * CRASH_SECONDS)
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_whatever_step_an_application_crashes_at_there_is_an_event_for_each_order_and_no_other(
    mq: MQ, engine: Engine, database: DatabaseUnderTest, tmp_path: Path
) -> None:
    shop = Shop(mq, engine, database)
    seed = random.randrange(1 << 32)
    mq.create_topic("audit", 1)
    place = Place(database.url, database.schema)
    results = [tmp_path / f"worker-{number}.json" for number in range(WORKERS)]
    processes = [
        start(outbox_worker.sell_and_crash, place, path, number, CRASHES // WORKERS, seed + number)
        for number, path in enumerate(results)
    ]
    for process in processes:
        process.join(60 + CRASHES * CRASH_SECONDS)
    assert [process.exitcode for process in processes] == [0] * WORKERS, f"seed {seed}"

    # What was on its way has arrived, and what was staged is moved, here.
    until(lambda: not is_anybody_there(shop), "the server has noticed the last crash")
    mq.consumer("events", "billing")
    until(lambda: QueueState(engine, database.schema).staged() == 0, "everything in the log")
    told = [json.loads(path.read_text(encoding="utf-8")) for path in results]
    counts = {step.name: sum(one["counts"][step.name] for one in told) for step in Step}
    acknowledged = [line for path in results for line in path.with_suffix(".acknowledged").read_text().split()]
    orders = sorted(shop.orders)
    seconds = max(one["seconds"] for one in told)
    print(
        f"{database.kind}: {sum(counts.values())} crashes in {seconds:.0f} s, seed {seed}, {len(orders)} orders: {counts}"
    )
    for topic in TOPICS:
        assert sorted(value for values in shop.log(topic).values() for value in values) == orders, f"seed {seed}"
    assert set(acknowledged) <= set(orders)
    # On SQLite there is no way for a COMMIT to get lost on.
    lost = range(counts["ON_THE_WAY"] + 1) if database.is_postgres else [counts["ON_THE_WAY"]]
    assert len(orders) - len(acknowledged) in lost
    assert min(counts.values()) > 0
    if not database.is_postgres:
        file = sqlite3.connect(database.url.removeprefix("sqlite:///"))
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        file.close()


def is_anybody_there(shop: Shop) -> bool:
    if not shop.database.is_postgres:
        return False
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name AND datname = current_database()"
    )
    with shop.engine.connect() as connection:
        return bool(connection.execute(query, {"name": outbox_worker.APPLICATION}).scalar_one())
