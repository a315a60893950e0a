"""The callback of a future sends the next message, as Kafka's delivery callbacks do. It must not wait for itself."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING

from case import Case, crowding, end, run, shown
from sqlmq import MQ, AsyncMQ, Message, Producer, ProducerResult

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

CHILD_SECONDS, HANG_SECONDS, CALLBACK_SECONDS = 40, 20, 18
TOPIC = "calls"
ASYNCIO, CLOSE = "asyncio", "close"


def judge(case: Case) -> None:
    for name in (*CALLS, ASYNCIO):
        case.run_child(name, seconds=CHILD_SECONDS)


def live(case: Case, name: str) -> None:
    logging.disable(logging.CRITICAL)
    limit = threading.Timer(HANG_SECONDS * crowding(), tell)
    limit.daemon = True
    limit.start()
    mq = MQ(case.url)
    mq.create_topic(TOPIC, 2)
    if name == ASYNCIO:
        asyncio.run(call_in_loop(case.url))
    else:
        call_in_callback(case, mq, name)
    mq.close()
    limit.cancel()


def tell() -> None:
    print("the callback waits for itself, and all other threads for it")
    end(1)


def call_in_callback(case: Case, mq: MQ, name: str) -> None:
    producer = mq.producer(TOPIC)
    called = threading.Event()
    errors: list[BaseException] = []

    def call(future: Future[ProducerResult]) -> None:
        try:
            future.result()
            CALLS[name](mq, producer)
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)
        called.set()

    producer.submit(Message(b"first")).add_done_callback(call)
    called.wait(CALLBACK_SECONDS)
    if name == CLOSE:
        return  # by its own callback a producer may refuse to be closed
    producer.produce(Message(b"of the main thread"))
    for error in errors:
        case.fault(f"the callback raised {shown(error)}")


async def call_in_loop(url: str) -> None:
    async with AsyncMQ(url) as mq:
        producer = await mq.producer(TOPIC)
        sent = asyncio.get_running_loop().create_future()

        def produce_next(_future: asyncio.Future[ProducerResult]) -> None:
            task = asyncio.ensure_future(producer.produce(Message(b"next")))
            task.add_done_callback(sent.set_result)

        producer.submit(Message(b"first")).add_done_callback(produce_next)
        await asyncio.wait_for(sent, 15)


def consume(mq: MQ, _producer: Producer) -> None:
    with mq.consumer(TOPIC, "group") as consumer:
        consumer.consume(timeout=10)


CALLS: dict[str, Callable[[MQ, Producer], object]] = {
    "produce": lambda _mq, producer: producer.produce(Message(b"next", key=b"k")),
    "submit": lambda _mq, producer: producer.submit(Message(b"next")).result(15),
    "produce_many": lambda _mq, producer: producer.produce_many([Message(b"next"), Message(b"one more")]),
    "consume": consume,
    CLOSE: lambda _mq, producer: producer.close(),
}

if __name__ == "__main__":
    run(judge, child=live)
