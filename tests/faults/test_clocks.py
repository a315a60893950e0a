"""Processes whose clocks are wrong by an hour, in either direction, in other time zones: the database's clock counts."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sqlmq import Message
from tests.support.waiting import slack_seconds, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

LEASE_SECONDS, POLL_SECONDS, DELAY_SECONDS = 2.0, 0.1, 1.0
LATE_SECONDS = 1.0
ROOT = Path(__file__).parent.parent.parent

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True),
    pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone can't be changed there"),
]


class Shifted:
    """A process with wrong clocks that does what it is told."""

    def __init__(self, url: str, seconds: float, zone: str) -> None:
        command = [sys.executable, "-m", "tests.faults.shifted", url, str(seconds), zone]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._answer() == ["ready"]

    def ask(self, *words: object) -> list[str]:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        return self._answer()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)

    def _answer(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()


@pytest.fixture
def pair(mq: MQ, database: DatabaseUnderTest) -> Iterator[tuple[Shifted, Shifted]]:
    """One that is an hour ahead and one that is an hour behind, which read one topic together."""
    mq.create_topic("orders", 2)
    with ThreadPoolExecutor(2) as threads:
        ahead = threads.submit(Shifted, database.url, 3600.0, "Pacific/Kiritimati")
        behind = threads.submit(Shifted, database.url, -3600.0, "America/St_Johns")
    pair = (ahead.result(), behind.result())
    yield pair
    for one in pair:
        one.end()


def test_a_delay_is_as_long_as_was_asked_for_whoever_asks_and_whoever_takes(
    pair: tuple[Shifted, Shifted], mq: MQ
) -> None:
    checker = mq.consumer("orders", "checker")
    producer = mq.producer("orders")

    for one in pair:
        began = time.monotonic()
        assert one.ask("delay", "x", DELAY_SECONDS) == ["delayed"]
        assert checker.consume(timeout=30).value == b"x"
        took = time.monotonic() - began
        assert DELAY_SECONDS <= took <= DELAY_SECONDS + LATE_SECONDS + slack_seconds()
    until(lambda: shares(pair) == [1, 1], "each to have its share")
    with ThreadPoolExecutor(2) as threads:
        began = time.monotonic()
        producer.schedule(Message(b"y"), delay_seconds=DELAY_SECONDS)
        answers = [threads.submit(one.ask, "poll", DELAY_SECONDS + LATE_SECONDS + slack_seconds()) for one in pair]
        got = [answer.result(30)[1:] for answer in answers]

    assert sorted(got) == [[], ["y"]]


def shares(pair: tuple[Shifted, Shifted]) -> list[int]:
    """How many partitions each has, once it has asked for messages again."""
    for one in pair:
        one.ask("poll", 0.05)
    return [len(one.ask("partitions")) for one in pair]


def test_leases_are_as_long_as_they_are_whatever_the_time_is_believed_to_be(
    pair: tuple[Shifted, Shifted], database: DatabaseUnderTest
) -> None:
    lives, dies = pair if database.is_postgres else pair[::-1]
    pause = threading.Event()

    until(lambda: shares(pair) == [1, 1], "each to have its share")
    end = time.monotonic() + 2 * LEASE_SECONDS
    while time.monotonic() < end:
        assert shares(pair) == [1, 1]
        pause.wait(0.1)
    dies.end()
    killed_at = time.monotonic()
    until(lambda: lives.ask("poll", 0.05) is not None and len(lives.ask("partitions")) == 2, "all to be taken over")
    took = time.monotonic() - killed_at

    # The last heartbeat may have been a third of a lease ago.
    assert LEASE_SECONDS * 0.5 <= took <= LEASE_SECONDS + POLL_SECONDS + 1.0 + slack_seconds()
