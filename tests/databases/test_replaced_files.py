"""A SQLite file that is removed or replaced while it is open: the next write fails, and nothing is acknowledged into nowhere."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import Session

from sqlmq import MQ, DatabaseUnavailableError, Message, UnknownTopicError
from tests.support.waiting import receive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from sqlmq import Producer
    from tests.conftest import DatabaseUnderTest, MakeMQ

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

BESIDE = ("-wal", "-shm")
LONG = 3_600.0


@pytest.fixture
def path(database: DatabaseUnderTest) -> Path:
    return Path(make_url(database.url).database or "")


@pytest.fixture
def fresh(path: Path) -> Path:
    """Another file, with an empty topic of the same name."""
    fresh = path.with_name("fresh.db")
    with MQ(f"sqlite:///{fresh}") as mq:
        mq.create_topic("orders", 1)
    return fresh


def remove(path: Path) -> None:
    for name in ("", *BESIDE):
        path.with_name(path.name + name).unlink(missing_ok=True)


def replace(path: Path, fresh: Path) -> None:
    remove(path)
    fresh.rename(path)


def stored(path: Path) -> list[bytes]:
    """What a program finds in the topic that opens the file now."""
    with MQ(f"sqlite:///{path}") as mq:
        return [message.value for message in mq.admin.tail("orders", offset=0, timeout=0)]


WAYS: dict[str, Callable[[Producer], object]] = {
    "produce": lambda producer: producer.produce(Message(b"lost")),
    "produce_many": lambda producer: producer.produce_many([Message(b"lost")] * 2),
    "submit": lambda producer: producer.submit(Message(b"lost")).result(30),
    "schedule": lambda producer: producer.schedule(Message(b"lost"), delay_seconds=0),
}


@pytest.mark.parametrize("send", [pytest.param(send, id=name) for name, send in WAYS.items()])
def test_nothing_is_acknowledged_into_a_file_that_was_removed(
    make_mq: MakeMQ, path: Path, send: Callable[[Producer], object]
) -> None:
    mq = make_mq()
    producer = mq.producer("orders")
    producer.produce(Message(b"before"))
    remove(path)

    with pytest.raises(DatabaseUnavailableError, match="removed or replaced") as raised:
        send(producer)

    assert "Nothing was written" in str(raised.value)


def test_after_a_file_was_replaced_the_new_one_is_used(make_mq: MakeMQ, path: Path, fresh: Path) -> None:
    mq = make_mq()
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")
    producer.produce_many([Message(b"before")] * 3)
    receive(consumer, 3)
    replace(path, fresh)

    with pytest.raises(DatabaseUnavailableError):
        producer.produce(Message(b"refused"))
    with pytest.raises(UnknownTopicError):  # it knew the topic of the old file
        producer.produce(Message(b"refused"))
    producer.produce(Message(b"arrived"))

    assert stored(path) == [b"arrived"]


def test_after_a_file_was_removed_the_tables_are_made_again(make_mq: MakeMQ, path: Path) -> None:
    mq = make_mq()
    mq.create_topic("orders")
    remove(path)

    with pytest.raises(DatabaseUnavailableError):
        mq.create_topic("payments")

    assert mq.create_topic("payments")
    assert mq.admin.topics() == ["payments"]


@pytest.mark.parametrize("beside", BESIDE)
def test_a_write_ahead_log_that_was_removed_is_noticed(make_mq: MakeMQ, path: Path, beside: str) -> None:
    mq = make_mq()
    producer = mq.producer("orders")
    producer.produce(Message(b"before"))
    path.with_name(path.name + beside).unlink()

    with pytest.raises(DatabaseUnavailableError, match="write-ahead log"):
        producer.produce(Message(b"lost"))


def test_a_symbolic_link_that_leads_elsewhere_counts_as_replaced(path: Path, fresh: Path) -> None:
    link = path.with_name("current.db")
    link.symlink_to(path)
    with MQ(f"sqlite:///{link}") as mq:
        producer = mq.producer("orders")
        producer.produce(Message(b"before"))
        link.unlink()
        link.symlink_to(fresh)

        with pytest.raises(DatabaseUnavailableError):
            producer.produce(Message(b"astray"))

    assert stored(path) == [b"before"]
    assert stored(fresh) == []


def test_a_consumer_commits_nothing_into_a_file_that_was_replaced(make_mq: MakeMQ, path: Path, fresh: Path) -> None:
    mq = make_mq(commit_interval_seconds=1_000.0)
    mq.producer("orders").produce_many([Message(b"before")] * 3)
    consumer = mq.consumer("orders", "billing")
    receive(consumer, 3)
    replace(path, fresh)

    with pytest.raises(DatabaseUnavailableError):
        consumer.commit()


def test_a_waiting_consumer_hears_of_a_file_that_was_replaced(make_mq: MakeMQ, path: Path, fresh: Path) -> None:
    mq = make_mq(lease_seconds=1.0)
    mq.create_topic("orders", 1)
    consumer = mq.consumer("orders", "billing")
    assert consumer.poll(timeout=0) == []
    replace(path, fresh)

    with pytest.raises(UnknownTopicError):
        receive(consumer, 1)


@pytest.fixture
def engine(database: DatabaseUnderTest) -> Iterator[Engine]:
    engine = create_engine(database.url)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("is_delayed", [True, False], ids=["delayed", "at-once"])
def test_a_session_on_a_file_that_was_removed_publishes_nothing(
    make_mq: MakeMQ, engine: Engine, path: Path, *, is_delayed: bool
) -> None:
    producer = make_mq().producer("orders")
    with Session(engine) as session, session.begin():
        producer.produce(Message(b"before"), session=session)

    with Session(engine) as session:
        if is_delayed:
            producer.schedule(Message(b"lost"), delay_seconds=LONG, session=session)
        else:
            producer.produce(Message(b"lost"), session=session)
        remove(path)

        with pytest.raises(DatabaseUnavailableError):
            session.commit()


def test_a_session_on_the_file_that_came_in_its_place_is_not_on_the_database_of_the_mq(
    make_mq: MakeMQ, path: Path, fresh: Path, database: DatabaseUnderTest
) -> None:
    producer = make_mq().producer("orders")
    producer.produce(Message(b"before"))
    replace(path, fresh)
    engine = create_engine(database.url)

    with Session(engine) as session, pytest.raises(DatabaseUnavailableError):
        producer.produce(Message(b"astray"), session=session)
    with Session(engine) as session:
        producer.produce(Message(b"astray"), session=session)
        with pytest.raises(UnknownTopicError):  # the producer knew the topic of the old file
            session.commit()
    with Session(engine) as session, session.begin():
        producer.produce(Message(b"arrived"), session=session)

    engine.dispose()
    assert stored(path) == [b"arrived"]


def test_an_mq_on_an_engine_of_the_application_notices_it_too(engine: Engine, path: Path) -> None:
    with MQ(engine) as mq:
        producer = mq.producer("orders")
        producer.produce(Message(b"before"))
        remove(path)

        with pytest.raises(DatabaseUnavailableError):
            producer.produce(Message(b"lost"))


def test_a_copy_that_is_restored_into_the_same_file_is_the_same_file(make_mq: MakeMQ, path: Path) -> None:
    mq = make_mq()
    producer = mq.producer("orders")
    producer.produce(Message(b"kept"))
    copy = path.with_name("copy.db")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    with closing(sqlite3.connect(copy)) as source, closing(sqlite3.connect(path)) as target:
        source.backup(target)

    producer.produce(Message(b"arrived"))

    assert sorted(stored(path)) == [b"arrived", b"kept"]


def test_the_doctor_says_that_a_file_was_replaced(make_mq: MakeMQ, path: Path, fresh: Path) -> None:
    mq = make_mq()
    mq.create_topic("orders")
    before = {problem.code for problem in mq.admin.diagnose()}
    replace(path, fresh)

    after = {problem.code for problem in mq.admin.diagnose()}

    assert "file-moved" not in before
    assert "file-moved" in after
