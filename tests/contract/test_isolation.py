"""Publishing in transactions above READ COMMITTED, which is Postgres' alone: staged with the commit, moved after it."""

from __future__ import annotations

import logging
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlmq import MQ, Message, UnknownTopicError
from sqlmq.background.scheduler import Scheduler
from tests.support.processes import end_at_once, in_process
from tests.support.waiting import PATIENCE_SECONDS, at_once, receive, until, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from tests.conftest import MakeMQ
    from tests.support.shop import Shop

EITHER = pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)
POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)
IN_SQL = pytest.mark.sync_only("no session of the application takes part")
LEVELS = pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])


def at(shop: Shop, level: str) -> Engine:
    return shop.engine.execution_options(isolation_level=level)


def is_moved(shop: Shop) -> bool:
    return shop.state.staged() == 0


def stage(shop: Shop, *messages: str, topic: str = "events", partition: int | None = 0) -> None:
    """Stage *messages* in SQL, of which no MQ of this process hears."""
    prefix = f"{shop.database.schema}." if shop.database.schema else ""
    query = text(
        f"SELECT (r).message_offset FROM (SELECT {prefix}sqlmq_produce(:topic, NULL, :value, NULL, :at) AS r) s"
    )
    with at(shop, "REPEATABLE READ").begin() as connection:
        for message in messages:
            offset = connection.execute(
                query, {"topic": topic, "value": message.encode(), "at": partition}
            ).scalar_one()
            assert offset is None


def sqlstate(error: DBAPIError) -> str | None:
    found: str | None = getattr(error.orig, "sqlstate", None)
    return found


@EITHER
@LEVELS
def test_a_message_is_moved_into_the_log_after_its_commit(shop: Shop, level: str) -> None:
    with shop.app.at(level).session() as session:
        publication = shop.sell(session, "a")
        session.commit()
        shop.sell(session, "b")
        session.rollback()
    until(lambda: is_moved(shop), "the message in the log")

    assert publication.result is None
    assert repr(publication) == f"<Publication to events/{publication.partition}, not in the log>"
    assert shop.events == shop.orders == ["a"]


@POSTGRES
@LEVELS
def test_an_idle_consumer_gets_a_staged_message_at_once(shop: Shop, make_mq: MakeMQ, level: str) -> None:
    mq = make_mq(poll_min_seconds=25, poll_max_seconds=PATIENCE_SECONDS)
    consumer, producer = mq.consumer("events", "billing"), mq.producer("events")
    until(lambda: consumer.poll(timeout=0) == [] and len(consumer.partitions) == 3, "all partitions")

    def publish() -> None:
        until(lambda: consumer._core.is_waiting, "the consumer waits")
        with shop.app.at(level).session() as session:
            shop.sell(session, "a", producer)
            session.commit()

    actions: list[Callable[[], Any]] = [lambda: consumer.consume(timeout=20).value, publish]
    assert at_once(actions)[0] == b"a"


@IN_SQL
@EITHER
def test_what_sql_has_staged_is_moved_where_there_is_a_consumer(shop: Shop) -> None:
    stage(shop, "a", "b", "c")

    consumer = shop.mq.consumer("events", "billing")

    assert values(receive(consumer, 3)) == [b"a", b"b", b"c"]


@POSTGRES
@LEVELS
def test_staged_messages_keep_bytes_key_and_headers(shop: Shop, level: str) -> None:
    with shop.app.at(level).session() as session, session.begin():
        shop.producer.produce(Message(b"\x00\xff", b"\xff\x00", {"a": "\u00e4"}), session=session)
        shop.producer.produce(Message(b""), session=session)

    received = receive(shop.mq.consumer("events", "billing"), 2)

    got = sorted((message.value, message.key or b"", dict(message.headers)) for message in received)
    assert got == [(b"", b"", {}), (b"\x00\xff", b"\xff\x00", {"a": "\u00e4"})]


@POSTGRES
@LEVELS
def test_order_is_kept_within_and_between_transactions(shop: Shop, level: str) -> None:
    with shop.app.at(level).session() as session:
        for transaction in range(15):
            for number in range(5):
                message = Message(f"{transaction}.{number}".encode())
                shop.producer.produce_with_partition(message, number % 2, session=session)
            session.commit()
    until(lambda: is_moved(shop), "everything in the log")

    assert shop.log() == {
        partition: [f"{transaction}.{number}" for transaction in range(15) for number in range(partition, 5, 2)]
        for partition in range(2)
    }


@POSTGRES
def test_more_than_is_moved_at_once_keeps_its_order(shop: Shop) -> None:
    with shop.app.at("SERIALIZABLE").session() as session, session.begin():
        shop.producer.produce_many((Message(b"%d" % i, b"k") for i in range(1_001)), session=session)
    until(lambda: is_moved(shop), "everything in the log")

    assert shop.events == [str(i) for i in range(1_001)]


@IN_SQL
@EITHER
def test_a_message_is_moved_once_by_many_movers_at_once(shop: Shop, make_mq: MakeMQ) -> None:
    for partition in range(3):
        stage(shop, *(f"{partition}.{i}" for i in range(250)), partition=partition)
    movers = [make_mq()._background.scheduler for _ in range(4)]

    at_once([mover._move_due for mover in movers for _ in range(2)])

    assert is_moved(shop)
    assert shop.log() == {partition: [f"{partition}.{i}" for i in range(250)] for partition in range(3)}


def publish_and_die(url: str, schema: str | None, level: Any) -> None:
    """Commit, and be gone before anything is moved."""
    Scheduler.track_commit = lambda *_: None  # type: ignore[method-assign]
    engine = create_engine(url, isolation_level=level)
    with MQ(url, schema=schema) as mq, Session(engine) as session:
        producer = mq.producer("events")
        for number in range(3):
            producer.produce(Message(b"%d" % number, b"k"), session=session)
        session.commit()
        end_at_once(7)


@pytest.mark.sync_only("the other process is a synchronous one")
@POSTGRES
@LEVELS
def test_another_process_moves_what_a_killed_one_has_staged(shop: Shop, level: str) -> None:
    assert in_process(publish_and_die, shop.database.url, shop.database.schema, level) == 7
    assert shop.state.staged() == 3

    consumer = shop.mq.consumer("events", "billing")

    assert values(receive(consumer, 3)) == [b"0", b"1", b"2"]


@IN_SQL
@EITHER
def test_staged_messages_go_with_their_topic(shop: Shop) -> None:
    stage(shop, "a")

    shop.mq.delete_topics("events")

    assert is_moved(shop)


@POSTGRES
@LEVELS
def test_a_message_staged_for_a_topic_that_was_deleted_meanwhile_is_deleted(
    shop: Shop, make_mq: MakeMQ, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    mq = make_mq()
    producer = mq.producer("events")
    with shop.app.at(level).session() as session, caplog.at_level(logging.WARNING, "sqlmq"):
        # The snapshot is of a time when there was the topic.
        session.execute(text("SELECT note FROM customer_order"))
        publication = shop.sell(session, "a", producer)
        shop.mq.delete_topics("events")
        session.commit()
        until(lambda: is_moved(shop), "the message gone")
        mq.close()

        shop.mq.create_topic("events", 1)
        shop.sell(session, "b")
        with pytest.raises(UnknownTopicError):
            session.commit()

    assert publication.result is None
    assert "1 staged message(s) were deleted with their topic" in caplog.text
    assert (shop.events, shop.orders) == ([], ["a"])


@POSTGRES
def test_a_mover_gets_its_turn_while_producers_keep_the_partition_busy(shop: Shop, make_mq: MakeMQ) -> None:
    is_over = threading.Event()

    def keep_busy() -> int:
        producer = make_mq().producer("events")
        count = 0
        while not is_over.is_set():
            producer.produce_with_partition(Message(b"busy"), 0)
            count += 1
        return count

    with ThreadPoolExecutor(4) as threads:
        busy = [threads.submit(keep_busy) for _ in range(4)]
        try:
            until(lambda: len(shop.events) > 20, "the partition busy")
            for number in range(10):
                with shop.app.at("SERIALIZABLE").session() as session:
                    shop.producer.produce_with_partition(Message(b"%d" % number), 0, session=session)
                    session.commit()
                until(lambda: is_moved(shop), "the message in the log")
        finally:
            is_over.set()
        count = sum(one.result(PATIENCE_SECONDS) for one in busy)

    events = shop.events
    assert [value for value in events if value != "busy"] == [str(number) for number in range(10)]
    assert len(events) == count + 10


@pytest.mark.slow
@POSTGRES
def test_a_partition_that_somebody_keeps_locked_holds_up_no_other(shop: Shop, make_mq: MakeMQ) -> None:
    mq = make_mq(poll_min_seconds=25, poll_max_seconds=PATIENCE_SECONDS)
    consumer, producer = mq.consumer("events", "billing"), mq.producer("events")
    until(lambda: consumer.poll(timeout=0) == [] and len(consumer.partitions) == 3, "all partitions")
    with shop.engine.connect() as keeping:
        keeping.execute(text("SELECT sqlmq_produce('events', NULL, 'kept', NULL, 0)"))
        stage(shop, "behind", partition=0)
        stage(shop, "other", partition=1)
        stage(shop, "third", partition=2)

        got = values(receive(consumer, 2, seconds=20))
        with shop.session() as session:
            producer.produce_with_partition(Message(b"read committed"), 1, session=session)
            session.commit()
        got += values(receive(consumer, 1, seconds=20))
        keeping.commit()
    got += values(receive(consumer, 2))

    assert sorted(got[:2]) == [b"other", b"third"]
    assert got[2:] == [b"read committed", b"kept", b"behind"]


@POSTGRES
@pytest.mark.parametrize("level", ["READ COMMITTED", "SERIALIZABLE"])
def test_a_read_only_transaction_with_a_message_fails_at_its_commit(shop: Shop, level: str) -> None:
    engine = shop.app.at(level).engine.execution_options(postgresql_readonly=True)
    with shop.session(bind=engine) as session:
        session.execute(text("SELECT note FROM customer_order"))
        shop.producer.produce(Message(b"secret"), session=session)

        with pytest.raises(DBAPIError, match="read-only") as raised:
            session.commit()
        session.rollback()
        session.execute(text("SELECT note FROM customer_order"))
        session.commit()

    assert sqlstate(raised.value) == "25006"
    assert "secret" not in str(raised.value)
    assert shop.events == []


@IN_SQL
@EITHER
@LEVELS
def test_appending_in_sql_without_staging_is_refused(shop: Shop, level: str) -> None:
    prefix = f"{shop.database.schema}." if shop.database.schema else ""
    with at(shop, level).connect() as connection, pytest.raises(DBAPIError, match=level) as raised:
        connection.execute(
            text(f"SELECT {prefix}sqlmq_append(ARRAY[1], ARRAY[1], NULL, ARRAY['x'::bytea], NULL, ARRAY[3])")
        )

    assert sqlstate(raised.value) == "MQ001"


# --- Serialization failures ---


def make_accounts(shop: Shop) -> None:
    """Accounts whose changes stay on their page, and so out of the index, on whose pages transactions conflict."""
    with shop.engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS account"))
        columns = "(id integer PRIMARY KEY, balance integer) WITH (fillfactor = 10, autovacuum_enabled = off)"
        connection.execute(text(f"CREATE TABLE account {columns}"))
        connection.execute(text("INSERT INTO account SELECT i, 0 FROM generate_series(0, 2999) AS i"))
    with shop.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE account"))


READ = text("SELECT balance FROM account WHERE id = :id")
CHANGE = text("UPDATE account SET balance = balance + 1 WHERE id = :id")


@POSTGRES
def test_serializable_transactions_that_only_share_a_topic_never_fail(shop: Shop) -> None:
    make_accounts(shop)
    serializable = shop.app.at("SERIALIZABLE")

    def run(worker: int) -> None:
        with serializable.session() as session:
            for number in range(25):
                session.execute(READ, {"id": worker * 300 + number % 5})
                session.execute(CHANGE, {"id": worker * 300 + (number + 1) % 5})
                shop.producer.produce(Message(f"{worker}.{number}".encode(), b"k"), session=session)
                session.commit()

    at_once([lambda worker=worker: run(worker) for worker in range(8)])  # type: ignore[misc]
    until(lambda: is_moved(shop), "everything in the log")

    events = shop.events
    assert len(events) == 8 * 25
    for worker in range(8):
        assert [value for value in events if value.startswith(f"{worker}.")] == [f"{worker}.{n}" for n in range(25)]


def transaction(shop: Shop, connection: Connection, read: int, write: int, *, publishing: bool) -> Iterator[None]:
    """Read one account, change another, commit; step by step."""
    connection.execute(READ, {"id": read})
    yield
    connection.execute(CHANGE, {"id": write})
    if publishing:
        shop.producer.produce(Message(b"changed", b"k"), session=connection)
    yield
    connection.commit()


def is_refused(step: Callable[[], object]) -> bool:
    try:
        step()
    except DBAPIError as error:
        if sqlstate(error) != "40001":
            raise
        return True
    return False


def refused(shop: Shop, seed: int, *, publishing: bool) -> list[tuple[int, int]]:
    """Interleave 100 transactions of four connections, step by step; tell which failed with 40001.

    Each changes its own account, so that none waits for another: what fails is write skew.
    """
    make_accounts(shop)
    chosen = random.Random(seed)
    failed: list[tuple[int, int]] = []
    with ExitStack() as closing:
        serializable = shop.app.at("SERIALIZABLE").engine
        connections = [closing.enter_context(serializable.connect()) for _ in range(4)]
        for round_ in range(25):
            todo = [
                transaction(shop, connection, chosen.randrange(4), number, publishing=publishing)
                for number, connection in enumerate(connections)
            ]
            for number in chosen.sample([number for number in range(4) for _ in range(3)], 12):
                if (round_, number) not in failed and is_refused(lambda one=todo[number]: next(one, None)):  # type: ignore[misc]
                    failed.append((round_, number))
                    connections[number].rollback()
    return failed


@POSTGRES
def test_publishing_adds_no_serialization_failure_to_those_of_the_application(shop: Shop) -> None:
    seed = 7

    without = refused(shop, seed, publishing=False)
    with_messages = refused(shop, seed, publishing=True)
    until(lambda: is_moved(shop), "everything in the log")

    assert without
    assert with_messages == without
    assert len(shop.events) == 100 - len(without)
