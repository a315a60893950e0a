"""Running a handler in an event loop: what is not as with threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import sessionmaker

from sqlmq import AsyncMQ, Message, Retry
from tests.support.handlers import IDLE_SECONDS, SOON
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from tests.aio.conftest import AtEnd

DRAIN: dict[str, Any] = {"retry": SOON, "idle_seconds": IDLE_SECONDS, "handle_signals": False}


async def send(mq: AsyncMQ, count: int, *, partitions: int = 1) -> None:
    await mq.create_topic("orders", partitions)
    producer = await mq.producer("orders")
    for partition in range(partitions):
        for number in range(count):
            await producer.produce_with_partition(Message(b"%d" % number, b"k"), partition)


async def test_a_coroutine_function_runs_in_the_event_loop(mq: AsyncMQ) -> None:
    await send(mq, 3)
    loop = asyncio.get_running_loop()
    handled: list[bytes] = []

    async def handler(message: Message) -> None:
        assert asyncio.get_running_loop() is loop
        handled.append(message.value)

    summary = await (await mq.consumer("orders", "billing")).run(handler, **DRAIN)

    assert handled == [b"0", b"1", b"2"]
    assert summary.handled == 3


async def test_another_function_runs_in_a_thread(mq: AsyncMQ) -> None:
    await send(mq, 2)
    threads: list[str] = []

    def handler(_message: Message) -> None:
        threads.append(threading.current_thread().name)

    await (await mq.consumer("orders", "billing")).run(handler, **DRAIN)

    assert threads == ["sqlmq-run-0"] * 2


async def test_handlers_of_several_partitions_run_at_the_same_time(mq: AsyncMQ) -> None:
    await send(mq, 1, partitions=3)
    are_in = 0
    all_in = asyncio.Event()

    async def handler(_message: Message) -> None:
        nonlocal are_in
        are_in += 1
        if are_in == 3:
            all_in.set()
        await asyncio.wait_for(all_in.wait(), PATIENCE_SECONDS)

    summary = await (await mq.consumer("orders", "billing")).run(handler, concurrency=3, **DRAIN)

    assert summary.handled == 3


async def test_a_task_that_is_cancelled_lets_the_message_in_hand_be_finished(mq: AsyncMQ) -> None:
    await send(mq, 3)
    handled: list[bytes] = []
    is_in, may_go = asyncio.Event(), asyncio.Event()

    async def handler(message: Message) -> None:
        is_in.set()
        await may_go.wait()
        handled.append(message.value)

    consumer = await mq.consumer("orders", "billing")
    running = asyncio.ensure_future(consumer.run(handler, handle_signals=False))
    await is_in.wait()
    running.cancel()
    await asyncio.wait([running], timeout=0.05)
    may_go.set()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert handled == [b"0"]
    assert consumer.closed
    described = await mq.admin.describe_group("orders", "billing")
    assert described.partitions[0].position == 1


async def test_a_handler_that_does_not_end_is_cancelled(mq: AsyncMQ) -> None:
    await send(mq, 2)
    consumer = await mq.consumer("orders", "billing")
    cancelled = asyncio.Event()

    async def handler(_message: Message) -> None:
        consumer.stop()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    await consumer.run(handler, stop_seconds=0.05, handle_signals=False)

    await asyncio.wait_for(cancelled.wait(), PATIENCE_SECONDS)
    described = await mq.admin.describe_group("orders", "billing")
    assert described.partitions[0].position == 0


async def test_a_handler_that_takes_too_long_is_cancelled_and_has_failed(mq: AsyncMQ) -> None:
    await send(mq, 2)
    handled: list[bytes] = []

    async def handler(message: Message) -> None:
        if message.value == b"0":
            await asyncio.Event().wait()
        handled.append(message.value)

    consumer = await mq.consumer("orders", "billing")
    summary = await consumer.run(handler, **{**DRAIN, "retry": Retry(max_attempts=1)}, max_processing_seconds=0.1)

    assert handled == [b"1"]
    assert summary.dead == 1


async def test_a_single_session_is_refused(mq: AsyncMQ) -> None:
    await send(mq, 1)
    consumer = await mq.consumer("orders", "billing")
    session: Any = AsyncSession()

    async def handler(_message: Message, _session: AsyncSession) -> None: ...

    with pytest.raises(TypeError, match="takes an async_sessionmaker"):
        await consumer.run(handler, transaction=True, session=session)


async def test_a_function_in_a_thread_gets_an_ordinary_session(mq: AsyncMQ, engine: Engine) -> None:
    await send(mq, 2)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE effect (number integer)"))

    def handler(message: Message, session: Session) -> None:
        session.execute(text("INSERT INTO effect VALUES (:n)"), {"n": int(message.value)})

    await (await mq.consumer("orders", "billing")).run(handler, transaction=True, **DRAIN)

    with engine.connect() as connection:
        assert list(connection.execute(text("SELECT number FROM effect")).scalars()) == [0, 1]


# --- What is returned, and what is raised ---


class Later:
    """Something to await that is no coroutine."""

    def __init__(self, coroutine: Coroutine[Any, Any, object]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, object]:
        return self._coroutine.__await__()


def in_disguise(handler: Callable[..., Coroutine[Any, Any, object]]) -> dict[str, Callable[..., object]]:
    """Return *handler* in forms that do not look like a coroutine function."""

    async def returning_a_coroutine(*given: object) -> object:
        return handler(*given)

    return {
        "decorated": lambda *given: handler(*given),  # noqa: PLW0108 - it hides the coroutine function
        "an awaitable": lambda *given: Later(handler(*given)),
        "a coroutine in a coroutine": returning_a_coroutine,
        "a coroutine in an awaitable": lambda *given: Later(returning_a_coroutine(*given)),
    }


FORMS = ["decorated", "an awaitable", "a coroutine in a coroutine", "a coroutine in an awaitable"]


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("form", FORMS)
async def test_what_a_handler_returns_is_awaited_in_the_event_loop(
    mq: AsyncMQ, form: str, batch_size: int | None
) -> None:
    await send(mq, 4)
    loop = asyncio.get_running_loop()
    handled: list[bytes] = []

    async def work(given: Message | list[Message]) -> None:
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0)
        handled.extend(message.value for message in (given if isinstance(given, list) else [given]))

    consumer = await mq.consumer("orders", "billing")
    summary = await consumer.run(in_disguise(work)[form], batch_size=batch_size, **DRAIN)

    assert handled == [b"0", b"1", b"2", b"3"]
    assert (summary.handled, summary.failures) == (4, 0)


@pytest.mark.parametrize("form", FORMS)
async def test_what_is_awaited_fails_as_its_handler_would(mq: AsyncMQ, form: str) -> None:
    await send(mq, 2)
    tried: list[bytes] = []

    async def work(message: Message) -> None:
        tried.append(message.value)
        if len(tried) == 1:
            raise concurrent.futures.CancelledError
        if len(tried) == 2:
            raise asyncio.CancelledError

    summary = await (await mq.consumer("orders", "billing")).run(in_disguise(work)[form], **DRAIN)

    assert (summary.handled, summary.failures) == (2, 2)
    assert tried == [b"0", b"0", b"0", b"1"]


async def test_a_coroutine_with_a_session_of_a_thread_is_a_failed_attempt(mq: AsyncMQ) -> None:
    await send(mq, 1)
    ran: list[Message] = []

    async def work(message: Message, _session: Session) -> None:
        ran.append(message)

    consumer = await mq.consumer("orders", "billing")
    options = {**DRAIN, "retry": Retry(max_attempts=1)}
    summary = await consumer.run(in_disguise(work)["decorated"], transaction=True, **options)

    (dead,) = await mq.admin.parked("orders", "billing").list("dead")
    assert (summary.handled, summary.dead, ran) == (0, 1, [])
    assert "returned a coroutine, which nothing awaits" in str(dead.error)
    assert "async_sessionmaker" in str(dead.error)


@pytest.mark.parametrize("is_coroutine", [False, True])
async def test_a_generator_is_a_failed_attempt_with_asyncio_too(mq: AsyncMQ, is_coroutine: bool) -> None:
    await send(mq, 1)

    def generator() -> Generator[None]:
        yield

    async def handler(_message: Message) -> object:
        return generator()

    consumer = await mq.consumer("orders", "billing")
    options = {**DRAIN, "retry": Retry(max_attempts=1)}
    summary = await consumer.run(handler if is_coroutine else lambda _message: generator(), **options)

    (dead,) = await mq.admin.parked("orders", "billing").list("dead")
    assert (summary.handled, summary.dead) == (0, 1)
    assert "returned a generator" in str(dead.error)


async def test_a_future_that_holds_itself_is_a_failed_attempt(mq: AsyncMQ) -> None:
    await send(mq, 1)

    async def handler(_message: Message) -> object:
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        future.set_result(future)
        return future

    consumer = await mq.consumer("orders", "billing")
    summary = await consumer.run(handler, **{**DRAIN, "retry": Retry(max_attempts=1)})

    assert (summary.handled, summary.dead) == (0, 1)


@pytest.mark.parametrize("transaction", [False, True])
async def test_a_stray_generator_exit_is_a_failed_attempt(mq: AsyncMQ, at_end: AtEnd, transaction: bool) -> None:
    at_end.append(mq.close)  # in the test's event loop, to which the connections of handlers' transactions are bound
    await send(mq, 1)
    tried: list[bytes] = []

    async def handler(message: Message, *_session: object) -> None:
        await asyncio.sleep(0)
        tried.append(message.value)
        if len(tried) == 1:
            raise GeneratorExit

    summary = await (await mq.consumer("orders", "billing")).run(handler, transaction=transaction, **DRAIN)

    assert (summary.handled, summary.failures) == (1, 1)


async def test_a_cancelled_task_that_a_handler_awaits_is_a_failed_attempt(mq: AsyncMQ) -> None:
    await send(mq, 2)
    tried: list[bytes] = []

    async def handler(message: Message) -> None:
        tried.append(message.value)
        if len(tried) == 1:
            task = asyncio.ensure_future(asyncio.Event().wait())
            await asyncio.sleep(0)
            task.cancel()
            await task

    summary = await (await mq.consumer("orders", "billing")).run(handler, **DRAIN)

    assert (summary.handled, summary.failures) == (2, 1)
    assert tried == [b"0", b"0", b"1"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])
@pytest.mark.parametrize("is_coroutine", [False, True])
async def test_an_exception_for_the_program_ends_the_run_and_not_the_event_loop(
    mq: AsyncMQ, error: BaseException, is_coroutine: bool
) -> None:
    await send(mq, 1)

    async def handler(_message: Message) -> None:
        raise error

    consumer = await mq.consumer("orders", "billing")
    with pytest.raises(type(error)):
        await consumer.run(handler if is_coroutine else in_disguise(handler)["decorated"], **DRAIN)

    described = await mq.admin.describe_group("orders", "billing")
    assert described.partitions[0].position == 0
    assert described.partitions[0].waiting == 0


async def test_an_ordinary_sessionmaker_is_refused_by_its_name(mq: AsyncMQ, engine: Engine) -> None:
    await send(mq, 1)

    async def handler(_message: Message, _session: AsyncSession) -> None: ...

    consumer = await mq.consumer("orders", "billing")
    with pytest.raises(TypeError, match=r"has to make a .*AsyncSession; it made Session"):
        await consumer.run(handler, transaction=True, session=sessionmaker(engine), **DRAIN)
