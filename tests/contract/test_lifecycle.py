"""Opening and closing: whose connections these are, what a fork inherits, and how everything ends."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, event, make_url, text

from sqlmq import MQ, Message, SqlmqError
from sqlmq.errors import ConsumerClosedError, ForkedError, MQClosedError, ProducerClosedError
from tests.support.processes import forks, in_fork
from tests.support.waiting import PATIENCE_SECONDS, at_once, finish, receive, until, values

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tests.conftest import DatabaseUnderTest, MakeMQ

postgres_only = pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)
sync_only = pytest.mark.sync_only(reason="the thread of the event loop that makes the calls is not in a forked child")


def works(mq: MQ) -> bool:
    """Send a message through *mq*."""
    mq.producer("orders").produce(Message(b"42", b"k"))
    with mq.consumer("orders", "billing") as consumer:
        return values(finish(consumer, 1)) == [b"42"]


# --- Closing ---


def test_closing_the_mq_closes_what_it_made(mq: MQ) -> None:
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")

    mq.close()

    assert producer.closed
    assert consumer.closed
    with pytest.raises(ProducerClosedError):
        producer.produce(Message(b""))
    with pytest.raises(ConsumerClosedError):
        consumer.consume()


def test_closing_the_mq_waits_for_what_was_submitted(make_mq: MakeMQ) -> None:
    closing, other = make_mq(), make_mq()
    producer = closing.producer("orders")
    futures = [producer.submit(Message(b"")) for _ in range(300)]

    closing.close()

    assert all(future.done() for future in futures)
    assert other.admin.describe_topic("orders").messages == 300


def test_a_closed_mq_refuses_every_call(mq: MQ) -> None:
    mq.create_topic("orders")

    mq.close()

    for call in (
        lambda: mq.create_topic("orders"),
        lambda: mq.delete_topics("orders"),
        lambda: mq.producer("orders"),
        lambda: mq.consumer("orders", "billing"),
        mq.admin.topics,
        lambda: mq.admin.describe_topic("orders"),
        lambda: mq.admin.groups("orders"),
        lambda: mq.admin.describe_group("orders", "billing"),
    ):
        with pytest.raises(MQClosedError):
            call()


def test_closing_the_mq_again_is_no_error(mq: MQ) -> None:
    mq.producer("orders")

    for _ in range(3):
        mq.close()


def test_an_mq_is_closed_by_many_threads_at_once(mq: MQ) -> None:
    mq.consumer("orders", "billing")

    at_once([mq.close] * 8)


def test_an_mq_that_did_nothing_closes(mq: MQ) -> None:
    mq.close()


def test_an_mq_closes_after_what_it_made_was_closed(mq: MQ) -> None:
    mq.producer("orders").close()
    mq.consumer("orders", "billing").close()

    mq.close()


def test_everything_closes_at_the_end_of_with_blocks(make_mq: MakeMQ) -> None:
    with make_mq() as mq, mq.producer("orders") as producer, mq.consumer("orders", "billing") as consumer:
        producer.produce(Message(b""))

    assert producer.closed
    assert consumer.closed
    with pytest.raises(MQClosedError):
        mq.admin.topics()


def test_a_closed_mq_leaves_no_thread(make_mq: MakeMQ) -> None:
    before = set(threading.enumerate())
    mq = make_mq()
    mq.consumer("orders", "billing").poll(timeout=0)
    producer = mq.producer("orders")
    for _ in range(50):
        producer.submit(Message(b""))

    mq.close()

    assert [thread.name for thread in threading.enumerate() if thread not in before] == []


def test_errors_of_closing_come_together_in_one_group_and_the_same_again(
    database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    mq = MQ(database.url, schema=database.schema)
    consumers = [mq.consumer("orders", f"group-{i}") for i in range(3)]
    producer = mq.producer("orders")

    def fail() -> None:
        message = "the database is gone"
        raise SqlmqError(message)

    for consumer in consumers[:2]:
        monkeypatch.setattr(consumer._core.coordinator, "leave", fail)
    with pytest.raises(ExceptionGroup) as first:
        mq.close()
    with pytest.raises(ExceptionGroup) as second:
        mq.close()

    assert [str(error) for error in first.value.exceptions] == ["the database is gone"] * 2
    assert second.value is first.value
    assert producer.closed
    assert consumers[2].closed


def test_closing_a_consumer_whose_first_close_failed_fails_the_same_way_again(
    mq: MQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = mq.consumer("orders", "billing")
    error = SqlmqError("the database is gone")

    def fail() -> None:
        raise error

    monkeypatch.setattr(consumer._core.coordinator, "leave", fail)
    for _ in range(2):
        with pytest.raises(SqlmqError) as caught:
            consumer.close()
        assert caught.value is error
    with pytest.raises(ExceptionGroup):
        mq.close()
    mq._resources._closing._error = None  # the fixture closes it once more


def test_an_error_in_a_with_block_is_not_hidden_by_one_of_closing(
    mq: MQ, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = mq.consumer("orders", "billing")

    def fail() -> None:
        message = "the database is gone"
        raise SqlmqError(message)

    def handle() -> None:
        with consumer:
            raise KeyError

    monkeypatch.setattr(consumer._core.coordinator, "leave", fail)
    with pytest.raises(KeyError), caplog.at_level(logging.ERROR):
        handle()

    assert "the database is gone" in caplog.text
    consumer._core._closing._error = None  # the fixture closes it once more


def test_producers_and_consumers_that_were_closed_are_not_kept(mq: MQ) -> None:
    for _ in range(5):
        mq.producer("orders").close()
        mq.consumer("orders", "billing").close()

    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")

    assert len(mq._resources.made) == 2
    assert not producer.closed
    assert not consumer.closed


def test_a_producer_made_while_the_mq_closes_is_refused_or_closed(make_mq: MakeMQ) -> None:
    mq = make_mq()
    mq.create_topic("orders")
    made = []
    has_begun = threading.Event()

    def make() -> None:
        with pytest.raises(MQClosedError):  # noqa: PT012 - until it is refused
            while True:
                made.append(mq.producer("orders"))
                has_begun.set()

    with ThreadPoolExecutor(2) as threads:
        making = [threads.submit(make) for _ in range(2)]
        assert has_begun.wait(PATIENCE_SECONDS)
        mq.close()
        for call in making:
            call.result(PATIENCE_SECONDS)

    assert [producer for producer in made if not producer.closed] == []


# --- What an MQ is made from ---


def test_an_mq_is_made_from_a_url(database: DatabaseUnderTest) -> None:
    with MQ(database.url, schema=database.schema) as mq:
        assert works(mq)


def test_an_mq_is_made_from_a_sqlalchemy_url(database: DatabaseUnderTest) -> None:
    with MQ(make_url(database.url), schema=database.schema) as mq:
        assert works(mq)


@postgres_only
def test_an_mq_is_made_from_a_url_that_says_postgres(database: DatabaseUnderTest) -> None:
    url = "postgres" + database.url[database.url.index("://") :]

    with MQ(url, schema=database.schema) as mq:
        assert works(mq)


def test_an_mq_is_made_from_an_engine(database: DatabaseUnderTest, engine: Engine) -> None:
    with MQ(engine, schema=database.schema) as mq:
        assert mq.engine is engine
        assert works(mq)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_shared_by_threads(database: DatabaseUnderTest, url: str) -> None:
    del database
    with MQ(url) as mq:
        producer = mq.producer("orders")

        at_once([lambda: producer.produce(Message(b""))] * 8)

        assert len(receive(mq.consumer("orders", "billing"), 8)) == 8


def test_what_an_engine_sent_is_read_through_a_url(database: DatabaseUnderTest, engine: Engine) -> None:
    with MQ(engine, schema=database.schema) as sending, MQ(database.url, schema=database.schema) as reading:
        sending.producer("orders").produce(Message(b"42"))

        assert values(receive(reading.consumer("orders", "billing"), 1)) == [b"42"]


def test_nothing_is_connected_to_before_it_is_needed() -> None:
    with MQ("postgresql://nobody@127.0.0.1:1/nothing"):
        pass


# --- An engine that was given ---


def test_a_given_engine_works_after_the_mq_was_closed(database: DatabaseUnderTest, engine: Engine) -> None:
    disposed: list[Engine] = []
    event.listen(engine, "engine_disposed", disposed.append)
    pool = engine.pool

    with MQ(engine, schema=database.schema) as mq:
        works(mq)

    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    assert engine.pool is pool
    assert disposed == []


def test_a_given_engine_gets_all_connections_back(database: DatabaseUnderTest) -> None:
    engine = create_engine(database.url, **database.engine_arguments)
    out: list[object] = []
    event.listen(engine, "checkout", lambda dbapi, _record, _proxy: out.append(id(dbapi)))
    event.listen(engine, "checkin", lambda dbapi, _record: out.remove(id(dbapi)))

    with MQ(engine, schema=database.schema) as mq:
        works(mq)

    assert out == []
    engine.dispose()


def test_a_given_engines_connections_are_as_they_were(database: DatabaseUnderTest, engine: Engine) -> None:
    def facts() -> list[object]:
        with engine.connect() as connection:
            asked = (
                ["PRAGMA synchronous", "PRAGMA busy_timeout", "PRAGMA foreign_keys"]
                if not database.is_postgres
                else ["SHOW search_path", "SHOW transaction_isolation", "SHOW statement_timeout", "SHOW lock_timeout"]
            )
            answers: list[object] = [connection.exec_driver_sql(question).scalar() for question in asked]
            driver = connection.connection.driver_connection
            attributes = ("autocommit", "row_factory", "text_factory", "prepare_threshold", "cursor_factory")
            return [
                *answers,
                connection.get_isolation_level(),
                *(getattr(driver, attribute, None) for attribute in attributes),
            ]

    before = facts()
    options = dict(engine.get_execution_options())

    with MQ(engine, schema=database.schema) as mq:
        works(mq)

    assert facts() == before
    assert dict(engine.get_execution_options()) == options


def test_the_transactions_of_a_given_engine_are_the_applications_own(
    database: DatabaseUnderTest, engine: Engine
) -> None:
    with MQ(engine, schema=database.schema) as mq:
        works(mq)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE things (id integer)"))
        with engine.connect() as connection:
            connection.execute(text("INSERT INTO things VALUES (1)"))
            connection.rollback()
        with engine.connect() as connection:
            count = connection.execute(text("SELECT count(*) FROM things")).scalar_one()

    assert count == 0


@postgres_only
@pytest.mark.parametrize("level", ["AUTOCOMMIT", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_our_own_transactions_work_on_an_engine_of_any_isolation_level(database: DatabaseUnderTest, level: str) -> None:
    engine = create_engine(database.url, isolation_level=level, **database.engine_arguments)

    with MQ(engine, schema=database.schema) as mq:
        producers = [mq.producer("orders") for _ in range(4)]
        at_once(lambda one=one: one.produce_many([Message(b"", b"k")] * 10) for one in producers)  # type: ignore[misc]
        with mq.consumer("orders", "billing") as consumer:
            received = finish(consumer, 40)

    with engine.connect() as connection:
        is_autocommit = getattr(connection.connection.driver_connection, "autocommit", None)
        found = connection.exec_driver_sql("SHOW transaction_isolation").scalar_one().upper()
    engine.dispose()
    assert ("AUTOCOMMIT" if is_autocommit else found) == level
    assert [message.offset for message in received] == list(range(40))


@postgres_only
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_our_own_transactions_work_where_the_database_has_another_isolation_level(
    database: DatabaseUnderTest, engine: Engine, level: str
) -> None:
    name = make_url(database.url).database
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_isolation TO '{level}'")

    with MQ(database.url, schema=database.schema) as mq:
        assert works(mq)


def test_an_engine_with_a_single_connection_is_enough(database: DatabaseUnderTest) -> None:
    engine = create_engine(
        database.url, pool_size=1, max_overflow=0, pool_timeout=PATIENCE_SECONDS, **database.engine_arguments
    )

    with MQ(engine, schema=database.schema) as mq:
        producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")
        at_once([lambda: producer.produce(Message(b"", b"k"))] * 8)
        received = receive(consumer, 8)

    engine.dispose()
    assert [message.offset for message in received] == list(range(8))


# --- Fork ---


@forks
@sync_only
def test_a_producer_works_in_a_forked_child_and_goes_on_in_the_parent(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    producer.produce(Message(b"before"))

    in_child = in_fork(lambda: str(producer.produce(Message(b"child")).offset))
    in_parent = producer.produce(Message(b"parent")).offset

    assert (in_child, in_parent) == ("1", 2)
    assert values(receive(mq.consumer("orders", "billing"), 3)) == [b"before", b"child", b"parent"]


@forks
@sync_only
def test_submitting_works_in_a_forked_child(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    producer.submit(Message(b"before")).result(PATIENCE_SECONDS)

    def child() -> str:
        offset = producer.submit(Message(b"child")).result(PATIENCE_SECONDS).offset
        producer.close()
        return str(offset)

    assert in_fork(child) == "1"


@forks
@sync_only
def test_an_mq_makes_consumers_in_a_forked_child(mq: MQ) -> None:
    mq.producer("orders").produce(Message(b"42"))

    def child() -> str:
        with mq.consumer("orders", "billing") as consumer:
            return finish(consumer, 1)[0].value.decode()

    assert in_fork(child) == "42"


@forks
@sync_only
@pytest.mark.parametrize("call", ["consume", "poll", "commit"])
def test_a_consumer_of_the_parent_is_refused_in_a_forked_child(mq: MQ, call: str) -> None:
    consumer = mq.consumer("orders", "billing")
    consumer.poll(timeout=0)

    answer = in_fork(lambda: str(getattr(consumer, call)()))

    assert answer == ForkedError.__name__


@forks
@sync_only
def test_a_child_that_closes_everything_leaves_the_parents_alone(make_mq: MakeMQ) -> None:
    mq = make_mq(lease_seconds=60)
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")
    consumer.poll(timeout=0)

    def child() -> str:
        consumer.close()
        mq.close()
        return "closed"

    assert in_fork(child) == "closed"
    producer.produce(Message(b"42"))
    assert values(receive(consumer, 1)) == [b"42"]


@forks
@sync_only
def test_a_child_that_is_forked_while_the_parent_produces_and_consumes_works(mq: MQ) -> None:
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")
    may_end = threading.Event()

    def busy() -> None:
        while not may_end.is_set():
            producer.produce(Message(b"parent", b"k"))
            consumer.poll(timeout=0)

    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(busy) for _ in range(2)]
        until(lambda: mq.admin.describe_topic("orders").messages > 20, "the parent to produce")
        answers = [in_fork(lambda: producer.produce(Message(b"child")).topic) for _ in range(3)]
        may_end.set()
        for call in calls:
            call.result(PATIENCE_SECONDS)

    assert answers == ["orders"] * 3


@forks
@sync_only
def test_a_child_produces_although_the_parent_was_just_waking_a_consumer(mq: MQ) -> None:
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")
    is_waking, may_end = threading.Event(), threading.Event()

    def wake() -> None:
        with consumer._core.wakeups._changed:
            is_waking.set()
            may_end.wait(PATIENCE_SECONDS)

    with ThreadPoolExecutor(1) as threads:
        waking = threads.submit(wake)
        assert is_waking.wait(PATIENCE_SECONDS)
        try:
            answer = in_fork(lambda: producer.produce(Message(b"child")).topic)
        finally:
            may_end.set()
        waking.result(PATIENCE_SECONDS)

    assert answer == "orders"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_fork_waits_until_no_thread_is_inside_the_database(database: DatabaseUnderTest) -> None:
    is_reading, may_end = threading.Event(), threading.Event()

    def read(_conn: object, _dialect: object) -> None:
        is_reading.set()
        may_end.wait(PATIENCE_SECONDS)

    with MQ(database.url) as mq, ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as forking:
        looked = reading.submit(mq._database.read, read)
        assert is_reading.wait(PATIENCE_SECONDS)
        prepared = forking.submit(mq._database.before_fork)
        too_early = wait([prepared], timeout=0.1).done
        may_end.set()
        held = prepared.result(PATIENCE_SECONDS)
        forking.submit(mq._database.after_fork_in_parent, held).result(PATIENCE_SECONDS)
        looked.result(PATIENCE_SECONDS)

        assert too_early == set()
        assert works(mq)


@forks
def test_an_mq_on_a_given_engine_is_refused_in_a_forked_child(database: DatabaseUnderTest, engine: Engine) -> None:
    with MQ(engine, schema=database.schema) as mq:
        producer = mq.producer("orders")
        producer.produce(Message(b""))

        answers = [
            in_fork(lambda: str(producer.produce(Message(b"")))),
            in_fork(lambda: str(mq.admin.topics())),
            in_fork(lambda: str(mq.producer("orders"))),
        ]
        producer.produce(Message(b""))

        assert answers == [ForkedError.__name__] * 3


@forks
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_database_in_memory_is_refused_in_a_forked_child(database: DatabaseUnderTest) -> None:
    del database
    with MQ("sqlite://") as mq:
        producer = mq.producer("orders")

        assert in_fork(lambda: str(producer.produce(Message(b"")))) == ForkedError.__name__
