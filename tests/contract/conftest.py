"""The contract suite runs four ways: on SQLite and on Postgres, synchronous and with asyncio."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import MQ, AsyncMQ
from tests.conftest import CheckedOut, close_and_count, parameter_of
from tests.support.application import Application, AsyncApplication, sync_of, unwrapped
from tests.support.blocking import Loop, blocking
from tests.support.shop import Shop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from tests.conftest import DatabaseUnderTest, MakeMQ

WAYS = ("sync", "asyncio")
DRIVERS = ("asyncpg", "psycopg")
"""The drivers of the application for asyncio on Postgres; tests that are not marked with `each_driver` run on the first."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that asks for a queue both ways, unless it says why not."""
    if "way" not in metafunc.fixturenames:
        return
    if metafunc.definition.get_closest_marker("each_driver"):
        ways = [(WAYS[0], None), *((WAYS[1], driver) for driver in DRIVERS)]
        ids = [*WAYS, f"{WAYS[1]}-{DRIVERS[1]}"]
        metafunc.parametrize(("way", "driver"), ways, indirect=True, ids=ids)
    else:
        exception = metafunc.definition.get_closest_marker("sync_only")
        metafunc.parametrize("way", WAYS[:1] if exception else WAYS, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave combinations out that show nothing new: where the tables are is no business of the face for asyncio."""
    items[:] = [item for item in items if not _is_left_out(item)]


def _is_left_out(item: pytest.Item) -> bool:
    """On Postgres a test runs once in each way: synchronous in a schema of its own, with asyncio in the default one."""
    match parameter_of(item, "way"), parameter_of(item, "database"):
        case "asyncio", "postgres-schema":
            return True
        case "sync", "postgres":
            return item.get_closest_marker("sync_only") is None and not _chooses_databases(item)
        case "asyncio", "sqlite":
            return parameter_of(item, "driver") == DRIVERS[1]
    return False


def _chooses_databases(item: pytest.Item) -> bool:
    return any("database" in marker.args[0] for marker in item.iter_markers("parametrize"))


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    """How the queue is used, `sync` or `asyncio`. The tests do not notice."""
    return str(request.param)


@pytest.fixture
def loop(way: str) -> Iterator[Loop | None]:
    """The event loop in which everything is done with asyncio."""
    if way == "sync":
        yield None
        return
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def driver(request: pytest.FixtureRequest, database: DatabaseUnderTest) -> str:
    """The application's driver for asyncio on Postgres."""
    # Behind PgBouncer, asyncpg would need names of its own for prepared statements.
    chosen: str | None = DRIVERS[1] if database.kind == "pgbouncer" else getattr(request, "param", None)
    return chosen or DRIVERS[0]


@pytest.fixture
def app(loop: Loop | None, engine: Engine, database: DatabaseUnderTest, driver: str) -> Iterator[Application]:
    """The application beside the queue, which uses SQLAlchemy in the way of the test."""
    if loop is None:
        yield Application(engine)
        return
    outside = AsyncApplication(engine, loop, driver)
    with outside.on_url(database.url, **database.engine_arguments) as app:
        checked_out = CheckedOut(sync_of(app.engine))
        yield app
        assert len(checked_out) == 0, f"connections not given back to the pool: {checked_out}"


@pytest.fixture
def shop(mq: MQ, engine: Engine, database: DatabaseUnderTest, app: Application) -> Shop:
    """A shop of that application."""
    return Shop(mq, engine, database, app)


@pytest.fixture
def make_mq(loop: Loop | None, database: DatabaseUnderTest) -> Iterator[MakeMQ]:
    """Make MQ objects, or what looks like them and does everything with asyncio, also on another `database=`."""
    with ExitStack() as closing:

        def make(**options: Any) -> MQ:
            on = unwrapped(options.pop("database", database.url))
            options = {"schema": database.schema, **options}
            mq = MQ(on, **options) if loop is None else blocking(AsyncMQ(on, **options), loop)
            closing.callback(close_and_count(mq))
            return mq

        yield make


@pytest.fixture(autouse=True)
def frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make members check their group ten times a second, not once: many tests wait for that."""
    monkeypatch.setattr("sqlmq.consumer.coordinator._CHECK_GROUP_MAX_SECONDS", 0.1)
