"""What a session has agreed on with the server: encodings, isolation, names, the language of the server."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError

from sqlmq import MQ, Message, Retention, Retry, SqlmqError, migrate
from sqlmq.dialects.postgresql import errors
from sqlmq.errors import (
    DatabaseUnavailableError,
    InvalidURLError,
    IsolationError,
    PermissionDeniedError,
    SchemaMissingError,
    SessionError,
)
from tests.support.waiting import receive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Connection, Engine

    from sqlmq import ReceivedMessage
    from tests.conftest import DatabaseUnderTest, MakeMQ
    from tests.support.postgres_databases import PostgresDatabases

POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)
HEADERS = {"name": "Zoë"}
TOKYO = {"town": "東京"}


# Encodings.


@pytest.fixture
def latin1(database: DatabaseUnderTest) -> Iterator[Engine]:
    """An application's engine with another client_encoding than ours."""
    engine = create_engine(database.url, connect_args={"client_encoding": "latin1"})
    yield engine
    engine.dispose()


def send_all(mq: MQ) -> int:
    """Send headers in every way there is, and return how many messages there are."""
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    producer.produce(Message(b"", headers=HEADERS))
    producer.produce_many([Message(b"", key=b"k", headers=HEADERS)] * 2)
    producer.produce_many([Message(b"", headers=HEADERS)] * 2)
    producer.produce_many([Message(b"", headers=HEADERS)] * 5_001)
    with mq.engine.begin() as connection:
        producer.produce(Message(b"", headers=HEADERS), session=connection)
        producer.produce_many([Message(b"", headers=HEADERS)] * 2, session=connection)
    return 5_009


@POSTGRES
def test_headers_are_stored_as_they_are_on_an_engine_in_another_encoding(latin1: Engine, engine: Engine) -> None:
    with MQ(latin1) as mq:
        count = send_all(mq)

        with mq.consumer("orders", "billing") as consumer:
            assert all(message.headers == HEADERS for message in receive(consumer, count))
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT headers->>'name', count(*) FROM sqlmq_message GROUP BY 1")).all()
    assert [tuple(row) for row in stored] == [("Zoë", count)]


@pytest.mark.parametrize(
    "messages",
    [[Message(b"", headers=TOKYO)], [Message(b"", headers=TOKYO)] * 2, [Message(b"", headers=TOKYO)] * 5_001],
)
@pytest.mark.parametrize("key", [b"k", None])
@POSTGRES
def test_what_an_encoding_does_not_have_is_refused_by_name(
    latin1: Engine, messages: list[Message], key: bytes | None
) -> None:
    keyed = [Message(message.value, key=key, headers=message.headers) for message in messages]

    with MQ(latin1) as mq:
        producer = mq.producer("orders")
        with pytest.raises(SessionError, match="client_encoding"):
            producer.produce_many(keyed)
        with pytest.raises(SessionError, match="client_encoding"), latin1.begin() as connection:
            producer.produce_many(keyed, session=connection)

        assert mq.admin.describe_topic("orders").messages == 0


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_in_another_encoding_is_used_in_utf_8(postgres_databases: PostgresDatabases, encoding: str) -> None:
    name = postgres_databases.create_empty()
    url = postgres_databases.url(name)
    other = f"{name}_{encoding.lower()}"
    administrator = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    try:
        with administrator.connect() as connection:
            connection.exec_driver_sql(
                f"CREATE DATABASE {other} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
            )
        utf8 = create_engine(
            postgres_databases.url(other), connect_args={"client_encoding": "utf8"}, poolclass=NullPool
        )
        with utf8.begin() as connection:
            migrate.upgrade(connection)

        with MQ(postgres_databases.url(other)) as mq:
            count = send_all(mq)
            with mq.consumer("orders", "billing") as consumer:
                assert all(message.headers == HEADERS for message in receive(consumer, count))
            assert mq.admin.topics() == ["orders"]
    finally:
        postgres_databases.drop(other)
        postgres_databases.drop(name)


@POSTGRES
def test_a_session_that_reads_texts_as_bytes_is_refused_by_name(make_mq: MakeMQ, engine: Engine) -> None:
    mq = make_mq()
    producer = mq.producer("orders")

    with engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("SET LOCAL client_encoding = 'SQL_ASCII'")

        with pytest.raises(SessionError, match="SQL_ASCII"):
            producer.produce(Message(b""), session=connection)
        with pytest.raises(SessionError, match="SQL_ASCII"):
            migrate.check(connection)


# Values.

DEPENDING = {700: "real", 701: "double precision", 1114: "timestamp", 1184: "timestamptz", 1186: "interval"}
"""Types whose text depends on settings of the session, by oid."""


@POSTGRES
def test_no_statement_returns_a_value_whose_text_depends_on_the_session(mq: MQ) -> None:
    found: set[tuple[str, str, str]] = set()

    @event.listens_for(mq.engine, "after_cursor_execute")
    def look(_conn: object, cursor: Any, statement: str, *_: object) -> None:
        found.update(
            (DEPENDING[column.type_code], column.name, statement)
            for column in cursor.description or ()
            if column.type_code in DEPENDING
        )

    def fail(_: ReceivedMessage) -> None:
        raise ArithmeticError

    mq.create_topic("orders", 2, retention=Retention(max_age_seconds=3_600))
    producer = mq.producer("orders")
    producer.produce_many([Message(b"1", key=b"k"), Message(b"2", key=b"other")])
    later = producer.schedule(Message(b"3"), delay_seconds=3_600)
    producer.schedule(Message(b"4", key=b"k"), delay_seconds=0)
    run = mq.consumer("orders", "billing").run
    run(fail, retry=Retry(max_attempts=1), idle_seconds=0.1, handle_signals=False)
    waiting = mq.consumer("orders", "waiting")

    def fail_once(_: ReceivedMessage) -> None:
        waiting.stop()
        raise ArithmeticError

    waiting.run(fail_once, retry=Retry(backoff_seconds=300), idle_seconds=30, handle_signals=False)
    with mq.consumer("orders", "transactions") as consumer, consumer.transaction(timeout=30) as tx:
        assert tx.messages
    admin = mq.admin
    parked = admin.parked("orders", "billing")
    assert [parked.get(*message.place) for message in parked.list()]
    assert admin.delayed("orders") == [later]
    assert parked.blocked_keys() == []
    assert admin.parked("orders", "waiting").blocked_keys() != []
    assert admin.describe_topic("orders").retention.max_age_seconds == 3_600
    assert admin.describe_group("orders", "billing").lag == 0
    assert admin.lag()
    with mq.consumer("orders", "members") as consumer:
        receive(consumer, 2)
        assert admin.members("orders", "members")
    assert admin.evictions("orders") == []
    admin.diagnose()
    admin.diagnose_group("orders", "billing")
    admin.apply_retention()
    admin.reset_group("orders", "billing", timedelta(hours=1), force=True)

    assert found == set()


# Isolation.


@pytest.fixture
def empty(postgres_databases: PostgresDatabases) -> Iterator[str]:
    """The URL of a database without tables."""
    name = postgres_databases.create_empty()
    yield postgres_databases.url(name)
    postgres_databases.drop(name)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_of_migrations_at_once_one_does_it_whatever_the_default_isolation_is(empty: str, level: str) -> None:
    engine = create_engine(
        empty, connect_args={"options": f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"}
    )
    barrier = threading.Barrier(4)
    failed: list[Exception] = []

    def upgrade() -> None:
        with engine.connect() as connection:
            barrier.wait(30)
            try:
                with connection.begin():
                    migrate.upgrade(connection)
            except Exception as error:  # noqa: BLE001 - asserted below
                failed.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert failed == []
    with engine.begin() as connection:
        migrate.check(connection)
    engine.dispose()


def test_a_migration_whose_snapshot_is_older_than_another_one_says_so(empty: str) -> None:
    engine = create_engine(empty, isolation_level="SERIALIZABLE")
    with engine.connect() as late, late.begin():
        late.exec_driver_sql("SELECT 1")
        with engine.begin() as connection:
            migrate.upgrade(connection)

        with pytest.raises(IsolationError, match="READ COMMITTED"):
            migrate.upgrade(late)

    with engine.connect() as late, late.begin():
        late.exec_driver_sql("SELECT 1")
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE sqlmq_version SET version_num = version_num")

        with pytest.raises(IsolationError, match="READ COMMITTED"):
            migrate.upgrade(late)
    engine.dispose()


def test_a_migration_alone_may_have_an_older_snapshot(empty: str) -> None:
    engine = create_engine(empty, isolation_level="SERIALIZABLE")

    for change in (migrate.upgrade, migrate.upgrade, migrate.downgrade, migrate.upgrade):
        with engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
            change(connection)

    with engine.begin() as connection:
        migrate.check(connection)
    engine.dispose()


@POSTGRES
def test_a_producer_goes_on_when_the_default_isolation_is_raised(make_mq: MakeMQ, engine: Engine) -> None:
    mq = make_mq()
    producer = mq.producer("orders")
    producer.produce(Message(b"1"))
    with engine.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    pool = mq.engine.pool
    mq.engine.dispose()

    producer.produce(Message(b"2"))
    producer.produce(Message(b"3"))

    assert mq.admin.describe_topic("orders").messages == 3
    mq.close()
    pool.dispose()  # what a background thread had taken before, it gave back to this one


# Names.


@pytest.mark.parametrize("name", ["$sqlmq$", "$sqlmq", "{schema}", "{home}", "t" * 63, "ü" * 31])
def test_a_schema_may_have_any_name(empty: str, name: str) -> None:
    engine = create_engine(empty)
    for _ in range(2):
        with engine.begin() as connection:
            migrate.upgrade(connection, schema=name)
    with MQ(empty, schema=name) as mq:
        mq.producer("orders").produce(Message(b"1"))

        assert mq.admin.describe_topic("orders").messages == 1
    with engine.begin() as connection:
        migrate.downgrade(connection, schema=name)
    engine.dispose()


@pytest.mark.parametrize("name", ["t" * 64, "ü" * 32])
@POSTGRES
def test_a_name_that_postgres_would_cut_off_is_refused(empty: str, connection: Connection, name: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: MQ(empty, schema=name),
        lambda: migrate.upgrade(connection, schema=name),
        lambda: migrate.check(connection, schema=name),
        lambda: migrate.sql("postgresql", schema=name),
    ]
    for use in uses:
        with pytest.raises(InvalidURLError, match="too long"):
            use()


def test_the_printed_sql_needs_no_right_to_create_a_schema_that_is_there(empty: str) -> None:
    role = "sqlmq_owner_of_a_schema"
    engine = create_engine(empty)
    with engine.connect() as connection, connection.begin() as transaction:
        connection.exec_driver_sql(f"CREATE ROLE {role}")
        connection.exec_driver_sql(f"CREATE SCHEMA queue AUTHORIZATION {role}")
        connection.exec_driver_sql(f"SET LOCAL ROLE {role}")

        statements = migrate.sql("postgresql", schema="queue").replace("BEGIN;", "", 1).replace("COMMIT;", "")
        connection.exec_driver_sql(statements.replace("%", "%%"))

        migrate.check(connection, schema="queue")
        transaction.rollback()
    engine.dispose()


def test_tables_that_the_search_path_does_not_name_are_said_to_be_elsewhere(empty: str) -> None:
    engine = create_engine(empty)
    with engine.begin() as connection:
        migrate.upgrade(connection, schema="queue")

    with MQ(engine) as mq, pytest.raises(SchemaMissingError, match="schema 'queue'") as raised:
        mq.admin.topics()

    assert raised.value.elsewhere == ("queue",)
    engine.dispose()


# Languages.


@pytest.fixture
def another_language(monkeypatch: pytest.MonkeyPatch) -> None:
    """Understand none of the server's texts, as if they were in a language that nothing here knows."""
    monkeypatch.setattr(errors, "_STATES_OF_TEXTS", ())
    monkeypatch.setattr(errors, "_NO_DATABASE_TEXT", ("\0", "\0"))


@pytest.mark.skipif(psycopg.pq.version() < 180_000, reason="an older libpq does not trace a login")
@pytest.mark.usefixtures("another_language")
@pytest.mark.parametrize(
    ("change", "expected", "advice"),
    [
        (lambda url: url.set(database="missing"), DatabaseUnavailableError, "Create the database"),
        (lambda url: url.set(password=url.username), PermissionDeniedError, "password"),
        (lambda url: url.set(username="nobody"), PermissionDeniedError, "password"),
    ],
    ids=["database", "password", "user"],
)
@POSTGRES
def test_a_refused_login_is_told_apart_in_any_language(
    database: DatabaseUnderTest, change: Callable[[URL], URL], expected: type[SqlmqError], advice: str
) -> None:
    url = change(make_url(database.url))

    with MQ(url) as mq, pytest.raises(expected, match=advice) as raised:
        mq.admin.topics()

    assert "running" not in str(raised.value)


@POSTGRES
def test_the_state_of_an_ordinary_error_needs_no_second_login(connection: Connection) -> None:
    with pytest.raises(DBAPIError) as raised:
        connection.exec_driver_sql("SELECT 1 / 0")

    assert errors.translate(raised.value, "here") is not None
    assert isinstance(raised.value.orig, psycopg.Error)
    assert raised.value.orig.sqlstate == "22012"
