"""A process that ends while it handles a message: the attempt counts, and one that has handled it counts no failure."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text

from sqlmq import Message, Retry
from tests.concurrency import handling_worker
from tests.concurrency.handling_worker import CRASHED, KILLER, make_tables, value
from tests.support.handlers import Recorder, drain
from tests.support.processes import GROUP, TOPIC, Place, in_process

if TYPE_CHECKING:
    from pathlib import Path

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a crash is that of a forked child"),
]
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def place(database: DatabaseUnderTest, engine: Engine) -> Place:
    place = Place(database.url, database.schema, lease_seconds=60.0)
    with place.open() as mq:
        mq.create_topic(TOPIC, 1)
    with engine.begin() as connection:
        make_tables(connection)
    return place


@BOTH
@pytest.mark.parametrize("max_attempts", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"transaction": True}, {"batch_size": 5}], ids=["plain", "transaction", "batch"]
)
def test_a_message_that_kills_the_process_becomes_a_dead_letter_after_so_many_attempts(
    mq: MQ, place: Place, tmp_path: Path, max_attempts: int, options: dict[str, Any]
) -> None:
    producer = mq.producer(TOPIC)
    producer.produce_many([Message(value(KILLER if n == 4 else b"well", "k", n), key=b"k") for n in range(10)])
    journals = [tmp_path / f"{number}.journal" for number in range(20)]
    retry = Retry(max_attempts=max_attempts, backoff_seconds=0.001)
    exits = []
    for journal in journals:
        exits.append(in_process(handling_worker.run, place, journal, 0, retry=retry, **options))
        handling_worker.bury(place)
        if exits[-1] == 0:
            break

    lines = [json.loads(line) for journal in journals if journal.exists() for line in journal.read_text().splitlines()]
    done = [number for what, _, number in lines if what == "handled"]
    assert list(dict.fromkeys(done)) == [n for n in range(10) if n != 4]
    tries = sum(what == "tried" and number == 4 for what, _, number in lines)
    if "batch_size" in options and max_attempts == 1:
        # The batch counts for all of its messages, and each gets a chance of its own.
        assert tries in (1, 2)
    else:
        assert tries == max_attempts
    assert exits == [CRASHED] * (len(exits) - 1) + [0]
    with mq.engine.connect() as connection:
        row = connection.execute(text("SELECT msg_offset, state, attempts, error_type FROM sqlmq_parked")).one()
    assert (row.msg_offset, row.state, row.error_type) == (4, "dead", "ProcessEnded")


@BOTH
def test_a_crash_between_handling_and_committing_counts_no_failure(mq: MQ, place: Place, tmp_path: Path) -> None:
    mq.producer(TOPIC).produce_many([Message(value(b"well", "k", n), key=b"k") for n in range(20)])

    exit_code = in_process(handling_worker.run, place, tmp_path / "journal", 12)
    handling_worker.bury(place)
    handler = Recorder()
    summary = drain(mq.consumer(TOPIC, GROUP), handler)

    assert exit_code == CRASHED
    assert summary.dead == 0
    assert handler.values == sorted(handler.values, key=lambda value: int(value.split()[-1]))
    assert int(handler.values[-1].split()[-1]) == 19
