"""Whoever is stopped for too long can't write any more once somebody else goes on; whoever is killed is succeeded soon."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, text

from sqlmq import Message
from tests.faults import successions
from tests.faults.lives import POLL_SECONDS, Line, make_tables
from tests.faults.nursery import in_nursery
from tests.faults.successions import ACCEPTED, KILLED, REFUSED, SUCCESSOR, TAKEN, ZOMBIE
from tests.support.processes import GROUP, TOPIC, QueueUnderTest

if TYPE_CHECKING:
    from pathlib import Path

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

LEASE_SECONDS = 1.0

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are stopped and killed"),
]
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
# A process that is stopped inside a transaction on SQLite has the file locked: nobody can succeed it before it goes on.
ZOMBIES = pytest.mark.parametrize(
    ("database", "way", "point"),
    [
        ("sqlite", "read", "begin.before"),
        ("sqlite", "run", "begin.before"),
        ("postgres", "read", "statement.before"),
        ("postgres", "read", "position.before"),
        ("postgres", "run", "begin.before"),
        ("postgres", "run", "park.before"),
        ("postgres", "run_in_transactions", "effect.after"),
    ],
    indirect=["database"],
)


@pytest.fixture
def queue(database: DatabaseUnderTest, engine: Engine) -> QueueUnderTest:
    queue = QueueUnderTest(database.url, database.schema, LEASE_SECONDS)
    with queue.open() as mq:
        mq.create_topic(TOPIC, 1)
        mq.producer(TOPIC).produce(Message(b"the only one"))
    with engine.begin() as connection:
        make_tables(connection)
    return queue


def told(directory: Path) -> list[Line]:
    return [Line(*json.loads(line)) for line in (directory / "journal").read_text().splitlines()]


@ZOMBIES
def test_a_zombie_is_refused_after_somebody_has_gone_on(
    mq: MQ, queue: QueueUnderTest, engine: Engine, way: str, point: str, tmp_path: Path
) -> None:
    assert in_nursery(successions.outlive, queue, tmp_path, way, point) == 0

    assert [(line.life, line.what) for line in told(tmp_path)] == [(SUCCESSOR, ACCEPTED), (ZOMBIE, REFUSED)]
    (partition,) = mq.admin.describe_group(TOPIC, GROUP).partitions
    assert (partition.position, partition.lag) == (1, 0)
    with engine.connect() as connection:
        effects = list(connection.execute(text("SELECT note FROM customer_order")).scalars())
        parked = connection.execute(text("SELECT count(*) FROM sqlmq_parked")).scalar_one()
    assert effects == ([SUCCESSOR] if way == "run_in_transactions" else [])
    assert parked == 0


@BOTH
@pytest.mark.parametrize(
    ("transaction", "bound"),
    [(False, LEASE_SECONDS + POLL_SECONDS + 1), (True, POLL_SECONDS + 1)],
    ids=["lease", "transaction"],
)
def test_after_kill_9_somebody_else_has_the_message_in_time(
    queue: QueueUnderTest, tmp_path: Path, transaction: bool, bound: float
) -> None:
    assert in_nursery(partial(successions.kill_holder, queue, tmp_path, transaction=transaction)) == 0

    moments = {line.what: line.facts for line in told(tmp_path)}
    assert moments[TAKEN][1] == 1
    assert moments[TAKEN][0] - moments[KILLED][0] <= bound
