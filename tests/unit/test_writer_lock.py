"""Turns: one thread at a time, and whoever goes first waits for one other at the most."""

from __future__ import annotations

import threading

from sqlmq.database.writer_lock import WriterLock
from tests.support.waiting import PATIENCE_SECONDS, until


class Counted:
    """A lock that counts those who are at it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.waiting = 0

    def acquire(self, *, timeout: float) -> bool:
        self.waiting += 1
        try:
            return self._lock.acquire(timeout=timeout)
        finally:
            self.waiting -= 1

    def release(self) -> None:
        self._lock.release()


def test_who_goes_first_is_let_through_by_all_who_wait_already() -> None:
    turn, lock = WriterLock(), Counted()
    turn._lock = lock  # type: ignore[assignment]
    order: list[str] = []

    def take(name: str, *, priority: bool) -> None:
        assert turn.acquire(PATIENCE_SECONDS, priority=priority)
        order.append(name)
        turn.release()

    threads = [threading.Thread(target=take, args=("ordinary",), kwargs={"priority": False}) for _ in range(10)]
    first = threading.Thread(target=take, args=("first",), kwargs={"priority": True})
    assert turn.acquire(0)
    for thread in threads:
        thread.start()
    until(lambda: lock.waiting == 10, "all to wait for their turn")
    first.start()
    until(lambda: lock.waiting == 11, "the one who goes first to wait")

    turn.release()
    for thread in (*threads, first):
        thread.join(PATIENCE_SECONDS)

    assert order == ["first"] + ["ordinary"] * 10


def test_a_turn_that_does_not_come_in_time_is_not_taken() -> None:
    turn = WriterLock()
    taken: list[bool] = []
    assert turn.acquire(0)

    for priority in (False, True):
        other = threading.Thread(target=lambda first=priority: taken.append(turn.acquire(0, priority=first)))
        other.start()
        other.join(PATIENCE_SECONDS)

    assert taken == [False, False]


def test_whoever_has_the_turn_may_take_it_again_also_while_somebody_waits_to_go_first() -> None:
    turn, lock = WriterLock(), Counted()
    turn._lock = lock  # type: ignore[assignment]
    assert turn.acquire(0)

    def go_first() -> None:
        assert turn.acquire(PATIENCE_SECONDS, priority=True)
        turn.release()

    first = threading.Thread(target=go_first)
    first.start()
    until(lambda: lock.waiting == 1, "somebody to wait")

    assert turn.acquire(PATIENCE_SECONDS, priority=True)

    turn.release()
    turn.release()
    first.join(PATIENCE_SECONDS)
