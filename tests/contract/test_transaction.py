"""Transactions: a group's position commits with the effects of the messages, in one transaction, or not at all."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, Integer, Pool, StaticPool, Text, create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, mapped_column, sessionmaker

from sqlmq import MQ, DatabaseUnavailableError, FencedError, Message, ReceivedMessage, SqlmqError, UnknownTopicError
from sqlmq.errors import (
    ConsumerClosedError,
    DatabaseError,
    ForkedError,
    IsolationError,
    SessionError,
    TransactionEndedError,
)
from tests.support.application import sync_of
from tests.support.blocking import acknowledge
from tests.support.waiting import PATIENCE_SECONDS, at_once, until, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.orm import Session

    from sqlmq import Consumer, Transaction
    from tests.conftest import DatabaseUnderTest, MakeMQ
    from tests.support.application import Application
    from tests.support.postgres_databases import PostgresDatabases

POSTGRES = pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)
SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
WAITS = pytest.mark.sync_only("with asyncio the call is made in another thread, which waits for the block")


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """The same table, as an ORM sees it."""

    __tablename__ = "effect"
    message_offset = mapped_column(Integer, primary_key=True)
    note = mapped_column(Text)


@pytest.fixture
def effects(engine: Engine, mq: MQ) -> Effects:
    """A table of the application's, in the same database, once the queue has made its own."""
    mq.admin.topics()
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE effect (partition_number INTEGER, message_offset INTEGER, note TEXT UNIQUE)")
        )
    return Effects(engine)


class Effects:
    """What handlers have done."""

    INSERT = text("INSERT INTO effect (partition_number, message_offset) VALUES (:p, :o)")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def have(self, tx: Transaction) -> None:
        """Handle all messages of *tx*."""
        for message in tx:
            tx.session.execute(self.INSERT, {"p": message.partition, "o": message.offset})

    def there(self) -> list[tuple[int, int]]:
        """The places of the messages that were handled, in the order of the partition."""
        with self._engine.connect() as connection:
            found = connection.execute(text("SELECT partition_number, message_offset FROM effect ORDER BY 1, 2"))
            return [(row[0], row[1]) for row in found]


def send(mq: MQ, count: int, *, partitions: int = 1, topic: str = "orders") -> list[tuple[int, int]]:
    """Put *count* messages into each partition of *topic*; return their places."""
    mq.create_topic(topic, partitions)
    producer = mq.producer(topic)
    futures = [
        producer.submit(Message(b"%d" % i), partition=partition)
        for partition in range(partitions)
        for i in range(count)
    ]
    return [(result.partition, result.offset) for result in (f.result(PATIENCE_SECONDS) for f in futures)]


def positions(mq: MQ) -> list[int]:
    return [partition.position for partition in mq.admin.describe_group("orders", "billing").partitions]


def handle_all(
    consumer: Consumer, effects: Effects, *, at_most: int = 100, **options: Any
) -> list[list[ReceivedMessage]]:
    """Handle what there is, in transactions of up to *at_most*; return the messages of each."""
    handled: list[list[ReceivedMessage]] = []
    while True:
        with consumer.transaction(max_messages=at_most, timeout=0, **options) as tx:
            effects.have(tx)
            if not tx.messages:
                return handled
            handled.append(tx.messages)


class HandlerError(Exception):
    """What a handler raises here."""


# --- Both or neither ---


@pytest.mark.pgbouncer
def test_effects_and_position_are_committed_together(mq: MQ, effects: Effects) -> None:
    places = send(mq, 5)

    with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
        effects.have(tx)
        before = (effects.there(), positions(mq)) if not mq._database.one_connection else None

    assert before == ([], [0])
    assert (effects.there(), positions(mq)) == (places, [5])


@pytest.mark.parametrize("error", [HandlerError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_undoes_both_and_the_messages_come_again(
    mq: MQ, effects: Effects, error: type[BaseException]
) -> None:
    places = send(mq, 3)
    consumer = mq.consumer("orders", "billing")

    with pytest.raises(error), consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
        effects.have(tx)
        raise error

    assert (effects.there(), positions(mq)) == ([], [0])
    assert [values(messages) for messages in handle_all(consumer, effects)] == [[b"0", b"1", b"2"]]
    assert effects.there() == places


def test_messages_are_of_one_partition_in_order_and_no_more_than_asked_for(mq: MQ, effects: Effects) -> None:
    send(mq, 25, partitions=3)

    handled = handle_all(mq.consumer("orders", "billing"), effects, at_most=10)

    assert all(len({message.partition for message in messages}) == 1 for messages in handled)
    assert max(map(len, handled)) == 10
    for partition in range(3):
        own = [m.offset for messages in handled for m in messages if m.partition == partition]
        assert own == list(range(25))


def test_messages_arrive_whole(mq: MQ) -> None:
    sent = Message(b"\x00value", b"key", {"type": "täxt"})
    mq.producer("orders").produce(sent)

    with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
        (message,) = tx

    assert (message.value, message.key, dict(message.headers)) == (sent.value, sent.key, dict(sent.headers))
    assert message.topic == "orders"
    assert message.timestamp is not None


def test_what_was_handled_does_not_come_again_to_another_consumer(make_mq: MakeMQ, effects: Effects) -> None:
    mq, other = make_mq(), make_mq()
    send(mq, 4)
    handle_all(mq.consumer("orders", "billing"), effects, at_most=3)

    with other.consumer("orders", "billing").transaction(timeout=0) as tx:
        assert tx.messages == []


def test_groups_do_not_share_positions(mq: MQ, effects: Effects) -> None:
    send(mq, 2)
    handle_all(mq.consumer("orders", "billing"), effects)

    assert [values(messages) for messages in handle_all(mq.consumer("orders", "audit"), effects)] == [[b"0", b"1"]]


def test_a_group_that_starts_at_the_end_reads_only_what_comes_after(mq: MQ, effects: Effects) -> None:
    send(mq, 2)
    consumer = mq.consumer("orders", "billing", start="latest")
    send(mq, 1)

    assert [[m.offset for m in messages] for messages in handle_all(consumer, effects)] == [[2]]


def test_the_session_keeps_objects_and_savepoints_until_the_end(mq: MQ, effects: Effects) -> None:
    send(mq, 1)

    with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
        effects.have(tx)
        with pytest.raises(HandlerError), tx.session.begin_nested():
            effects.have(tx)
            raise HandlerError
        with tx.session.begin_nested():
            tx.connection.execute(Effects.INSERT, {"p": 7, "o": 7})

    assert (effects.there(), positions(mq)) == ([(0, 0), (7, 7)], [1])


@pytest.mark.parametrize("own_session", [False, True])
@pytest.mark.parametrize("of", ["session", "connection"])
def test_a_savepoint_left_open_is_kept(
    mq: MQ, app: Application, effects: Effects, of: str, *, own_session: bool
) -> None:
    send(mq, 1)
    source = app.sessionmaker() if own_session else None

    with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS, session=source) as tx:
        getattr(tx, of).begin_nested()
        effects.have(tx)

    assert (effects.there(), positions(mq)) == ([(0, 0)], [1])


def test_old_positions_are_deleted(mq: MQ, engine: Engine, database: DatabaseUnderTest) -> None:
    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many([Message(b"") for _ in range(2_500)])
    consumer = mq.consumer("orders", "billing")

    for _ in range(25):
        with consumer.transaction(max_messages=100, timeout=PATIENCE_SECONDS) as tx:
            assert len(tx.messages) == 100

    prefix = f"{database.schema}." if database.schema else ""
    with engine.connect() as connection:
        kept = list(
            connection.execute(text(f"SELECT committed_offset FROM {prefix}sqlmq_group_offset ORDER BY 1")).scalars()
        )
    assert kept == [2_000, 2_100, 2_200, 2_300, 2_400, 2_500]


@pytest.mark.parametrize("kind", ["sessionmaker", "Session"])
def test_a_database_that_can_not_be_reached_leaves_a_session_free_for_another_try(
    mq: MQ, app: Application, effects: Effects, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    places = send(mq, 2)
    consumer = mq.consumer("orders", "billing")
    session = app.session()
    source: Any = session if kind == "Session" else app.sessionmaker()
    with consumer.transaction(max_messages=1, timeout=0, session=source) as tx:
        effects.have(tx)
    begin, refusals = mq._database.dialect.begin, iter([True])

    def refuse(connection: Connection) -> None:
        if next(refusals, False):
            message = "not now"
            raise DatabaseUnavailableError(message)
        begin(connection)

    monkeypatch.setattr(mq._database.dialect, "begin", refuse)
    with pytest.raises(DatabaseUnavailableError), consumer.transaction(timeout=0, session=source):
        pass
    assert not session.in_transaction()
    with consumer.transaction(timeout=PATIENCE_SECONDS, session=source) as tx:
        effects.have(tx)
    session.close()

    assert effects.there() == places


@pytest.mark.parametrize("kind", [None, "sessionmaker"])
def test_a_passing_error_before_the_block_is_tried_again(
    mq: MQ, app: Application, effects: Effects, monkeypatch: pytest.MonkeyPatch, kind: str | None
) -> None:
    places = send(mq, 1)
    consumer = mq.consumer("orders", "billing")
    begin, refusals = mq._database.dialect.begin, iter([True, True, True])

    def refuse(connection: Connection) -> None:
        if next(refusals, False):
            message = "not now"
            raise DatabaseUnavailableError(message)
        begin(connection)

    monkeypatch.setattr(mq._database.dialect, "begin", refuse)
    with consumer.transaction(timeout=PATIENCE_SECONDS, session=app.sessionmaker() if kind else None) as tx:
        effects.have(tx)

    assert effects.there() == places


# --- Waiting ---


def test_without_messages_the_block_runs_with_none_and_is_committed(mq: MQ, effects: Effects) -> None:
    consumer = mq.consumer("orders", "billing")

    with consumer.transaction(timeout=0.1) as tx:
        assert tx.messages == []
        assert list(tx) == []
        tx.session.execute(Effects.INSERT, {"p": 1, "o": 2})

    assert effects.there() == [(1, 2)]


def test_without_messages_an_exception_rolls_back(mq: MQ, effects: Effects) -> None:
    with pytest.raises(HandlerError), mq.consumer("orders", "billing").transaction(timeout=0) as tx:
        tx.session.execute(Effects.INSERT, {"p": 1, "o": 2})
        raise HandlerError

    assert effects.there() == []


def test_a_transaction_waits_for_messages(mq: MQ, effects: Effects) -> None:
    mq.create_topic("orders", 1)
    consumer = mq.consumer("orders", "billing")

    with ThreadPoolExecutor(1) as threads:
        handled = threads.submit(lambda: _handle_once(consumer, effects))
        until(lambda: consumer._core.is_waiting, "the consumer to wait")
        send(mq, 1)
        assert handled.result(PATIENCE_SECONDS) == [b"0"]

    assert effects.there() == [(0, 0)]


def test_closing_the_consumer_ends_the_wait(mq: MQ, effects: Effects) -> None:
    consumer = mq.consumer("orders", "billing")

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: _handle_once(consumer, effects))
        until(lambda: consumer._core.is_waiting, "the consumer to wait")
        consumer.close()
        with pytest.raises(ConsumerClosedError):
            waiting.result(PATIENCE_SECONDS)


def test_a_waiting_transaction_holds_neither_connection_nor_lock(mq: MQ, effects: Effects) -> None:
    consumer = mq.consumer("orders", "billing")

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: _handle_once(consumer, effects))
        until(lambda: consumer._core.is_waiting, "the consumer to wait")
        until(mq._database._drain_gate.is_unused, "all connections to be given back")
        consumer.close()
        with pytest.raises(ConsumerClosedError):
            waiting.result(PATIENCE_SECONDS)


def test_a_closed_consumer_begins_no_transaction(mq: MQ) -> None:
    consumer = mq.consumer("orders", "billing")
    consumer.close()

    with pytest.raises(ConsumerClosedError), consumer.transaction():
        pass


def test_a_transaction_that_has_begun_ends_normally_while_its_consumer_is_closed(mq: MQ, effects: Effects) -> None:
    send(mq, 1)
    consumer = mq.consumer("orders", "billing")

    with ThreadPoolExecutor(1) as threads:
        with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
            closing = threads.submit(consumer.close)
            until(lambda: consumer.closed, "the consumer to be closed")
            effects.have(tx)
        closing.result(PATIENCE_SECONDS)

    assert (effects.there(), positions(mq)) == ([(0, 0)], [1])


def test_a_transaction_is_used_once(mq: MQ) -> None:
    tx = mq.consumer("orders", "billing").transaction(timeout=0)
    for part in ("messages", "session", "connection"):
        with pytest.raises(SessionError, match="has not begun"):
            getattr(tx, part)
    with tx:
        pass

    with pytest.raises(SessionError, match="used once"), tx:
        pass


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_messages": 0}, ValueError),
        ({"max_messages": True}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"session": 5}, TypeError),
    ],
)
def test_bad_arguments_are_refused_at_once(mq: MQ, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        mq.consumer("orders", "billing").transaction(**arguments)


def _handle_once(consumer: Consumer, effects: Effects) -> list[bytes]:
    with consumer.transaction() as tx:
        effects.have(tx)
        return values(tx)


# --- Several at once ---


@pytest.mark.pgbouncer
def test_many_consumers_at_once_have_each_effect_once_and_in_order(make_mq: MakeMQ, effects: Effects) -> None:
    mq, other = make_mq(), make_mq()
    places = send(mq, 40, partitions=4)
    consumers = [one.consumer("orders", "billing") for one in (mq, other) for _ in range(3)]
    seen: dict[int, list[int]] = {number: [] for number in range(4)}
    seeing = threading.Lock()

    def work(consumer: Consumer) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while sum(map(len, seen.values())) < len(places):
            assert time.monotonic() < deadline
            with consumer.transaction(max_messages=7, timeout=0.05) as tx:
                effects.have(tx)
                with seeing:
                    for message in tx:
                        assert message.partition is not None
                        assert message.offset is not None
                        seen[message.partition].append(message.offset)

    at_once([partial(work, consumer) for consumer in consumers])

    assert effects.there() == places
    assert seen == {number: list(range(40)) for number in range(4)}


def test_threads_that_share_a_consumer_have_each_effect_once(mq: MQ, effects: Effects) -> None:
    places = send(mq, 30, partitions=3)
    consumer = mq.consumer("orders", "billing")

    at_once([lambda: handle_all(consumer, effects, at_most=5)] * 4)
    handle_all(consumer, effects)

    assert effects.there() == places


@POSTGRES
def test_two_transactions_hold_different_partitions_at_the_same_time(mq: MQ) -> None:
    send(mq, 1, partitions=2)
    consumer = mq.consumer("orders", "billing")

    with consumer.transaction(timeout=0) as one, consumer.transaction(timeout=0) as other:
        assert {message.partition for tx in (one, other) for message in tx} == {0, 1}
        with consumer.transaction(timeout=0) as third:
            assert third.messages == []


def test_no_partition_starves(mq: MQ, effects: Effects) -> None:
    send(mq, 10, partitions=3)
    consumer = mq.consumer("orders", "billing")

    served = [messages[0].partition for messages in handle_all(consumer, effects, at_most=1)]

    assert len(served) == 30
    assert Counter(served[:6]) == {0: 2, 1: 2, 2: 2}


def test_a_partition_whose_handler_fails_does_not_keep_the_others_waiting(mq: MQ, effects: Effects) -> None:
    send(mq, 3, partitions=4)
    consumer = mq.consumer("orders", "billing")
    poisoned = {0, 1}
    tried: list[int] = []

    for _ in range(16):
        try:
            with consumer.transaction(max_messages=1, timeout=0) as tx:
                (message,) = tx
                assert message.partition is not None
                tried.append(message.partition)
                if message.partition in poisoned:
                    raise HandlerError
                effects.have(tx)
        except HandlerError:
            pass

    assert effects.there() == list(itertools.product((2, 3), range(3)))
    counts = Counter(tried)
    assert abs(counts[0] - counts[1]) <= 1


# --- Beside members that claim by lease ---


def test_what_was_polled_is_finished_and_given_back_first(mq: MQ, effects: Effects) -> None:
    send(mq, 3)
    consumer = mq.consumer("orders", "billing")
    assert len(consumer.poll(2, timeout=PATIENCE_SECONDS)) == 2

    handled = handle_all(consumer, effects)

    assert [[m.offset for m in messages] for messages in handled] == [[2]]
    assert consumer.partitions == ()


def test_a_transaction_takes_no_partition_of_a_live_member(make_mq: MakeMQ, effects: Effects) -> None:
    leasing, transacting = make_mq(), make_mq()
    send(leasing, 2, partitions=2)
    member = leasing.consumer("orders", "billing")
    until(lambda: member.poll(timeout=0) == [] and len(member.partitions) == 2, "the member to have all partitions")
    send(leasing, 1, partitions=2)

    assert handle_all(transacting.consumer("orders", "billing"), effects) == []


def test_a_transaction_takes_the_partitions_of_a_dead_member_and_fences_it(make_mq: MakeMQ, effects: Effects) -> None:
    leasing, transacting = make_mq(lease_seconds=0.5), make_mq()
    send(leasing, 2)
    member = leasing.consumer("orders", "billing")
    assert len(member.poll(1, timeout=PATIENCE_SECONDS)) == 1
    leasing._background.heartbeat.stop()
    leasing._background.housekeeping.stop()
    consumer = transacting.consumer("orders", "billing")

    with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
        effects.have(tx)
        if not transacting._database.dialect.one_writer:
            # Refused at once, rather than when the transaction is over.
            with pytest.raises(FencedError):
                member.commit()

    assert effects.there() == [(0, 0), (0, 1)]


@pytest.mark.parametrize("is_closing", [False, True], ids=["commit", "close"])
def test_a_member_whose_partition_transactions_have_read_on_moves_no_position(
    make_mq: MakeMQ, effects: Effects, is_closing: bool
) -> None:
    leasing, transacting = make_mq(lease_seconds=0.5), make_mq()
    send(leasing, 3)
    member = leasing.consumer("orders", "billing")
    assert len(member.poll(3, timeout=PATIENCE_SECONDS)) == 3
    leasing._background.heartbeat.stop()
    leasing._background.housekeeping.stop()
    # Its claim is free by then, and no other member has raised the epoch.
    with transacting.consumer("orders", "billing").transaction(max_messages=1, timeout=PATIENCE_SECONDS) as tx:
        effects.have(tx)

    if is_closing:
        acknowledge(member)
        member.close()
    else:
        with pytest.raises(FencedError):
            member.commit()

    assert positions(transacting) == [1]


def test_a_run_whose_partition_transactions_have_read_on_parks_nothing(make_mq: MakeMQ, effects: Effects) -> None:
    leasing, transacting = make_mq(lease_seconds=0.5), make_mq()
    send(leasing, 3)
    member = leasing.consumer("orders", "billing")
    is_handling, may_fail = threading.Event(), threading.Event()

    def fail(message: ReceivedMessage) -> None:
        is_handling.set()
        assert may_fail.wait(PATIENCE_SECONDS)
        raise ValueError(message.offset)

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(member.run, fail, on_failure="park", handle_signals=False)
        assert is_handling.wait(PATIENCE_SECONDS)
        leasing._background.heartbeat.stop()
        leasing._background.housekeeping.stop()
        with transacting.consumer("orders", "billing").transaction(max_messages=1, timeout=PATIENCE_SECONDS) as tx:
            effects.have(tx)
        member.stop()
        may_fail.set()
        running.result(PATIENCE_SECONDS)

    assert transacting.admin.parked("orders", "billing").list() == []
    assert positions(transacting) == [1]


@POSTGRES
def test_a_member_is_not_given_a_partition_that_a_transaction_holds(make_mq: MakeMQ, effects: Effects) -> None:
    transacting, leasing = make_mq(), make_mq()
    send(transacting, 2, partitions=2)
    member = leasing.consumer("orders", "billing")

    with transacting.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
        (held,) = {message.partition for message in tx}
        until(lambda: bool(member.poll(timeout=0)), "the member to get the other partition")
        assert held not in member.partitions
        effects.have(tx)

    assert len(effects.there()) == 2


# --- Sessions of the application's own ---


@contextmanager
def source_of(kind: str, app: Application) -> Iterator[Any]:
    """Give what may be given as ``session=``; None stands for a session of the queue's own."""
    with ExitStack() as closing:
        match kind:
            case "none":
                yield None
            case "sessionmaker":
                yield app.sessionmaker()
            case "sessionmaker without autobegin":
                yield app.sessionmaker(autobegin=False)
            case "callable":
                yield app.session
            case "Session":
                yield closing.enter_context(app.session())
            case "scoped_session":
                scoped = app.scoped_session()
                closing.callback(scoped.remove)
                yield scoped
            case "Connection":
                yield closing.enter_context(app.engine.connect())
            case "Session on a Connection":
                yield app.session(bind=closing.enter_context(app.engine.connect()))
            case _:
                raise AssertionError(kind)


KINDS_OF_SOURCE = [
    "sessionmaker",
    "sessionmaker without autobegin",
    "callable",
    "Session",
    "scoped_session",
    "Connection",
    "Session on a Connection",
]


@pytest.fixture
def source(request: pytest.FixtureRequest, app: Application) -> Iterator[Any]:
    """One of them, by its name; on SQLite it checks foreign keys."""
    if app.engine.dialect.name == "sqlite":
        # For all engines, because an AsyncMQ makes one of its own for its transactions.
        event.listen(Pool, "connect", check_foreign_keys)
        app.engine.dispose()
    with source_of(request.param, app) as source:
        yield source
    if app.engine.dialect.name == "sqlite":
        event.remove(Pool, "connect", check_foreign_keys)


def check_foreign_keys(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


ANY_SOURCE = pytest.mark.parametrize("source", ["none", *KINDS_OF_SOURCE], indirect=True)


@pytest.mark.each_driver
@pytest.mark.parametrize("source", KINDS_OF_SOURCE, indirect=True)
def test_effects_commit_through_what_the_application_gives(mq: MQ, effects: Effects, source: Any) -> None:
    places = send(mq, 4)
    consumer = mq.consumer("orders", "billing")

    with consumer.transaction(max_messages=2, timeout=PATIENCE_SECONDS, session=source) as tx:
        effects.have(tx)
    with (
        pytest.raises(HandlerError),
        consumer.transaction(max_messages=2, timeout=PATIENCE_SECONDS, session=source) as tx,
    ):
        effects.have(tx)
        raise HandlerError

    assert (effects.there(), positions(mq)) == (places[:2], [2])
    handle_all(consumer, effects, session=source)
    assert effects.there() == places


def test_a_session_of_the_applications_is_left_open_and_one_that_was_made_is_closed(mq: MQ, app: Application) -> None:
    send(mq, 2)
    consumer = mq.consumer("orders", "billing")
    made: list[Session] = []

    def make() -> Session:
        made.append(app.session(close_resets_only=False))
        return made[-1]

    own = app.session(close_resets_only=False)
    with consumer.transaction(max_messages=1, timeout=PATIENCE_SECONDS, session=own) as tx:
        assert tx.session == own
        assert tx.connection == own.connection()
    with consumer.transaction(max_messages=1, timeout=PATIENCE_SECONDS, session=make) as tx:
        assert tx.session == made[0]

    assert not own.in_transaction()
    own.execute(text("SELECT 1"))
    own.close()
    with pytest.raises(InvalidRequestError, match="closed"):
        made[0].execute(text("SELECT 1"))


def test_what_makes_no_session_is_refused(mq: MQ) -> None:
    not_a_session: Any = dict

    with (
        pytest.raises(TypeError, match="made dict"),
        mq.consumer("orders", "billing").transaction(session=not_a_session),
    ):
        pass


def test_a_session_without_a_database_is_refused(mq: MQ, app: Application) -> None:
    with pytest.raises(SessionError, match="bound to no database"):
        with mq.consumer("orders", "billing").transaction(session=app.session(bind=None)):
            pass


def test_what_is_in_a_transaction_already_is_refused(mq: MQ, app: Application) -> None:
    send(mq, 1)
    consumer = mq.consumer("orders", "billing")

    with app.session() as session, app.engine.connect() as connection:
        session.execute(text("SELECT 1"))
        connection.execute(text("SELECT 1"))
        for given in (session, connection, app.session(bind=connection)):
            with pytest.raises(SessionError, match="in a transaction already"):
                with consumer.transaction(session=given):
                    pass
        assert session.in_transaction()
        assert connection.in_transaction()

    assert positions(mq) == [0]


def test_autocommit_is_refused(mq: MQ, database: DatabaseUnderTest, app: Application, effects: Effects) -> None:
    send(mq, 1)
    consumer = mq.consumer("orders", "billing")

    with app.on_url(database.url, isolation_level="AUTOCOMMIT") as made_for_it:
        for given in (made_for_it, app.at("AUTOCOMMIT")):
            with pytest.raises(SessionError, match="AUTOCOMMIT"):
                with consumer.transaction(session=given.sessionmaker()):
                    pass

    assert handle_all(consumer, effects) != []


@POSTGRES
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("count", [0, 1])
def test_a_level_that_could_see_an_old_position_is_refused_and_nothing_is_locked(
    mq: MQ, app: Application, effects: Effects, level: str, count: int
) -> None:
    send(mq, count)
    consumer = mq.consumer("orders", "billing")

    with pytest.raises(IsolationError, match=level):
        with consumer.transaction(timeout=0, session=app.at(level).sessionmaker()):
            pass

    assert len(handle_all(consumer, effects)) == count


def test_another_database_is_refused(mq: MQ, app: Application, tmp_path: Path) -> None:
    send(mq, 1)
    consumer = mq.consumer("orders", "billing")

    with app.on_url(f"sqlite:///{tmp_path / 'other.db'}") as other:
        with pytest.raises(SessionError, match="another database"):
            with consumer.transaction(session=other.sessionmaker()):
                pass


@pytest.fixture
def other_url(database: DatabaseUnderTest, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Another database of the same kind, with the tables."""
    if not database.is_postgres:
        yield f"sqlite:///{tmp_path / 'other.db'}"
        return
    databases: PostgresDatabases = request.getfixturevalue("postgres_databases")
    name = databases.create(database.schema)
    yield databases.url(name)
    databases.drop(name)


def test_another_queue_with_a_group_of_the_same_name_is_refused(
    mq: MQ, make_mq: MakeMQ, app: Application, other_url: str
) -> None:
    send(mq, 1)
    consumer = mq.consumer("orders", "billing")

    with make_mq(database=other_url) as other, app.on_url(other_url) as elsewhere:
        send(other, 1)
        other.consumer("orders", "billing")
        with pytest.raises(SessionError, match="another database"):
            with consumer.transaction(session=elsewhere.sessionmaker()):
                pass
        assert positions(other) == [0]


@SQLITE
def test_an_engine_that_begins_by_events_as_sqlalchemy_recommends_can_be_used(
    mq: MQ, database: DatabaseUnderTest, app: Application, effects: Effects
) -> None:
    places = send(mq, 2)

    with app.with_savepoints(database.url) as beginning:
        handle_all(mq.consumer("orders", "billing"), effects, at_most=1, session=beginning.sessionmaker())

    assert effects.there() == places


# --- Ended inside the block ---


def test_a_commit_of_our_session_inside_ends_nothing(mq: MQ, effects: Effects) -> None:
    send(mq, 2)
    consumer = mq.consumer("orders", "billing")

    with pytest.raises(HandlerError), consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
        effects.have(tx)
        tx.session.commit()
        raise HandlerError
    assert (effects.there(), positions(mq)) == ([], [0])

    with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
        effects.have(tx)
        tx.session.commit()
        tx.session.execute(Effects.INSERT, {"p": 7, "o": 7})
    assert (effects.there(), positions(mq)) == ([(0, 0), (0, 1), (7, 7)], [2])


ENDINGS: dict[str, Callable[[Transaction], object]] = {
    "session.rollback": lambda tx: tx.session.rollback(),
    "connection.rollback": lambda tx: tx.connection.rollback(),
    "connection.commit": lambda tx: tx.connection.commit(),
    "connection.close": lambda tx: tx.connection.close(),
    "ROLLBACK": lambda tx: tx.connection.exec_driver_sql("ROLLBACK"),
    "COMMIT": lambda tx: tx.connection.exec_driver_sql("COMMIT"),
}


# asyncpg commits a statement outside of a transaction by itself: what a handler does after its own COMMIT would stay.
@pytest.mark.parametrize("driver", ["psycopg"], indirect=True)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", ["none", "sessionmaker", "Connection"])
def test_a_transaction_ended_inside_the_block_moves_no_position(
    mq: MQ, app: Application, effects: Effects, ending: str, kind: str
) -> None:
    send(mq, 2)
    consumer = mq.consumer("orders", "billing")

    with source_of(kind, app) as source, pytest.raises(TransactionEndedError, match="ended inside the block"):
        with consumer.transaction(timeout=PATIENCE_SECONDS, session=source) as tx:
            effects.have(tx)
            ENDINGS[ending](tx)
    # What errors there are depends on the driver, when the handler goes on.
    with source_of(kind, app) as source, pytest.raises(Exception):  # noqa: B017, PT011
        with consumer.transaction(timeout=PATIENCE_SECONDS, session=source) as tx:
            effects.have(tx)
            ENDINGS[ending](tx)
            tx.session.execute(Effects.INSERT, {"p": 7, "o": 7})

    assert positions(mq) == [0]
    assert set(effects.there()) == ({(0, 0), (0, 1)} if ending.lower().endswith("commit") else set())


@pytest.mark.parametrize("method", ["commit", "rollback", "close"])
def test_a_session_of_the_applications_ended_inside_the_block_moves_no_position(
    mq: MQ, app: Application, effects: Effects, method: str
) -> None:
    send(mq, 2)
    consumer = mq.consumer("orders", "billing")

    with app.session() as session:
        with pytest.raises(TransactionEndedError, match="ended inside the block"):
            with consumer.transaction(timeout=PATIENCE_SECONDS, session=session) as tx:
                effects.have(tx)
                getattr(session, method)()
        assert not session.in_transaction()

    assert positions(mq) == [0]
    assert bool(effects.there()) == (method == "commit")


@pytest.mark.parametrize("kind", [None, "sessionmaker"])
def test_a_failed_flush_that_the_handler_swallows_moves_no_position(
    mq: MQ, app: Application, effects: Effects, kind: str | None
) -> None:
    send(mq, 1)
    consumer = mq.consumer("orders", "billing")

    with pytest.raises(TransactionEndedError, match="ended inside the block"):
        with consumer.transaction(timeout=PATIENCE_SECONDS, session=app.sessionmaker() if kind else None) as tx:
            tx.session.add_all([Effect(message_offset=1, note="same"), Effect(message_offset=2, note="same")])
            with pytest.raises(IntegrityError):
                tx.session.flush()

    assert (effects.there(), positions(mq)) == ([], [0])


def test_an_error_of_the_last_flush_is_the_applications_own(mq: MQ, effects: Effects) -> None:
    send(mq, 1)

    with pytest.raises(IntegrityError):
        with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
            tx.session.add_all([Effect(message_offset=1, note="same"), Effect(message_offset=2, note="same")])

    assert (effects.there(), positions(mq)) == ([], [0])


@ANY_SOURCE
def test_a_listener_of_the_commit_that_fails_undoes_both(mq: MQ, effects: Effects, source: Any) -> None:
    send(mq, 1)
    consumer = mq.consumer("orders", "billing")

    def refuse(_connection: Connection) -> None:
        raise HandlerError

    with (
        pytest.raises(HandlerError),
        consumer.transaction(max_messages=1, timeout=PATIENCE_SECONDS, session=source) as tx,
    ):
        effects.have(tx)
        on = tx.connection
        event.listen(sync_of(on), "commit", refuse)
    if not on.closed:
        event.remove(sync_of(on), "commit", refuse)
        on.execute(text("SELECT 1"))
        on.commit()

    assert (effects.there(), positions(mq)) == ([], [0])
    assert len(handle_all(consumer, effects, session=source)) == 1


@ANY_SOURCE
def test_a_commit_that_the_database_refuses_undoes_both(mq: MQ, engine: Engine, effects: Effects, source: Any) -> None:
    send(mq, 1)
    consumer = mq.consumer("orders", "billing")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE parent (id INTEGER PRIMARY KEY)"))
        connection.execute(text("CREATE TABLE child (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)"))
    pool = mq.engine.pool
    if engine.dialect.name == "sqlite":
        mq.engine.dispose()  # the next connections check foreign keys

    with (
        pytest.raises(SqlmqError),
        consumer.transaction(max_messages=1, timeout=PATIENCE_SECONDS, session=source) as tx,
    ):
        effects.have(tx)
        tx.session.execute(text("INSERT INTO child VALUES (42)"))

    assert (effects.there(), positions(mq)) == ([], [0])
    assert len(handle_all(consumer, effects, session=source)) == 1
    mq.close()
    pool.dispose()  # what a background thread had taken before, it gave back to this one


@SQLITE
def test_a_transaction_that_sqlite_itself_rolled_back_moves_no_position(mq: MQ, effects: Effects) -> None:
    send(mq, 1)
    consumer = mq.consumer("orders", "billing")

    with pytest.raises(TransactionEndedError, match="ended inside the block"):
        with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
            tx.connection.exec_driver_sql("INSERT INTO effect (note) VALUES ('same')")
            with pytest.raises(IntegrityError):
                tx.connection.exec_driver_sql("INSERT OR ROLLBACK INTO effect (note) VALUES ('same')")
            tx.session.execute(Effects.INSERT, {"p": 7, "o": 7})

    assert (effects.there(), positions(mq)) == ([], [0])


# --- The one writer of a file, and the one connection of a database in memory ---


@WAITS
@SQLITE
def test_another_write_inside_the_block_is_refused_at_once(mq: MQ, engine: Engine, effects: Effects) -> None:
    send(mq, 1)
    consumer, producer = mq.consumer("orders", "billing"), mq.producer("orders")
    message = Message(b"")

    for source in (None, sessionmaker(engine)):
        with pytest.raises(HandlerError), consumer.transaction(timeout=PATIENCE_SECONDS, session=source):
            for write in (
                lambda: producer.produce(message),
                lambda: producer.submit(message),
                lambda: producer.produce_many([message]),
                lambda: mq.create_topic("other"),
                lambda: mq.consumer("orders", "audit"),
                consumer.close,
            ):
                with pytest.raises(SessionError, match=r"session=tx\.session"):
                    write()
            assert mq.admin.topics() == ["orders"]
            raise HandlerError

    producer.produce(message)
    assert len(handle_all(consumer, effects)) == 1


def test_what_is_read_processed_and_written_to_another_topic_commits_together(mq: MQ, effects: Effects) -> None:
    places = send(mq, 3)
    invoices, consumer = mq.producer("invoices"), mq.consumer("orders", "billing")

    def invoice(*, fails: bool) -> None:
        with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
            for message in tx:
                invoices.produce(Message(b"for " + message.value, b"k"), session=tx.session)
            effects.have(tx)
            if fails:
                raise HandlerError

    with pytest.raises(HandlerError):
        invoice(fails=True)
    assert mq.admin.describe_topic("invoices").messages == 0
    while effects.there() != places:
        invoice(fails=False)

    assert mq.admin.describe_topic("invoices").messages == 3


@POSTGRES
def test_where_there_are_many_writers_others_go_on_inside_the_block(mq: MQ, effects: Effects) -> None:
    send(mq, 1)
    producer = mq.producer("orders")

    with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
        effects.have(tx)
        assert producer.produce(Message(b"")).offset == 1

    assert positions(mq) == [1]


@WAITS
def test_what_would_wait_for_the_end_of_the_block_is_refused_inside(mq: MQ, effects: Effects) -> None:
    send(mq, 1)

    with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
        for call in (mq.close, lambda: mq.delete_topics("orders")):
            with pytest.raises(SessionError, match="leave it"):
                call()
        effects.have(tx)

    assert (effects.there(), positions(mq)) == ([(0, 0)], [1])


def test_what_is_read_and_written_is_there_together_or_not(mq: MQ, effects: Effects) -> None:
    send(mq, 2)
    consumer, out = mq.consumer("orders", "billing"), mq.producer("invoices")

    with pytest.raises(HandlerError), consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
        out.produce(Message(b"lost"), session=tx.session)
        raise HandlerError
    with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
        effects.have(tx)
        publications = out.produce_many([Message(m.value, b"k") for m in tx], session=tx.session)

    assert [publication.result.offset for publication in publications if publication.result] == [0, 1]
    assert (mq.admin.describe_topic("invoices").messages, positions(mq)) == (2, [2])


def test_other_threads_wait_for_the_block(mq: MQ, effects: Effects) -> None:
    send(mq, 1)
    producer = mq.producer("orders")

    with ThreadPoolExecutor(1) as threads:
        with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
            produced = threads.submit(producer.produce, Message(b""))
            effects.have(tx)
        assert produced.result(PATIENCE_SECONDS).offset == 1


class TestInMemory:
    """A database in memory has one connection, which the block has."""

    @pytest.fixture
    def memory(self) -> Iterator[MQ]:
        with MQ("sqlite://") as mq:
            yield mq

    def test_effects_and_position_commit_together_and_are_undone_together(self, memory: MQ) -> None:
        send(memory, 2)
        consumer = memory.consumer("orders", "billing")
        with memory.engine.begin() as connection:
            connection.execute(text("CREATE TABLE effect (partition_number INTEGER, message_offset INTEGER)"))
        effects = Effects(memory.engine)

        with pytest.raises(HandlerError), consumer.transaction(timeout=0) as tx:
            effects.have(tx)
            raise HandlerError
        assert effects.there() == []
        handle_all(consumer, effects, at_most=1)

        assert effects.there() == [(0, 0), (0, 1)]
        assert positions(memory) == [2]

    def test_any_other_use_inside_the_block_is_refused_and_leaves_the_transaction_alone(self, memory: MQ) -> None:
        send(memory, 2)
        consumer = memory.consumer("orders", "billing")

        with consumer.transaction(timeout=0) as tx:
            assert len(tx.messages) == 2
            for use in (memory.admin.topics, lambda: memory.producer("orders"), lambda: consumer.poll(timeout=0)):
                with pytest.raises(SessionError, match=r"session=tx\.session"):
                    use()
            with pytest.raises(SessionError), consumer.transaction(timeout=0):
                pass

        assert positions(memory) == [2]

    def test_threads_take_turns(self, memory: MQ) -> None:
        places = send(memory, 20, partitions=2)
        with memory.engine.begin() as connection:
            connection.execute(text("CREATE TABLE effect (partition_number INTEGER, message_offset INTEGER)"))
        effects = Effects(memory.engine)
        consumers = [memory.consumer("orders", "billing") for _ in range(3)]

        at_once([partial(handle_all, consumer, effects, at_most=3) for consumer in consumers])

        assert effects.there() == places

    def test_a_user_engine_with_one_connection_can_be_used(self) -> None:
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        with MQ(engine) as mq:
            send(mq, 1)
            with mq.consumer("orders", "billing").transaction(timeout=0, session=sessionmaker(engine)) as tx:
                assert len(tx.messages) == 1
            assert positions(mq) == [1]
        engine.dispose()


# --- Lost connections, deleted topics ---


def backend(tx: Transaction) -> int:
    found: int = tx.connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    return found


def is_alive(engine: Engine, pid: int) -> bool:
    """Looks anew each time: a transaction would see the sessions of its beginning."""
    with engine.connect() as connection:
        query = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
        return bool(connection.execute(query, {"pid": pid}).scalar())


def terminate(engine: Engine, pid: int) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    until(lambda: not is_alive(engine, pid), "the session to end")


@POSTGRES
@pytest.mark.faults
@pytest.mark.parametrize("own_session", [False, True])
def test_a_session_the_server_has_killed_undoes_both(
    mq: MQ, engine: Engine, app: Application, effects: Effects, *, own_session: bool
) -> None:
    places = send(mq, 2)
    consumer, other = mq.consumer("orders", "billing"), mq.consumer("orders", "billing")
    source = app.sessionmaker() if own_session else None

    with pytest.raises(DatabaseUnavailableError):
        with consumer.transaction(timeout=PATIENCE_SECONDS, session=source) as tx:
            effects.have(tx)
            terminate(engine, backend(tx))
            handle_all(other, effects)  # has the partition at once

    assert (effects.there(), positions(mq)) == (places, [2])


@POSTGRES
@pytest.mark.faults
def test_a_handler_that_swallows_the_loss_of_its_connection_moves_no_position(
    mq: MQ, engine: Engine, effects: Effects
) -> None:
    send(mq, 2)

    with pytest.raises(DatabaseError):
        with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
            terminate(engine, backend(tx))
            with pytest.raises(Exception, match="terminat"):
                effects.have(tx)

    assert (effects.there(), positions(mq)) == ([], [0])


@POSTGRES
@pytest.mark.faults
def test_a_handler_that_is_quiet_for_too_long_is_cut_off(make_mq: MakeMQ, engine: Engine, effects: Effects) -> None:
    mq = make_mq(max_poll_seconds=0.3)
    send(mq, 2)

    with pytest.raises(DatabaseUnavailableError, match="max_poll_seconds"):
        with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
            effects.have(tx)
            pid = backend(tx)
            until(lambda: not is_alive(engine, pid), "the session to be cut off")

    assert (effects.there(), positions(mq)) == ([], [0])


SETTINGS = ("idle_in_transaction_session_timeout", "tcp_keepalives_idle", "tcp_keepalives_count", "tcp_user_timeout")


def settings(connection: Connection) -> dict[str, str]:
    names = [*SETTINGS, *(["transaction_timeout"] if has_transaction_timeout(connection) else [])]
    return {name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names}


def has_transaction_timeout(connection: Connection) -> bool:
    version: str = connection.exec_driver_sql("SHOW server_version_num").scalar_one()
    return int(version) >= 170_000


@POSTGRES
def test_a_handler_that_is_busy_for_too_long_is_cut_off_from_postgres_17_on(
    make_mq: MakeMQ, connection: Connection, effects: Effects
) -> None:
    if not has_transaction_timeout(connection):
        pytest.skip("transaction_timeout is there from Postgres 17 on")
    mq = make_mq(max_poll_seconds=0.3)
    send(mq, 2)

    with pytest.raises(DBAPIError, match="transaction timeout"):
        with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
            effects.have(tx)
            tx.session.execute(text("SELECT pg_sleep(60)"))

    assert (effects.there(), positions(mq)) == ([], [0])


@POSTGRES
def test_limits_hold_for_the_transaction_and_are_gone_after_it(mq: MQ, app: Application) -> None:
    send(mq, 2)
    consumer = mq.consumer("orders", "billing")

    with app.engine.connect() as connection:
        before = settings(connection)
        connection.rollback()
        with consumer.transaction(max_messages=1, timeout=PATIENCE_SECONDS, session=connection):
            inside = settings(connection)
        after = settings(connection)
        connection.rollback()
        with (
            pytest.raises(HandlerError),
            consumer.transaction(max_messages=1, timeout=PATIENCE_SECONDS, session=connection),
        ):
            raise HandlerError
        after_rollback = settings(connection)

    assert before == after == after_rollback
    assert inside == {
        "idle_in_transaction_session_timeout": "5min",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "10000",
        **({"transaction_timeout": "5min"} if "transaction_timeout" in before else {}),
    }


@POSTGRES
def test_a_lower_limit_of_the_applications_stays(mq: MQ, app: Application) -> None:
    send(mq, 1)

    with app.engine.connect() as connection:
        lower = {"idle_in_transaction_session_timeout": "7s", "tcp_user_timeout": "3000"}
        if has_transaction_timeout(connection):
            lower["transaction_timeout"] = "9s"
        for name, value in lower.items():
            connection.exec_driver_sql(f"SET {name} = '{value}'")
        connection.commit()
        with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS, session=connection):
            inside = settings(connection)

    assert {name: inside[name] for name in lower} == lower


def test_a_deleted_topic_is_noticed_by_the_next_transaction(mq: MQ) -> None:
    send(mq, 1)
    consumer = mq.consumer("orders", "billing")
    mq.delete_topics("orders")
    send(mq, 1)

    with pytest.raises(UnknownTopicError), consumer.transaction(timeout=PATIENCE_SECONDS):
        pass


@POSTGRES
def test_deleting_a_topic_waits_for_a_transaction_that_produces_to_it(
    mq: MQ, engine: Engine, effects: Effects, caplog: pytest.LogCaptureFixture
) -> None:
    places = send(mq, 2)
    producer = mq.producer("orders")

    with ThreadPoolExecutor(1) as threads:
        with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
            deleting = threads.submit(mq.delete_topics, "orders")
            with engine.connect() as connection:
                waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()")
                until(lambda: bool(connection.execute(waiting).scalar()), "the deletion to wait")
                connection.rollback()
            effects.have(tx)
            producer.produce(Message(b"more"), session=tx.session)
        assert deleting.result(PATIENCE_SECONDS) == ["orders"]

    assert effects.there() == places
    # A deadlock would have been undone, logged, and tried again.
    assert [record.getMessage() for record in caplog.records] == []


# --- Forks ---


@pytest.mark.sync_only("an event loop does not outlive a fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_can_not_leave_the_block_and_does_not_touch_it(mq: MQ, effects: Effects) -> None:
    places = send(mq, 2)

    with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
        effects.have(tx)
        child = os.fork()
        if child == 0:
            refused = 1
            try:
                tx.__exit__(None, None, None)
            except ForkedError:
                refused = 0
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    assert (effects.there(), positions(mq)) == (places, [2])


# --- The conditions of the last statement ---


def test_a_claim_that_has_changed_hands_after_all_is_not_moved(
    mq: MQ, database: DatabaseUnderTest, effects: Effects
) -> None:
    """Can't happen while the row is locked, which is why the lock is not what the test relies on."""
    send(mq, 1)
    prefix = f"{database.schema}." if database.schema else ""

    with pytest.raises(FencedError):
        with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
            effects.have(tx)
            tx.connection.execute(text(f"UPDATE {prefix}sqlmq_claim SET epoch = epoch + 1"))

    assert (effects.there(), positions(mq)) == ([], [0])


def test_a_position_that_has_moved_after_all_is_not_moved_again(
    mq: MQ, database: DatabaseUnderTest, effects: Effects
) -> None:
    send(mq, 3)
    prefix = f"{database.schema}." if database.schema else ""

    with pytest.raises(FencedError):
        with mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS) as tx:
            effects.have(tx)
            tx.connection.execute(
                text(
                    f"INSERT INTO {prefix}sqlmq_group_offset (group_id, partition_id, committed_offset)"
                    f" SELECT group_id, partition_id, 1 FROM {prefix}sqlmq_claim"
                )
            )

    assert (effects.there(), positions(mq)) == ([], [0])
