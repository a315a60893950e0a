"""The databases that tests run against, and the rule that a test leaves nothing open in them."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sqlite3
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import Connection, Engine, create_engine, event, make_url

from sqlmq import MQ
from tests.support.pgbouncer import PgBouncer, find_pgbouncer
from tests.support.postgres_databases import PostgresDatabases
from tests.support.postgres_server import URL_VARIABLE, PostgresUnavailableError, TestPostgres, provide
from tests.support.sqlite_files import directory_for_sqlite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KINDS = ("sqlite", "postgres", "postgres-schema", "pgbouncer")
SCHEMA = "mq_schema"
SERVER = pytest.StashKey[TestPostgres]()

# How long an example takes is a matter of the machine's load.
settings.register_profile("any-load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-load")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so, and programs inherit it: those that tests start could not be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.lanes", "tests.support.fixtures", "tests.support.statements", "pytester"]


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


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the whole suite, or the part of it that is asked for, run through PgBouncer too."""
    parser.addoption("--pgbouncer", action="store_true", help="run all that runs on Postgres through PgBouncer as well")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave PgBouncer to the tests that are marked for it, unless it is asked for."""
    if not config.getoption("pgbouncer"):
        items[:] = [item for item in items if parameter_of(item, "database") != "pgbouncer" or _is_marked(item)]


def _is_marked(item: pytest.Item) -> bool:
    return item.get_closest_marker("pgbouncer") is not None


def parameter_of(item: pytest.Item, name: str) -> object:
    """What the test is run with as *name*; None if it takes no such thing."""
    return item.callspec.params.get(name) if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None


def pytest_xdist_auto_num_workers() -> int:
    """Half as many workers again as there are processors: many tests wait, for leases and for each other."""
    return max(3, (os.cpu_count() or 1) * 3 // 2)


def pytest_collection_finish() -> None:
    """Exempt all that collecting tests has made from the garbage collector: tests that call it would scan it each time."""
    gc.collect()
    gc.freeze()


def pytest_report_header(config: pytest.Config) -> str:
    """Say which databases the results are about."""
    server = config.stash.get(SERVER, None)
    postgres = f"Postgres {server.version} ({server.source})" if server else "no Postgres started"
    return f"databases: {postgres}, SQLite {sqlite3.sqlite_version}"


# --- A database for each test ---


@dataclass(frozen=True, slots=True)
class DatabaseUnderTest:
    """An empty queue in a database of the test's own, with its tables."""

    kind: str
    url: str
    schema: str | None

    @property
    def is_postgres(self) -> bool:
        return self.kind != "sqlite"

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """What an application has to give its own engine here."""
        return {"connect_args": {"prepare_threshold": None}} if self.kind == "pgbouncer" else {}


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """The server's URL, as a superuser or one who may create databases. Not for tables: see `database`."""
    return os.environ[URL_VARIABLE]


@pytest.fixture(scope="session")
def postgres_databases(postgres_url: str) -> Iterator[PostgresDatabases]:
    databases = PostgresDatabases(postgres_url, os.environ.get("PYTEST_XDIST_WORKER", "main"))
    yield databases
    databases.close()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the tables in it, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    with MQ(f"sqlite:///{path}") as mq:
        mq.admin.topics()
    return path


@pytest.fixture(scope="session")
def pgbouncer(postgres_url: str) -> Iterator[PgBouncer]:
    """A PgBouncer in front of the server. Where there is none, tests are skipped, and say so; one that does not start fails."""
    program = find_pgbouncer()
    if program is None:
        pytest.skip("There is no pgbouncer on this machine: `sudo apt install pgbouncer`.")
    pgbouncer = PgBouncer(program, make_url(postgres_url))
    yield pgbouncer
    pgbouncer.remove()


@contextmanager
def database_of_kind(kind: str, request: pytest.FixtureRequest, directory: Path) -> Iterator[DatabaseUnderTest]:
    """An empty database; on Postgres, with the assertion in the end that no transaction was left open."""
    if kind == "sqlite":
        made: Path = request.getfixturevalue("migrated_sqlite")
        with directory_for_sqlite(directory) as place:
            shutil.copyfile(made, place / "queue.db")
            yield DatabaseUnderTest(kind, f"sqlite:///{place / 'queue.db'}", None)
        return
    # Asked for here, so that tests on SQLite alone make no template.
    databases: PostgresDatabases = request.getfixturevalue("postgres_databases")
    schema = SCHEMA if kind == "postgres-schema" else None
    with databases.lend(schema, new=request.node.get_closest_marker("new_database") is not None) as name:
        if kind != "pgbouncer":
            yield DatabaseUnderTest(kind, databases.url(name), schema)
            return
        pgbouncer: PgBouncer = request.getfixturevalue("pgbouncer")
        yield DatabaseUnderTest(kind, pgbouncer.url(name), schema)
        pgbouncer.forget(name)


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
    engine = create_engine(database.url, **database.engine_arguments)
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
