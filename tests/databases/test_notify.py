"""Consumers of other processes are woken by NOTIFY on Postgres; without it, they poll as ever.

An MQ object stands for a process: two of them share nothing but the database. Its consumer looks once and then not for
half a minute, so that whatever comes sooner was told of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, NullPool, QueuePool, create_engine, event, text
from sqlalchemy.orm import Session

from sqlmq import MQ, AsyncMQ, Message
from sqlmq.background import listener
from sqlmq.dialects.postgresql.listen import PostgresListening
from sqlmq.errors import ConsumerClosedError
from tests.conftest import close_and_count
from tests.support.postgres_databases import APPLICATION_NAME
from tests.support.processes import forks, in_fork
from tests.support.waiting import until, values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq import Consumer, Producer
    from sqlmq.dialects import Listening
    from sqlmq.model.positions import Start
    from tests.conftest import DatabaseUnderTest, MakeMQ

POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)
EITHER = pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)
HALF_A_MINUTE: dict[str, Any] = {"poll_min_seconds": 40.0, "poll_max_seconds": 40.0}  # less a quarter, at random
SOON_SECONDS = 15.0


class Waiting:
    """A consumer of a process of its own, in a thread that waits for a message."""

    def __init__(self, mq: MQ, *, start: Start = "earliest") -> None:
        self.mq = mq
        self.consumer: Consumer = mq.consumer("orders", "billing", start=start)
        self.received: list[Message] = []
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()
        until(lambda: self.consumer._core.is_waiting, "a consumer that waits")

    def until_it_listens(self) -> Waiting:
        until(lambda: self.mq._background.listener.is_receiving, "a listener that hears")
        # It was woken when that began, and looked.
        until(lambda: self.consumer._core.is_waiting, "a consumer that waits")
        return self

    def gets(self, *expected: bytes, seconds: float = SOON_SECONDS) -> None:
        self._thread.join(seconds)
        assert values(self.received) == [*expected]

    def end(self) -> None:
        self.consumer.close()
        self._thread.join(SOON_SECONDS)
        assert not self._thread.is_alive()

    def _receive(self) -> None:
        with contextlib.suppress(ConsumerClosedError):
            self.received += self.consumer.poll(timeout=120)


@pytest.fixture
def waiting(make_mq: MakeMQ) -> Iterator[Waiting]:
    other = make_mq(**HALF_A_MINUTE)
    other.create_topic("orders", 1)
    waiting = Waiting(other).until_it_listens()
    yield waiting
    waiting.end()


@pytest.fixture
def producer(mq: MQ, waiting: Waiting) -> Producer:
    del waiting
    return mq.producer("orders")


class Notices:
    """The statements that an MQ has sent to notify."""

    def __init__(self, engine: Engine) -> None:
        self.sent: list[list[str]] = []
        event.listen(engine, "before_cursor_execute", self._note)

    @property
    def topics(self) -> list[list[str]]:
        return [payloads for payloads in self.sent if not payloads[0].startswith("probe")]

    def _note(self, _conn: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if "pg_notify" in statement:
            self.sent.append(parameters[1])


def sessions(database: DatabaseUnderTest, where: str = "true") -> int:
    """How many sessions there are on the database of the test, besides the one that asks."""
    engine = create_engine(database.url, poolclass=NullPool)
    query = f"""SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
        AND application_name <> '{APPLICATION_NAME}' AND {where}"""
    with engine.connect() as connection:
        count: int = connection.execute(text(query)).scalar_one()
    return count


LISTENS = "query LIKE 'LISTEN%'"


def kill_listeners(database: DatabaseUnderTest) -> int:
    """End the sessions that listen on the database of the test, and return how many there were."""
    engine = create_engine(database.url, poolclass=NullPool)
    # Not in WHERE, which may be evaluated for sessions of other databases, before their names are compared.
    query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND {LISTENS}"
    with engine.connect() as connection:
        return len(connection.execute(text(query)).all())


# What wakes.


@EITHER
def test_produce_wakes_a_consumer_of_another_process(waiting: Waiting, producer: Producer) -> None:
    producer.produce(Message(b"now"))

    waiting.gets(b"now")


@POSTGRES
def test_produce_many_wakes_a_consumer_of_another_process(waiting: Waiting, producer: Producer) -> None:
    producer.produce_many([Message(b"now")])

    waiting.gets(b"now")


@POSTGRES
def test_submit_wakes_a_consumer_of_another_process(waiting: Waiting, producer: Producer) -> None:
    producer.submit(Message(b"now"))

    waiting.gets(b"now")


@EITHER
@pytest.mark.parametrize("level", ["READ COMMITTED", "SERIALIZABLE"])
def test_a_transaction_of_the_applications_wakes_when_it_commits(
    waiting: Waiting, producer: Producer, engine: Engine, level: Any
) -> None:
    with Session(engine.execution_options(isolation_level=level)) as session:
        producer.produce(Message(b"now"), session=session)
        session.commit()

    waiting.gets(b"now")


@POSTGRES
def test_a_block_that_publishes_wakes_when_it_commits(waiting: Waiting, producer: Producer, mq: MQ) -> None:
    mq.producer("placed").produce(Message(b"one"))
    with mq.consumer("placed", "shop").transaction(timeout=30) as tx:
        assert values(tx.messages) == [b"one"]
        producer.produce(Message(b"now"), session=tx.session)

    waiting.gets(b"now")


@POSTGRES
def test_a_process_that_only_produces_and_ends_wakes_all_the_same(waiting: Waiting, make_mq: MakeMQ) -> None:
    brief = make_mq()
    brief.producer("orders").produce(Message(b"now"))
    brief.close()

    waiting.gets(b"now")


@POSTGRES
def test_a_consumer_that_came_just_after_nobody_was_found_is_woken_too(make_mq: MakeMQ, mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    producer.produce(Message(b"to nobody"))
    until(lambda: not mq._background.notifier._commits, "a look for consumers")
    late = Waiting(make_mq(**HALF_A_MINUTE), start="latest").until_it_listens()

    producer.produce(Message(b"now"))

    late.gets(b"now")


# What is not sent.


@POSTGRES
def test_nothing_is_sent_for_a_transaction_that_is_rolled_back(
    waiting: Waiting, producer: Producer, mq: MQ, engine: Engine
) -> None:
    notices = Notices(mq.engine)
    theirs = Notices(engine)
    with Session(engine) as session:
        producer.produce(Message(b"never"), session=session)
        session.rollback()
    mq.close()

    assert notices.sent == theirs.sent == []
    assert waiting.received == []


@POSTGRES
def test_nothing_is_sent_where_nobody_else_consumes(mq: MQ) -> None:
    notices = Notices(mq.engine)
    own = mq.consumer("orders", "billing")
    assert own.poll(timeout=0) == []
    mq.producer("orders").produce(Message(b"1"))

    assert values(own.poll(timeout=30)) == [b"1"]
    mq.close()
    assert notices.topics == []


@POSTGRES
def test_a_burst_is_few_notices(waiting: Waiting, producer: Producer, mq: MQ) -> None:
    notices = Notices(mq.engine)
    began = time.monotonic()
    for number in range(1_000):
        producer.produce(Message(b"%d" % number))
    mq.close()

    took = time.monotonic() - began
    # One each 4 ms, or 10 where there was much to tell, one for the first and one at the end.
    assert 1 <= len(notices.topics) <= took / 0.004 + 2
    assert {payload for payloads in notices.topics for payload in payloads} == {str(waiting.consumer._core.topic_id)}


@POSTGRES
def test_several_topics_are_told_of_in_one_statement(mq: MQ, make_mq: MakeMQ) -> None:
    other = make_mq(notify=False)
    consumers = [other.consumer(f"topic-{number}", "billing") for number in range(5)]
    assert [consumer.poll(timeout=0) for consumer in consumers] == [[]] * 5
    topic_ids = [consumer._core.topic_id for consumer in consumers]
    notices = Notices(mq.engine)

    # As if they came while the thread was busy.
    mq._background.notifier._commits.update(dict.fromkeys(topic_ids[1:], 1))
    mq._background.notifier.notify(topic_ids[0])

    until(lambda: notices.topics != [], "a notice")
    assert notices.topics == [[str(topic_id) for topic_id in sorted(topic_ids)]]


@EITHER
@pytest.mark.parametrize("who", ["producer", "consumer"])
def test_with_the_option_off_nothing_is_sent_and_nobody_listens(
    make_mq: MakeMQ, database: DatabaseUnderTest, who: str
) -> None:
    producing, consuming = make_mq(notify=who != "producer"), make_mq(notify=who != "consumer")
    notices = Notices(producing.engine if who == "producer" else consuming.engine)
    consumer = consuming.consumer("orders", "billing")
    producing.producer("orders").produce(Message(b"1"))

    assert values(consumer.poll(timeout=30)) == [b"1"]
    assert consumer.poll(timeout=0.5) == []
    assert notices.sent == []
    if who == "consumer":
        assert sessions(database, LISTENS) == 0
        assert consuming._background.listener._thread is None


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_on_sqlite_the_option_means_nothing(make_mq: MakeMQ) -> None:
    producing, consuming = make_mq(notify=True), make_mq(notify=True)
    consumer = consuming.consumer("orders", "billing")
    assert consumer.poll(timeout=0) == []
    producing.producer("orders").produce(Message(b"1"))

    assert values(consumer.poll(timeout=30)) == [b"1"]
    assert consumer.poll(timeout=0.5) == []
    assert producing._background.notifier._thread is consuming._background.listener._thread is None


# What goes wrong.


@EITHER
def test_a_listener_that_was_killed_comes_back_and_misses_nothing(
    waiting: Waiting, producer: Producer, mq: MQ, database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_listen = threading.Event()
    listen = waiting.mq._database.listen

    def listen_later() -> Listening:
        assert may_listen.wait(SOON_SECONDS)
        return listen()

    monkeypatch.setattr(waiting.mq._database, "listen", listen_later)

    until(lambda: kill_listeners(database) == 1, "the listener to be killed")
    until(lambda: not waiting.mq._background.listener.is_receiving, "the loss noticed")
    producer.produce(Message(b"meanwhile"))
    mq.close()  # which sends what is still to be told
    assert waiting.received == []
    may_listen.set()

    waiting.gets(b"meanwhile")
    until(lambda: waiting.mq._background.listener.is_receiving, "a listener that hears again")


@POSTGRES
def test_where_notices_do_not_arrive_it_is_said_once_and_consumers_poll(
    make_mq: MakeMQ, mq: MQ, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def hear_nothing(listening: PostgresListening, seconds: float) -> set[str]:
        tries.append(id(listening))
        wait(listening, seconds)
        return set()

    wait = PostgresListening.wait
    monkeypatch.setattr(PostgresListening, "wait", hear_nothing)
    monkeypatch.setattr(listener, "_ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(listener, "_UNREACHABLE_SECONDS", 0.05)
    deaf = make_mq()
    consumer = deaf.consumer("orders", "billing")
    assert consumer.poll(timeout=0.5) == []
    until(lambda: len(tries) > 10, "several tries")

    mq.producer("orders").produce(Message(b"found"))

    assert values(consumer.poll(timeout=30)) == [b"found"]
    assert not deaf._background.listener.is_receiving
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "transaction mode" in warnings[0]


@POSTGRES
def test_a_connection_that_goes_silent_is_replaced_without_a_word(
    make_mq: MakeMQ, mq: MQ, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "_PROBE_SECONDS", 0.05)
    monkeypatch.setattr(listener, "_ANSWER_SECONDS", 1.0)
    waiting = Waiting(make_mq(**HALF_A_MINUTE)).until_it_listens()
    silent = waiting.mq._background.listener._listening
    assert silent is not None

    monkeypatch.setattr(silent, "wait", lambda _seconds: set())
    until(lambda: waiting.mq._background.listener._listening not in (silent, None), "another connection")
    waiting.until_it_listens()
    mq.producer("orders").produce(Message(b"now"))

    waiting.gets(b"now")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# The application's engine.


@contextlib.contextmanager
def process(database: DatabaseUnderTest, **options: Any) -> Iterator[MQ]:
    engine = create_engine(database.url, **options)
    mq = MQ(engine, schema=database.schema, **HALF_A_MINUTE)
    close = close_and_count(mq)
    try:
        yield mq
    finally:
        close()
        engine.dispose()


@EITHER
@pytest.mark.parametrize(
    "options",
    [
        {"poolclass": NullPool},
        {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0},
        {"isolation_level": "SERIALIZABLE", "pool_pre_ping": True},
    ],
)
def test_any_pool_will_do(database: DatabaseUnderTest, options: dict[str, Any]) -> None:
    with process(database, **options) as consuming, process(database, **options) as producing:
        waiting = Waiting(consuming).until_it_listens()
        producing.producer("orders").produce(Message(b"now"))

        waiting.gets(b"now")


@POSTGRES
def test_a_pool_whose_only_connection_is_in_use_can_be_listened_beside(database: DatabaseUnderTest) -> None:
    with process(database, pool_size=1, max_overflow=0) as mq:
        waiting = Waiting(mq).until_it_listens()
        with mq.engine.connect():
            assert kill_listeners(database) == 1
            until(lambda: not mq._background.listener.is_receiving, "the loss noticed")
            until(lambda: sessions(database, LISTENS) == 1, "another listener")

        waiting.until_it_listens()
        waiting.end()


@POSTGRES
def test_closing_leaves_no_session_behind(waiting: Waiting, mq: MQ, database: DatabaseUnderTest) -> None:
    mq.producer("orders").produce(Message(b"now"))
    waiting.gets(b"now")

    mq.close()
    waiting.mq.close()

    until(lambda: sessions(database) == 0, "no session")


# Forks.


@POSTGRES
@forks
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_wakes_its_parents_consumer(waiting: Waiting) -> None:
    producer = waiting.mq.producer("orders")

    def child() -> str:
        producer.produce(Message(b"from the child"))
        waiting.mq._background.notifier.close()
        return "told"

    assert in_fork(child) == "told"

    waiting.gets(b"from the child")


@POSTGRES
@forks
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_listens_by_itself_and_leaves_its_parents_listener_alone(waiting: Waiting, producer: Producer) -> None:
    def child() -> str:
        consumer = waiting.mq.consumer("orders", "of-the-child")
        assert consumer.poll(timeout=0.5) == []
        until(lambda: waiting.mq._background.listener.is_receiving, "a listener that hears")
        waiting.mq._background.listener.close()
        consumer.close()
        return "heard"

    assert in_fork(child) == "heard"
    producer.produce(Message(b"now"))

    waiting.gets(b"now")


# asyncio.


@POSTGRES
def test_a_task_is_woken_too(database: DatabaseUnderTest, mq: MQ) -> None:
    async def receive() -> list[bytes]:
        async with AsyncMQ(database.url, **HALF_A_MINUTE) as waiting:
            consumer = await waiting.consumer("orders", "billing")

            def produce_then() -> None:
                until(lambda: waiting._sync._background.listener.is_receiving, "a listener that hears")
                until(lambda: consumer._core.is_waiting, "a task that waits")
                mq.producer("orders").produce(Message(b"now"))

            producing = asyncio.create_task(asyncio.to_thread(produce_then))
            messages = await consumer.poll(timeout=SOON_SECONDS)
            await producing
            return values(messages)

    assert asyncio.run(receive()) == [b"now"]
