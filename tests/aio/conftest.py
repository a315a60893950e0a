"""Tests that are coroutines, each in an event loop of its own that must not complain, on SQLite and on Postgres."""

from __future__ import annotations

import asyncio
import gc
import inspect
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from sqlmq import AsyncMQ
from tests.conftest import CheckedOut, database_of_kind
from tests.contract.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import DatabaseUnderTest


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        async with asyncio.timeout(PATIENCE_SECONDS * 2):
            await pyfuncitem.obj(**arguments)
        gc.collect()  # an error that nobody asked for is complained about when its future is gone

    asyncio.run(main())
    assert complaints == [], "the event loop complained"
    return True


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseUnderTest]:
    """Each database in turn."""
    with database_of_kind(request.param, request, tmp_path) as made:
        yield made


class MakeAsyncMQ(Protocol):
    """Makes one more queue object on the test's database, with AsyncMQ's keyword arguments."""

    def __call__(self, **options: Any) -> AsyncMQ: ...


@pytest.fixture
def make_mq(database: DatabaseUnderTest) -> Iterator[MakeAsyncMQ]:
    """Make AsyncMQ objects; they are closed when the test's event loop has ended."""
    with ExitStack() as closing:

        def make(**options: Any) -> AsyncMQ:
            mq = AsyncMQ(database.url, **options)
            closing.callback(_close, mq, CheckedOut(mq.engine))
            return mq

        yield make


def _close(mq: AsyncMQ, checked_out: CheckedOut) -> None:
    asyncio.run(mq.close())
    assert len(checked_out) == 0, f"connections not given back to the pool: {checked_out}"


@pytest.fixture
def mq(make_mq: MakeAsyncMQ) -> AsyncMQ:
    """One queue object on the test's database."""
    return make_mq()
