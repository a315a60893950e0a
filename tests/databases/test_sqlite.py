"""What is particular to SQLite: the file, its journal, and how processes that share it hear of each other."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, event, inspect, text

import sqlmq.database.retrying
from sqlmq import MQ, DatabaseBusyError, Message
from sqlmq.dialects import Position
from sqlmq.dialects.sqlite import cursors, dialect
from sqlmq.errors import InvalidURLError
from sqlmq.schema import REVISION, tables
from tests.support.poller import RARELY, poll_for_all
from tests.support.waiting import settle, until, values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from tests.conftest import DatabaseUnderTest, MakeMQ

ROOT = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 60.0

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

FIRST_USE = """
import sys, threading
from sqlmq import MQ, Message
url = sys.argv[1]
print("ready", flush=True)
sys.stdin.readline()
together = threading.Barrier(4)
failures = []
def use():
    try:
        with MQ(url) as mq:
            together.wait()
            mq.producer("orders").produce(Message(b"first"))
    except Exception as error:
        failures.append(repr(error))
threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit("; ".join(failures) or 0)
"""
PRODUCE_WHEN_TOLD = """
import sys
from sqlmq import MQ, Message
with MQ(sys.argv[1]) as mq:
    producer = mq.producer("orders")
    print("ready", flush=True)
    sys.stdin.readline()
    producer.produce(Message(b"from another process"))
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start *script* and return when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def pragma(mq: MQ, name: str) -> object:
    with mq.engine.connect() as connection:
        return connection.execute(text(f"PRAGMA {name}")).scalar_one()


def test_the_file_is_in_wal_mode_so_that_readers_and_the_writer_do_not_block_each_other(mq: MQ) -> None:
    mq.create_topic("orders")

    assert pragma(mq, "journal_mode") == "wal"


def test_every_connection_syncs_at_each_commit_so_that_power_loss_takes_nothing_acknowledged(mq: MQ) -> None:
    connections = [mq.engine.connect() for _ in range(5)]

    levels = [connection.execute(text("PRAGMA synchronous")).scalar_one() for connection in connections]

    for connection in connections:
        connection.close()
    assert levels == [2] * 5  # FULL


def test_an_engine_of_the_application_keeps_its_settings(database: DatabaseUnderTest) -> None:
    engine = create_engine(f"{database.url}.of-the-application")

    with MQ(engine) as mq:
        mq.producer("orders").produce(Message(b"1"))

        assert pragma(mq, "journal_mode") == "delete"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM sqlmq_message")).scalar_one() == 1
    engine.dispose()


def test_what_could_not_be_committed_is_not_committed_with_what_comes_next(
    database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlmq.database.retrying, "_RETRY_SECONDS", 0.2)
    engine = create_engine(database.url, connect_args={"timeout": 0}, pool_size=1, max_overflow=0)
    reader = create_engine(database.url)
    with engine.connect() as connection:
        # Without WAL, who reads keeps others from committing; the transaction is still open then, for another try.
        connection.exec_driver_sql("PRAGMA journal_mode = DELETE")
    with MQ(engine, notify=False) as mq:
        producer = mq.producer("orders")
        with reader.connect() as reading:
            reading.exec_driver_sql("BEGIN")
            reading.exec_driver_sql("SELECT count(*) FROM sqlmq_message").all()

            with pytest.raises(DatabaseBusyError):
                producer.produce(Message(b"refused"))
            reading.exec_driver_sql("ROLLBACK")
        producer.produce(Message(b"written"))

        assert [message.value for message in mq.admin.tail("orders", offset=0, timeout=0)] == [b"written"]
    engine.dispose()
    reader.dispose()


def test_an_engine_that_begins_transactions_by_an_event_of_its_own_can_be_used(database: DatabaseUnderTest) -> None:
    engine = create_engine(database.url)
    # https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable
    event.listen(engine, "connect", lambda connection, _record: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))

    with MQ(engine) as mq:
        mq.producer("orders").produce(Message(b"1"))

        assert mq.consumer("orders", "billing").consume(timeout=10).value == b"1"
    engine.dispose()


def test_a_reader_is_not_blocked_by_an_open_transaction_of_the_writer(make_mq: MakeMQ) -> None:
    writing, reading = make_mq(), make_mq()
    writing.producer("orders").produce(Message(b"1"))

    with writing.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

        assert reading.admin.describe_topic("orders").messages == 1

        connection.rollback()


def test_a_writing_transaction_reads_nothing_before_it_is_the_writer(database: DatabaseUnderTest) -> None:
    engine = create_engine(database.url, connect_args={"timeout": 0})
    rows: list[object] = []

    def read(conn: Connection, _dialect: object) -> None:
        rows.extend(conn.execute(text("SELECT name FROM sqlmq_topic")))

    with MQ(engine) as mq, sqlite3.connect(database.url.removeprefix("sqlite:///"), isolation_level=None) as other:
        mq.create_topic("orders")
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(DatabaseBusyError):
            mq._database.write_once(read)
        rows_while_busy = list(rows)
        other.execute("ROLLBACK")
        mq._database.write_once(read)
    other.close()
    engine.dispose()

    assert rows_while_busy == []
    assert len(rows) == 1


def test_the_tables_are_made_once_when_eight_threads_use_a_new_file_at_the_same_time(
    make_mq: MakeMQ, database: DatabaseUnderTest
) -> None:
    together = threading.Barrier(8)
    queues = [make_mq() for _ in range(8)]

    def use(mq: MQ) -> bool:
        together.wait()
        return mq.create_topic("orders")

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(use, queues))

    assert sorted(made) == [False] * 7 + [True]
    assert_that_there_is_one_schema(database)


def test_the_tables_are_made_once_when_two_processes_use_a_new_file_at_the_same_time(
    database: DatabaseUnderTest,
) -> None:
    processes = [start(FIRST_USE, database.url) for _ in range(2)]

    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=PATIENCE_SECONDS)[1] for process in processes]

    assert ends == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]
    assert_that_there_is_one_schema(database)
    with MQ(database.url) as mq:
        assert mq.admin.describe_topic("orders").messages == 8


def assert_that_there_is_one_schema(database: DatabaseUnderTest) -> None:
    engine = create_engine(database.url)
    with engine.connect() as connection:
        found = set(inspect(connection).get_table_names())
        revisions = list(connection.execute(text("SELECT version_num FROM sqlmq_version")).scalars())
    engine.dispose()
    assert found == {*tables(None).metadata.tables, "sqlmq_version"}
    assert revisions == [REVISION]


def test_a_waiting_consumer_hears_of_what_another_process_produces(
    make_mq: MakeMQ, database: DatabaseUnderTest
) -> None:
    # By itself it would look again after a minute.
    mq = make_mq(poll_min_seconds=60.0, poll_max_seconds=60.0)
    consumer = mq.consumer("orders", "billing")
    assert consumer.poll(timeout=0) == []
    producing = start(PRODUCE_WHEN_TOLD, database.url)

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(consumer.consume, 40.0)
        with consumer._core.wakeups._changed:
            consumer._core.wakeups._changed.wait_for(lambda: consumer._core.is_waiting, 0.5)
        assert producing.stdin is not None
        producing.stdin.write("go\n")
        _, errors = producing.communicate(timeout=PATIENCE_SECONDS)
        message = waiting.result(PATIENCE_SECONDS)

    assert errors == ""
    assert message.value == b"from another process"


def test_a_write_that_is_for_somebody_else_wakes_no_consumer(make_mq: MakeMQ) -> None:
    here, there = make_mq(**RARELY), make_mq()
    here.create_topic("orders", 2)
    consumers = [here.consumer("orders", "billing") for _ in range(2)]
    settle(*consumers)
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(consumer.poll, timeout=PATIENCE_SECONDS) for consumer in consumers]
        until(lambda: all(consumer._core.wakeups.delegated for consumer in consumers), "both to wait")
        for _ in range(2):  # after the second, what was written before is noticed
            poll_for_all(here, consumers)
        before = consumers[1]._core.wakeups.count

        there.producer("other").produce(Message(b"for somebody else"))
        there.producer("orders").produce_with_partition(Message(b"42"), consumers[0].partitions[0])

        assert values(answers[0].result(PATIENCE_SECONDS)) == [b"42"]
        assert consumers[1]._core.wakeups.count == before
        there.producer("orders").produce_with_partition(Message(b"43"), consumers[1].partitions[0])
        assert values(answers[1].result(PATIENCE_SECONDS)) == [b"43"]


def test_more_positions_than_one_statement_asks_about_are_all_looked_at(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many([Message(b"")] * 3)
    partition_id = mq._access.find_or_create_topic("orders").partition_ids[0]
    wanted = [Position(partition_id, offset) for offset in reversed(range(2_500))]

    with mq.engine.connect() as connection:
        found = mq._database.dialect.ready(connection, wanted)

    assert found == {Position(partition_id, offset) for offset in range(3)}


def test_a_schema_is_refused_because_sqlite_has_none(database: DatabaseUnderTest) -> None:
    with pytest.raises(InvalidURLError, match="SQLite has no schemas"):
        MQ(database.url, schema="elsewhere")


class _Interrupted:
    """A cursor whose caller is interrupted when it has rows to fetch."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def execute(self, statement: str, *arguments: Any) -> None:
        self._cursor.execute(statement, *arguments)
        if "RETURNING" in statement:
            raise KeyboardInterrupt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


def test_what_an_interrupt_has_cut_off_keeps_nobody_from_writing(mq: MQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlmq.database.retrying, "_RETRY_SECONDS", 0.0)
    producer = mq.producer("orders")
    driver_cursor = cursors.driver_cursor

    @contextmanager
    def interrupted(conn: Connection) -> Iterator[_Interrupted]:
        with driver_cursor(conn) as cursor:
            yield _Interrupted(cursor)

    with monkeypatch.context() as patched:
        patched.setattr(dialect, "driver_cursor", interrupted)
        with pytest.raises(KeyboardInterrupt) as raised:
            producer.produce(Message(b"interrupted"))

    producer.produce(Message(b"42"))
    assert [message.value for message in mq.admin.tail("orders", offset=0, timeout=0)] == [b"42"]
    assert raised.traceback, "what refers to the statement is still there"
