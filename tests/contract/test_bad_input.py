"""What can't be done is refused before anything happens, with an error that says why and gives nothing away."""

from __future__ import annotations

import logging
import math
import traceback
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import NullPool, create_engine, event, inspect, make_url, text

from sqlmq import MQ, DatabaseUnavailableError, Message, SqlmqError, migrate
from sqlmq.errors import (
    DatabaseDamagedError,
    DatabaseError,
    DatabaseFullError,
    InvalidGroupError,
    InvalidPartitionError,
    InvalidTopicError,
    MessageTooLargeError,
    PermissionDeniedError,
    ReadOnlyDatabaseError,
    SchemaMissingError,
    SchemaTooNewError,
    SchemaTooOldError,
)
from sqlmq.schema import VERSION_TABLE
from tests.support.injections import INJECTIONS
from tests.support.waiting import PATIENCE_SECONDS, finish, receive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection, Engine

    from tests.conftest import DatabaseUnderTest, MakeMQ
    from tests.support.postgres_databases import PostgresDatabases
    from tests.support.queue_state import QueueState

sqlite_only = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
postgres_only = pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)

CANARY = "canary-5f3a9c"


def tables(connection: Connection, database: DatabaseUnderTest) -> set[str]:
    return set(inspect(connection).get_table_names(schema=database.schema))


def everything_said(error: BaseException) -> str:
    """The traceback as text with all causes and contexts, and each of them by itself."""
    said = ["".join(traceback.format_exception(error))]
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        said += [repr(one), str(one), repr(one.args), repr(getattr(one, "__notes__", ""))]
        todo += [one.__cause__, one.__context__]
    return "\n".join(said)


# --- Names ---


def test_good_topic_names_are_taken(mq: MQ) -> None:
    names = ["ab", "a1", "A.b_c-9", "x" * 50, "a..b", "a__b", "a--b", "select", "pg_class"]

    for name in names:
        mq.create_topic(name)

    assert sorted(mq.admin.topics()) == sorted(names)


def test_good_group_names_are_taken(mq: MQ) -> None:
    names = ["b", "1", "B.c_d-9:x", "x" * 100]

    for name in names:
        mq.consumer("orders", name)

    assert sorted(mq.admin.groups("orders")) == sorted(names)


# --- Numbers ---


def test_a_partition_the_topic_does_not_have_is_refused(mq: MQ) -> None:
    mq.create_topic("orders", 3)
    producer = mq.producer("orders")

    for partition in (-1, 3, 4, 2**31, 2**63, -(2**63), 2**200):
        with pytest.raises(InvalidPartitionError, match="0 to 2"):
            producer.produce_with_partition(Message(b""), partition)
        with pytest.raises(InvalidPartitionError):
            producer.submit(Message(b""), partition=partition)

    assert mq.admin.describe_topic("orders").messages == 0


def test_a_timeout_of_ages_is_taken(mq: MQ) -> None:
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")

    for timeout in (math.inf, 1e300, 10**9):
        producer.produce(Message(b"42"), timeout=timeout)
        assert consumer.consume(timeout=timeout).value == b"42"


def test_any_large_number_of_messages_can_be_asked_for(mq: MQ) -> None:
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")

    for max_messages in (2**31, 2**63, 2**70):
        producer.produce(Message(b"42"))
        assert len(consumer.poll(max_messages, timeout=PATIENCE_SECONDS)) == 1


# --- Messages ---


def test_parts_of_exactly_the_allowed_size_are_taken(make_mq: MakeMQ) -> None:
    mq = make_mq(max_message_bytes=1_000)
    headers = {"h": "x" * (1_000 - len('{"h":""}'))}
    producer = mq.producer("orders")

    for message in (Message(bytes(1_000)), Message(b"", bytes(1_000)), Message(b"", None, headers)):
        producer.produce(message)

    assert mq.admin.describe_topic("orders").messages == 3


def test_a_producer_goes_on_after_a_refused_message(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    with pytest.raises(MessageTooLargeError):
        producer.produce(Message(bytes(2**20 + 1)))

    assert producer.produce(Message(bytes(2**20))).offset == 0


# --- SQL in text ---


# What becomes of a text is decided below the two faces, so that one of them is enough.
each_database = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
one_face = pytest.mark.sync_only("the statements are the same with asyncio")


@each_database
@one_face
def test_sql_in_a_message_is_stored_as_it_is(mq: MQ, database: DatabaseUnderTest, connection: Connection) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    before = tables(connection, database)

    for text_ in INJECTIONS:
        raw = text_.encode()
        producer.produce(Message(raw, raw, {text_: text_}))
        with mq.consumer("orders", "billing", name=text_) as consumer:
            (message,) = finish(consumer, 1)
            members = mq.admin.describe_group("orders", "billing").members

        assert (message.value, message.key, message.headers) == (raw, raw, {text_: text_})
        assert members == (text_,)
    assert tables(connection, database) == before


@each_database
@one_face
def test_sql_in_a_name_changes_nothing(mq: MQ, database: DatabaseUnderTest, connection: Connection) -> None:
    mq.create_topic("orders")
    before = tables(connection, database)

    for name in INJECTIONS:
        with pytest.raises(InvalidTopicError):
            mq.create_topic(name)
        with pytest.raises(InvalidGroupError):
            mq.consumer("orders", name)

    assert (mq.admin.topics(), mq.admin.groups("orders")) == (["orders"], [])
    assert tables(connection, database) == before


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_schemas_of_any_name_are_used_as_they_are(database: DatabaseUnderTest, engine: Engine) -> None:
    schemas = [*INJECTIONS, "Upper Case", "ünï", "a.b", 'quo"te', "select"]
    with engine.connect() as connection:
        before = tables(connection, database)

    for schema in schemas:
        with engine.begin() as connection:
            migrate.upgrade(connection, schema=schema)
        with MQ(database.url, schema=schema) as mq:
            mq.producer("orders").produce(Message(b"42", b"k", {"a": "b"}))
            with mq.consumer("orders", "billing") as consumer:
                assert receive(consumer, 1)[0].value == b"42"

    with engine.connect() as connection:
        assert tables(connection, database) == before
        assert connection.execute(text("SELECT count(*) FROM sqlmq_topic")).scalar_one() == 0
        assert set(schemas) <= set(inspect(connection).get_schema_names())


# --- Databases that are not there ---


def test_no_server_is_said_to_be_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlmq.database.retrying._RETRY_SECONDS", 0.1)

    with (
        MQ("postgresql://nobody@127.0.0.1:1/nothing") as mq,
        pytest.raises(DatabaseUnavailableError, match=r"127\.0\.0\.1"),
    ):
        mq.admin.topics()


def test_a_missing_database_is_said_to_be_missing(postgres_url: str) -> None:
    url = make_url(postgres_url).set(database="sqlmq_no_such_database")

    with MQ(url) as mq, pytest.raises(DatabaseUnavailableError, match="Create the database"):
        mq.admin.topics()


def test_a_refused_login_says_so(postgres_url: str) -> None:
    url = make_url(postgres_url).set(username="sqlmq_no_such_role", password=CANARY)

    with MQ(url) as mq, pytest.raises(DatabaseError) as caught:
        mq.admin.topics()

    assert isinstance(caught.value, PermissionDeniedError)


def test_a_directory_is_no_sqlite_file(tmp_path: Path) -> None:
    with MQ(f"sqlite:///{tmp_path}") as mq, pytest.raises(DatabaseUnavailableError, match="directory"):
        mq.admin.topics()


def test_a_file_in_a_missing_directory_cannot_be_opened(tmp_path: Path) -> None:
    with (
        MQ(f"sqlite:///{tmp_path / 'missing' / 'queue.db'}") as mq,
        pytest.raises(DatabaseUnavailableError, match="exist"),
    ):
        mq.admin.topics()

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    path.write_bytes(b"This is no database. " * 100)

    with MQ(f"sqlite:///{path}") as mq, pytest.raises(DatabaseDamagedError, match="not a database"):
        mq.admin.topics()

    assert path.read_bytes() == b"This is no database. " * 100


# --- Secrets ---


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{CANARY}@127.0.0.1:1/name",
        f"postgresql://user:{CANARY}@host:port/name",
        f"postgresql://user@127.0.0.1:1/name?password={CANARY}",
        f"postgresql://user:{CANARY}@127.0.0.1:1/name?nonsense={CANARY}",
        f"postgresql+pg8000://user:{CANARY}@host/name",
        f"mysql://user:{CANARY}@host/name",
        f"user:{CANARY}@host/name",
        f"sqlite+nonsense://user:{CANARY}@host/name",
    ],
)
def test_no_error_repr_or_log_shows_the_password(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlmq.database.retrying._RETRY_SECONDS", 0.1)
    shown = []

    def use() -> None:
        with MQ(url) as mq:
            shown.append(repr(mq))
            mq.admin.topics()

    with caplog.at_level(logging.DEBUG, "sqlmq"), pytest.raises(SqlmqError) as caught:
        use()

    assert CANARY not in everything_said(caught.value)
    assert CANARY not in caplog.text
    assert CANARY not in "".join(shown)


def test_a_wrong_password_is_not_shown(
    postgres_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlmq.database.retrying._RETRY_SECONDS", 0.1)
    url = make_url(postgres_url).set(username="sqlmq_no_such_role", password=CANARY)

    with caplog.at_level(logging.DEBUG, "sqlmq"), pytest.raises(DatabaseError) as caught, MQ(url) as mq:
        mq.admin.topics()

    assert CANARY not in everything_said(caught.value)
    assert CANARY not in caplog.text


def test_no_error_or_log_shows_what_is_in_a_message(
    mq: MQ, database: DatabaseUnderTest, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    producer = mq.producer("orders")
    prefix = f"{database.schema}." if database.schema else ""
    with engine.begin() as connection:
        if database.is_postgres:
            connection.exec_driver_sql(f"ALTER TABLE {prefix}sqlmq_message ADD CHECK (length(value) < 10)")
        else:
            connection.exec_driver_sql(
                "CREATE TRIGGER refuse BEFORE INSERT ON sqlmq_message BEGIN SELECT raise(ABORT, 'refused'); END"
            )
    message = Message(CANARY.encode(), CANARY.encode(), {CANARY: CANARY})

    with caplog.at_level(logging.DEBUG, "sqlmq"), pytest.raises(DatabaseError) as caught:
        producer.produce(message)

    said = "".join([repr(message), caplog.text, *traceback.format_exception(caught.value)])
    assert CANARY not in said
    assert CANARY.encode().hex() not in said


def test_a_message_that_is_too_large_is_not_shown(mq: MQ) -> None:
    with pytest.raises(MessageTooLargeError) as caught:
        mq.producer("orders").produce(Message(CANARY.encode() * 100_000))

    assert CANARY not in everything_said(caught.value)


# --- Databases that refuse ---


@sqlite_only
def test_a_read_only_file_is_read_but_not_written(database: DatabaseUnderTest, mq: MQ) -> None:
    mq.create_topic("orders", 1)
    path = make_url(database.url).database

    with MQ(f"sqlite:///file:{path}?mode=ro&uri=true") as reading:
        assert reading.admin.topics() == ["orders"]
        producer = reading.producer("orders")
        with pytest.raises(ReadOnlyDatabaseError):
            producer.produce(Message(b"42"))
        with pytest.raises(ReadOnlyDatabaseError):
            reading.consumer("orders", "billing")

    assert mq.admin.describe_topic("orders").messages == 0


@sqlite_only
def test_an_engine_that_only_reads_is_read_but_not_written(database: DatabaseUnderTest, mq: MQ) -> None:
    mq.create_topic("orders", 1)
    engine = create_engine(database.url)
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only = ON"))

    with MQ(engine) as reading:
        assert reading.admin.topics() == ["orders"]
        with pytest.raises(ReadOnlyDatabaseError):
            reading.producer("orders").produce_many([Message(b"42")])
    engine.dispose()

    assert mq.admin.describe_topic("orders").messages == 0


@sqlite_only
def test_a_full_disk_writes_nothing_and_producing_goes_on_when_there_is_room(database: DatabaseUnderTest) -> None:
    engine = create_engine(database.url, poolclass=NullPool)
    pages = [1_000_000]
    event.listen(engine, "connect", lambda connection, _: connection.execute(f"PRAGMA max_page_count = {pages[0]}"))

    with MQ(engine) as mq:
        mq.create_topic("orders", 1)
        producer = mq.producer("orders")
        pages[0] = 60
        with pytest.raises(DatabaseFullError, match="Free space"):
            producer.produce_many([Message(bytes(10_000))] * 100)
        while_full = mq.admin.describe_topic("orders").messages
        pages[0] = 1_000_000
        result = producer.produce(Message(bytes(10_000)))

    assert (while_full, result.offset) == (0, 0)


class Roles:
    """Makes roles on the Postgres server, for one database, and drops them."""

    def __init__(self, databases: PostgresDatabases, database: DatabaseUnderTest, admin: Engine) -> None:
        self._databases, self._database, self._admin = databases, database, admin
        self._made: list[str] = []

    def url(self, options: str = "", *, rights: bool) -> str:
        """Make a role with *options* and give the database's URL for it."""
        url = make_url(self._database.url)
        name = f"role_{len(self._made)}_{url.database}"
        schema = self._database.schema or "public"
        with self._admin.begin() as connection:
            connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD '{CANARY}' {options}")
            self._made.append(name)
            if rights:
                connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
                connection.exec_driver_sql(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {name}")
        return url.set(username=name, password=CANARY).render_as_string(hide_password=False)

    def execute(self, statement: str) -> None:
        with self._admin.begin() as connection:
            connection.exec_driver_sql(statement)

    def drop(self) -> None:
        with self._admin.begin() as connection:
            for name in self._made:
                connection.exec_driver_sql(f"DROP OWNED BY {name}")
                connection.exec_driver_sql(f"DROP ROLE {name}")


@pytest.fixture
def roles(postgres_databases: PostgresDatabases, database: DatabaseUnderTest) -> Iterator[Roles]:
    admin = create_engine(database.url, poolclass=NullPool)
    made = Roles(postgres_databases, database, admin)
    yield made
    made.drop()


@postgres_only
def test_a_role_without_rights_is_told_so(database: DatabaseUnderTest, roles: Roles) -> None:
    with (
        MQ(roles.url(rights=False), schema=database.schema) as mq,
        pytest.raises(PermissionDeniedError, match="Grant the role the right") as caught,
    ):
        mq.admin.topics()

    assert CANARY not in everything_said(caught.value)


@postgres_only
def test_a_role_that_may_only_read_can_not_produce(database: DatabaseUnderTest, roles: Roles, mq: MQ) -> None:
    mq.create_topic("orders", 1)
    url = roles.url(rights=True)
    schema = database.schema or "public"
    roles.execute(f"REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} FROM {make_url(url).username}")

    with MQ(url, schema=database.schema) as limited:
        assert limited.admin.topics() == ["orders"]
        with pytest.raises(PermissionDeniedError):
            limited.producer("orders").produce(Message(b"42"))

    assert mq.admin.describe_topic("orders").messages == 0


@postgres_only
def test_a_role_that_has_no_connection_left_is_told_so(
    database: DatabaseUnderTest, roles: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlmq.database.retrying._RETRY_SECONDS", 0.1)
    # Superusers have no limit, and are not limited.
    url = roles.url("CONNECTION LIMIT 1", rights=True)
    taken = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool)

    with taken.connect(), MQ(url, schema=database.schema) as mq, pytest.raises(DatabaseUnavailableError):
        mq.admin.topics()

    with MQ(url, schema=database.schema) as mq:
        assert mq.admin.topics() == []


@postgres_only
def test_a_role_whose_transactions_only_read_is_told_so(
    database: DatabaseUnderTest, roles: Roles, mq: MQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlmq.database.retrying._RETRY_SECONDS", 0.1)
    mq.create_topic("orders", 1)
    url = roles.url(rights=True)
    roles.execute(f"ALTER ROLE {make_url(url).username} SET default_transaction_read_only = on")

    with MQ(url, schema=database.schema) as limited:
        assert limited.admin.topics() == ["orders"]
        with pytest.raises(ReadOnlyDatabaseError, match="primary"):
            limited.producer("orders").produce(Message(b"42"))
        with pytest.raises(ReadOnlyDatabaseError):
            limited.create_topic("another")

    assert mq.admin.describe_topic("orders").messages == 0


# --- Tables that are not there, or not ours ---


def test_missing_tables_on_postgres_are_named_with_the_command_that_makes_them(
    postgres_databases: PostgresDatabases,
) -> None:
    name = postgres_databases.create_empty()
    try:
        for schema in (None, "mq"):
            with (
                MQ(postgres_databases.url(name), schema=schema) as mq,
                pytest.raises(SchemaMissingError, match="sqlmq db upgrade"),
            ):
                mq.admin.topics()
    finally:
        postgres_databases.drop(name)


def test_a_queue_goes_on_once_the_tables_are_there(postgres_databases: PostgresDatabases) -> None:
    name = postgres_databases.create_empty()
    engine = create_engine(postgres_databases.url(name), poolclass=NullPool)
    try:
        with MQ(postgres_databases.url(name)) as mq:
            with pytest.raises(SchemaMissingError):
                mq.admin.topics()
            with engine.begin() as connection:
                migrate.upgrade(connection)
            assert mq.admin.topics() == []
    finally:
        postgres_databases.drop(name)


def set_revision(state: QueueState, revision: str) -> None:
    state.execute(f"UPDATE {VERSION_TABLE} SET version_num = :revision", revision=revision)


@postgres_only
def test_older_tables_on_postgres_are_named_with_the_command_that_brings_them_up(
    make_mq: MakeMQ, queue_state: QueueState
) -> None:
    set_revision(queue_state, "0000")

    with pytest.raises(SchemaTooOldError, match=r"revision 0000.*sqlmq db upgrade"):
        make_mq().admin.topics()


def test_newer_tables_are_refused_and_left_alone(make_mq: MakeMQ, queue_state: QueueState) -> None:
    make_mq().admin.topics()
    set_revision(queue_state, "9999")

    with pytest.raises(SchemaTooNewError, match=r"revision 9999.*sqlmq db current"):
        make_mq().create_topic("orders")

    assert queue_state.column(f"SELECT version_num FROM {VERSION_TABLE}") == ["9999"]
    assert queue_state.count("SELECT count(*) FROM sqlmq_topic") == 0
