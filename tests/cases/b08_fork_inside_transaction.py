"""A handler forks inside its transaction (multiprocessing, a ``preexec_fn``). It must continue at once, and commit."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import subprocess
import threading
import time
import warnings
from typing import TYPE_CHECKING

from case import Case, rest, run
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from sqlmq import Consumer, ReceivedMessage

MOST_SECONDS = 2
BLOCK_SECONDS = 8
"""How long the block of another thread stays open during a fork."""
MOST_SECONDS_BESIDE = 6


def judge(case: Case) -> None:
    faulthandler.dump_traceback_later(100, exit=True)
    warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what the case is about
    with MQ(case.url) as mq:
        mq.producer("forks").produce_many([Message(b"x", key=b"k")] * 6)
        consumer = mq.consumer("forks", "blocks")
        for name, start_child in FORKS.items():
            fork_in_block(case, consumer, name, start_child)
        fork_beside_block(case, consumer)
        fork_in_handlers(case, mq)


def fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def start_with_preexec_fn() -> None:
    subprocess.run(["true"], preexec_fn=os.setsid, check=True)


def start_process() -> None:
    process = multiprocessing.get_context("fork").Process(target=os._exit, args=[0])
    process.start()
    process.join()


FORKS: dict[str, Callable[[], None]] = {
    "os.fork": fork,
    "preexec_fn": start_with_preexec_fn,
    "multiprocessing": start_process,
}


def timed(call: Callable[[], None]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def fork_in_block(case: Case, consumer: Consumer, name: str, start_child: Callable[[], None]) -> None:
    def transact() -> float:
        with consumer.transaction(max_messages=1, timeout=20):
            return timed(start_child)

    seconds = case.attempt(f"{name} in a transaction", transact)
    if seconds is not None and seconds > MOST_SECONDS:
        case.fault(f"{name} in a block of transaction() took {seconds:.1f} s")


def fork_beside_block(case: Case, consumer: Consumer) -> None:
    """Fork in this thread while another one has its block open for long."""
    opened = threading.Event()

    def transact() -> None:
        with consumer.transaction(max_messages=1, timeout=20):
            opened.set()
            rest(BLOCK_SECONDS)

    thread = threading.Thread(target=transact)
    thread.start()
    opened.wait(20)
    seconds = timed(start_with_preexec_fn)
    if seconds > MOST_SECONDS_BESIDE:
        case.fault(f"a fork in another thread waited {seconds:.1f} s for the end of a block of transaction()")
    thread.join()


def fork_in_handlers(case: Case, mq: MQ) -> None:
    seconds: list[float] = []

    def handle(_message: ReceivedMessage) -> None:
        seconds.append(timed(start_with_preexec_fn))

    def handle_in_transaction(message: ReceivedMessage, _session: Session) -> None:
        handle(message)

    mq.consumer("forks", "run").run(handle, idle_seconds=1)
    if max(seconds) > MOST_SECONDS:
        case.fault(f"in run() a fork took {max(seconds):.1f} s")
    seconds.clear()
    mq.consumer("forks", "run-transactions").run(handle_in_transaction, idle_seconds=1, transaction=True)
    if max(seconds) > MOST_SECONDS:
        case.fault(f"in run(transaction=True) a fork took {max(seconds):.1f} s")


if __name__ == "__main__":
    run(judge)
