"""Delayed messages in the application's own transaction: stored if it commits, gone if it does not."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from sqlmq import DelayedMessage, Message, UnknownTopicError
from sqlmq.errors import SessionError
from tests.contract.transaction_shapes import EACH_SHAPE, LISTENS, Transacted
from tests.support.delayed import FUTURE, LONG, PAST, Staged
from tests.support.shop import Order, Shop, savepoint_trees
from tests.support.waiting import receive, until, values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from tests.conftest import DatabaseUnderTest, MakeMQ
    from tests.contract.transaction_shapes import Shape
    from tests.support.application import Application

BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)
EITHER = pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)


def remind(shop: Shop, session: Transacted, note: str) -> DelayedMessage:
    """Insert an order, and delay its event, both in the transaction of *session*."""
    session.execute(text("INSERT INTO customer_order (note) VALUES (:note)"), {"note": note})
    return shop.producer.schedule(Message(note.encode(), b"k"), delay_seconds=LONG, session=session)


# --- Whatever stands for a transaction ---


@EACH_SHAPE
@BOTH
def test_a_delayed_message_is_stored_when_its_transaction_has_committed_also_if_it_came_first(
    shop: Shop, transaction: Shape
) -> None:
    with transaction(shop.app) as session:
        first = shop.producer.schedule(Message(b"first", b"k"), delay_seconds=LONG, session=session)
        second = remind(shop, session, "a")
        assert shop.mq.admin.delayed("events") == []

    assert shop.mq.admin.delayed("events") == [first, second]
    assert shop.orders == ["a"]


@EACH_SHAPE
@BOTH
def test_a_delayed_message_is_gone_when_its_transaction_failed(shop: Shop, transaction: Shape) -> None:
    with pytest.raises(ZeroDivisionError), transaction(shop.app) as session:  # noqa: PT012 - it is what the block does
        remind(shop, session, "a")
        raise ZeroDivisionError
    with transaction(shop.app) as session:
        kept = remind(shop, session, "b")

    assert shop.mq.admin.delayed("events") == [kept]
    assert shop.orders == ["b"]


def test_all_ways_to_produce_take_a_session(shop: Shop, staged: Staged) -> None:
    consumer = shop.mq.consumer("events", "billing")
    with shop.session() as session, session.begin():
        one = shop.producer.schedule(Message(b"a"), delay_seconds=LONG, session=session)
        placed = shop.producer.schedule(Message(b"b"), partition=2, deliver_at=FUTURE, session=session)
        many = shop.producer.schedule_many([Message(b"c"), Message(b"d")], delay_seconds=2 * LONG, session=session)

    assert placed.partition == 2
    # Without a key, all of a transaction go to one partition.
    assert {one.partition} == {delayed.partition for delayed in many}
    assert shop.mq.admin.delayed("events") == [one, *many, placed]
    staged.make_due()
    assert sorted(values(receive(consumer, 4))) == [b"a", b"b", b"c", b"d"]


def test_messages_for_now_and_for_later_go_in_one_transaction(shop: Shop, staged: Staged) -> None:
    with shop.session() as session, session.begin():
        publication = shop.sell(session, "now")
        delayed = shop.producer.schedule(Message(b"later", b"k"), delay_seconds=LONG, session=session)

    assert publication.partition == delayed.partition
    assert (shop.events, shop.mq.admin.delayed("events")) == (["now"], [delayed])
    staged.make_due()
    shop.mq.consumer("events", "billing")
    until(lambda: shop.events == ["now", "later"], "both in the log")


def test_who_stores_it_moves_it_after_the_commit(shop: Shop) -> None:
    with shop.session() as session:
        shop.producer.schedule(Message(b"soon", b"k"), delay_seconds=0.1, session=session)
        shop.producer.schedule(Message(b"at once", b"k"), deliver_at=PAST, session=session)
        shop.producer.schedule(Message(b"never"), deliver_at=PAST, session=session)
        session.rollback()
        assert shop.events == []
        shop.producer.schedule(Message(b"soon", b"k"), delay_seconds=0.1, session=session)
        shop.producer.schedule(Message(b"at once", b"k"), deliver_at=PAST, session=session)
        session.commit()

    until(lambda: shop.events == ["at once", "soon"], "both in the log")


def test_a_forked_or_second_mq_on_the_same_engine_stores_for_itself(shop: Shop, make_mq: MakeMQ) -> None:
    other = make_mq().producer("events")
    with shop.session() as session, session.begin():
        shop.producer.schedule(Message(b"a", b"k"), delay_seconds=0.1, session=session)
        other.schedule(Message(b"b", b"k"), delay_seconds=0.2, session=session)

    until(lambda: shop.events == ["a", "b"], "both in the log")


@given(tree=savepoint_trees)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@BOTH
def test_savepoints_decide_as_they_decide_for_rows(shop: Shop, database: DatabaseUnderTest, tree: list[Any]) -> None:
    with shop.engine.begin() as connection:
        connection.execute(text("DELETE FROM customer_order"))
        connection.execute(text("DELETE FROM sqlmq_staged"))
    expected: list[str] = []
    with shop.app.with_savepoints(database.url) as app, app.session() as session:
        _follow(shop, session, tree, expected, "x")
        session.commit()

    stored = shop.mq.admin.delayed("events")

    assert shop.orders == expected
    assert [one.value_bytes for one in stored] == [len(note) for note in expected]
    assert shop.mq.admin.cancel_delayed(*[one.id for one in stored]) == [one.id for one in stored]


def _follow(shop: Shop, session: Session, tree: Sequence[Any], expected: list[str], name: str) -> None:
    for number, branch in enumerate(tree):
        note = f"{name}.{number}"
        if branch is None:
            remind(shop, session, note)
            expected.append(note)
            continue
        is_kept, inner = branch
        savepoint = session.begin_nested()
        kept: list[str] = []
        _follow(shop, session, inner, kept, note)
        if is_kept:
            savepoint.commit()
            expected += kept
        else:
            savepoint.rollback()


@EITHER
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_any_isolation_level_will_do(shop: Shop, make_mq: MakeMQ, level: str) -> None:
    with shop.app.at(level).session() as session:
        session.execute(text("SELECT count(*) FROM customer_order"))  # the transaction has its snapshot
        with make_mq() as other:
            other.producer("events").schedule(Message(b"meanwhile", b"k"), delay_seconds=LONG)
        delayed = shop.producer.schedule(Message(b"a", b"k"), delay_seconds=LONG, session=session)
        session.commit()
        second = shop.producer.schedule(Message(b"b", b"k"), delay_seconds=0, session=session)
        session.commit()

    until(lambda: shop.events == ["b"], "the second in the log")
    assert shop.mq.admin.delayed("events")[1:] == [delayed]
    assert second.id > delayed.id


@EITHER
def test_transactions_that_store_for_one_partition_do_not_wait_for_each_other(shop: Shop, make_mq: MakeMQ) -> None:
    for level in ("READ COMMITTED", "SERIALIZABLE"):
        with ExitStack() as stack:
            sessions = [stack.enter_context(shop.app.at(level).session()) for _ in range(3)]
            for number, session in enumerate(sessions):
                session.execute(text("SET LOCAL lock_timeout = '2s'"))
                shop.producer.schedule(Message(b"%d" % number, b"k"), delay_seconds=LONG, session=session)
            make_mq().producer("events").produce(Message(b"not held up", b"k"))
            for session in reversed(sessions):
                session.commit()

    assert len(shop.mq.admin.delayed("events")) == 6
    assert shop.events == ["not held up"] * 2


def test_a_handler_delays_in_the_transaction_of_its_messages(shop: Shop, staged: Staged) -> None:
    consumer = shop.mq.consumer("events", "billing")
    shop.producer.produce(Message(b"order", b"k"))

    with pytest.raises(ZeroDivisionError), consumer.transaction(timeout=10) as tx:  # noqa: PT012 - leaving it rolls back
        shop.producer.schedule(Message(b"reminder", b"k"), delay_seconds=LONG, session=tx.session)
        raise ZeroDivisionError
    assert len(staged) == 0
    with consumer.transaction(timeout=10) as tx:
        assert values(tx.messages) == [b"order"]
        first = shop.producer.schedule(Message(b"reminder", b"k"), delay_seconds=LONG, session=tx.session)
        second = shop.producer.schedule(Message(b"again", b"k"), delay_seconds=LONG, session=tx.connection)
        assert shop.mq.admin.cancel_delayed(first.id, session=tx.session) == [first.id]

    assert shop.mq.admin.delayed("events") == [second]
    staged.make_due()
    with consumer.transaction(timeout=10) as tx:
        assert values(tx.messages) == [b"again"]


@pytest.mark.sync_only("with asyncio the calls wait for the block, until the file is busy for too long")
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_handler_on_sqlite_that_would_wait_for_itself_is_told_so(shop: Shop) -> None:
    consumer = shop.mq.consumer("events", "billing")
    shop.producer.produce(Message(b"order", b"k"))

    with consumer.transaction(timeout=10) as tx:
        for call in (
            lambda: shop.producer.schedule(Message(b"reminder"), delay_seconds=LONG),
            lambda: shop.mq.admin.cancel_delayed(1),
        ):
            with pytest.raises(SessionError, match=r"session=tx\.session"):
                call()
        assert len(tx.messages) == 1


# --- Cancelled in a transaction ---


def test_messages_wait_on_when_the_transaction_that_cancelled_them_is_rolled_back(shop: Shop) -> None:
    first, second = shop.producer.schedule_many([Message(b"a"), Message(b"b")], delay_seconds=LONG)

    with shop.session() as session:
        assert shop.mq.admin.cancel_delayed(first.id, session=session) == [first.id]
        session.rollback()
        assert shop.mq.admin.delayed("events") == [first, second]
        assert shop.mq.admin.cancel_delayed(first.id, 999, session=session) == [first.id]
        session.commit()

    assert shop.mq.admin.delayed("events") == [second]


def test_a_message_waits_on_when_the_savepoint_that_cancelled_it_is_rolled_back(
    shop: Shop, database: DatabaseUnderTest
) -> None:
    kept, cancelled = shop.producer.schedule_many([Message(b"a"), Message(b"b")], delay_seconds=LONG)

    with shop.app.with_savepoints(database.url) as app, app.session() as session:
        savepoint = session.begin_nested()
        assert shop.mq.admin.cancel_delayed(kept.id, session=session) == [kept.id]
        savepoint.rollback()
        shop.mq.admin.cancel_delayed(cancelled.id, session=session)
        session.commit()

    assert shop.mq.admin.delayed("events") == [kept]


def test_what_a_transaction_has_stored_it_can_cancel(shop: Shop) -> None:
    with shop.app.engine.begin() as connection:
        delayed = remind(shop, connection, "a")
        assert shop.mq.admin.cancel_delayed(delayed.id, session=connection) == [delayed.id]

    assert (shop.mq.admin.delayed("events"), shop.orders) == ([], ["a"])


def test_an_mq_whose_first_call_is_to_cancel_in_a_session_has_its_tables(make_mq: MakeMQ, app: Application) -> None:
    mq = make_mq()

    with app.session() as session:
        assert mq.admin.cancel_delayed(1, session=session) == []
        session.commit()

    assert mq.admin.topics() == []


# --- Refused ---


def test_sessions_that_can_not_carry_a_message_are_refused(shop: Shop, staged: Staged) -> None:
    with (
        shop.app.at("AUTOCOMMIT").engine.connect() as committing,
        shop.app.on_url("sqlite://") as elsewhere,
        elsewhere.engine.connect() as other,
        shop.connect() as closed,
        shop.session() as failed,
    ):
        closed.close()
        failed.add_all([Order(note="a"), Order(note="a")])
        with pytest.raises(IntegrityError):
            failed.flush()
        for session, complaint in (
            (committing, "AUTOCOMMIT"),
            (other, "another database"),
            (closed, "is closed"),
            (failed, "can't carry"),
        ):
            with pytest.raises(SessionError, match=complaint):
                shop.producer.schedule(Message(b""), delay_seconds=LONG, session=session)
            with pytest.raises(SessionError, match=complaint):
                shop.mq.admin.cancel_delayed(1, session=session)

    assert len(staged) == 0


def test_what_is_no_session_is_refused(shop: Shop) -> None:
    wrong: Any = shop.app.engine

    with pytest.raises(TypeError, match=r"session= must be an? (Async)?Session"):
        shop.producer.schedule(Message(b""), delay_seconds=LONG, session=wrong)
    with pytest.raises(TypeError, match=r"session= must be an? (Async)?Session"):
        shop.mq.admin.cancel_delayed(1, session=wrong)


@LISTENS
def test_a_message_that_comes_while_its_transaction_commits_is_refused(shop: Shop, staged: Staged) -> None:
    refused: list[SessionError] = []

    def delay(connection: Connection) -> None:
        with pytest.raises(SessionError, match="being committed") as raised:
            shop.producer.schedule(Message(b"too late"), delay_seconds=LONG, session=connection)
        refused.append(raised.value)

    event.listen(shop.engine, "commit", delay)
    with shop.engine.begin() as connection:
        connection.execute(text("INSERT INTO customer_order (note) VALUES ('a')"))
    event.remove(shop.engine, "commit", delay)

    assert (len(refused), len(staged)) == (1, 0)


def test_a_topic_that_is_gone_is_told_at_once_and_a_new_one_of_its_name_is_found(shop: Shop, make_mq: MakeMQ) -> None:
    make_mq().delete_topics("events")

    with shop.session() as session:
        with pytest.raises(UnknownTopicError, match="events"):
            shop.producer.schedule(Message(b""), delay_seconds=LONG, session=session)
        session.rollback()
        shop.mq.create_topic("events", 2)
        delayed = shop.producer.schedule(Message(b""), delay_seconds=LONG, session=session)
        session.commit()

    assert shop.mq.admin.delayed("events") == [delayed]


@BOTH
def test_an_error_of_the_database_tells_no_content(shop: Shop) -> None:
    with shop.engine.begin() as connection:
        connection.execute(text("ALTER TABLE sqlmq_staged RENAME TO hidden"))

    with shop.session() as session, pytest.raises(DBAPIError) as raised:
        shop.producer.schedule(
            Message(b"a secret", b"a secret", {"a": "a secret"}), delay_seconds=LONG, session=session
        )
    with shop.engine.begin() as connection:
        connection.execute(text("ALTER TABLE hidden RENAME TO sqlmq_staged"))

    assert "sqlmq_staged" in str(raised.value)
    assert "a secret" not in str(raised.value)


@POSTGRES
def test_a_schema_translate_map_is_for_the_applications_tables(shop: Shop) -> None:
    engine = shop.app.engine.execution_options(schema_translate_map={None: "tenant"})
    with shop.session(bind=engine) as session, session.begin():
        delayed = shop.producer.schedule(Message(b"a"), delay_seconds=LONG, session=session)
        gone = shop.producer.schedule(Message(b"b"), delay_seconds=LONG, session=session)
        assert shop.mq.admin.cancel_delayed(gone.id, session=session) == [gone.id]

    assert shop.mq.admin.delayed("events") == [delayed]
