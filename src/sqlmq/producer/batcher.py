"""Concurrent calls share a transaction: those that wait while one commits go together in the next.

The first caller leads: it takes what is waiting, its own message included, through one transaction, then hands the lead
to the next caller that waits. A lone caller never waits for company: it goes at once, in its own thread. A separate
thread would halve the rate of a lone caller; a mutex instead of the hand-over would make the slowest of 64 callers wait
forty times as long (docs/design/performance.md).
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Protocol

from sqlmq.errors import DatabaseUnavailableError, OutcomeUnknownError, ProducerClosedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq.model.message import ProducerResult
    from sqlmq.operations.produce import RoutedMessage

MOST_TOGETHER = 1_000
"""How many messages go in one transaction at most, so that the first do not wait for a crowd behind them."""


class Appends(Protocol):
    """Appends batches to one topic, as ``ProducerCore`` does."""

    @property
    def topic(self) -> str:
        """The name of the topic."""

    def append_batch(self, routed: Sequence[RoutedMessage]) -> list[ProducerResult]:
        """Append *routed* in one transaction. Returns their places in the same order."""


class _WaitingCall:
    """A message whose caller's thread sleeps until the message is sent, or until the thread has to lead."""

    # A bare lock. A future and an event have three conditions, which took 11 of the 29 us for a message of 64 callers.
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
        """The result. Raises the error if the message failed."""
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error  # otherwise its traceback and this frame refer to each other


class _WaitingFuture:
    """A submitted message: no thread waits for it, only its future."""

    __slots__ = ("future", "routed")

    def __init__(self, routed: RoutedMessage) -> None:
        self.routed = routed
        self.future: Future[ProducerResult] = Future()

    def lead(self) -> bool:
        """Return False: there is no thread of a caller that could lead."""
        return False

    def begin(self) -> bool:
        """Make the message impossible to cancel. Returns False if it was cancelled before."""
        return self.future.set_running_or_notify_cancel()

    def succeed(self, result: ProducerResult) -> None:
        self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        self.future.set_exception(error)


class Batcher:
    """Sends the messages of concurrent callers together. May be shared by threads."""

    def __init__(self, appender: Appends) -> None:
        self._appender = appender
        self._is_closed = False
        self._threads: ThreadPoolExecutor | None
        self._has_leader: bool
        self._start_over()

    def call(self, routed: RoutedMessage, timeout: float | None) -> ProducerResult:
        """Send *routed* and wait until its transaction has committed.

        With a *timeout*, another thread sends it. TimeoutError: it was not sent and will not be.
        OutcomeUnknownError: it was being sent.
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
        """Send *routed* in another thread, without waiting."""
        waiting = _WaitingFuture(routed)
        self._enter(waiting)
        return waiting.future

    def close(self) -> None:
        """Refuse new messages, and wait until all earlier ones are sent or have failed.

        If the database can't be reached, all waiting messages fail with the error of the first batch.
        """
        self._leave_fork()
        with self._idle:
            self._is_closed = True
            self._idle.wait_for(lambda: not self._has_leader)
        if self._threads is not None:
            self._threads.shutdown()

    def _enter(self, waiting: _WaitingCall | _WaitingFuture) -> None:
        self._leave_fork()
        with self._lock:
            if self._is_closed:
                raise ProducerClosedError(self._appender.topic)
            self._waiting.append(waiting)
            if not self._has_leader:
                self._has_leader = True
                self._hand_over()

    def _withdraw(self, waiting: _WaitingCall) -> None:
        """The caller was interrupted: do not send its message, and do not wait for it to lead."""
        with self._lock:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                if waiting.leads:
                    self._hand_over()

    def _lead(self) -> None:
        """Send one batch, then hand over the lead."""
        try:
            self._send()
        finally:
            with self._lock:
                self._hand_over()

    def _hand_over(self) -> None:
        if not self._waiting:
            self._has_leader = False
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
            results = self._appender.append_batch([waiting.routed for waiting in batch])
        except Exception as error:  # noqa: BLE001 - every waiting caller gets it
            self._fail(batch, error)
            if self._is_closed and isinstance(error, DatabaseUnavailableError):
                self._fail(self._take(len(self._waiting)), error)
        except BaseException:
            self._fail(
                batch,
                OutcomeUnknownError(
                    "The thread that sent the message was interrupted: it is in the log or not. Look there before you send again."
                ),
            )
            raise
        else:
            for waiting, result in zip(batch, results, strict=True):
                waiting.succeed(result)

    def _take(self, most: int) -> list[_WaitingCall | _WaitingFuture]:
        """Take those that have waited longest, *most* of them at most, without cancelled ones."""
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
        """Set up the state, also in a forked child: the parent serves the callers that wait in the parent."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._waiting: deque[_WaitingCall | _WaitingFuture] = deque()
        self._has_leader = False
        self._threads = None


def result_or_timeout(future: Future[ProducerResult], timeout: float | None) -> ProducerResult:
    """Return the result of a submitted message whose caller has waited *timeout* seconds, or withdraw the message.

    TimeoutError: it was not sent and will not be. OutcomeUnknownError: it is being sent.
    """
    if future.cancel():
        message = (
            f"The message was not sent within {timeout} seconds, and will not be. Send it again if it still matters."
        )
        raise TimeoutError(message) from None
    if future.done():
        return future.result()
    message = (
        f"The message was still being sent after {timeout} seconds: it may arrive or not. Look in the log before you send "
        "again."
    )
    raise OutcomeUnknownError(message) from None
