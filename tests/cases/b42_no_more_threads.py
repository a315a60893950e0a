"""A container's limit of processes is reached: threads can't be started. Afterwards everything works, and close ends."""

from __future__ import annotations

import itertools
import logging
import threading
from typing import TYPE_CHECKING

from case import Case, NotTriedError, crowding, end, messages_in, rest, run, shown, until
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import ReceivedMessage

THREADS = 7
"""No operation starts as many."""
CHILD_SECONDS = 45
CLOSE_SECONDS = 30
PRODUCED = 6


def judge(case: Case) -> None:
    for name in OPERATIONS:
        for number in range(THREADS):
            try:
                case.run_child(name, str(number), seconds=CHILD_SECONDS)
            except NotTriedError:
                break  # the operation starts no such thread


class Shortage:
    """While it is armed, the library's thread of a certain number can't be started."""

    def __init__(self, number: int) -> None:
        self._start = threading.Thread.start
        self._number = number
        self._counter = itertools.count()
        self.is_armed = False
        self.failed: str | None = None

    def install(self) -> None:
        shortage = self

        def start(self: threading.Thread) -> None:
            shortage.start(self)

        threading.Thread.start = start  # type: ignore[method-assign]

    def start(self, thread: threading.Thread) -> None:
        if self.is_armed and thread.name.startswith(("sqlmq", "ThreadPool")) and next(self._counter) == self._number:
            self.failed = thread.name
            raise RuntimeError("can't start new thread")
        self._start(thread)


def live(case: Case, name: str, number: str) -> None:
    logging.disable(logging.CRITICAL)
    shortage = Shortage(int(number))
    shortage.install()
    topic = f"{name}-{number}"
    with MQ(case.url) as mq:
        mq.create_topic(topic, 2)
        mq.producer(topic).produce_many([Message(b"%d" % n, key=b"%d" % n) for n in range(PRODUCED)])

    mq = MQ(case.url)
    operation = OPERATIONS[name]
    shortage.is_armed = True
    first: BaseException | None = None
    try:
        operation(mq, topic)
    except BaseException as error:  # noqa: BLE001 - any error may come of a shortage
        first = error
    if shortage.failed is None:
        raise NotTriedError(f"{name} starts no thread {number}.")
    shortage.is_armed = False
    if name == "close":
        compare_after_close(case, topic, shortage.failed, first)
        return
    try:
        operation(mq, topic)
        mq.close()
    except BaseException as error:  # noqa: BLE001 - every later error is a fault
        told = "told nothing" if first is None else f"raised {type(first).__name__}"
        case.fault(f"{shortage.failed} could not start, which {told}; afterwards: {shown(error)}")


def compare_after_close(case: Case, topic: str, thread: str, error: BaseException | None) -> None:
    """Look for the message that was submitted before ``close``: it is sent, or the error was raised."""
    is_sent = until(lambda: messages_in(case.url, topic) == PRODUCED + 1, seconds=0.3)
    if not is_sent and error is None:
        case.fault(f"{thread} could not start: close() left the submitted message unsent and raised nothing")


def produce(mq: MQ, topic: str) -> None:
    mq.producer(topic).produce(Message(b"x"))


def submit(mq: MQ, topic: str) -> None:
    mq.producer(topic).submit(Message(b"x")).result(15)


def schedule(mq: MQ, topic: str) -> None:
    mq.producer(topic).schedule(Message(b"x"), delay_seconds=0.01)
    rest(1.5)


def consume(mq: MQ, topic: str) -> None:
    consumer = mq.consumer(topic, "group")
    consumer.consume(timeout=10)
    consumer.poll(timeout=0.3)


def run_handlers(mq: MQ, topic: str) -> None:
    handled: list[ReceivedMessage] = []
    mq.consumer(topic, "group").run(handled.append, idle_seconds=0.5, concurrency=2, handle_signals=False)


def transact(mq: MQ, topic: str) -> None:
    with mq.consumer(topic, "group") as consumer, consumer.transaction(timeout=10):
        pass


def submit_and_close(mq: MQ, topic: str) -> None:
    mq.producer(topic).submit(Message(b"x"))
    limit = threading.Timer(CLOSE_SECONDS * crowding(), end, args=[4])
    limit.daemon = True
    limit.start()
    mq.close()


OPERATIONS: dict[str, Callable[[MQ, str], None]] = {
    "produce": produce,
    "submit": submit,
    "consume": consume,
    "run": run_handlers,
    "transaction": transact,
    "schedule": schedule,
    "close": submit_and_close,
}

if __name__ == "__main__":
    run(judge, child=live)
