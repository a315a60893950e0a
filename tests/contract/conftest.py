"""The contract suite runs four ways: on SQLite and on Postgres, synchronous and with asyncio."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import MQ, AsyncMQ
from tests.conftest import close_and_count, parameter_of
from tests.support.blocking import Loop, blocking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import DatabaseUnderTest, MakeMQ

WAYS = ("sync", "asyncio")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that asks for a queue both ways, unless it says why not."""
    if "way" in metafunc.fixturenames:
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
    return False


def _chooses_databases(item: pytest.Item) -> bool:
    return any("database" in marker.args[0] for marker in item.iter_markers("parametrize"))


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    """How the queue is used, `sync` or `asyncio`. The tests do not notice."""
    return str(request.param)


@pytest.fixture
def make_mq(way: str, database: DatabaseUnderTest) -> Iterator[MakeMQ]:
    """Make MQ objects, or what looks like them and does everything with asyncio."""
    with ExitStack() as closing:
        if way == "asyncio":
            loop = Loop()
            closing.callback(loop.close)

        def make(**options: Any) -> MQ:
            options = {"schema": database.schema, **options}
            mq = blocking(AsyncMQ(database.url, **options), loop) if way == "asyncio" else MQ(database.url, **options)
            closing.callback(close_and_count(mq))
            return mq

        yield make
