"""Transactions of a consumer on drivers for asyncio: position and effects commit together, or not at all."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session

from sqlmq import AsyncMQ, DatabaseUnavailableError, Message, SqlmqError
from sqlmq.aio.threads import to_the_end
from sqlmq.errors import ConsumerClosedError, IsolationError, SessionError, TransactionEndedError
from tests.aio.interrupting import cancelled_everywhere
from tests.conftest import CheckedOut, database_of_kind
from tests.support.queue_state import QueueState
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq import AsyncConsumer, AsyncTransaction
    from tests.aio.conftest import AtEnd, MakeAsyncMQ
    from tests.conftest import DatabaseUnderTest

POSTGRES = pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+asyncpg"], indirect=True)
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


async def waits(consumer: AsyncConsumer, task: asyncio.Task[Any]) -> None:
    while not consumer._core.is_waiting:
        assert not task.done()
        await asyncio.wait([task], timeout=0.01)


# --- Both or neither ---


async def test_effects_and_position_are_committed_together(given: AsyncMQ, engine: Engine) -> None:
    places = await send(given, engine, 5)
    consumer = await given.consumer("orders", "billing")

    async with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
        assert [message.value for message in tx.messages] == [b"0", b"1", b"2", b"3", b"4"]
        await have(tx)
        assert (effects(engine), await positions(given)) == ([], [0])
        await tx.connection.execute(INSERT, {"p": 7, "o": 7})

    assert (effects(engine), await positions(given)) == ([*places, (7, 7)], [5])


@pytest.mark.parametrize("how", ["exception", "cancelled", "timeout"])
async def test_what_ends_the_block_early_undoes_both(given: AsyncMQ, engine: Engine, how: str) -> None:
    places = await send(given, engine, 3)
    consumer = await given.consumer("orders", "billing")
    error = {"exception": ZeroDivisionError, "cancelled": asyncio.CancelledError, "timeout": TimeoutError}[how]

    with pytest.raises(error):
        async with asyncio.timeout(PATIENCE_SECONDS) as limit:
            async with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
                await have(tx)
                if how == "timeout":
                    limit.reschedule(0)
                    await asyncio.Event().wait()
                raise error

    assert (effects(engine), await positions(given)) == ([], [0])
    assert await handle_all(consumer) == [b"0", b"1", b"2"]
    assert effects(engine) == places


KINDS_OF_SOURCE = [
    "sessionmaker",
    "sessionmaker without autobegin",
    "AsyncSession",
    "async_scoped_session",
    "AsyncConnection",
    "none",
]


@asynccontextmanager
async def source_of(kind: str, engine: AsyncEngine) -> AsyncIterator[Any]:
    """What may be given as ``session=``."""
    async with AsyncExitStack() as stack:
        source: Any = None
        if kind.startswith("sessionmaker"):
            source = async_sessionmaker(engine, autobegin=kind == "sessionmaker")
        elif kind == "AsyncSession":
            source = await stack.enter_async_context(AsyncSession(engine))
        elif kind == "async_scoped_session":
            source = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
            stack.push_async_callback(source.remove)
        elif kind == "AsyncConnection":
            source = await stack.enter_async_context(engine.connect())
        yield source


@pytest.mark.parametrize("kind", KINDS_OF_SOURCE)
async def test_whatever_stands_for_a_session_is_used(
    mq: AsyncMQ, async_engine: AsyncEngine, engine: Engine, kind: str
) -> None:
    places = await send(mq, engine, 5)
    consumer = await mq.consumer("orders", "billing")

    async with source_of(kind, async_engine) as source:
        with pytest.raises(ZeroDivisionError):
            async with consumer.transaction(max_messages=2, timeout=PATIENCE_SECONDS, session=source) as tx:
                await have(tx)
                raise ZeroDivisionError
        assert len(await handle_all(consumer, 2, session=source)) == 5
    await mq.close()

    assert effects(engine) == places


@pytest.mark.parametrize("kind", KINDS_OF_SOURCE)
async def test_a_listener_of_the_commit_that_fails_undoes_both(
    mq: AsyncMQ, async_engine: AsyncEngine, engine: Engine, kind: str
) -> None:
    places = await send(mq, engine, 1)
    consumer = await mq.consumer("orders", "billing")

    def refuse(_connection: Connection) -> None:
        raise ZeroDivisionError

    async with source_of(kind, async_engine) as source:
        with pytest.raises(ZeroDivisionError):
            async with consumer.transaction(timeout=PATIENCE_SECONDS, session=source) as tx:
                await have(tx)
                on = tx.connection.sync_connection
                event.listen(on, "commit", refuse)
        event.remove(on, "commit", refuse)
        assert (effects(engine), await positions(mq)) == ([], [0])
        assert await handle_all(consumer, session=source) == [b"0"]
    await mq.close()

    assert effects(engine) == places


async def test_without_messages_the_block_runs_with_none(given: AsyncMQ, engine: Engine) -> None:
    await send(given, engine, 0)
    async with (await given.consumer("orders", "billing")).transaction(timeout=0.05) as tx:
        assert (tx.messages, list(tx)) == ([], [])
        await tx.session.execute(INSERT, {"p": 1, "o": 2})

    assert effects(engine) == [(1, 2)]


async def test_what_is_read_and_written_is_there_together_or_not(given: AsyncMQ, engine: Engine) -> None:
    await send(given, engine, 3)
    consumer, out = await given.consumer("orders", "billing"), await given.producer("invoices")

    with pytest.raises(ZeroDivisionError):
        async with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
            await out.produce(Message(b"lost", b"k"), session=tx.session)
            raise ZeroDivisionError
    async with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
        for message in tx:
            await out.produce(Message(b"for " + message.value, b"k"), session=tx.session)
        await out.produce(Message(b"end", b"k"), session=tx.connection)

    assert list(QueueState(engine, None).texts("invoices").values()) == [["for 0", "for 1", "for 2", "end"]]
    assert await positions(given) == [3]


@pytest.mark.parametrize("of", ["session", "connection"])
@pytest.mark.parametrize("call", ["commit", "rollback"])
async def test_a_transaction_ended_inside_moves_no_position(
    given: AsyncMQ, async_engine: AsyncEngine, engine: Engine, of: str, call: str
) -> None:
    await send(given, engine, 2)
    consumer = await given.consumer("orders", "billing")

    with pytest.raises(TransactionEndedError, match="ended inside"):
        async with consumer.transaction(timeout=PATIENCE_SECONDS, session=async_sessionmaker(async_engine)) as tx:
            await getattr(getattr(tx, of), call)()

    assert await positions(given) == [0]
    assert len(await handle_all(consumer)) == 2


# --- What is refused ---


@POSTGRES
async def test_a_level_that_could_see_an_old_position_is_refused(
    mq: AsyncMQ, async_engine: AsyncEngine, engine: Engine
) -> None:
    await send(mq, engine, 1)
    sessions = async_sessionmaker(async_engine.execution_options(isolation_level="REPEATABLE READ"))

    with pytest.raises(IsolationError):
        async with (await mq.consumer("orders", "billing")).transaction(timeout=0, session=sessions):
            pass


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
    with pytest.raises(ValueError, match="max_messages"):
        consumer.transaction(max_messages=0)


async def test_a_transaction_is_used_once(given: AsyncMQ) -> None:
    tx = (await given.consumer("orders", "billing")).transaction(timeout=0)
    for part in ("messages", "session", "connection"):
        with pytest.raises(SessionError, match="has not begun"):
            getattr(tx, part)
    async with tx:
        pass
    with pytest.raises(SessionError, match="used once"):
        async with tx:
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


# --- Waiting ---


async def test_a_message_wakes_a_waiting_transaction_at_once(make_mq: MakeAsyncMQ, engine: Engine) -> None:
    mq = make_mq(poll_min_seconds=30, poll_max_seconds=30)
    await send(mq, engine, 0)
    producer, consumer = await mq.producer("orders"), await mq.consumer("orders", "billing")

    async def handle() -> list[bytes]:
        async with consumer.transaction() as tx:
            return [message.value for message in tx]

    task = asyncio.create_task(handle())
    await waits(consumer, task)
    assert consumer._core.poll_request() is None  # nobody else could look for it
    await producer.produce(Message(b"a"))
    async with asyncio.timeout(PATIENCE_SECONDS / 2):
        assert await task == [b"a"]
    await mq.close()


async def test_closing_the_consumer_ends_the_wait(mq: AsyncMQ) -> None:
    consumer = await mq.consumer("orders", "billing")

    async def handle() -> None:
        async with consumer.transaction():
            pass

    task = asyncio.create_task(handle())
    await waits(consumer, task)
    await consumer.close()
    with pytest.raises(ConsumerClosedError):
        await task
    await mq.close()


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


# --- Several at once, and interrupted ---


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


@POSTGRES
async def test_a_connection_the_server_has_cut_undoes_both(given: AsyncMQ, engine: Engine) -> None:
    places = await send(given, engine, 2)
    consumer = await given.consumer("orders", "billing")

    with pytest.raises(SqlmqError):
        async with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
            await have(tx)
            pid = (await tx.connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            with engine.begin() as connection:
                connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    assert effects(engine) == []
    assert len(await handle_all(consumer)) == 2
    assert effects(engine) == places


# --- Engines and loops ---


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
