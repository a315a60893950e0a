"""Handlers in processes that take long, are stopped, or are told to end."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text

from sqlmq import Message
from tests.concurrency import handling_worker
from tests.concurrency.handling_worker import SLOW, make_tables, value
from tests.support.handlers import Recorder, drain
from tests.support.processes import GROUP, TOPIC, QueueUnderTest
from tests.support.queue_state import QueueState
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

LEASE_SECONDS = 1.0
PATIENCE_SECONDS = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals of this kind do not exist there")]
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def queue(database: DatabaseUnderTest, engine: Engine) -> QueueUnderTest:
    queue = QueueUnderTest(database.url, database.schema, LEASE_SECONDS)
    with queue.open() as mq:
        mq.create_topic(TOPIC, 1)
    with engine.begin() as connection:
        make_tables(connection)
    return queue


@pytest.fixture
def start(queue: QueueUnderTest, start_process: Callable[..., BaseProcess]) -> Callable[..., BaseProcess]:
    """Starts a process that runs the handler."""
    return lambda journal, **options: start_process(handling_worker.run, queue, journal, **options)


def lines(journal: Path) -> list[tuple[str, int]]:
    if not journal.exists():
        return []
    told = (json.loads(line) for line in journal.read_text().splitlines())
    return [(what, number) for what, _, number in told]


def send(mq: MQ, *kinds: bytes) -> None:
    messages = [Message(value(kind, "k", number), key=b"k") for number, kind in enumerate(kinds)]
    mq.producer(TOPIC).produce_many(messages)


def heartbeats_for(mq: MQ, seconds: float) -> Callable[[], bool]:
    """Whether the only member has been heard of for so many seconds, by the database's clock, since it joined."""
    on_sqlite = mq.engine.dialect.name == "sqlite"
    age = "(heartbeat_at - joined_at) / 1e6" if on_sqlite else "date_part('epoch', heartbeat_at - joined_at)"

    def have_lasted() -> bool:
        with mq.engine.connect() as connection:
            lasted = connection.execute(text(f"SELECT max({age}) FROM sqlmq_member")).scalar()
            return float(lasted or 0) >= seconds

    return have_lasted


@BOTH
@pytest.mark.parametrize("transaction", [False, True], ids=["plain", "transaction"])
def test_a_handler_that_takes_three_leases_is_not_taken_over(
    mq: MQ, queue: QueueUnderTest, tmp_path: Path, start: Callable[..., BaseProcess], transaction: bool
) -> None:
    if transaction and mq.engine.dialect.name == "sqlite":
        pytest.skip("on SQLite a transaction keeps everybody from writing, heartbeats too")
    send(mq, SLOW, b"well")
    journal = tmp_path / "journal"
    other = mq.consumer(TOPIC, GROUP)
    other.close()

    process = start(journal, transaction=transaction)
    until(lambda: lines(journal) == [("tried", 0)], "the slow message to be in hand")
    with queue.open() as beside:
        waiting = beside.consumer(TOPIC, GROUP)
        lasting = heartbeats_for(mq, 3 * LEASE_SECONDS)
        until(lambda: waiting.poll(timeout=0.05) == [] and lasting(), "three leases", seconds=PATIENCE_SECONDS)
        (journal.parent / "go").touch()
        until(lambda: ("handled", 0) in lines(journal), "the slow message to be handled")
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join(PATIENCE_SECONDS)

    assert process.exitcode == 0
    assert lines(journal).count(("tried", 0)) == 1


@BOTH
@pytest.mark.parametrize("transaction", [False, True], ids=["plain", "transaction"])
def test_a_process_that_is_stopped_for_two_leases_is_taken_over_and_changes_nothing_when_it_wakes(
    mq: MQ, engine: Engine, tmp_path: Path, start: Callable[..., BaseProcess], transaction: bool
) -> None:
    if transaction and mq.engine.dialect.name == "sqlite":
        pytest.skip("on SQLite a process that is stopped inside a transaction keeps everybody from writing")
    send(mq, SLOW, b"well", b"well")
    journal, go = tmp_path / "journal", tmp_path / "go"
    process = start(journal, transaction=transaction)
    until(lambda: lines(journal) == [("tried", 0)], "the slow message to be in hand")

    os.kill(process.pid or 0, signal.SIGSTOP)
    handler = Recorder()
    drain(mq.consumer(TOPIC, GROUP), handler, idle_seconds=3 * LEASE_SECONDS)
    before = state(engine)
    go.touch()
    os.kill(process.pid or 0, signal.SIGCONT)
    until(lambda: len(lines(journal)) > 1 or transaction, "the stopped process to go on")
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(PATIENCE_SECONDS)

    assert [value.split()[-1] for value in handler.values][-3:] == [b"0", b"1", b"2"]
    assert process.exitcode == 0
    assert state(engine) == before
    assert ("tried", 1) not in lines(journal)


def state(engine: Engine) -> list[Any]:
    """Positions, parked messages and effects: everything a handler's process can change."""
    found = QueueState(engine, None)
    effects = found.rows("SELECT message_key, number FROM effect ORDER BY 1, 2")
    return [
        found.positions(TOPIC, GROUP),
        found.rows("SELECT msg_offset, state, attempts FROM sqlmq_parked ORDER BY 1"),
        effects,
    ]


@BOTH
def test_a_signal_lets_the_message_in_hand_be_finished(
    mq: MQ, tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    send(mq, SLOW, b"well")
    journal = tmp_path / "journal"
    process = start(journal)
    until(lambda: lines(journal) == [("tried", 0)], "the slow message to be in hand")

    os.kill(process.pid or 0, signal.SIGTERM)
    # The process takes the signal in its own time; until then it may begin the next message.
    until((tmp_path / "stopping").exists, "the run to stop")
    (tmp_path / "go").touch()
    process.join(PATIENCE_SECONDS)

    assert process.exitcode == 0
    assert lines(journal) == [("tried", 0), ("handled", 0)]
    (partition,) = mq.admin.describe_group(TOPIC, GROUP).partitions
    assert partition.position == 1
    assert partition.owner is None


@BOTH
def test_a_second_signal_does_not_wait_for_the_handler(
    mq: MQ, tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    send(mq, SLOW, b"well")
    journal = tmp_path / "journal"
    process = start(journal, stop_seconds=PATIENCE_SECONDS)
    until(lambda: lines(journal) == [("tried", 0)], "the slow message to be in hand")

    os.kill(process.pid or 0, signal.SIGTERM)
    # Two signals that come at once are one to the kernel: go on until the second has been taken.
    until(lambda: is_gone(process), "the process to end")
    process.join(PATIENCE_SECONDS)

    assert process.exitcode not in (0, None)
    assert lines(journal) == [("tried", 0)]
    (partition,) = mq.admin.describe_group(TOPIC, GROUP).partitions
    assert (partition.position, partition.owner) == (0, None)


def is_gone(process: BaseProcess) -> bool:
    with suppress(ProcessLookupError):
        os.kill(process.pid or 0, signal.SIGTERM)
    return not process.is_alive()
