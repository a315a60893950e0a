"""A decorator hides that a handler is a coroutine function, or it is a generator. Its messages must not count as handled."""

from __future__ import annotations

import asyncio
import logging
import warnings
from typing import TYPE_CHECKING

from case import Case, run
from sqlmq import MQ, AsyncMQ, Message, Retry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlmq import AsyncConsumer, Consumer, RunSummary

    Handler = Callable[..., object]

MESSAGES = 5
IDLE_SECONDS = 0.5

done: list[bytes] = []
"""The values of the messages whose handlers have run."""


async def work(message: Message, *_session: object) -> None:
    done.append(message.value)


def traced(function: Handler) -> Handler:
    """Wrap *function* as many a decorator does: nothing shows that the result has to be awaited."""

    def wrapper(*arguments: object) -> object:
        return function(*arguments)

    return wrapper


class CallingObject:
    def __init__(self, function: Handler) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)


def generator(message: Message, *_session: object) -> Iterator[None]:
    done.append(message.value)
    yield


async def async_generator(message: Message, *_session: object) -> AsyncIterator[None]:
    done.append(message.value)
    yield


HANDLERS: dict[str, Handler] = {
    "decorated": traced(work),
    "lambda": lambda message, *session: work(message, *session),  # noqa: PLW0108 - it hides the coroutine function
    "object": CallingObject(work),
    "generator": generator,
    "async-generator": async_generator,
}


def judge(case: Case) -> None:
    warnings.simplefilter("ignore")  # "was never awaited", which comes too late
    logging.disable(logging.CRITICAL)
    with MQ(case.url) as mq:
        for name, handler in HANDLERS.items():
            for transaction in (False, True):
                topic = f"{name}-{'transaction' if transaction else 'plain'}"
                mq.producer(topic).produce_many(messages())
                done.clear()
                compare(case, topic, run_handler(mq.consumer(topic, "group"), handler, transaction=transaction))
    asyncio.run(judge_async(case))


async def judge_async(case: Case) -> None:
    async with AsyncMQ(case.url) as mq:
        for name, handler in HANDLERS.items():
            topic = f"{name}-asyncio"
            producer = await mq.producer(topic)
            await producer.produce_many(messages())
            done.clear()
            compare(case, topic, await run_async_handler(await mq.consumer(topic, "group"), handler))


def messages() -> list[Message]:
    return [Message(b"%d" % number, key=b"%d" % number) for number in range(MESSAGES)]


def run_handler(consumer: Consumer, handler: Handler, *, transaction: bool) -> RunSummary | None:
    """Run *handler*. Return None if it is refused, which is right."""
    try:
        return consumer.run(
            handler,
            transaction=transaction,
            retry=Retry(max_attempts=1),
            idle_seconds=IDLE_SECONDS,
            handle_signals=False,
        )
    except TypeError:
        return None


async def run_async_handler(consumer: AsyncConsumer, handler: Handler) -> RunSummary | None:
    """Run *handler* in asyncio. Return None if it is refused, which is right."""
    try:
        return await consumer.run(
            handler,
            retry=Retry(max_attempts=1),
            idle_seconds=IDLE_SECONDS,
            handle_signals=False,
        )
    except TypeError:
        return None


def compare(case: Case, name: str, summary: RunSummary | None) -> None:
    if summary is not None and len(done) < summary.handled:
        case.fault(f"{name}: {summary.handled} messages count as handled, but {len(done)} handlers have run")


if __name__ == "__main__":
    run(judge)
