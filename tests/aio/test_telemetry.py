"""What OpenTelemetry is told of tasks: what is current in one is the parent of what that sends, whichever way it goes."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from sqlalchemy.ext.asyncio import AsyncSession

from sqlmq import AsyncMQ, Message
from tests.conftest import database_of_kind
from tests.support.handlers import IDLE_SECONDS, SOON
from tests.support.telemetry import Recording, follows
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq import AsyncProducer
    from tests.aio.conftest import AtEnd, MakeAsyncMQ
    from tests.conftest import DatabaseUnderTest

DRAIN: dict[str, Any] = {"retry": SOON, "idle_seconds": IDLE_SECONDS, "handle_signals": False}


@pytest.fixture
def database(driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseUnderTest]:
    """The database of the driver."""
    with database_of_kind(driver.partition("+")[0].replace("postgresql", "postgres"), request, tmp_path) as made:
        yield made


@pytest.fixture
def mq(make_mq: MakeAsyncMQ, recording: Recording, at_end: AtEnd) -> AsyncMQ:
    """An MQ that is recorded."""
    mq = make_mq()
    recording.of(mq)
    # In the test's event loop, to which the connections of handlers' transactions are bound.
    at_end.append(mq.close)
    return mq


def ways(producer: AsyncProducer) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        "produce": lambda: producer.produce(Message(b"")),
        "timeout": lambda: producer.produce(Message(b""), timeout=30),
        "submit": lambda: producer.submit(Message(b"")),
        "many": lambda: producer.produce_many([Message(b"")] * 2),
        "delay": lambda: producer.schedule(Message(b""), delay_seconds=1000),
    }


@pytest.mark.parametrize("way", ["produce", "timeout", "submit", "many", "delay"])
async def test_what_is_current_in_a_task_is_the_parent_of_what_it_sends(
    mq: AsyncMQ, recording: Recording, way: str
) -> None:
    producer = await mq.producer("orders")

    with recording.tracer.start_as_current_span("request"):
        await ways(producer)[way]()

    sent = recording.span("send orders")
    assert follows(sent, recording.span("request"))


async def test_tasks_that_send_together_have_each_their_own_trace(mq: AsyncMQ, recording: Recording) -> None:
    producer = await mq.producer("orders")

    async def request(number: int) -> None:
        with recording.tracer.start_as_current_span(f"request {number}"):
            await producer.produce(Message(b"%d" % number))

    await asyncio.gather(*(request(number) for number in range(20)))

    until(lambda: len(recording.spans("send orders")) == 20, "20 spans")
    parents = {span.parent.span_id for span in recording.spans("send orders") if span.parent is not None}
    assert parents == {recording.span(f"request {number}").context.span_id for number in range(20)}


@pytest.mark.parametrize("transaction", [False, True])
async def test_what_a_handler_sends_is_its_child(mq: AsyncMQ, recording: Recording, *, transaction: bool) -> None:
    orders, invoices = await mq.producer("orders"), await mq.producer("invoices")
    await orders.produce(Message(b"1"))

    async def handler(_message: Message, session: AsyncSession | None = None) -> None:
        if session is None:
            await invoices.produce(Message(b"2"))
        else:
            await invoices.produce(Message(b"2"), session=session)

    await (await mq.consumer("orders", "billing")).run(handler, transaction=transaction, **DRAIN)

    handled = recording.span("process orders")
    assert follows(handled, recording.span("send orders"))
    assert follows(recording.span("send invoices"), handled)


async def test_a_handler_that_runs_in_a_thread_has_one_span(mq: AsyncMQ, recording: Recording) -> None:
    await (await mq.producer("orders")).produce(Message(b"1"))
    inside: list[int] = []

    def handler(_message: Message) -> None:
        inside.append(trace.get_current_span().get_span_context().span_id)

    await (await mq.consumer("orders", "billing")).run(handler, **DRAIN)

    assert inside == [recording.span("process orders").context.span_id]


@pytest.mark.parametrize(("method", "how"), [("produce", {}), ("schedule", {"delay_seconds": 0})])
async def test_a_trace_goes_through_the_applications_transaction(
    mq: AsyncMQ, async_engine: AsyncEngine, recording: Recording, method: str, how: dict[str, Any]
) -> None:
    send = getattr(await mq.producer("orders"), method)
    async with AsyncSession(async_engine) as session:
        with recording.tracer.start_as_current_span("request"):
            await send(Message(b"1"), session=session, **how)
        await session.commit()

    handled: list[Message] = []
    await (await mq.consumer("orders", "billing")).run(handled.append, **DRAIN)

    assert follows(recording.span("send orders"), recording.span("request"))
    assert follows(recording.span("process orders"), recording.span("send orders"))


async def test_a_handler_that_is_cancelled_has_a_span_that_says_so(mq: AsyncMQ, recording: Recording) -> None:
    await (await mq.producer("orders")).produce(Message(b"1"))
    attempts: list[Message] = []

    async def handler(message: Message) -> None:
        attempts.append(message)
        if len(attempts) == 1:
            await asyncio.Event().wait()

    await (await mq.consumer("orders", "billing")).run(handler, max_processing_seconds=0.05, **DRAIN)

    until(lambda: len(recording.spans("process orders")) == 2, "two spans")
    errors = {(span.attributes or {}).get("error.type") for span in recording.spans("process orders")}
    assert errors == {"CancelledError", None}


async def test_what_is_withdrawn_has_a_span_that_says_so(mq: AsyncMQ, recording: Recording) -> None:
    producer = await mq.producer("orders")
    with producer._sync._batcher._lead, pytest.raises(TimeoutError):  # no other thread can begin to send
        await producer.produce(Message(b"1"), timeout=0.01)

    assert (recording.span("send orders").attributes or {})["error.type"] == CancelledError.__qualname__
