"""Requests are cut off while they publish in a session of their own, and while they poll. Nothing leaks or is half there."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from case import Case, run, text_of
from sqlmq import AsyncMQ, Message

if TYPE_CHECKING:
    from sqlmq import AsyncConsumer, AsyncProducer

ROUNDS, AT_ONCE = 15, 8
POLLS = 30
CASE_SECONDS = 150


def judge(case: Case) -> None:
    logging.disable(logging.CRITICAL)
    drivers = ["sqlite+aiosqlite"] if case.is_sqlite else ["postgresql+psycopg", "postgresql+asyncpg"]
    for driver in drivers:
        asyncio.run(asyncio.wait_for(Requests(case, driver).cut_off(), CASE_SECONDS))


class Requests:
    """Requests of a web application, each with a session of its own, by one driver."""

    def __init__(self, case: Case, driver: str) -> None:
        self._case = case
        self._driver = driver
        self._topic = driver.replace("+", "-")
        self._table = f"requests_by_{driver.replace('+', '_')}"
        self._random = random.Random(3)
        self._committed: set[int] = set()

    async def cut_off(self) -> None:
        url = text_of(self._case.server.set(drivername=self._driver))
        arguments = {"timeout": 20} if self._case.is_sqlite else {}
        engine = create_async_engine(url, pool_size=5, max_overflow=0, connect_args=arguments)
        async with AsyncMQ(self._case.url) as mq:
            await mq.create_topic(self._topic, 2)
            producer = await mq.producer(self._topic)
            async with engine.begin() as connection:
                await connection.execute(text(f"CREATE TABLE {self._table} (number integer)"))
            for number in range(0, ROUNDS * AT_ONCE, AT_ONCE):
                await asyncio.gather(
                    *[self._publish_and_cut(engine, producer, number + beside) for beside in range(AT_ONCE)]
                )
            await self._publish_afterwards(engine, producer)
            rows = await self._rows(engine)
            async with await mq.consumer(self._topic, "all") as consumer:
                self._compare(rows, await poll_all(consumer))
            async with await mq.consumer(self._topic, "cut-off") as consumer:
                await self._poll_and_cut(consumer, len(rows))
        if checked_out := engine.sync_engine.pool.checkedout():  # type: ignore[attr-defined]  # a QueuePool has it
            self._fault(f"{checked_out} connections were not given back")
        await engine.dispose()

    def _fault(self, text_: str) -> None:
        self._case.fault(f"{self._driver}: {text_}")

    async def _publish(self, engine: AsyncEngine, producer: AsyncProducer, number: int) -> None:
        async with AsyncSession(engine) as session:
            await session.execute(text(f"INSERT INTO {self._table} VALUES (:number)"), {"number": number})
            await producer.produce(Message(b"%d" % number, key=b"%d" % (number % 3)), session=session)
            await session.commit()
            self._committed.add(number)

    async def _publish_and_cut(self, engine: AsyncEngine, producer: AsyncProducer, number: int) -> None:
        try:
            async with asyncio.timeout(self._random.uniform(0.0005, 0.03)):
                await self._publish(engine, producer, number)
        except TimeoutError:
            pass
        except Exception as error:  # noqa: BLE001 - only a busy SQLite file is no fault
            if "locked" not in str(error):
                self._fault(f"{type(error).__name__}: {error}")

    async def _publish_afterwards(self, engine: AsyncEngine, producer: AsyncProducer) -> None:
        try:
            async with asyncio.timeout(30):
                for number in range(1000, 1010):
                    await self._publish(engine, producer, number)
        except Exception as error:  # noqa: BLE001 - every exception is a fault
            self._fault(f"afterwards: {type(error).__name__}: {error}")

    async def _rows(self, engine: AsyncEngine) -> set[int]:
        async with engine.connect() as connection:
            return set((await connection.execute(text(f"SELECT number FROM {self._table}"))).scalars())

    def _compare(self, rows: set[int], messages: set[int]) -> None:
        if rows != messages:
            self._fault(
                f"rows without a message {sorted(rows - messages)[:4]}, without a row {sorted(messages - rows)[:4]}"
            )
        if not self._committed <= rows:
            self._fault(f"committed, and not there: {sorted(self._committed - rows)[:4]}")

    async def _poll_and_cut(self, consumer: AsyncConsumer, rows: int) -> None:
        received = 0
        for _ in range(POLLS):
            try:
                async with asyncio.timeout(self._random.uniform(0.001, 0.02)):
                    received += len(await consumer.poll(5, timeout=5))
            except TimeoutError:
                pass
        if not await poll_all(consumer) and received < rows:
            self._fault(f"a consumer whose polls were cut off got {received} of {rows} messages, and gets no more")


async def poll_all(consumer: AsyncConsumer) -> set[int]:
    found: set[int] = set()
    while messages := await consumer.poll(timeout=1.5):
        found |= {int(message.value) for message in messages}
    return found


if __name__ == "__main__":
    run(judge)
