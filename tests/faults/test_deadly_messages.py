"""A message that kills each process that handles it: its attempts count, and it becomes a dead letter."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import Message, Retry
from sqlmq.hooks.failpoints import EXIT_CODE
from tests.faults.lives import Line, make_tables
from tests.faults.nursery import Nursery, in_nursery
from tests.support.processes import GROUP, TOPIC, QueueUnderTest, end_at_once, in_child
from tests.support.queue_state import QueueState

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest
    from tests.faults.lives import Life

MESSAGES, DEADLY = 10, 4
MOST_PROCESSES = 20
TRIED, HANDLED = "tried", "handled"

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a process that dies is a forked child"),
    pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True),
]


@pytest.fixture
def queue(database: DatabaseUnderTest, engine: Engine) -> QueueUnderTest:
    queue = QueueUnderTest(database.url, database.schema, lease_seconds=60.0)
    with queue.open() as mq:
        mq.create_topic(TOPIC, 1)
    with engine.begin() as connection:
        make_tables(connection)
    return queue


def handle_until_done(queue: QueueUnderTest, directory: Path, max_attempts: int, options: dict[str, Any]) -> None:
    """Let one process after the other handle messages until one survives; leave their exit codes in a file."""
    nursery = Nursery(queue, directory)
    exits = [0]
    while len(exits) < MOST_PROCESSES:
        life = nursery.life(f"life {len(exits)}")
        exits.append(in_child(lambda life=life: handle_messages(life, max_attempts, options)))  # type: ignore[misc]
        if exits[-1] == 0:
            break
    (directory / "told").write_text(json.dumps(exits[1:]))


def handle_messages(life: Life, max_attempts: int, options: dict[str, Any]) -> None:
    """Handle messages until none comes, or die of one."""

    def handle(given: Message | list[Message], session: Session | None = None) -> None:
        del session
        for message in given if isinstance(given, list) else [given]:
            number = int(message.value)
            life.tell(TRIED, number)
            if number == DEADLY:
                end_at_once(EXIT_CODE)
            life.tell(HANDLED, number)

    retry = Retry(max_attempts=max_attempts, backoff_seconds=0.001)
    with life.open() as mq, mq.consumer(TOPIC, GROUP) as consumer:
        consumer.run(handle, retry=retry, idle_seconds=0.15, handle_signals=False, **options)


@pytest.mark.parametrize("max_attempts", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"transaction": True}, {"batch_size": 5}], ids=["plain", "transaction", "batch"]
)
def test_a_message_that_kills_the_process_becomes_a_dead_letter_after_so_many_attempts(
    mq: MQ, engine: Engine, queue: QueueUnderTest, tmp_path: Path, max_attempts: int, options: dict[str, Any]
) -> None:
    mq.producer(TOPIC).produce_many([Message(b"%d" % number, b"k") for number in range(MESSAGES)])

    assert in_nursery(handle_until_done, queue, tmp_path, max_attempts, options) == 0

    exits = json.loads((tmp_path / "told").read_text())
    assert exits == [EXIT_CODE] * (len(exits) - 1) + [0]
    lines = [Line(*json.loads(line)) for line in (tmp_path / "journal").read_text().splitlines()]
    handled = [line.facts[0] for line in lines if line.what == HANDLED]
    assert list(dict.fromkeys(handled)) == [number for number in range(MESSAGES) if number != DEADLY]
    tries = sum(line.what == TRIED and line.facts[0] == DEADLY for line in lines)
    # A failed batch counts for each of its messages, and each gets one attempt of its own.
    assert tries in ((1, 2) if "batch_size" in options and max_attempts == 1 else (max_attempts,))
    assert QueueState(engine, None).rows("SELECT msg_offset, state, error_type FROM sqlmq_parked") == [
        (DEADLY, "dead", "ProcessEnded")
    ]
