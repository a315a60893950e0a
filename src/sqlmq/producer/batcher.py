"""Calls that wait together go together: many messages, one transaction.

The first to come leads: it takes what is waiting, its own among it, through one transaction, and then hands the lead to
the next that waits. Nobody waits for company: a lone caller goes at once, in its own thread. With a thread of its own
for it a lone caller has half the rate, with a mutex instead of the hand-off the slowest of 64 callers wait forty times
as long: docs/design/performance.md has the figures.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING

from sqlmq.errors import DatabaseUnavailableError, OutcomeUnknownError, ProducerClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq.model.message import ProducerResult
    from sqlmq.operations.produce import RoutedMessage

MOST_TOGETHER = 1_000
"""Messages in one transaction at the most, so that those in front do not wait for a crowd behind."""


class _WaitingCall:
    """A message that waits with the thread that called, which sleeps until it is sent, or until it has to lead."""

    # A bare lock: a future and an event are three conditions, and took 11 of the 29 us that a message of 64 callers takes.
    __slots__ = ("_asleep", "_error", "_result", "leads", "routed")

    _result: ProducerResult

    def __init__(self, routed: RoutedMessage) -> None:
        self.routed = routed
        self.leads = False
        self._error: Exception | None = None
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def sleep(self) -> None:
        self._asleep.acquire()

    def lead(self) -> bool:
        self.leads = True
        self._asleep.release()
        return True

    def begin(self) -> bool:
        return True

    def succeed(self, result: ProducerResult) -> None:
        self._result = result
        self._asleep.release()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._asleep.release()

    def outcome(self) -> ProducerResult:
        """The result; raises the error, if that is what there is."""
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error  # or its traceback leads to this frame, and this frame to it


class _WaitingFuture:
    """A message for which nobody waits, or nobody but a future."""

    __slots__ = ("future", "routed")

    def __init__(self, routed: RoutedMessage) -> None:
        self.routed = routed
        self.future: Future[ProducerResult] = Future()

    def lead(self) -> bool:
        """Return False: there is no thread to do it."""
        return False

    def begin(self) -> bool:
        """Take it, so that it can't be cancelled any more; False if it was."""
        return self.future.set_running_or_notify_cancel()

    def succeed(self, result: ProducerResult) -> None:
        self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        self.future.set_exception(error)


class Batcher:
    """Sends messages in as few transactions as there is time for. May be shared by threads."""

    def __init__(self, topic: str, append: Callable[[list[RoutedMessage]], list[ProducerResult]]) -> None:
        self._topic = topic
        self._append = append
        self._is_closed = False
        self._threads: ThreadPoolExecutor | None
        self._somebody_leads: bool
        self._start_over()

    def call(self, routed: RoutedMessage, timeout: float | None) -> ProducerResult:
        """Send *routed* and wait until its transaction has committed.

        With a *timeout*, another thread does the sending. TimeoutError: it was not sent, and will not be.
        OutcomeUnknownError: it was on its way.
        """
        if timeout is not None:
            return self._wait(self.submit(routed), timeout)
        waiting = _WaitingCall(routed)
        self._enter(waiting)
        try:
            waiting.sleep()
        except BaseException:
            self._withdraw(waiting)
            raise
        if waiting.leads:
            self._lead()
        return waiting.outcome()

    def submit(self, routed: RoutedMessage) -> Future[ProducerResult]:
        """Send *routed* without waiting; another thread does it."""
        waiting = _WaitingFuture(routed)
        self._enter(waiting)
        return waiting.future

    def close(self) -> None:
        """Take nothing more, and wait until everything that was taken is sent, or has failed.

        Where the database can't be reached, all that waits fails as the first did.
        """
        self._leave_fork()
        with self._idle:
            self._is_closed = True
            self._idle.wait_for(lambda: not self._somebody_leads)
        if self._threads is not None:
            self._threads.shutdown()

    def _enter(self, waiting: _WaitingCall | _WaitingFuture) -> None:
        self._leave_fork()
        with self._lock:
            if self._is_closed:
                raise ProducerClosedError(self._topic)
            self._waiting.append(waiting)
            if not self._somebody_leads:
                self._somebody_leads = True
                self._hand_on()

    def _withdraw(self, waiting: _WaitingCall) -> None:
        """A caller was interrupted: do not send for him, nor wait for him to lead."""
        with self._lock:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                if waiting.leads:
                    self._hand_on()

    def _lead(self) -> None:
        """Take one batch through, then hand the lead on."""
        try:
            self._send()
        finally:
            with self._lock:
                self._hand_on()

    def _hand_on(self) -> None:
        if not self._waiting:
            self._somebody_leads = False
            if self._is_closed:
                self._idle.notify_all()
        elif not self._waiting[0].lead():
            self._lead_in_thread()

    def _lead_in_thread(self) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix="sqlmq-submit")
        self._threads.submit(self._lead)

    def _send(self) -> None:
        batch = self._take(MOST_TOGETHER)
        if not batch:
            return
        try:
            results = self._append([waiting.routed for waiting in batch])
        except Exception as error:  # noqa: BLE001 - raised to everybody who waits
            self._fail(batch, error)
            if self._is_closed and isinstance(error, DatabaseUnavailableError):
                self._fail(self._take(len(self._waiting)), error)
        except BaseException:
            self._fail(batch, OutcomeUnknownError("The thread that was sending was interrupted; look in the log."))
            raise
        else:
            for waiting, result in zip(batch, results, strict=True):
                waiting.succeed(result)

    def _take(self, most: int) -> list[_WaitingCall | _WaitingFuture]:
        """Those that have waited longest, *most* of them, without those that were withdrawn."""
        with self._lock:
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), most))]
        return [waiting for waiting in taken if waiting.begin()]

    @staticmethod
    def _fail(batch: list[_WaitingCall | _WaitingFuture], error: Exception) -> None:
        for waiting in batch:
            waiting.fail(error)

    @staticmethod
    def _wait(future: Future[ProducerResult], timeout: float) -> ProducerResult:
        try:
            return future.result(timeout)
        except FutureTimeoutError:
            return result_or_timeout(future, timeout)

    def _leave_fork(self) -> None:
        if self._pid != os.getpid():
            self._start_over()

    def _start_over(self) -> None:
        """In the beginning, and in a forked child: those who wait in the parent are the parent's to serve."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._waiting: deque[_WaitingCall | _WaitingFuture] = deque()
        self._somebody_leads = False
        self._threads = None


def result_or_timeout(future: Future[ProducerResult], timeout: float | None) -> ProducerResult:
    """The result of a submitted message for which somebody has waited *timeout* seconds and waits no longer.

    TimeoutError: it was not sent, and will not be. OutcomeUnknownError: it is on its way.
    """
    if future.cancel():
        message = f"The message was not sent within {timeout} seconds, and will not be."
        raise TimeoutError(message) from None
    if future.done():
        return future.result()
    message = f"The message was still on its way after {timeout} seconds: it may arrive or not. Look in the log."
    raise OutcomeUnknownError(message) from None
