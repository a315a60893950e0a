"""Running a handler in an event loop, with sessions of the application, on each driver for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from sqlmq.errors import IsolationError, SessionError
from tests.aio.test_run import DRAIN, send
from tests.conftest import database_of_kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq import AsyncMQ, Message
    from tests.conftest import DatabaseUnderTest


@pytest.fixture
def database(driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseUnderTest]:
    """The database of the driver."""
    with database_of_kind(driver.partition("+")[0].replace("postgresql", "postgres"), request, tmp_path) as made:
        yield made


async def test_effects_are_made_with_sessions_of_the_application(
    mq: AsyncMQ, engine: Engine, async_engine: AsyncEngine
) -> None:
    await send(mq, 4)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE effect (number integer)"))
    failing = {b"2"}

    async def handler(message: Message, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO effect VALUES (:n)"), {"n": int(message.value)})
        if message.value in failing:
            failing.clear()
            raise ArithmeticError

    consumer = await mq.consumer("orders", "billing")
    summary = await consumer.run(handler, transaction=True, session=async_sessionmaker(async_engine), **DRAIN)

    with engine.connect() as connection:
        numbers = list(connection.execute(text("SELECT number FROM effect")).scalars())
    assert sorted(numbers) == [0, 1, 2, 3]
    assert (summary.handled, summary.failures) == (4, 1)


async def test_a_single_session_is_refused(mq: AsyncMQ, async_engine: AsyncEngine) -> None:
    await send(mq, 1)

    async def handler(_message: Message, _session: AsyncSession) -> None: ...

    consumer = await mq.consumer("orders", "billing")
    async with AsyncSession(async_engine) as session:
        with pytest.raises(TypeError, match="takes an async_sessionmaker"):
            await consumer.run(handler, transaction=True, session=session)  # type: ignore[arg-type]


async def test_a_session_that_can_not_be_used_ends_the_run_and_fails_no_message(mq: AsyncMQ, tmp_path: Path) -> None:
    await send(mq, 2)
    elsewhere = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'elsewhere.db'}")

    async def handler(_message: Message, _session: AsyncSession) -> None: ...

    consumer = await mq.consumer("orders", "billing")
    with pytest.raises(SessionError, match="leads to another database"):
        await consumer.run(handler, transaction=True, session=async_sessionmaker(elsewhere), **DRAIN)
    await elsewhere.dispose()

    with mq.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM sqlmq_parked")).scalar() == 0


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+asyncpg"], indirect=True)
async def test_a_session_above_read_committed_ends_the_run(mq: AsyncMQ, async_engine: AsyncEngine) -> None:
    await send(mq, 1)
    engine = async_engine.execution_options(isolation_level="REPEATABLE READ")

    async def handler(_message: Message, _session: AsyncSession) -> None: ...

    consumer = await mq.consumer("orders", "billing")
    with pytest.raises(IsolationError):
        await consumer.run(handler, transaction=True, session=async_sessionmaker(engine), **DRAIN)
