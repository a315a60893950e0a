"""A handler closes its consumer or MQ, stops, commits, seeks, deletes the topic, exits, sends a signal. ``run`` must not hang."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from case import Case, run, shown
from sqlmq import MQ, Consumer, Message, Producer, Retry

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import ReceivedMessage

CHILD_SECONDS = 60
DEFECTS = (AssertionError, AttributeError, KeyError)
"""What no call of the library may raise, whatever a handler does."""


def judge(case: Case) -> None:
    for name in MEDDLING:
        for transaction in ("plain", "transaction"):
            case.run_child(name, transaction, seconds=CHILD_SECONDS)


class Program:
    """A program whose handler does something odd with the third message."""

    def __init__(self, url: str, topic: str) -> None:
        self.url = url
        self.topic = topic
        self.mq = MQ(url)
        self.mq.create_topic(topic, 2)
        self.producer: Producer = self.mq.producer(topic)
        self.producer.produce_many([Message(b"%d" % number, key=b"%d" % (number % 3)) for number in range(9)])
        self.consumer: Consumer = self.mq.consumer(topic, "group")


def live(case: Case, name: str, transaction: str) -> None:
    logging.disable(logging.CRITICAL)
    program = Program(case.url, f"{name}-{transaction}".replace(" ", "-").replace(".", "-"))
    calls = 0

    def handle(message: ReceivedMessage, *_session: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            MEDDLING[name](program, message)

    began = time.monotonic()
    try:
        summary = program.consumer.run(
            handle,
            transaction=transaction == "transaction",
            retry=Retry(max_attempts=2, backoff_seconds=0.05),
            idle_seconds=2,
            stop_seconds=3,
        )
    except BaseException as error:  # noqa: BLE001 - most errors are an answer
        check(case, "run", error)
    else:
        print(f"{summary} after {time.monotonic() - began:.1f} s")
    try:
        program.mq.close()
    except BaseException as error:  # noqa: BLE001 - as above
        check(case, "close", error)


def check(case: Case, what: str, error: BaseException) -> None:
    """Record *error* if it comes of a defect and is no answer to the handler."""
    if isinstance(error, DEFECTS) or shown(error).startswith("RuntimeError: cannot"):
        case.fault(f"{what} raised {shown(error)}")


def transact(program: Program, _message: ReceivedMessage) -> None:
    with program.consumer.transaction(timeout=1):
        pass


def commit_in_thread(program: Program, _message: ReceivedMessage) -> None:
    thread = threading.Thread(target=program.consumer.commit)
    thread.start()
    thread.join(5)


def open_another_mq(program: Program, _message: ReceivedMessage) -> None:
    with MQ(program.url) as mq:
        mq.producer(f"{program.topic}-other").produce(Message(b"x"))


def raise_keyboard_interrupt(_program: Program, _message: ReceivedMessage) -> None:
    raise KeyboardInterrupt


def raise_generator_exit(_program: Program, _message: ReceivedMessage) -> None:
    raise GeneratorExit


MEDDLING: dict[str, Callable[[Program, ReceivedMessage], object]] = {
    "consumer.close": lambda program, _: program.consumer.close(),
    "mq.close": lambda program, _: program.mq.close(),
    "consumer.stop": lambda program, _: program.consumer.stop(),
    "consumer.commit": lambda program, _: program.consumer.commit(),
    "consumer.consume": lambda program, _: program.consumer.consume(timeout=1),
    "consumer.poll": lambda program, _: program.consumer.poll(timeout=1),
    "consumer.seek": lambda program, message: program.consumer.seek(message.partition, 0),
    "consumer.run": lambda program, _: program.consumer.run(lambda _message: None, idle_seconds=1),
    "consumer.transaction": transact,
    "delete the topic": lambda program, _: program.mq.delete_topics(program.topic),
    "reset the group": lambda program, _: program.mq.admin.reset_group(program.topic, "group", "earliest", force=True),
    "grow the topic": lambda program, _: program.mq.admin.add_partitions(program.topic, 4),
    "sys.exit": lambda _program, _: sys.exit(3),
    "SIGTERM": lambda _program, _: os.kill(os.getpid(), signal.SIGTERM),
    "SIGINT": lambda _program, _: os.kill(os.getpid(), signal.SIGINT),
    "KeyboardInterrupt": raise_keyboard_interrupt,
    "GeneratorExit": raise_generator_exit,
    "producer.close": lambda program, _: program.producer.close(),
    "commit in a thread": commit_in_thread,
    "another MQ": open_another_mq,
}

if __name__ == "__main__":
    run(judge, child=live)
