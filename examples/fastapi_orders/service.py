"""The service: an order and the message about it commit together, or not at all."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from examples.fastapi_orders.tables import TOPIC, Order, url_from_environment
from sqlmq import AsyncMQ, Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class NewOrder(BaseModel):
    """What the client sends."""

    customer: str
    item: str
    cents: int


async def charge(order: Order) -> None:
    """Stand for whatever may still fail when the message has been published."""
    if order.cents > 100_000:
        raise HTTPException(402, f"{order.customer} can't pay {order.cents} cents")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open one engine, one MQ and one producer for all requests."""
    engine = create_async_engine(url_from_environment())
    async with AsyncMQ(url_from_environment()) as mq:
        app.state.engine = engine
        app.state.producer = await mq.producer(TOPIC)
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=201)
async def place_order(new: NewOrder) -> dict[str, int]:
    # Begun and committed in here: what a dependency does after its yield, it does when the answer has been sent.
    # https://fastapi.tiangolo.com/tutorial/dependencies/dependencies-with-yield/
    async with AsyncSession(app.state.engine) as session, session.begin():
        order = Order(customer=new.customer, item=new.item, cents=new.cents)
        session.add(order)
        await session.flush()  # the order gets its id
        answer = {"id": order.id}
        value = json.dumps(answer | new.model_dump()).encode()
        await app.state.producer.produce(Message(value, key=order.customer.encode()), session=session)
        await charge(order)
    return answer
