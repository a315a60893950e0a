"""A wait ends with a wake-up, and goes on only as long as somebody else looks."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sqlmq.background.registry import MemberRegistry
from sqlmq.background.wakeups import Wakeups
from sqlmq.model.config import MQConfig
from sqlmq.model.timing import Deadline, PollWait
from tests.support.waiting import PATIENCE_SECONDS, until

FOREVER = Deadline(math.inf)


@pytest.fixture
def wakeups() -> Wakeups:
    return Wakeups(MemberRegistry(), MQConfig(poll_min_seconds=100.0, poll_max_seconds=100.0))


def over() -> PollWait:
    """A wait that would be over by now, if nobody looked."""
    now = time.monotonic()
    return PollWait(now - 1, now, math.inf, may_delegate=True, rest_seconds=300.0)


def test_a_wait_that_is_over_returns_without_a_wake_up(wakeups: Wakeups) -> None:
    assert wakeups.wait(over(), wakeups.count) is False


def test_a_wait_that_somebody_has_looked_for_goes_on_until_a_wake_up(wakeups: Wakeups) -> None:
    wakeups.polled(time.monotonic())

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wakeups.wait, over(), wakeups.count)
        until(lambda: wakeups.delegated == 1, "somebody who rests")
        wakeups.wake()

        assert waiting.result(PATIENCE_SECONDS) is True


def test_a_wait_that_nobody_looks_for_any_more_is_over_without_a_wake_up(wakeups: Wakeups) -> None:
    wakeups.polled(time.monotonic())

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wakeups.wait, over(), wakeups.count)
        until(lambda: wakeups.delegated == 1, "somebody who rests")
        wakeups.polled(-math.inf)

        assert waiting.result(PATIENCE_SECONDS) is False


def test_a_wake_up_since_the_last_look_is_not_missed(wakeups: Wakeups) -> None:
    seen = wakeups.count
    wakeups.wake()

    assert wakeups.wait(wakeups.pause(0, FOREVER, may_delegate=True), seen) is True


def test_those_for_whom_nobody_else_can_look_are_counted_apart(wakeups: Wakeups) -> None:
    counted = threading.Event()

    with wakeups.waiting(wakeups.pause(0, FOREVER, may_delegate=False), counted.set), wakeups.waiting():
        assert (wakeups.waiters, wakeups.self_polling, wakeups.delegated) == (2, 1, 0)
        wakeups.wake()

    assert counted.is_set()
    assert (wakeups.waiters, wakeups.self_polling, wakeups.delegated) == (0, 0, 0)
