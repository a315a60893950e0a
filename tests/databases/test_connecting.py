"""A connection that can't be set up is closed, whatever SQLAlchemy's release does about it."""

from __future__ import annotations

import asyncio
import sqlite3
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import NullPool

from sqlmq import MQ, Message
from sqlmq.dialects import dialect_named
from sqlmq.dialects.postgresql.session import pooler
from sqlmq.errors import DatabaseDamagedError
from tests.support.postgres_databases import APPLICATION_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import DatabaseUnderTest


@pytest.fixture
def open_connections(monkeypatch: pytest.MonkeyPatch) -> set[sqlite3.Connection]:
    """The connections to SQLite that were made in this test and not closed."""
    found: set[sqlite3.Connection] = set()

    class Connection(sqlite3.Connection):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[arg-type]  # passed on as they are
            found.add(self)

        def close(self) -> None:
            super().close()
            found.discard(self)

    connect = partial(sqlite3.connect, factory=Connection)
    # SQLAlchemy calls the one, aiosqlite the other.
    monkeypatch.setattr("sqlite3.dbapi2.connect", connect)
    monkeypatch.setattr("sqlite3.connect", connect)
    return found


@pytest.fixture
def notes(tmp_path: Path) -> str:
    """The URL of a file that is not a database."""
    path = tmp_path / "notes.txt"
    path.write_text("Not a database. " * 100, encoding="utf-8")
    return f"sqlite:///{path}"


def test_a_connection_to_a_file_that_is_no_database_is_closed(
    notes: str, open_connections: set[sqlite3.Connection]
) -> None:
    with MQ(notes) as mq:
        with pytest.raises(DatabaseDamagedError):
            mq.producer("orders")

        assert open_connections == set()


def test_a_connection_for_asyncio_to_a_file_that_is_no_database_is_closed(
    notes: str, open_connections: set[sqlite3.Connection]
) -> None:
    async def connect() -> None:
        engine = dialect_named("sqlite", None).create_async_engine(make_url(notes))
        with pytest.raises(DatabaseError):
            await engine.connect()
        await engine.dispose()

    asyncio.run(connect())

    assert open_connections == set()


NAMES = "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def names(database: DatabaseUnderTest) -> set[str]:
    """The names that the server's list of connections has for those of this test's database."""
    engine = create_engine(database.url, poolclass=NullPool)
    with engine.connect() as connection:
        return set(connection.exec_driver_sql(NAMES).scalars())


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    ("query", "variable", "expected"),
    [
        ({}, None, "sqlmq"),
        ({"fallback_application_name": "orders"}, None, "orders"),
        ({"application_name": "orders"}, None, "orders"),
        ({}, "orders", "orders"),
    ],
    ids=["of ours", "a fallback of the URL", "of the URL", "of the environment"],
)
def test_every_connection_has_a_name_unless_it_has_one_already(
    database: DatabaseUnderTest,
    monkeypatch: pytest.MonkeyPatch,
    query: dict[str, str],
    variable: str | None,
    expected: str,
) -> None:
    if variable is not None:
        monkeypatch.setenv("PGAPPNAME", variable)
    with MQ(make_url(database.url).update_query_dict(query)) as mq:
        mq.producer("orders").produce(Message(b"x"))
        consumer = mq.consumer("orders", "billing")
        assert consumer.poll(timeout=10) != []
        consumer.poll(timeout=0.05)  # it waits, so it listens

        found = names(database)

    assert found - {APPLICATION_NAME} == {expected}


@pytest.mark.parametrize(
    ("database", "driver"),
    [("postgres", "asyncpg"), ("postgres", "psycopg_async"), ("postgres", "psycopg2"), ("sqlite", "aiosqlite")],
    indirect=["database"],
)
def test_the_url_of_an_application_with_another_driver_names_the_same_database(
    database: DatabaseUnderTest, driver: str
) -> None:
    url = make_url(database.url)

    with MQ(url.set(drivername=f"{url.get_backend_name()}+{driver}")) as mq, MQ(database.url) as other:
        mq.create_topic("orders")

        assert other.admin.topics() == ["orders"]


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_connection_that_is_lost_in_the_search_for_a_pooler_is_closed(
    database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[psycopg.Connection] = []

    def fail(connection: psycopg.Connection) -> int:
        connections.append(connection)
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(pooler, "_answering_pid", fail)
    engine = dialect_named("postgresql", None).create_engine(make_url(database.url))

    with pytest.raises(OperationalError):
        engine.connect()

    assert [connection.closed for connection in connections] == [True]
