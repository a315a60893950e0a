"""A background thread starts on demand, ends for good, and stays the parent's when the process forks."""

from __future__ import annotations

import threading

import pytest

from sqlmq.background.thread import BackgroundThread
from sqlmq.hooks.clock import SYSTEM
from tests.support.processes import forks, in_fork
from tests.support.waiting import PATIENCE_SECONDS, until


class Waiter(BackgroundThread):
    """A thread that waits until it is stopped, or told to die."""

    thread_name = "sqlmq-waiter"

    def __init__(self) -> None:
        super().__init__(SYSTEM)
        self.may_die = threading.Event()
        self.runs = 0

    def run(self) -> None:
        self.runs += 1
        while not self.may_die.is_set() and not self._stopping.wait(0.01):
            pass

    @property
    def thread(self) -> threading.Thread:
        assert self._thread is not None
        return self._thread


def test_a_thread_is_started_once_by_many_starts_and_has_its_name() -> None:
    waiter = Waiter()

    for _ in range(3):
        waiter.start()

    assert waiter.thread.name == "sqlmq-waiter"
    assert waiter.thread.daemon
    waiter.stop(PATIENCE_SECONDS)
    assert waiter.runs == 1


def test_a_stopped_thread_has_ended_and_does_not_start_again() -> None:
    waiter = Waiter()
    waiter.start()

    waiter.stop(PATIENCE_SECONDS)
    assert not waiter.thread.is_alive()
    waiter.start()

    assert waiter.runs == 1


def test_a_thread_that_was_stopped_before_its_start_never_runs() -> None:
    waiter = Waiter()

    waiter.stop()
    waiter.start()

    assert waiter.runs == 0


def test_a_dead_thread_is_replaced_by_the_next_start() -> None:
    waiter = Waiter()
    waiter.start()
    waiter.may_die.set()
    until(lambda: not waiter.thread.is_alive(), "the thread to die")
    waiter.may_die.clear()

    waiter.start()

    until(lambda: waiter.runs == 2, "another thread")
    waiter.stop(PATIENCE_SECONDS)


@forks
@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_forked_child_gets_a_thread_of_its_own_and_cannot_stop_its_parents(*, is_stopped: bool) -> None:
    waiter = Waiter()
    waiter.start()
    until(lambda: waiter.runs == 1, "the parent's thread")
    if is_stopped:
        waiter.stop(PATIENCE_SECONDS)

    def child() -> str:
        waiter.stop()  # the parent's: does nothing
        waiter.start()
        until(lambda: waiter.runs == 2, "the child's thread")
        waiter.stop(PATIENCE_SECONDS)
        return f"alive: {waiter.thread.is_alive()}"

    assert in_fork(child) == "alive: False"
    assert waiter.thread.is_alive() is not is_stopped
    waiter.stop(PATIENCE_SECONDS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("has_broken_hook", [False, True])
def test_a_thread_whose_work_raises_goes_on(monkeypatch: pytest.MonkeyPatch, *, has_broken_hook: bool) -> None:
    """As when a log handler raises: without it, members would lose their leases. The hook is the application's as well."""
    monkeypatch.setattr("sqlmq.background.thread._RESTART_SECONDS", 0.0)

    def refuse(arguments: threading.ExceptHookArgs) -> None:
        raise RuntimeError(arguments.exc_value)

    if has_broken_hook:
        monkeypatch.setattr(threading, "excepthook", refuse)

    class Failing(Waiter):
        def run(self) -> None:
            if self.runs < 2:
                self.runs += 1
                message = "broken"
                raise ValueError(message)
            super().run()

    failing = Failing()
    failing.start()

    until(lambda: failing.runs == 3, "the third run")
    failing.stop(PATIENCE_SECONDS)
    assert not failing.thread.is_alive()
