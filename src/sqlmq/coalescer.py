"""Calls that wait together go together: many messages, one transaction.

The first to come leads: it takes what is waiting, its own among it, through one transaction, and then hands the lead to
the next that waits. Nobody waits for company: a lone caller goes at once, in its own thread. With a thread of its own
for it a lone caller has half the rate, with a mutex instead of the hand-off the slowest of 64 callers wait forty times
as long: docs/design/performance.md has the figures.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING

from sqlmq.errors import OutcomeUnknownError, ProducerClosedError
from sqlmq.runtime import SYSTEM

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from sqlmq.flows.produce import Routed
    from sqlmq.message import ProducerResult
    from sqlmq.runtime import Runtime

MOST_TOGETHER = 1_000
"""Messages in one transaction at the most, so that those in front do not wait for a crowd behind."""


class _Waiting:
    """A message that waits, and whoever waits with it: a thread in a call, or nobody but a future."""

    __slots__ = ("future", "leads", "routed", "turn")

    def __init__(self, routed: Routed, turn: threading.Event | None) -> None:
        self.routed = routed
        self.future: Future[ProducerResult] = Future()
        self.leads = False
        self.turn = turn


class Coalescer:
    """Sends messages in as few transactions as there is time for. May be shared by threads."""

    def __init__(
        self, topic: str, append: Callable[[list[Routed]], list[ProducerResult]], runtime: Runtime = SYSTEM
    ) -> None:
        self._topic = topic
        self._append = append
        self._runtime = runtime
        self._is_closed = False
        self._threads: ThreadPoolExecutor | None
        self._somebody_leads: bool
        self._start_over()

    def call(self, routed: Routed, timeout: float | None) -> ProducerResult:
        """Send *routed* and wait until its transaction has committed.

        With a *timeout*, another thread does the sending. TimeoutError: it was not sent, and will not be.
        OutcomeUnknownError: it was on its way.
        """
        if timeout is not None:
            return self._wait(self._enter(routed, in_call=False), timeout)
        waiting = self._enter(routed, in_call=True)
        turn = waiting.turn
        assert turn is not None  # noqa: S101 - it is in a call
        if not waiting.leads:
            try:
                turn.wait()
            except BaseException:
                self._withdraw(waiting)
                raise
        if waiting.leads:
            self._lead()
        return waiting.future.result()

    def submit(self, routed: Routed) -> Future[ProducerResult]:
        """Send *routed* without waiting; another thread does it."""
        return self._enter(routed, in_call=False).future

    def close(self) -> None:
        """Take nothing more, and wait until everything that was taken is sent, or has failed."""
        self._leave_fork()
        with self._idle:
            self._is_closed = True
            self._idle.wait_for(lambda: not self._somebody_leads)
        if self._threads is not None:
            self._threads.shutdown()

    def _enter(self, routed: Routed, *, in_call: bool) -> _Waiting:
        self._leave_fork()
        waiting = _Waiting(routed, self._runtime.event() if in_call else None)
        with self._idle:
            if self._is_closed:
                raise ProducerClosedError(self._topic)
            self._waiting.append(waiting)
            if not self._somebody_leads:
                self._somebody_leads = True
                if in_call:
                    waiting.leads = True
                else:
                    self._lead_in_thread()
        return waiting

    def _withdraw(self, waiting: _Waiting) -> None:
        """A caller was interrupted: do not send for him, nor wait for him to lead."""
        with self._idle:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                if waiting.leads:
                    self._hand_on()

    def _lead(self) -> None:
        """Take one batch through, then hand the lead on."""
        try:
            self._send()
        finally:
            with self._idle:
                self._hand_on()

    def _hand_on(self) -> None:
        if not self._waiting:
            self._somebody_leads = False
            self._idle.notify_all()
        elif (turn := self._waiting[0].turn) is not None:
            self._waiting[0].leads = True
            turn.set()
        else:
            self._lead_in_thread()

    def _lead_in_thread(self) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix="sqlmq-submit")
        self._threads.submit(self._lead)

    def _send(self) -> None:
        with self._idle:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_TOGETHER))]
        batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            results = self._append([waiting.routed for waiting in batch])
        except Exception as error:  # noqa: BLE001 - raised to everybody who waits
            self._finish(batch, error)
        except BaseException:
            self._finish(batch, OutcomeUnknownError("The thread that was sending was interrupted; look in the log."))
            raise
        else:
            for waiting, result in zip(batch, results, strict=True):
                waiting.future.set_result(result)
            self._wake(batch)

    def _finish(self, batch: list[_Waiting], error: Exception) -> None:
        for waiting in batch:
            waiting.future.set_exception(error)
        self._wake(batch)

    @staticmethod
    def _wake(batch: list[_Waiting]) -> None:
        for waiting in batch:
            if waiting.turn is not None and not waiting.leads:
                waiting.turn.set()

    @staticmethod
    def _wait(waiting: _Waiting, timeout: float) -> ProducerResult:
        try:
            return waiting.future.result(timeout)
        except FutureTimeoutError:
            return overdue(waiting.future, timeout)

    def _leave_fork(self) -> None:
        if self._pid != os.getpid():
            self._start_over()

    def _start_over(self) -> None:
        """In the beginning, and in a forked child: those who wait in the parent are the parent's to serve."""
        self._pid = os.getpid()
        self._idle = self._runtime.condition()
        self._waiting: deque[_Waiting] = deque()
        self._somebody_leads = False
        self._threads = None


def overdue(future: Future[ProducerResult], timeout: float | None) -> ProducerResult:
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
