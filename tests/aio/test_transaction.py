"""Transactions of a consumer in tasks: side by side, cancelled, and on engines for asyncio.

What holds for threads and tasks alike is in the contract suite, in `test_transaction.py`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session

from sqlmq import AsyncMQ, DatabaseUnavailableError, Message
from sqlmq.aio.threads import to_the_end
from sqlmq.errors import SessionError
from tests.aio.interrupting import cancelled_everywhere
from tests.conftest import CheckedOut, database_of_kind
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    from sqlmq import AsyncConsumer, AsyncTransaction, ReceivedMessage
    from tests.aio.conftest import AtEnd
    from tests.conftest import DatabaseUnderTest

INSERT = text("INSERT INTO effect VALUES (:p, :o)")


@pytest.fixture
def database(driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseUnderTest]:
    """The database of the driver."""
    with database_of_kind(driver.partition("+")[0].replace("postgresql", "postgres"), request, tmp_path) as made:
        yield made


@pytest.fixture
def given(async_engine: AsyncEngine, at_end: AtEnd) -> AsyncMQ:
    """A queue made from the application's AsyncEngine, whose driver its transactions use."""
    mq = AsyncMQ(async_engine)
    at_end.append(mq.close)
    return mq


async def send(mq: AsyncMQ, engine: Engine, count: int, *, partitions: int = 1) -> list[tuple[int, int]]:
    """Put *count* messages into each partition; make the table of effects; return the places."""
    await mq.create_topic("orders", partitions)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS effect (partition_number INTEGER, message_offset INTEGER)"))
    producer = await mq.producer("orders")
    futures = [producer.submit(Message(b"%d" % i), partition=p) for p in range(partitions) for i in range(count)]
    return sorted((result.partition, result.offset) for result in await asyncio.gather(*futures))


async def have(tx: AsyncTransaction) -> None:
    for message in tx:
        await tx.session.execute(INSERT, {"p": message.partition, "o": message.offset})


async def handle_all(consumer: AsyncConsumer, at_most: int = 100, **options: Any) -> list[bytes]:
    values: list[bytes] = []
    while True:
        async with consumer.transaction(max_messages=at_most, timeout=0, **options) as tx:
            await have(tx)
            if not tx.messages:
                return values
            values += [message.value for message in tx]


def effects(engine: Engine) -> list[tuple[int, int]]:
    with engine.connect() as connection:
        return [(row[0], row[1]) for row in connection.execute(text("SELECT * FROM effect ORDER BY 1, 2"))]


async def positions(mq: AsyncMQ) -> list[int]:
    return [partition.position for partition in (await mq.admin.describe_group("orders", "billing")).partitions]


@pytest.mark.parametrize("how", ["cancelled", "timeout"])
async def test_a_task_that_is_cancelled_in_the_block_undoes_both(given: AsyncMQ, engine: Engine, how: str) -> None:
    places = await send(given, engine, 3)
    consumer = await given.consumer("orders", "billing")

    with pytest.raises(asyncio.CancelledError if how == "cancelled" else TimeoutError):
        async with asyncio.timeout(PATIENCE_SECONDS) as limit:
            async with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
                await have(tx)
                if how == "cancelled":
                    raise asyncio.CancelledError
                limit.reschedule(0)
                await asyncio.Event().wait()

    assert (effects(engine), await positions(given)) == ([], [0])
    assert await handle_all(consumer) == [b"0", b"1", b"2"]
    assert effects(engine) == places


async def test_wrong_types_are_refused(mq: AsyncMQ, engine: Engine) -> None:
    consumer = await mq.consumer("orders", "billing")
    wrong: Any
    with Session(engine) as session, engine.connect() as connection:
        for wrong in (5, session, connection, engine):
            with pytest.raises(TypeError, match=f"not {type(wrong).__name__}"):
                consumer.transaction(session=wrong)
    makes_wrong: Any = lambda: Session(engine)  # noqa: E731 - of the wrong kind on purpose
    with pytest.raises(TypeError, match="it made Session"):
        async with consumer.transaction(timeout=0, session=makes_wrong):
            pass


async def test_made_from_an_engine_or_in_memory_it_says_what_to_do(async_engine: AsyncEngine, engine: Engine) -> None:
    for target in (engine, "sqlite://"):
        async with AsyncMQ(target) as mq:
            consumer = await mq.consumer("orders", "billing")
            with pytest.raises(SessionError, match="Give session="):
                async with consumer.transaction(timeout=0):
                    pass
    async with AsyncMQ(engine) as mq:
        consumer = await mq.consumer("orders", "billing")
        async with consumer.transaction(timeout=0, session=async_sessionmaker(async_engine)) as tx:
            assert tx.messages == []


async def test_what_could_not_begin_is_tried_again_and_leaves_no_connection(
    given: AsyncMQ, async_engine: AsyncEngine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = await send(given, engine, 1)
    consumer = await given.consumer("orders", "billing")
    await handle_all(await given.consumer("orders", "warm"))
    checked_out = CheckedOut(async_engine.sync_engine)
    begin, refusals, taken = given._sync._database.dialect.begin, iter([True, True]), []

    def refuse(connection: Connection) -> None:
        if connection.engine.dialect.is_async:
            taken.append(len(checked_out))
            if next(refusals, False):
                message = "not now"
                raise DatabaseUnavailableError(message)
        begin(connection)

    monkeypatch.setattr(given._sync._database.dialect, "begin", refuse)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM effect"))
    async with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
        await have(tx)

    assert effects(engine) == places
    assert taken == [1] * len(taken)
    assert len(taken) > 2


async def test_tasks_and_consumers_at_once_have_each_effect_once_and_in_order(given: AsyncMQ, engine: Engine) -> None:
    places = await send(given, engine, 15, partitions=3)
    consumers = [await given.consumer("orders", "billing") for _ in range(2)]
    seen: list[tuple[int | None, int | None]] = []

    async def work(consumer: AsyncConsumer) -> None:
        while len(seen) < len(places):
            async with consumer.transaction(max_messages=4, timeout=0.05) as tx:
                await have(tx)
                seen.extend((message.partition, message.offset) for message in tx)

    await asyncio.gather(*(work(consumer) for consumer in consumers * 2))

    assert effects(engine) == places
    assert [[o for p, o in seen if p == number] for number in range(3)] == [list(range(15))] * 3


@pytest.mark.parametrize("kind", [None, "sessionmaker"])
async def test_cancelled_at_any_point_effects_equal_messages(
    given: AsyncMQ, async_engine: AsyncEngine, engine: Engine, driver: str, kind: str | None
) -> None:
    places = await send(given, engine, 400)
    consumer = await given.consumer("orders", "billing")
    source = async_sessionmaker(async_engine) if kind else None
    checked_out = CheckedOut(async_engine.sync_engine)

    async def handle() -> None:
        async with consumer.transaction(max_messages=1, timeout=PATIENCE_SECONDS, session=source) as tx:
            # Interrupted inside a statement of the application's, aiosqlite can keep the file locked, with or without a
            # queue; so on SQLite only our own awaits are interrupted.
            await (to_the_end(have(tx)) if "sqlite" in driver else have(tx))

    async for _result in cancelled_everywhere(handle):
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=PATIENCE_SECONDS)
        assert len(checked_out) == 0

    handled = effects(engine)
    assert handled == places[: len(handled)]
    assert (await positions(given)) == [len(handled)]
    await handle_all(consumer)
    assert effects(engine) == places


async def test_close_disposes_an_engine_of_our_own_and_never_a_given_one(
    database: DatabaseUnderTest, async_engine: AsyncEngine
) -> None:
    disposed: list[str] = []
    event.listen(async_engine.sync_engine, "engine_disposed", lambda _: disposed.append("given"))
    for target in (async_engine, database.url):
        async with AsyncMQ(target) as mq:
            async with (await mq.consumer("orders", "billing")).transaction(timeout=0):
                pass
            for made in mq._engines._made.values():
                event.listen(made.sync_engine, "engine_disposed", lambda _: disposed.append("own"))

    assert disposed == ["own"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop for it")
def test_it_works_on_uvloop(database: DatabaseUnderTest, engine: Engine) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with AsyncMQ(database.url) as mq:
            places = await send(mq, engine, 3)
            await handle_all(await mq.consumer("orders", "billing"))
            assert effects(engine) == places

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


# --- In `run` ---


async def test_a_handler_with_async_sessions_is_awaited_though_it_does_not_look_so(
    given: AsyncMQ, engine: Engine, async_engine: AsyncEngine
) -> None:
    await send(given, engine, 3)

    async def work(message: ReceivedMessage, session: AsyncSession) -> None:
        await session.execute(INSERT, {"p": message.partition, "o": message.offset})

    def handler(message: ReceivedMessage, session: AsyncSession) -> object:
        return work(message, session)

    consumer = await given.consumer("orders", "billing")
    sessions = async_sessionmaker(async_engine)
    summary = await consumer.run(handler, transaction=True, session=sessions, idle_seconds=0, handle_signals=False)

    with engine.connect() as connection:
        assert sorted(connection.execute(text("SELECT message_offset FROM effect")).scalars()) == [0, 1, 2]
    assert (summary.handled, summary.failures) == (3, 0)
