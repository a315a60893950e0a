"""Operations with asyncio that the synchronous scenes have not: sessions of asyncio; and cancelling at each await."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from sqlmq import AsyncConsumer, AsyncProducer, Message
from tests.faults.consuming import DONE, INSERT, SECONDS, InTransaction
from tests.faults.scenes import InSession
from tests.faults.world import FEED, Scene, World
from tests.support.awaits import watch_awaits
from tests.support.blocking import Loop
from tests.support.engines import async_engine_with_savepoints

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")


class CancelledCallError(Exception):
    """What the thread of a test gets when the task that made its call was cancelled."""


class CancellingLoop(Loop):
    """Cancels the task that makes a call, at the n-th point at which it awaits."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        """Of the await; 0 for none."""
        self.when_done = False
        """Whether to cancel when what is awaited has just happened, instead of before."""
        self.seen = 0

    def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        if not self.number:
            return super().run(call)
        return super().run(lambda: self._cancelled(call))

    async def _cancelled(self, call: Callable[[], Awaitable[T]]) -> T:
        task = asyncio.current_task()
        assert task is not None

        def cancel(future: asyncio.Future[Any] | None) -> None:
            self.seen += 1
            if self.seen != self.number:
                return
            if self.when_done and future is not None:
                future.add_done_callback(lambda _: task.cancel())
            else:
                task.cancel()

        try:
            result = await watch_awaits(cast("Coroutine[Any, Any, T]", call()), cancel)
            # A cancellation that came with the end is of this call, too.
            await asyncio.wait([asyncio.ensure_future(_nothing())])
        except asyncio.CancelledError:
            raise CancelledCallError from None
        finally:
            while task.cancelling():
                task.uncancel()
        return result


def aio(wrapped: object) -> Any:
    """The object for asyncio that looks synchronous as *wrapped*."""
    return wrapped._aio  # type: ignore[attr-defined]


def engine_for_asyncio(world: World) -> AsyncEngine:
    driver = "postgresql+psycopg" if world.database.is_postgres else "sqlite+aiosqlite"
    engine = async_engine_with_savepoints(world.database, driver)
    if not world.database.is_postgres:
        # As in World: SQLAlchemy rolls nothing back whose COMMIT has failed.
        event.listen(engine.sync_engine, "checkin", lambda conn, _: conn and conn.rollback())
    return engine


class AwaitedTransaction(InTransaction):
    """As that of a thread, on a driver for asyncio."""

    def call(self) -> None:
        assert self.world.loop is not None
        self.world.loop.run(lambda: self.take(2, SECONDS))

    async def take(self, at_most: int, seconds: float) -> int:
        consumer: AsyncConsumer = aio(self.consumer)
        async with consumer.transaction(max_messages=at_most, timeout=seconds) as tx:
            for message in tx:
                await tx.session.execute(INSERT, {"name": self.effect(message.partition, message.offset)})
        return len(tx.messages)

    def close(self) -> None:
        loop = self.world.loop
        assert loop is not None
        while loop.run(lambda: self.take(FEED, 0)):
            pass
        self.check(0, 0)
        assert self.world.state.positions("feed", self.group) == DONE
        self.consumer.close()


class InAsyncSession(InSession):
    """A row and a message in an AsyncSession."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.engine = engine_for_asyncio(world)

    def call(self) -> None:
        assert self.world.loop is not None
        self.world.loop.run(self.sell)

    async def sell(self) -> None:
        producer: AsyncProducer = aio(self.world.producer)
        async with AsyncSession(self.engine) as session:
            await session.execute(INSERT, {"name": self.note})
            await producer.produce(Message(self.note.encode(), b"k"), session=session)
            await session.commit()

    def close(self) -> None:
        assert self.world.loop is not None
        self.world.loop.run(self.engine.dispose)


AWAITED: tuple[type[Scene], ...] = (AwaitedTransaction, InAsyncSession)


async def _nothing() -> None: ...
