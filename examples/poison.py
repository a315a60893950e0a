"""Poison messages, step by step: one that always fails, one that fails twice, one that kills its process.

python examples/poison.py                                    on SQLite, in a temporary file
python examples/poison.py postgresql://user@host/name        on Postgres, after `sqlmq db upgrade`

Eight orders of four customers are in one partition. A process handles them with a bug in it, and is started again when
it dies, as systemd would. Nobody waits for the bad ones but orders of the same customer; those that fail for good become
dead letters, with their reason. Then the bug is fixed and they are tried again. The program exits with 1 if an order was
lost, or handled twice or out of its customer's order. Line by line: docs/poison-message.md.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlmq import MQ, Message, ReceivedMessage, Retry

if TYPE_CHECKING:
    from collections.abc import Iterator

TOPIC = "poison-orders"
GROUP = "billing"
LEASE_SECONDS = 1.0
"""How long it takes to miss a process that died: short, so that the example is."""

ORDERS = [
    ("ada", "lamp", "40"),
    ("bob", "desk", "twelve"),
    ("cid", "chair", "75"),
    ("dan", "atlas", "30"),
    ("ada", "shade", "9"),
    ("bob", "rug", "110"),
    ("cid", "stool", "20"),
    ("dan", "map", "15"),
]
WORDS = {"twelve": 12}
FOR_GOOD = [1, 3]
"""The offsets of those that can't be handled before the bug is fixed."""


# --- What handles orders: a process of its own ---


class Billing:
    """A handler, with its bugs."""

    def __init__(self, journal: Path, *, is_fixed: bool) -> None:
        self._journal = journal
        self._is_fixed = is_fixed

    def handle(self, message: ReceivedMessage) -> None:
        """Bill an order."""
        order = json.loads(message.value)
        if order["item"] == "atlas" and not self._is_fixed:
            told(message, "kills the process")
            os._exit(137)
        if order["item"] == "chair" and self._failures() < 2:
            self._note("failed", message)
            told(message, "fails: the warehouse does not answer")
            raise ConnectionError("the warehouse does not answer")
        try:
            price = self._price(order["price"])
        except ValueError as error:
            told(message, f"fails: {error}")
            raise
        self._note("handled", message)
        told(message, f"handled: {price} euros")

    def _price(self, text: str) -> int:
        return WORDS.get(text) or int(text) if self._is_fixed else int(text)

    def _failures(self) -> int:
        return sum(what == "failed" for what, _ in read(self._journal))

    def _note(self, what: str, message: ReceivedMessage) -> None:
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(f"{what} {message.offset}\n")


def told(message: ReceivedMessage, what: str) -> None:
    order = json.loads(message.value)
    print(f"    {message.offset}  {order['customer']}  {order['item']:<6} {what}", flush=True)


def read(journal: Path) -> list[tuple[str, int]]:
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    return [(what, int(offset)) for what, offset in (line.split() for line in lines)]


def serve(url: str, journal: Path, *, is_fixed: bool) -> None:
    """Handle orders until SIGTERM."""
    # What it would log is told here in other words.
    logging.getLogger("sqlmq").addHandler(logging.NullHandler())
    retry = Retry(max_attempts=3, backoff_seconds=0.2, jitter=0)
    with MQ(url, lease_seconds=LEASE_SECONDS, poll_max_seconds=0.2) as mq:
        mq.consumer(TOPIC, GROUP).run(Billing(journal, is_fixed=is_fixed).handle, retry=retry)


# --- The walk-through ---


@contextmanager
def started(url: str, journal: Path, *, is_fixed: bool) -> Iterator[subprocess.Popen[bytes]]:
    sys.stdout.flush()
    arguments = [sys.executable, __file__, url, str(journal), "fixed" if is_fixed else "with a bug"]
    process = subprocess.Popen(arguments)  # noqa: S603 - this very program
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def handle_all(mq: MQ, url: str, journal: Path, *, is_fixed: bool) -> int:
    """Have a process handle orders until none waits any more; return how many times it died."""
    deaths = 0
    while True:
        with started(url, journal, is_fixed=is_fixed) as process:
            while process.poll() is None and not is_done(mq):
                time.sleep(0.05)
            if process.returncode is None:
                return deaths
        deaths += 1
        print(f"  The process has died (exit code {process.returncode}). It is started again; parked so far:")
        show(mq)


def is_done(mq: MQ) -> bool:
    """Whether nothing is left but dead letters."""
    if GROUP not in mq.admin.groups(TOPIC) or mq.admin.describe_group(TOPIC, GROUP).lag:
        return False
    return all(one.state == "dead" for one in mq.admin.parked(TOPIC, GROUP).list())


def show(mq: MQ) -> None:
    parked = mq.admin.parked(TOPIC, GROUP).list()
    for one in parked:
        key = (one.key or b"").decode()
        attempts = f"{one.attempts} attempt{'' if one.attempts == 1 else 's'}"
        reason = f"{one.error_type}: {one.error}" if one.error_type else "behind another one of its key"
        print(f"    {one.offset}  {key}  {one.state:<7} {attempts:<10} {reason}")
    if not parked:
        print("    nothing")


def is_as_claimed(journal: Path, dead: list[int], deaths: int) -> bool:
    handled = [offset for what, offset in read(journal) if what == "handled"]
    customers = {customer for customer, _, _ in ORDERS}
    # Of dead letters that are tried again later nothing is promised: the customer's next orders have gone on.
    in_time = [[o for o in handled if ORDERS[o][0] == customer and o not in FOR_GOOD] for customer in customers]
    return (
        sorted(handled) == list(range(len(ORDERS)))
        and dead == FOR_GOOD
        and deaths == 3
        and all(offsets == sorted(offsets) for offsets in in_time)
    )


def walk_through(url: str, journal: Path) -> int:
    with MQ(url) as mq:
        mq.delete_topics(TOPIC)
        mq.create_topic(TOPIC, partitions=1)
        try:
            print("1. Eight orders of four customers, in one partition")
            producer = mq.producer(TOPIC)
            for customer, item, price in ORDERS:
                order = {"customer": customer, "item": item, "price": price}
                sent = producer.produce(Message(json.dumps(order).encode(), customer.encode()))
                print(f"    {sent.offset}  {customer}  {item:<6} {price}")

            print("\n2. A handler with a bug, three attempts for each")
            deaths = handle_all(mq, url, journal, is_fixed=False)

            print("\n3. All others are handled. What is left are dead letters, each with its reason")
            show(mq)
            parked = mq.admin.parked(TOPIC, GROUP)
            dead = [one.offset for one in parked.list("dead")]

            print("\n4. The bug is fixed, and they are tried again")
            count = parked.retry(state="dead")
            print(f"    {count} messages are due again")
            handle_all(mq, url, journal, is_fixed=True)

            print("\n5. Set aside now")
            show(mq)
        finally:
            mq.delete_topics(TOPIC)
    if not is_as_claimed(journal, dead, deaths):
        print("\nFAILED: see above")
        return 1
    print("\nAll eight orders were handled once, and no customer had to wait for another's.")
    return 0


def main(arguments: list[str]) -> int:
    if len(arguments) == 3:
        serve(arguments[0], Path(arguments[1]), is_fixed=arguments[2] == "fixed")
        return 0
    with tempfile.TemporaryDirectory() as directory:
        url = arguments[0] if arguments else f"sqlite:///{directory}/poison.db"
        return walk_through(url, Path(directory) / "journal")


if __name__ == "__main__":
    if len(sys.argv) not in {1, 2, 4}:
        sys.exit("usage: python examples/poison.py [postgresql://user@host/name]")
    sys.exit(main(sys.argv[1:]))
