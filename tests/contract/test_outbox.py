"""Messages in the application's own transaction: in the log if it commits, gone if it does not."""

from __future__ import annotations

import gc
import logging
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, QueuePool, StaticPool, create_engine, event, make_url, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlmq import MQ, Message, UnknownTopicError
from sqlmq.errors import MessageTooLargeError, ProducerClosedError, SessionError
from sqlmq.migrate import upgrade
from sqlmq.producer import outbox
from tests.contract.transaction_shapes import EACH_SHAPE, LISTENS, Shape
from tests.support.application import Application, sync_of
from tests.support.queue_state import QueueState
from tests.support.shop import Order, Shop, savepoint_trees
from tests.support.waiting import PATIENCE_SECONDS, at_once, receive, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Engine

    from tests.conftest import DatabaseUnderTest, MakeMQ
    from tests.support.postgres_databases import PostgresDatabases

POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)
SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)


# --- Each shape of a transaction ---


@EACH_SHAPE
@BOTH
@pytest.mark.each_driver
@pytest.mark.pgbouncer
def test_a_message_is_in_the_log_when_its_transaction_has_committed(shop: Shop, transaction: Shape) -> None:
    with transaction(shop.app) as session:
        publication = shop.sell(session, "a")
        assert (publication.result, shop.events) == (None, [])

    assert publication.result == ("events", publication.partition, 0)
    assert shop.events == shop.orders == ["a"]


@EACH_SHAPE
@BOTH
def test_a_message_is_never_in_the_log_when_its_transaction_failed(shop: Shop, transaction: Shape) -> None:
    with pytest.raises(ZeroDivisionError), transaction(shop.app) as session:  # noqa: PT012 - it is what the block does
        publication = shop.sell(session, "a")
        raise ZeroDivisionError
    with transaction(shop.app) as session:
        shop.sell(session, "b")

    assert publication.result is None
    assert shop.events == shop.orders == ["b"]


def test_a_session_that_ends_without_a_commit_is_told_at_debug_level(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "sqlmq.producer"):
        with shop.app.session() as session:
            shop.sell(session, "a")
        with shop.app.session() as session:
            shop.sell(session, "b")
            session.commit()

    told = [record for record in caplog.records if getattr(record, "sqlmq_event", "") == "publication dropped"]
    assert [record.getMessage()[:30] for record in told] == ["1 message(s) are not published"]


@EACH_SHAPE
@BOTH
def test_a_message_that_comes_first_begins_the_transaction(shop: Shop, transaction: Shape) -> None:
    with transaction(shop.app) as session:
        shop.producer.produce(Message(b"first"), session=session)

    assert shop.events == ["first"]


@pytest.mark.parametrize("mode", ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"])
def test_a_test_suite_that_rolls_everything_back_leaves_no_message(
    shop: Shop, database: DatabaseUnderTest, mode: Literal["conditional_savepoint", "rollback_only"]
) -> None:
    # https://docs.sqlalchemy.org/en/20/orm/session_transaction.html#joining-a-session-into-an-external-transaction-such-as-for-test-suites
    with shop.app.with_savepoints(database.url) as app, app.engine.connect() as connection:
        outer = connection.begin()
        if mode == "conditional_savepoint":
            connection.begin_nested()
        with app.session(bind=connection, join_transaction_mode=mode) as session:
            publication = shop.sell(session, "a")
            session.commit()
        published = shop.events
        if outer.is_active:
            outer.rollback()

    # Only control_fully commits the transaction of others.
    expected = ["a"] if str(mode) == "control_fully" else []
    assert published == shop.events == shop.orders == expected
    assert (publication.result is not None) == bool(expected)


def test_a_session_in_a_savepoint_of_others_can_take_its_messages_back(shop: Shop, database: DatabaseUnderTest) -> None:
    with (
        shop.app.with_savepoints(database.url) as app,
        app.engine.connect() as connection,
        connection.begin(),
    ):
        with app.session(bind=connection, join_transaction_mode="create_savepoint") as session:
            shop.sell(session, "a")
            session.rollback()
            shop.sell(session, "b")
            session.commit()
            shop.sell(session, "c")
        shop.sell(connection, "d")

    assert shop.events == shop.orders == ["b", "d"]


def test_a_consumer_gets_what_was_published(shop: Shop) -> None:
    with shop.session() as session, session.begin():
        shop.producer.produce(Message(b"\x00\xff", b"key", {"a": "\u00e4"}), session=session)

    message = receive(shop.mq.consumer("events", "billing"), 1)[0]

    assert (message.value, message.key, message.headers) == (b"\x00\xff", b"key", {"a": "\u00e4"})


def test_each_way_to_produce_takes_a_session(shop: Shop) -> None:
    with shop.session() as session, session.begin():
        one = shop.producer.produce(Message(b"a", b"k"), session=session)
        other = (one.partition + 1) % 3
        placed = shop.producer.produce_with_partition(Message(b"b", b"k"), other, session=session)
        many = shop.producer.produce_many((Message(b"%d" % i, b"k") for i in range(2)), session=session)
        none = shop.producer.produce_many([], session=session)

    assert none == []
    assert placed.result == ("events", other, 0)
    assert [publication.result for publication in (one, *many)] == [("events", one.partition, i) for i in range(3)]
    assert shop.log() == {one.partition: ["a", "0", "1"], other: ["b"]}


def test_a_session_and_a_connection_are_used_again_for_the_next_transactions(shop: Shop) -> None:
    with shop.session() as session, shop.connect() as connection:
        for round_ in range(3):
            shop.sell(session, f"{round_} a")
            session.commit()
            shop.sell(session, f"{round_} b")
            session.rollback()
            shop.sell(connection, f"{round_} c")
            connection.rollback()
            shop.sell(connection, f"{round_} d")
            connection.commit()

    assert shop.events == shop.orders == [f"{round_} {name}" for round_ in range(3) for name in "ad"]


def test_a_transaction_without_messages_is_left_alone(shop: Shop) -> None:
    with shop.session() as session:
        shop.sell(session, "a")
        session.commit()
        session.add(Order(note="b"))
        session.commit()

    assert (shop.events, shop.orders) == (["a"], ["a", "b"])


def test_one_transaction_publishes_to_many_topics(shop: Shop) -> None:
    topics = [f"topic-{i}" for i in range(5)]
    producers = [shop.mq.producer(topic) for topic in topics]

    with shop.session() as session, session.begin():
        publications = [producer.produce(Message(b"x"), session=session) for producer in reversed(producers)]

    assert [publication.topic for publication in publications] == topics[::-1]
    assert all(publication.result for publication in publications)
    assert [len(shop.log(topic)) for topic in topics] == [1] * 5


def test_one_transaction_publishes_through_many_mqs(shop: Shop, make_mq: MakeMQ) -> None:
    with shop.session() as session, session.begin():
        for name in "abc":
            shop.sell(session, name, make_mq().producer("events"))
        shop.sell(session, "d")

    assert shop.events == shop.orders == ["a", "b", "c", "d"]


@POSTGRES
def test_one_transaction_publishes_to_many_schemas(shop: Shop, make_mq: MakeMQ) -> None:
    with shop.engine.begin() as connection:
        for schema in ("mq_a", "mq_b"):
            connection.execute(text(f"CREATE SCHEMA {schema}"))
            upgrade(connection, schema=schema)
    b, a = make_mq(schema="mq_b"), make_mq(schema="mq_a")
    producers = [b.producer("events"), shop.producer, a.producer("events")]

    with shop.session() as session, session.begin():
        publications = [producer.produce(Message(b"x"), session=session) for producer in producers]

    assert all(publication.result for publication in publications)
    assert [len(QueueState(shop.engine, schema).texts("events")) for schema in ("mq_a", "mq_b", None)] == [1, 1, 1]


def test_an_mq_made_from_the_applications_engine_publishes_in_its_sessions(
    shop: Shop, make_mq: MakeMQ, database: DatabaseUnderTest
) -> None:
    with (
        shop.app.on_url(database.url, pool_size=2, max_overflow=0) as app,
        make_mq(database=app.engine) as mq,
        app.session() as session,
    ):
        shop.sell(session, "a", mq.producer("events"))
        session.commit()

    assert shop.events == shop.orders == ["a"]


class OtherBase(DeclarativeBase):
    pass


class Elsewhere(OtherBase):
    __tablename__ = "elsewhere"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.mark.sync_only("an AsyncMQ does not use the application's engine, so it can't find it among several")
def test_a_session_with_several_binds_publishes_on_the_one_of_the_mq(
    shop: Shop, make_mq: MakeMQ, tmp_path: Path
) -> None:
    elsewhere = create_engine(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    OtherBase.metadata.create_all(elsewhere)
    with (
        make_mq(database=shop.engine) as mq,
        Session(elsewhere, binds={Order: shop.engine}) as session,
        Session(binds={Order: shop.engine, Elsewhere: elsewhere}) as without_default,
    ):
        producer = mq.producer("events")
        for number, one in enumerate([session, without_default]):
            one.add_all([Order(note=f"{number}"), Elsewhere()])
            producer.produce(Message(b"%d" % number, b"k"), session=one)
            one.commit()
    elsewhere.dispose()

    assert shop.events == shop.orders == ["0", "1"]


def test_a_session_with_several_binds_can_name_the_right_one(shop: Shop, tmp_path: Path) -> None:
    with (
        shop.app.on_url(f"sqlite:///{tmp_path / 'elsewhere.db'}") as elsewhere,
        elsewhere.session(binds={Order: shop.app.engine}) as session,
    ):
        with pytest.raises(SessionError, match="another database"):
            shop.producer.produce(Message(b""), session=session)
        session.add(Order(note="a"))
        right = session.connection(bind_arguments={"mapper": Order})
        shop.producer.produce(Message(b"a"), session=right)
        session.commit()

    assert shop.events == shop.orders == ["a"]


# --- Savepoints ---


@pytest.fixture
def nesting(mq: MQ, engine: Engine, database: DatabaseUnderTest, app: Application) -> Iterator[Shop]:
    """A shop whose engine can nest transactions."""
    with app.with_savepoints(database.url) as nesting:
        yield Shop(mq, engine, database, nesting)


@pytest.fixture(params=["session", "connection"])
def nestable(request: pytest.FixtureRequest, nesting: Shop) -> Iterator[Session | Connection]:
    with nesting.session() if request.param == "session" else nesting.connect() as one:
        yield one


def test_a_savepoint_rolled_back_takes_its_messages_with_it(nesting: Shop, nestable: Session | Connection) -> None:
    nesting.sell(nestable, "before")
    savepoint = nestable.begin_nested()
    nesting.sell(nestable, "inside")
    savepoint.rollback()
    nesting.sell(nestable, "after")
    nestable.commit()

    assert nesting.events == nesting.orders == ["before", "after"]


def test_a_savepoint_released_leaves_its_messages(nesting: Shop, nestable: Session | Connection) -> None:
    nesting.sell(nestable, "before")
    with nestable.begin_nested():
        nesting.sell(nestable, "inside")
    assert nesting.events == []
    nestable.commit()

    assert nesting.events == nesting.orders == ["before", "inside"]


def test_a_savepoint_begun_before_the_first_message_takes_it_back(
    nesting: Shop, nestable: Session | Connection
) -> None:
    savepoint = nestable.begin_nested()
    with nestable.begin_nested():
        nesting.sell(nestable, "inside")
    savepoint.rollback()
    nesting.sell(nestable, "after")
    nestable.commit()

    assert nesting.events == nesting.orders == ["after"]


def test_a_savepoint_of_a_later_transaction_begun_before_its_first_message_takes_it_back(
    nesting: Shop, nestable: Session | Connection
) -> None:
    with nestable.begin_nested():
        nesting.sell(nestable, "first")
    nestable.commit()
    savepoint = nestable.begin_nested()
    nesting.sell(nestable, "inside")
    savepoint.rollback()
    nesting.sell(nestable, "after")
    nestable.commit()

    assert nesting.events == nesting.orders == ["first", "after"]


def test_a_savepoint_still_open_at_the_commit_is_committed(nesting: Shop, nestable: Session | Connection) -> None:
    nesting.sell(nestable, "before")
    nestable.begin_nested()
    nesting.sell(nestable, "inside")
    nestable.commit()
    nesting.sell(nestable, "after")
    nestable.commit()

    assert nesting.events == nesting.orders == ["before", "inside", "after"]


def test_an_exception_in_a_nested_block_takes_the_messages_of_the_block(
    nesting: Shop, nestable: Session | Connection
) -> None:
    with nestable.begin_nested():
        nesting.sell(nestable, "kept")
        with pytest.raises(ZeroDivisionError), nestable.begin_nested():  # noqa: PT012 - it is what the block does
            nesting.sell(nestable, "lost")
            raise ZeroDivisionError
    nestable.commit()

    assert nesting.events == nesting.orders == ["kept"]


def act(shop: Shop, session: Session | Connection, todo: Sequence[Any], name: str) -> list[str]:
    """Take the steps, and return what is to be published of them if the transaction commits."""
    kept: list[str] = []
    for number, step in enumerate(todo):
        if step is None:
            shop.sell(session, f"{name}.{number}")
            kept.append(f"{name}.{number}")
            continue
        is_kept, inside = step
        savepoint = session.begin_nested()
        published = act(shop, session, inside, f"{name}.{number}")
        if is_kept:
            savepoint.commit()
            kept += published
        else:
            savepoint.rollback()
    return kept


@pytest.mark.each_driver
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(transactions=st.lists(st.tuples(st.booleans(), savepoint_trees), min_size=1, max_size=3))
def test_any_tree_of_savepoints_publishes_what_is_kept_of_it(
    nesting: Shop, nestable: Session | Connection, transactions: list[tuple[bool, list[Any]]]
) -> None:
    before = len(nesting.events)
    expected: list[str] = []
    for number, (commits, todo) in enumerate(transactions):
        kept = act(nesting, nestable, todo, f"{before}/{number}")
        if commits:
            nestable.commit()
            expected += kept
        else:
            nestable.rollback()

    published = nesting.events[before:]
    sold = [note for note in nesting.orders if note.startswith(f"{before}/")]
    with nesting.engine.begin() as connection:
        connection.execute(text("DELETE FROM customer_order"))
    assert published == sold == expected


# --- Transactions that come to nothing ---


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_session_closed_without_a_commit_publishes_nothing(shop: Shop, end: str) -> None:
    with shop.session() as session:
        publication = shop.sell(session, "a")
        getattr(session, end)()
        session.commit()
    with shop.connect() as connection:
        shop.sell(connection, "b")

    assert publication.result is None
    assert shop.events == shop.orders == []


@pytest.mark.sync_only("SQLAlchemy has an AsyncSession closed before it is dropped")
def test_a_session_that_is_dropped_gives_its_connection_back_and_publishes_nothing(
    shop: Shop, database: DatabaseUnderTest
) -> None:
    engine = create_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=PATIENCE_SECONDS)

    def drop() -> weakref.ref[Connection]:
        session = Session(engine)
        shop.sell(session, "dropped")
        return weakref.ref(session.connection())

    gc.collect()
    waiting = len(outbox._outboxes)
    dropped = drop()
    gc.collect()

    assert dropped() is None
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    assert len(outbox._outboxes) == waiting
    with Session(engine) as session:
        shop.sell(session, "a")
        session.commit()
    engine.dispose()
    assert shop.events == shop.orders == ["a"]


def test_an_exception_before_the_commit_publishes_nothing(shop: Shop) -> None:
    def refuse(_session: Session) -> None:
        raise ZeroDivisionError

    with shop.session() as session:
        event.listen(sync_of(session), "before_commit", refuse)
        shop.sell(session, "a")
        with pytest.raises(ZeroDivisionError):
            session.commit()
        session.rollback()
        event.remove(sync_of(session), "before_commit", refuse)
        shop.sell(session, "b")
        session.commit()

    assert shop.events == shop.orders == ["b"]


def test_an_exception_in_the_engines_commit_event_leaves_messages_and_rows_together(shop: Shop) -> None:
    def refuse(_connection: Connection) -> None:
        raise ZeroDivisionError

    engine = sync_of(shop.app.engine)

    with shop.connect() as connection:
        transaction = connection.begin()
        shop.sell(connection, "a")
        event.listen(engine, "commit", refuse)
        with pytest.raises(ZeroDivisionError):
            transaction.commit()
        event.remove(engine, "commit", refuse)
        transaction.rollback()
        # SQLAlchemy has sent no ROLLBACK, so this may commit the rows of before.
        shop.sell(connection, "b")
        connection.commit()

    assert shop.events == shop.orders


@LISTENS
def test_a_listener_before_the_commit_publishes(shop: Shop) -> None:
    with shop.session() as session:
        event.listen(session, "before_commit", lambda session: shop.sell(session, "listener"))
        shop.sell(session, "a")
        session.commit()

    assert shop.events == shop.orders == ["a", "listener"]


@LISTENS
def test_a_listener_after_a_flush_publishes_what_the_flush_has_made(shop: Shop) -> None:
    def publish(session: Session, _context: object) -> None:
        for one in session.new:
            assert isinstance(one, Order)
            shop.producer.produce(Message(f"{one.id} {one.note}".encode()), session=session)

    with shop.session() as session:
        event.listen(session, "after_flush", publish)
        session.add(Order(note="a"))
        session.commit()

    assert shop.events == ["1 a"]


@LISTENS
@pytest.mark.parametrize(
    "target", [lambda connection: connection, lambda connection: connection.engine], ids=["connection", "engine"]
)
def test_a_message_that_comes_after_all_others_were_published_is_refused(
    shop: Shop, target: Callable[[Connection], Any]
) -> None:
    refused: list[SessionError] = []

    def publish(connection: Connection) -> None:
        with pytest.raises(SessionError, match="being committed") as raised:
            shop.producer.produce(Message(b"too late"), session=connection)
        refused.append(raised.value)

    with shop.connect() as connection:
        shop.sell(connection, "a")
        event.listen(target(connection), "commit", publish)
        connection.commit()
        event.remove(target(connection), "commit", publish)

    assert len(refused) == 1
    assert shop.events == shop.orders == ["a"]


@pytest.mark.parametrize(
    "target", [lambda connection: connection, lambda connection: connection.engine], ids=["connection", "engine"]
)
@pytest.mark.parametrize("number", [1, 2], ids=["the first transaction", "a later transaction"])
@LISTENS
@BOTH
def test_a_message_that_comes_first_while_its_transaction_commits_is_refused(
    shop: Shop, target: Callable[[Connection], Any], number: int
) -> None:
    refused: list[SessionError] = []

    def publish(connection: Connection) -> None:
        with pytest.raises(SessionError, match="being committed") as raised:
            shop.producer.produce(Message(b"too late"), session=connection)
        refused.append(raised.value)

    with shop.connect() as connection:
        for _ in range(1, number):
            shop.sell(connection, "before")
            connection.commit()
        event.listen(target(connection), "commit", publish)
        connection.execute(text("INSERT INTO customer_order (note) VALUES ('a')"))
        connection.commit()
        event.remove(target(connection), "commit", publish)
        shop.sell(connection, "b")
        connection.commit()

    assert len(refused) == 1
    assert shop.orders == [*["before"] * (number - 1), "a", "b"]
    assert shop.events == [*["before"] * (number - 1), "b"]


@LISTENS
@BOTH
def test_a_sessions_commit_refuses_a_message_that_comes_first_from_an_engines_listener(shop: Shop) -> None:
    def publish(connection: Connection) -> None:
        shop.producer.produce(Message(b"too late"), session=connection)

    event.listen(shop.engine, "commit", publish)
    with shop.session() as session:
        session.add(Order(note="a"))
        with pytest.raises(SessionError, match="being committed"):
            session.commit()
        session.rollback()
    event.remove(shop.engine, "commit", publish)

    assert shop.events == []


@LISTENS
def test_a_message_after_the_commit_is_for_another_transaction(shop: Shop) -> None:
    refused: list[SessionError] = []

    def publish(session: Session) -> None:
        with pytest.raises(SessionError, match="can't carry") as raised:
            shop.producer.produce(Message(b"too late"), session=session)
        refused.append(raised.value)

    with shop.session() as session:
        event.listen(session, "after_commit", publish)
        shop.sell(session, "a")
        session.commit()

    assert len(refused) == 1
    assert shop.events == ["a"]


def test_a_flush_that_fails_publishes_nothing(shop: Shop) -> None:
    with shop.session() as session:
        shop.sell(session, "a")
        session.add_all([Order(note="a")])
        with pytest.raises(IntegrityError):
            session.commit()
        with pytest.raises(SessionError, match="can't carry"):
            shop.producer.produce(Message(b"b"), session=session)
        session.rollback()
        shop.sell(session, "c")
        session.commit()

    assert shop.events == shop.orders == ["c"]


@pytest.mark.parametrize(
    ("database", "after"),
    # On SQLite the transaction stays after a COMMIT that failed, and a Session that is only closed sends no ROLLBACK.
    [("sqlite", "rollback"), ("postgres", "rollback"), ("postgres", "close")],
    indirect=["database"],
)
def test_a_commit_that_the_database_refuses_publishes_nothing(shop: Shop, after: str) -> None:
    with shop.engine.begin() as connection:
        parent = "INTEGER REFERENCES customer_order (id) DEFERRABLE INITIALLY DEFERRED"
        connection.execute(text(f"CREATE TABLE delivery (order_id {parent})"))
    session = shop.session()
    if not shop.database.is_postgres:
        session.connection().exec_driver_sql("PRAGMA foreign_keys = ON")
    session.execute(text("INSERT INTO delivery VALUES (42)"))
    shop.producer.produce(Message(b"a"), session=session)

    with pytest.raises(IntegrityError):
        session.commit()
    if after == "rollback":
        session.rollback()
    session.close()

    assert shop.events == []


def test_a_topic_deleted_before_the_commit_fails_it_and_a_new_one_of_its_name_is_found_afterwards(shop: Shop) -> None:
    with shop.session() as session:
        shop.producer.produce(Message(b"a"), session=session)
        shop.mq.delete_topics("events")
        session.add(Order(note="a"))

        with pytest.raises(UnknownTopicError, match="events"):
            session.commit()
        session.rollback()
        assert shop.orders == []

        shop.mq.create_topic("events", 2)
        shop.sell(session, "b")
        session.commit()

    assert shop.events == shop.orders == ["b"]


@EACH_SHAPE
@BOTH
def test_business_rows_do_not_outlive_a_failed_publication(
    shop: Shop, database: DatabaseUnderTest, transaction: Shape
) -> None:
    shop.mq.create_topic("gone", 1)
    gone = shop.mq.producer("gone")
    with shop.app.with_savepoints(database.url) as app:
        with pytest.raises(UnknownTopicError), transaction(app) as session:  # noqa: PT012 - the end of the block commits
            kept = shop.producer.produce(Message(b"a", b"k"), session=session)
            gone.produce(Message(b""), session=session)
            shop.mq.delete_topics("gone")
            session.execute(text("INSERT INTO customer_order (note) VALUES ('a')"))

        # On the same connection, which the pool hands out again.
        with transaction(app) as session:
            shop.sell(session, "b")

    assert kept.result is None
    assert shop.events == shop.orders == ["b"]


def test_a_connection_goes_on_after_a_failed_publication(shop: Shop) -> None:
    with shop.connect() as connection:
        shop.producer.produce(Message(b""), session=connection)
        shop.mq.delete_topics("events")
        connection.execute(text("INSERT INTO customer_order (note) VALUES ('a')"))
        with pytest.raises(UnknownTopicError):
            connection.commit()
        connection.rollback()
        connection.execute(text("INSERT INTO customer_order (note) VALUES ('b')"))
        connection.commit()

    assert shop.orders == ["b"]


# --- What can't work is refused at the call ---


@contextmanager
def sessions_in_autocommit(app: Application) -> Iterator[list[Session | Connection]]:
    with ExitStack() as closing:
        autocommit = app.at("AUTOCOMMIT")
        by_session = closing.enter_context(app.session())
        by_session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        by_connection = closing.enter_context(app.engine.connect())
        yield [
            closing.enter_context(autocommit.session()),
            closing.enter_context(autocommit.engine.connect()),
            by_session,
            by_connection.execution_options(isolation_level="AUTOCOMMIT"),
        ]


def test_autocommit_is_refused(shop: Shop) -> None:
    with sessions_in_autocommit(shop.app) as sessions:
        for session in sessions:
            with pytest.raises(SessionError, match="AUTOCOMMIT"):
                shop.producer.produce(Message(b""), session=session)
            session.commit()

    assert shop.events == []


def test_an_engine_made_for_autocommit_is_refused(shop: Shop, database: DatabaseUnderTest) -> None:
    with (
        shop.app.on_url(database.url, isolation_level="AUTOCOMMIT") as app,
        app.session() as session,
        pytest.raises(SessionError, match="AUTOCOMMIT"),
    ):
        shop.producer.produce(Message(b""), session=session)

    assert shop.events == []


@pytest.mark.sync_only("the drivers for asyncio have no such attribute")
@POSTGRES
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_autocommit_of_the_driver_is_refused(shop: Shop, database: DatabaseUnderTest, driver: str) -> None:
    engine = create_engine(database.url.replace("+psycopg", f"+{driver}"))
    event.listen(engine, "connect", lambda connection, _record: setattr(connection, "autocommit", True))
    with Session(engine) as session, pytest.raises(SessionError, match="AUTOCOMMIT"):
        shop.producer.produce(Message(b""), session=session)
    engine.dispose()

    assert shop.events == []


@SQLITE
def test_transactions_that_an_event_begins_on_sqlite_publish(shop: Shop, database: DatabaseUnderTest) -> None:
    with shop.app.with_savepoints(database.url) as app, app.session() as session:
        shop.producer.produce(Message(b"first", b"k"), session=session)
        shop.sell(session, "a")
        session.commit()
        shop.sell(session, "b")
        session.rollback()

    assert (shop.events, shop.orders) == (["first", "a"], ["a"])


@pytest.fixture
def others(database: DatabaseUnderTest, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The URLs of other databases."""
    urls = [f"sqlite:///{tmp_path / 'other.db'}", "sqlite://"]
    if not database.is_postgres:
        yield urls
        return
    databases: PostgresDatabases = request.getfixturevalue("postgres_databases")
    name = databases.create_empty()
    yield [*urls, databases.url(name)]
    databases.drop(name)


def test_another_database_is_refused(shop: Shop, others: list[str]) -> None:
    for url in others:
        with shop.app.on_url(url) as other:
            with other.session() as session, pytest.raises(SessionError, match="another database"):
                shop.producer.produce(Message(b""), session=session)
            with other.engine.connect() as connection, pytest.raises(SessionError, match="another database"):
                shop.producer.produce(Message(b""), session=connection)

    assert shop.events == []


@pytest.mark.sync_only("it is about the search path, which each driver takes in another way")
@POSTGRES
def test_another_queue_in_the_same_database_is_refused(shop: Shop, database: DatabaseUnderTest) -> None:
    # As of an application that keeps each of its customers in a schema, and finds it by the search path.
    with shop.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA other"))
        connection.execute(text("CREATE SCHEMA empty"))
    engines = [
        create_engine(database.url, connect_args={"options": f"-csearch_path={schema}"})
        for schema in ("other", "empty")
    ]
    with engines[0].begin() as connection:
        upgrade(connection)
    with MQ(engines[0]) as other:
        other.create_topic("letters", 3)
        for engine in engines:
            with Session(engine) as session, pytest.raises(SessionError, match="another database"):
                shop.producer.produce(Message(b""), session=session)
        messages = other.admin.describe_topic("letters").messages
    for engine in engines:
        engine.dispose()

    assert (messages, shop.events) == (0, [])


@SQLITE
def test_the_same_file_by_another_name_is_the_same_database(
    shop: Shop, database: DatabaseUnderTest, tmp_path: Path
) -> None:
    path = Path(str(make_url(database.url).database))
    (tmp_path / "link").symlink_to(path.parent, target_is_directory=True)
    url = f"sqlite:///{tmp_path / 'link' / path.name}"
    with shop.app.on_url(url) as app, app.session() as session:
        shop.sell(session, "a")
        session.commit()

    assert shop.events == ["a"]


@pytest.mark.sync_only("no AsyncEngine can share a database in memory")
@SQLITE
def test_a_database_in_memory_is_refused(shop: Shop) -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    with MQ(engine) as mq, Session(engine) as session, pytest.raises(SessionError, match="in memory"):
        mq.producer("events").produce(Message(b""), session=session)
    engine.dispose()
    with MQ("sqlite://") as mq, Session(mq.engine) as session, pytest.raises(SessionError, match="in memory"):
        mq.producer("events").produce(Message(b""), session=session)

    assert shop.events == []


def test_a_closed_connection_is_refused(shop: Shop) -> None:
    with shop.connect() as connection:
        pass

    with pytest.raises(SessionError, match="closed"):
        shop.producer.produce(Message(b""), session=connection)


@BOTH
def test_a_connection_whose_commit_has_failed_is_refused_until_it_is_rolled_back(shop: Shop) -> None:
    with shop.connect() as connection:
        shop.mq.create_topic("gone", 1)
        shop.mq.producer("gone").produce(Message(b""), session=connection)
        shop.mq.delete_topics("gone")
        with pytest.raises(UnknownTopicError):
            connection.commit()

        with pytest.raises(SessionError, match="roll it back"):
            shop.producer.produce(Message(b"lost"), session=connection)
        connection.rollback()
        shop.sell(connection, "a")
        connection.commit()

    assert shop.events == shop.orders == ["a"]


@BOTH
def test_a_connection_that_was_lost_in_its_transaction_is_refused_until_it_is_rolled_back(shop: Shop) -> None:
    with shop.connect() as connection:
        shop.sell(connection, "lost")
        connection.invalidate()
        with pytest.raises(SessionError, match="roll it back"):
            shop.producer.produce(Message(b"lost"), session=connection)
        connection.rollback()
        shop.sell(connection, "a")
        connection.commit()

    assert shop.events == shop.orders == ["a"]


@pytest.mark.sync_only("an AsyncConnection can't be detached")
@BOTH
def test_a_connection_that_was_detached_publishes(shop: Shop, database: DatabaseUnderTest) -> None:
    with shop.app.with_savepoints(database.url) as app, app.engine.connect() as connection:
        connection.detach()
        shop.sell(connection, "a")
        connection.commit()

    assert shop.events == shop.orders == ["a"]


def test_a_session_that_is_closed_for_good_is_refused(shop: Shop) -> None:
    session = shop.session(close_resets_only=False)
    session.close()

    with pytest.raises(SessionError, match="closed"):
        shop.producer.produce(Message(b""), session=session)


def test_a_session_that_was_not_begun_and_may_not_begin_by_itself_is_refused(shop: Shop) -> None:
    with shop.session(autobegin=False) as session, pytest.raises(SessionError, match=r"[Aa]utobegin"):
        shop.producer.produce(Message(b""), session=session)


def test_a_session_without_any_bind_is_refused(shop: Shop) -> None:
    with shop.session(bind=None) as session, pytest.raises(SessionError, match=r"[Bb]ind"):
        shop.producer.produce(Message(b""), session=session)


@pytest.mark.parametrize("wrong", ["session", 1, object(), sessionmaker, Session])
def test_what_is_no_session_is_a_type_error(shop: Shop, wrong: Any) -> None:
    with pytest.raises(TypeError, match="Session"):
        shop.producer.produce(Message(b""), session=wrong)


def test_an_engine_is_no_session(shop: Shop) -> None:
    engine: Any = shop.app.engine

    with pytest.raises(TypeError, match=r"not (Async)?Engine"):
        shop.producer.produce(Message(b""), session=engine)


def test_a_timeout_makes_no_sense_with_a_session(shop: Shop) -> None:
    produce: Any = shop.producer.produce
    place: Any = shop.producer.produce_with_partition
    with shop.session() as session:
        with pytest.raises(ValueError, match="timeout has no meaning"):
            produce(Message(b""), timeout=1, session=session)
        with pytest.raises(ValueError, match="timeout has no meaning"):
            place(Message(b""), 0, timeout=1, session=session)
        session.commit()

    assert shop.events == []


def test_a_message_that_is_too_large_is_refused_at_the_call(shop: Shop, make_mq: MakeMQ) -> None:
    producer = make_mq(max_message_bytes=100).producer("events")
    with shop.session() as session:
        with pytest.raises(MessageTooLargeError, match="101 bytes"):
            producer.produce(Message(bytes(101)), session=session)
        with pytest.raises(MessageTooLargeError, match="101 bytes"):
            producer.produce_many([Message(b"a"), Message(bytes(101))], session=session)
        session.commit()

    assert shop.events == []


def test_what_was_published_before_the_producer_and_its_mq_were_closed_is_committed(
    shop: Shop, make_mq: MakeMQ
) -> None:
    mq = make_mq()
    producer = mq.producer("events")
    with shop.session() as session:
        shop.sell(session, "a", producer)
        producer.close()
        with pytest.raises(ProducerClosedError):
            shop.sell(session, "b", producer)
        mq.close()
        session.rollback()
        assert shop.events == []

    mq = make_mq()
    producer = mq.producer("events")
    with shop.session() as session:
        publication = shop.sell(session, "c", producer)
        mq.close()
        session.commit()

    assert publication.result is not None
    assert shop.events == shop.orders == ["c"]


# --- Order, place, locks ---


def test_messages_of_a_transaction_keep_their_order_in_each_partition(shop: Shop) -> None:
    with shop.session() as session, session.begin():
        publications = [
            shop.producer.produce_with_partition(Message(b"%d" % i), (i * 7) % 3, session=session) for i in range(60)
        ]

    expected: dict[int, list[str]] = {}
    for i in range(60):
        expected.setdefault((i * 7) % 3, []).append(str(i))
    assert shop.log() == dict(sorted(expected.items()))
    for i, publication in enumerate(publications):
        assert publication.result is not None
        assert shop.log()[publication.partition][publication.result.offset] == str(i)


def test_messages_without_a_key_go_to_one_partition_in_a_transaction_and_take_turns_between_them(shop: Shop) -> None:
    partitions = []
    for _ in range(3):
        with shop.session() as session, session.begin():
            publications = [shop.producer.produce(Message(b""), session=session) for _ in range(3)]
            publications += shop.producer.produce_many([Message(b"")] * 2, session=session)
            publications.append(shop.mq.producer("events").produce(Message(b""), session=session))
        (partition,) = {publication.partition for publication in publications}
        partitions.append(partition)

    assert sorted(partitions) == [0, 1, 2]


def test_more_messages_than_one_statement_takes_are_one_transaction(shop: Shop) -> None:
    with shop.session() as session, session.begin():
        publications = shop.producer.produce_many((Message(b"%d" % i) for i in range(5_001)), session=session)

    (partition,) = {publication.partition for publication in publications}
    assert shop.log() == {partition: [str(i) for i in range(5_001)]}


def test_more_messages_than_one_statement_takes_keep_their_places_in_several_partitions(shop: Shop) -> None:
    # Statements end within a partition, and where the bytes are enough.
    contents = [b"%d" % i + b"x" * (900_000 if i < 20 else 0) for i in range(9_000)]
    with shop.session() as session, session.begin():
        publications = [
            shop.producer.produce_with_partition(Message(value), i % 3, session=session)
            for i, value in enumerate(contents)
        ]

    log = shop.log()
    assert {partition: len(messages) for partition, messages in log.items()} == dict.fromkeys(range(3), 3_000)
    for value, publication in zip(contents, publications, strict=True):
        assert publication.result is not None
        assert log[publication.partition][publication.result.offset] == value.decode()


def test_a_publication_shows_where_it_is(shop: Shop) -> None:
    with shop.session() as session:
        publication = shop.producer.produce_with_partition(Message(b""), 2, session=session)
        before = repr(publication)
        session.commit()
        after = repr(publication)
        lost = shop.producer.produce_with_partition(Message(b""), 2, session=session)
        session.rollback()

    assert before == repr(lost) == "<Publication to events/2, not in the log>"
    assert after == "<Publication to events/2, at offset 0>"
    assert (publication.topic, publication.partition, lost.result) == ("events", 2, None)


def test_no_lock_is_held_before_the_commit(shop: Shop, make_mq: MakeMQ) -> None:
    with shop.session() as session:
        publications = [
            shop.producer.produce_with_partition(Message(b"later"), partition, session=session)
            for partition in range(3)
        ]
        for partition in range(3):
            result = make_mq().producer("events").produce_with_partition(Message(b"first"), partition, timeout=5)
            assert result.offset == 0
        session.commit()

    assert [publication.result for publication in publications] == [("events", number, 1) for number in range(3)]


@POSTGRES
def test_partitions_are_locked_in_order_of_id_whatever_the_order_of_the_messages(shop: Shop) -> None:
    topics = [shop.mq.producer(f"topic-{i}") for i in range(4)]
    calls: list[Any] = []

    def note(_conn: Connection, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if "sqlmq_publish" in statement:
            calls.append(parameters[0])

    event.listen(sync_of(shop.app.engine), "before_cursor_execute", note)
    with shop.session() as session, session.begin():
        for producer in reversed(topics):
            for partition in (2, 0, 1):
                producer.produce_with_partition(Message(b""), partition, session=session)

    (ids,) = calls
    assert len(ids) == 12
    assert list(ids) == sorted(ids)


# --- Waking ---


def test_an_idle_consumer_gets_a_message_as_soon_as_it_is_committed(shop: Shop, make_mq: MakeMQ) -> None:
    mq = make_mq(poll_min_seconds=25, poll_max_seconds=PATIENCE_SECONDS)
    # On SQLite, the commit would be noticed otherwise, too.
    mq._background.poller._can_watch = False
    consumer = mq.consumer("events", "billing")
    producer = mq.producer("events")
    until(lambda: consumer.poll(timeout=0) == [] and len(consumer.partitions) == 3, "all partitions")

    def publish() -> None:
        for number in range(5):
            until(lambda: consumer._core.is_waiting, "the consumer waits")
            with shop.session() as session:
                shop.sell(session, str(number), producer)
                session.commit()

    def consume() -> list[bytes]:
        return [consumer.consume(timeout=20).value for _ in range(5)]

    actions: list[Callable[[], object]] = [consume, publish]
    assert at_once(actions)[0] == [b"%d" % number for number in range(5)]


def test_a_message_wakes_no_consumer_before_its_commit(shop: Shop, make_mq: MakeMQ) -> None:
    # Without notices: whoever begins to listen is woken once.
    mq = make_mq(poll_min_seconds=PATIENCE_SECONDS, poll_max_seconds=PATIENCE_SECONDS, notify=False)
    mq._background.poller._can_watch = False
    producer, consumer = mq.producer("events"), mq.consumer("events", "billing")

    with ThreadPoolExecutor(1) as threads, shop.session() as session:
        receiving = threads.submit(lambda: consumer.consume(timeout=PATIENCE_SECONDS).value)
        until(lambda: consumer._core.is_waiting, "the consumer waits")
        count = consumer._core.wakeups.count
        producer.produce(Message(b"a"), session=session)
        count_before_commit = consumer._core.wakeups.count
        session.commit()
        received = receiving.result(PATIENCE_SECONDS / 3)

    assert (count_before_commit, received) == (count, b"a")
