"""The faces for asyncio are those of the synchronous objects, and are made from the same things and more."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from sqlmq import (
    MQ,
    Admin,
    AsyncAdmin,
    AsyncConsumer,
    AsyncMQ,
    AsyncParked,
    AsyncProducer,
    AsyncTransaction,
    Consumer,
    Message,
    Parked,
    Producer,
    Transaction,
)
from sqlmq.errors import InvalidURLError, MQClosedError
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.conftest import DatabaseUnderTest

PAIRS = [
    (MQ, AsyncMQ),
    (Admin, AsyncAdmin),
    (Producer, AsyncProducer),
    (Consumer, AsyncConsumer),
    (Transaction, AsyncTransaction),
    (Parked, AsyncParked),
]
NOT_AWAITED = {
    "submit": "it waits for nothing, and gives a future",
    "messages": "it gives an iterator, of which each step is awaited",
    "consume_chan": "it gives an iterator, of which each step is awaited",
    "transaction": "it gives what is awaited by `async with`",
    "stop": "it waits for nothing",
    "parked": "it waits for nothing",
    "tail": "it gives an iterator, of which each step is awaited",
    "observe": "it waits for nothing",
}
AWAITED_PROTOCOLS = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__"}
RETURNS = {
    "Producer": "AsyncProducer",
    "Consumer": "AsyncConsumer",
    "Future[ProducerResult]": "asyncio.Future[ProducerResult]",
    "Iterator[ReceivedMessage]": "AsyncIterator[ReceivedMessage]",
    "Transaction": "AsyncTransaction",
    "Parked": "AsyncParked",
    "Admin": "AsyncAdmin",
    "Tail": "AsyncTail",
    "Session": "AsyncSession",
    "Connection": "AsyncConnection",
}
SESSIONS = {
    "*, session: 'SessionLike | None' = None": "*, session: 'AsyncSessionLike | None' = None",
    "*, session: 'SessionSource | None' = None": "*, session: 'AsyncSessionSource | None' = None",
    "*, session: 'Callable[[], Session] | None' = None": (
        "*, session: 'Callable[[], AsyncSession] | Callable[[], Session] | None' = None"
    ),
}


def members(kind: type) -> dict[str, object]:
    return {
        name: member for name, member in vars(kind).items() if not name.startswith("_") or name in AWAITED_PROTOCOLS
    }


def spelled(signature: inspect.Signature) -> list[str]:
    """The parameters, in order, as they are written."""
    return [
        ("*, " if one.kind is one.KEYWORD_ONLY else "* " if one.kind is one.VAR_POSITIONAL else "") + str(one)
        for one in signature.parameters.values()
    ]


@pytest.mark.parametrize(("sync", "aio"), PAIRS)
def test_every_method_has_its_awaited_equal_with_the_same_parameters(sync: type, aio: type) -> None:
    for name, member in members(sync).items():
        is_list = sync is Transaction and name == "__iter__"  # of messages that are there already
        equal = vars(aio)[name if is_list else AWAITED_PROTOCOLS.get(name, name)]
        if isinstance(member, property):
            assert isinstance(equal, property)
            theirs, ours = inspect.signature(member.fget), inspect.signature(equal.fget)  # type: ignore[arg-type]
            assert ours.return_annotation == RETURNS.get(theirs.return_annotation, theirs.return_annotation), name
            continue
        assert inspect.isfunction(member)
        theirs, ours = inspect.signature(member), inspect.signature(equal)
        assert spelled(ours) == [SESSIONS.get(one, one) for one in spelled(theirs)], name
        returned = theirs.return_annotation
        assert ours.return_annotation == (returned if is_list else RETURNS.get(returned, returned)), name
        is_awaited = name not in NOT_AWAITED and name != "__iter__"
        assert inspect.iscoroutinefunction(equal) == is_awaited, name


@pytest.mark.parametrize(("sync", "aio"), PAIRS)
def test_nothing_public_is_there_for_asyncio_alone(sync: type, aio: type) -> None:
    assert [name for name in vars(aio) if not name.startswith("_") and name not in members(sync)] == []


def test_an_async_mq_takes_the_options_of_an_mq() -> None:
    theirs, ours = inspect.signature(MQ.__init__).parameters, inspect.signature(AsyncMQ.__init__).parameters

    assert list(ours) == list(theirs)
    assert [ours[name] for name in ours if name != "database"] == [
        theirs[name] for name in theirs if name != "database"
    ]
    assert ours["database"].annotation == f"{theirs['database'].annotation} | AsyncEngine"


def test_they_say_what_they_are() -> None:
    assert re.fullmatch("<AsyncMQ on sqlite://>", repr(AsyncMQ("sqlite://")))


# --- What an AsyncMQ is made from ---


async def works(mq: AsyncMQ) -> bool:
    await (await mq.producer("orders")).produce(Message(b"42"))
    async with await mq.consumer("orders", "billing") as consumer:
        is_same = (await consumer.consume(timeout=PATIENCE_SECONDS)).value == b"42"
        await consumer.commit()
        return is_same


def async_url(database: DatabaseUnderTest) -> str:
    return re.sub(
        r"^\w+(\+\w+)?:", "postgresql+psycopg:" if database.is_postgres else "sqlite+aiosqlite:", database.url
    )


async def test_it_is_made_from_a_url(database: DatabaseUnderTest) -> None:
    async with AsyncMQ(database.url) as mq:
        assert await works(mq)

    with pytest.raises(MQClosedError):
        await mq.admin.topics()


@pytest.mark.parametrize(
    ("database", "driver"),
    [("postgres", "asyncpg"), ("postgres", "psycopg_async"), ("postgres", "psycopg"), ("sqlite", "aiosqlite")],
    indirect=["database"],
)
@pytest.mark.parametrize("as_text", [True, False])
async def test_it_is_made_from_a_url_with_a_driver_for_asyncio(
    database: DatabaseUnderTest, driver: str, as_text: bool
) -> None:
    url = make_url(database.url)
    url = url.set(drivername=f"{url.get_backend_name()}+{driver}")

    async with AsyncMQ(url.render_as_string(hide_password=False) if as_text else url) as mq:
        assert await works(mq)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_what_a_url_for_asyncpg_spells_in_its_own_way_is_understood(database: DatabaseUnderTest) -> None:
    url = make_url(database.url).set(drivername="postgresql+asyncpg")
    url = url.update_query_dict({"ssl": "prefer", "timeout": "7", "prepared_statement_cache_size": "0"})

    async with AsyncMQ(url) as mq:
        assert mq.engine.url.query == {"sslmode": "prefer", "connect_timeout": "7"}
        assert await works(mq)


async def test_it_is_made_from_an_engine_which_is_not_disposed(database: DatabaseUnderTest) -> None:
    engine = create_engine(database.url)
    disposed: list[object] = []
    event.listen(engine, "engine_disposed", disposed.append)

    async with AsyncMQ(engine) as mq:
        assert mq.engine is engine
        assert await works(mq)

    assert disposed == []
    engine.dispose()


async def test_it_is_made_from_an_async_engine_which_is_left_alone(database: DatabaseUnderTest) -> None:
    engine = create_async_engine(async_url(database))
    seen: list[object] = []
    event.listen(engine.sync_engine, "engine_disposed", seen.append)
    event.listen(engine.sync_engine, "connect", lambda connection, _record: seen.append(connection))

    async with AsyncMQ(engine) as mq:
        assert await works(mq)

    assert seen == []
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    await engine.dispose()


async def test_an_async_engine_with_a_database_in_memory_is_refused() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")

    with pytest.raises(InvalidURLError, match="Use a file"):
        AsyncMQ(engine)
    await engine.dispose()


async def test_a_database_in_memory_is_one_for_all_tasks() -> None:
    async with AsyncMQ("sqlite+aiosqlite://") as mq:
        assert await works(mq)


@pytest.mark.parametrize("url", ["nonsense", "mysql+aiomysql://host/name", "postgresql+pg8000://host/name"])
def test_what_can_not_be_used_is_refused(url: str) -> None:
    with pytest.raises(InvalidURLError):
        AsyncMQ(url)


def test_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="int"):
        AsyncMQ(42)  # type: ignore[arg-type]


# --- After the topic was deleted ---


async def test_a_partition_of_a_topic_that_was_made_anew_is_submitted_to(mq: AsyncMQ) -> None:
    await mq.create_topic("orders", 1)
    producer = await mq.producer("orders")
    await mq.delete_topics("orders")
    await mq.create_topic("orders", 5)
    with pytest.raises(Exception, match="does not exist"):
        await producer.produce(Message(b""))

    assert (await producer.submit(Message(b""), partition=4)).partition == 4
    await mq.delete_topics("orders")
    await mq.create_topic("orders", 6)
    with pytest.raises(Exception, match="does not exist"):
        await producer.produce(Message(b""))
    assert (await producer.produce_with_partition(Message(b""), 5)).partition == 5
