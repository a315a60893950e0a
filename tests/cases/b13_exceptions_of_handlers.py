"""Handlers raise odd exceptions: without a text, huge, in groups, cancellations. One message fails, the others are handled."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
from typing import TYPE_CHECKING, NoReturn

from case import Case, crowding, run, shown
from sqlmq import MQ, AsyncMQ, DatabaseBusyError, FencedError, Message, OutcomeUnknownError, Retry
from sqlmq.errors import MQClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sized

    from sqlmq import ReceivedMessage

OTHERS = 8
IDLE_SECONDS = 0.6
RUN_SECONDS = 60


class NoTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("The text can't be made.")


class NoReprError(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("The repr can't be made.")


class WrongTextError(Exception):
    def __str__(self) -> str:
        return 42  # type: ignore[return-value]  # noqa: PLE0307 - an error of the application


class LazyTextError(Exception):
    def __str__(self) -> str:
        return str(self.args[0].missing)


NoModuleError = type("NoModuleError", (Exception,), {"__module__": None})


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error

    return fail


def recurse() -> None:
    recurse()


def raise_loop_of_causes() -> NoReturn:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    raise first


def raise_deep_group() -> NoReturn:
    error: Exception = ValueError("leaf")
    for level in range(300):
        error = ExceptionGroup(f"level {level}", [error, KeyError(level)])
    raise error


async def await_cancelled_task() -> None:
    task = asyncio.ensure_future(asyncio.Event().wait())
    await asyncio.sleep(0)
    task.cancel()
    await task


FAILURES: dict[str, Callable[[], object]] = {
    "its text can't be made": raising(NoTextError()),
    "its repr can't be made": raising(NoReprError(NoReprError())),
    "its text is no str": raising(WrongTextError()),
    "its text is lazy": raising(LazyTextError(object())),
    "recursion": recurse,
    "a loop of causes": raise_loop_of_causes,
    "a deep group": raise_deep_group,
    "no module": raising(NoModuleError("x")),
    "empty": raising(Exception()),
    "StopIteration": raising(StopIteration()),
    "TimeoutError": raising(TimeoutError()),
    "CancelledError of a future": raising(concurrent.futures.CancelledError()),
    "bytes": raising(Exception(b"\xff\x00")),
    "thrown into a generator": lambda: (_ for _ in ()).throw(ValueError("x")),
    "MemoryError": raising(MemoryError()),
    "FencedError": raising(FencedError("topic", "group", (0,))),
    "DatabaseBusyError": raising(DatabaseBusyError("of the application")),
    "OutcomeUnknownError": raising(OutcomeUnknownError("of the application")),
    "MQClosedError": raising(MQClosedError()),
}
ASYNC_FAILURES: dict[str, Callable[[], object]] = {
    **FAILURES,
    "a task that it awaits was cancelled": await_cancelled_task,
}


def judge(case: Case) -> None:
    logging.disable(logging.CRITICAL)
    with MQ(case.url) as mq:
        for number, (name, fail) in enumerate(FAILURES.items()):
            handle(case, mq, f"plain-{number}", name, fail, transaction=False)
            handle(case, mq, f"transaction-{number}", f"{name}, in a transaction", fail, transaction=True)
    asyncio.run(judge_async(case))


def handle(case: Case, mq: MQ, topic: str, name: str, fail: Callable[[], object], *, transaction: bool) -> None:
    handled: list[ReceivedMessage] = []

    def handler(message: ReceivedMessage, *_session: object) -> None:
        if message.value == b"poison":
            fail()
        handled.append(message)

    producer = mq.producer(topic)
    producer.produce(Message(b"poison", key=b"poison"))
    producer.produce_many(others())
    try:
        mq.consumer(topic, "group").run(
            handler,
            transaction=transaction,
            retry=Retry(max_attempts=1),
            idle_seconds=IDLE_SECONDS,
            handle_signals=False,
        )
    except BaseException as error:  # noqa: BLE001 - every exception is a fault
        case.fault(f"{name}: run ended by {shown(error)}")
    compare(case, name, mq.admin.parked(topic, "group").list("dead"), handled)


async def judge_async(case: Case) -> None:
    async with AsyncMQ(case.url) as mq:
        for number, (name, fail) in enumerate(ASYNC_FAILURES.items()):
            await handle_async(case, mq, f"async-{number}", f"{name}, in asyncio", fail)


async def handle_async(case: Case, mq: AsyncMQ, topic: str, name: str, fail: Callable[[], object]) -> None:
    handled: list[ReceivedMessage] = []

    async def handler(message: ReceivedMessage) -> None:
        if message.value == b"poison":
            await when_awaitable(fail())
        handled.append(message)

    producer = await mq.producer(topic)
    await producer.produce(Message(b"poison", key=b"poison"))
    await producer.produce_many(others())
    consumer = await mq.consumer(topic, "group")
    running = consumer.run(handler, retry=Retry(max_attempts=1), idle_seconds=IDLE_SECONDS, handle_signals=False)
    try:
        await asyncio.wait_for(running, RUN_SECONDS * crowding())
    except BaseException as error:  # noqa: BLE001 - every exception is a fault
        case.fault(f"{name}: run ended by {shown(error)}")
    compare(case, name, await mq.admin.parked(topic, "group").list("dead"), handled)


async def when_awaitable(result: object) -> None:
    if inspect.isawaitable(result):
        awaitable: Awaitable[object] = result
        await awaitable


def others() -> list[Message]:
    return [Message(b"good", key=b"%d" % number) for number in range(OTHERS)]


def compare(case: Case, name: str, dead: Sized, handled: Sized) -> None:
    if len(dead) != 1 or len(handled) != OTHERS:
        case.fault(f"{name}: {len(dead)} dead letters instead of 1, {len(handled)} of {OTHERS} others handled")


if __name__ == "__main__":
    run(judge)
