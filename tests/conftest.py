"""The databases that tests run against, and the rule that a test leaves nothing open in them."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.pool import NullPool

from sqlmq import MQ
from sqlmq.migrate import upgrade
from tests.postgres_server import URL_VARIABLE, PostgresUnavailableError, TestPostgres, provide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KINDS = ("sqlite", "postgres", "postgres-schema")
SCHEMA = "mq_schema"
SERVER = pytest.StashKey[TestPostgres]()


# --- One Postgres for the run ---


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start Postgres in the process that controls the workers, before it starts them."""
    config = session.config
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    try:
        server = provide()
    except PostgresUnavailableError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[SERVER] = server
    config.add_cleanup(server.remove)
    # Workers inherit the environment, and so do the programs that tests start.
    os.environ[URL_VARIABLE] = server.url.render_as_string(hide_password=False)


def pytest_report_header(config: pytest.Config) -> str:
    """Say which databases the results are about."""
    server = config.stash.get(SERVER, None)
    postgres = f"Postgres {server.version} ({server.source})" if server else "no Postgres started"
    return f"databases: {postgres}, SQLite {sqlite3.sqlite_version}"


# --- A database for each test ---


@dataclass(frozen=True, slots=True)
class DatabaseUnderTest:
    """An empty queue in a database of the test's own: migrated on Postgres, a file not yet made on SQLite."""

    kind: str
    url: str
    schema: str | None

    @property
    def is_postgres(self) -> bool:
        return self.kind != "sqlite"


class PostgresDatabases:
    """Makes databases by copying a migrated one (about 60 ms), and drops them."""

    def __init__(self, url: str, worker: str) -> None:
        self._url = make_url(url)
        # Several runs may share one server.
        self._prefix = f"sqlmq_test_{worker}_{uuid4().hex[:8]}"
        self._admin = create_engine(self._url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self._templates: dict[str | None, str] = {}
        self._made = 0

    def url(self, name: str) -> str:
        return self._url.set(database=name).render_as_string(hide_password=False)

    def create(self, schema: str | None) -> str:
        """Make a database with the tables in *schema* and return its name."""
        if schema not in self._templates:
            self._templates[schema] = self._create_template(schema)
        self._made += 1
        return self._create(f"{self._prefix}_{self._made}", f"TEMPLATE {self._templates[schema]}")

    def create_empty(self) -> str:
        """Make a database without any tables and return its name."""
        self._made += 1
        return self._create(f"{self._prefix}_{self._made}", "TEMPLATE template0")

    def drop(self, name: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))

    def close(self) -> None:
        for template in self._templates.values():
            self.drop(template)

    def transactions_left_open(self, name: str) -> list[str]:
        """Say which sessions sit in an open transaction, once those that are just ending have had time to end."""
        query = text(
            "SELECT application_name || ': ' || state || ' after ' || query FROM pg_stat_activity"
            " WHERE datname = :name AND state LIKE 'idle in transaction%'"
        )
        deadline = time.monotonic() + 2
        with self._admin.connect() as connection:
            while True:
                found = list(connection.execute(query, {"name": name}).scalars())
                if not found or time.monotonic() > deadline:
                    return found
                time.sleep(0.02)

    def _create(self, name: str, options: str) -> str:
        with self._admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} {options}"))
        return name

    def _create_template(self, schema: str | None) -> str:
        name = self._create(f"{self._prefix}_template_{schema or 'default'}", "TEMPLATE template0")
        engine = create_engine(self.url(name), poolclass=NullPool)
        with engine.begin() as connection:
            if schema is not None:
                connection.execute(text(f"CREATE SCHEMA {schema}"))
            upgrade(connection, schema=schema)
        return name


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """The server's URL, as a superuser or one who may create databases. Not for tables: see `database`."""
    return os.environ[URL_VARIABLE]


@pytest.fixture(scope="session")
def postgres_databases(postgres_url: str) -> Iterator[PostgresDatabases]:
    databases = PostgresDatabases(postgres_url, os.environ.get("PYTEST_XDIST_WORKER", "main"))
    yield databases
    databases.close()


@contextmanager
def _postgres(databases: PostgresDatabases, kind: str, schema: str | None) -> Iterator[DatabaseUnderTest]:
    name = databases.create(schema)
    try:
        yield DatabaseUnderTest(kind, databases.url(name), schema)
        left_open = databases.transactions_left_open(name)
    finally:
        databases.drop(name)
    assert left_open == [], "the test left transactions open"


@contextmanager
def database_of_kind(kind: str, request: pytest.FixtureRequest, directory: Path) -> Iterator[DatabaseUnderTest]:
    """A database that is gone in the end, on Postgres with the assertion that no transaction was left open."""
    if kind == "sqlite":
        yield DatabaseUnderTest(kind, f"sqlite:///{directory / 'queue.db'}", None)
        return
    # Asked for here, so that tests on SQLite alone make no template.
    databases: PostgresDatabases = request.getfixturevalue("postgres_databases")
    with _postgres(databases, kind, SCHEMA if kind == "postgres-schema" else None) as made:
        yield made


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseUnderTest]:
    """Each kind of database in turn.

    For some only: `@pytest.mark.parametrize("database", ["postgres"], indirect=True)`.
    """
    with database_of_kind(request.param, request, tmp_path) as made:
        yield made


@pytest.fixture
def engine(database: DatabaseUnderTest) -> Iterator[Engine]:
    """The application's own engine, beside the queue's."""
    engine = create_engine(database.url)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """One connection of the application's; what is not committed is rolled back."""
    with engine.connect() as connection:
        yield connection


# --- A queue for each test ---


class CheckedOut:
    """The pooled connections that an engine has handed out and not got back.

    Counted here because a disposed pool forgets them.
    """

    def __init__(self, engine: Engine) -> None:
        self._lock = threading.Lock()
        self._records: dict[int, str] = {}
        event.listen(engine, "checkout", self._checkout)
        event.listen(engine, "checkin", self._return)
        event.listen(engine, "detach", self._return)

    def __len__(self) -> int:
        return len(self._records)

    def __str__(self) -> str:
        return ", ".join(self._records.values()) or "none"

    def _checkout(self, _dbapi_connection: object, record: object, _proxy: object) -> None:
        with self._lock:
            self._records[id(record)] = f"one taken by {threading.current_thread().name}"

    def _return(self, _dbapi_connection: object, record: object) -> None:
        with self._lock:
            self._records.pop(id(record), None)


class MakeMQ(Protocol):
    """Makes one more queue object on the test's database, with MQ's keyword arguments."""

    def __call__(self, **options: Any) -> MQ: ...


@pytest.fixture
def make_mq(database: DatabaseUnderTest) -> Iterator[MakeMQ]:
    """Make MQ objects: several on one database, as several processes of an application would."""
    with ExitStack() as closing:

        def make(**options: Any) -> MQ:
            mq = MQ(database.url, **{"schema": database.schema, **options})
            closing.callback(close_and_count(mq))
            return mq

        yield make


def close_and_count(mq: MQ) -> Callable[[], None]:
    """What closes *mq* and fails if a connection taken from its pool since this call was not given back."""
    checked_out = CheckedOut(mq.engine)

    def close() -> None:
        mq.close()
        assert len(checked_out) == 0, f"connections not given back to the pool: {checked_out}"

    return close


@pytest.fixture
def mq(make_mq: MakeMQ) -> MQ:
    """One queue object on the test's database, closed at the end of the test."""
    return make_mq()
