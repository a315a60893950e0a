"""The consumer groups: each gets every order, at its own pace, and does one thing with it.

A message may come a second time, after a crash. Each sink has a primary key by which it recognises what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from examples.fastapi_orders.tables import TOPIC, Mail, Sale, SearchEntry, url_from_environment
from sqlmq import AsyncMQ

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq import ReceivedMessage


async def mail(session: AsyncSession, _group: str, message: ReceivedMessage) -> None:
    order = json.loads(message.value)
    await session.merge(Mail(order_id=order["id"], recipient=order["customer"]))


async def search(session: AsyncSession, group: str, message: ReceivedMessage) -> None:
    """Put the order into the group's own index."""
    order = json.loads(message.value)
    for word in {order["customer"], *order["item"].split()}:
        await session.merge(SearchEntry(index=group, word=word.lower(), order_id=order["id"]))


async def analytics(session: AsyncSession, _group: str, message: ReceivedMessage) -> None:
    cents = json.loads(message.value)["cents"]
    await session.merge(Sale(partition=message.partition, offset=message.offset, cents=cents))


SINKS: dict[str, Callable[[AsyncSession, str, ReceivedMessage], Awaitable[None]]] = {
    "mail": mail,
    "search": search,
    "analytics": analytics,
}


async def run(mq: AsyncMQ, engine: AsyncEngine, group: str) -> None:
    """Do for each message what the group's name says; what follows a hyphen only makes it another group."""
    sink = SINKS[group.partition("-")[0]]
    async with await mq.consumer(TOPIC, group) as consumer:
        async for message in consumer:  # asking for the next message says that this one is done
            async with AsyncSession(engine) as session, session.begin():
                await sink(session, group, message)


async def main(groups: list[str]) -> None:
    engine = create_async_engine(url_from_environment())
    async with AsyncMQ(url_from_environment()) as mq, asyncio.TaskGroup() as tasks:
        for group in groups:
            tasks.create_task(run(mq, engine, group))
    await engine.dispose()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1:] or list(SINKS)))
