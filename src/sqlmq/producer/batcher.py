"""Concurrent calls share a transaction: those that wait while one commits go together in the next.

The first caller leads: it takes what is waiting, its own message included, through one transaction, then hands the lead
to the next caller that waits. A lone caller never waits for company: it goes at once, in its own thread. A separate
thread would halve the rate of a lone caller; a mutex instead of the hand-over would make the slowest of 64 callers wait
forty times as long (docs/design/performance.md).

Nothing that the application may have written runs in the thread that has the lead, and nothing is lost if an exception
arises anywhere (docs/design/strange-code.md). So

- the lead is a lock that knows its thread: whatever ends the leader, an interrupt included, gives it back;
- a message stays in the queue until its outcome is known, so the next leader sees what an interrupted one has left;
- a caller that waits looks for itself once a second: a wake-up may be lost, but not for long;
- callbacks and log records wait until the lead was given back, and futures are completed by a thread that may be missed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures._base import LOGGER as FUTURES_LOG
from functools import partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING, ClassVar, Protocol

from sqlmq.errors import DatabaseBusyError, DatabaseUnavailableError, OutcomeUnknownError, ProducerClosedError
from sqlmq.hooks.log_events import log_fields
from sqlmq.hooks.log_hold import WITH_RECORDS, LogHold, emit_held_records, hold_records_under
from sqlmq.hooks.task_threads import TaskThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlmq.model.message import ProducerResult
    from sqlmq.operations.produce import RoutedMessage

log = logging.getLogger("sqlmq.producer")

MOST_TOGETHER = 1_000
"""How many messages go in one transaction at most, so that the first do not wait for a crowd behind them."""
_LOOK_SECONDS = 1.0
"""How often a waiting caller looks for itself, in case it was not woken."""
_CLOSE_SECONDS = 10.0
"""How long closing waits for a batch that does not end. The database has less time than that to respond."""
_CALLBACK_SECONDS = 5.0
"""How long closing waits for callbacks."""


class Appends(Protocol):
    """Appends batches to one topic, as ``ProducerCore`` does."""

    @property
    def topic(self) -> str:
        """The name of the topic."""

    @property
    def batch_seconds(self) -> float:
        """How long a batch may take at the very most: after that, its callers give up."""

    def append_batch(self, routed: Sequence[RoutedMessage]) -> list[ProducerResult]:
        """Append *routed* in one transaction. Returns their places in the same order."""


class _SharedBatch:
    """Messages of one transaction. Its outcome is that of each of them."""

    __slots__ = ("error", "is_over", "results")

    def __init__(self) -> None:
        self.is_over = False
        self.results: list[ProducerResult] = []
        self.error: Exception | None = None

    def lose(self) -> None:
        """End a batch whose leader was interrupted."""
        if not self.is_over:
            self.error = OutcomeUnknownError(
                "The thread that sent the message was interrupted: it is in the log or not. Look there before you send again."
            )
            self.is_over = True


class _WaitingCall:
    """A message whose caller's thread sleeps until the message is sent, or until the thread has to lead."""

    # A bare lock. A future and an event have three conditions, which took 11 of the 29 us for a message of 64 callers.
    __slots__ = ("_asleep", "batch", "index", "is_withdrawn", "routed")

    has_future: ClassVar[bool] = False
    index: int

    def __init__(self, routed: RoutedMessage | None) -> None:
        self.routed = routed
        self.batch: _SharedBatch | None = None
        self.is_withdrawn = False
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def sleep(self) -> None:
        """Wait for ``wake``, though not for long."""
        self._asleep.acquire(timeout=_LOOK_SECONDS)

    def wake(self) -> bool:
        """End the caller's sleep, or its next one. Return False if it will not look."""
        try:  # noqa: SIM105 - on the way of every message
            self._asleep.release()
        except RuntimeError:
            pass  # it was woken already, and has not run since
        return not self.is_withdrawn

    def join(self, batch: _SharedBatch) -> bool:
        """Become part of *batch*, unless the message was in another one, or will not be sent."""
        if self.batch is not None or self.is_withdrawn:
            return False
        self.batch = batch
        return True

    def leave(self) -> None:
        """Leave the queue: the outcome is known."""
        try:  # noqa: SIM105 - as above
            self._asleep.release()
        except RuntimeError:
            pass

    def is_over(self) -> bool:
        """Whether the outcome is known."""
        return self.batch is not None and self.batch.is_over

    def outcome(self) -> ProducerResult:
        """The result. Raises the error if the message failed."""
        batch, self.batch = self.batch, None
        assert batch is not None  # noqa: S101 - it is over
        error = batch.error
        if error is None:
            return batch.results[self.index]
        del batch
        try:
            raise error
        finally:
            del error  # otherwise its traceback and this frame refer to each other


class _Flush(_WaitingCall):
    """Waits for everything that was in the queue before it."""

    __slots__ = ("has_passed",)

    def __init__(self) -> None:
        super().__init__(None)
        self.has_passed = False

    def is_over(self) -> bool:
        """Whether nothing waits that did before."""
        return self.has_passed

    def leave(self) -> None:
        self.has_passed = True
        self.wake()

    def join(self, batch: _SharedBatch) -> bool:
        del batch
        return False


class _WaitingFuture:
    """A submitted message: no thread waits for it, only its future."""

    __slots__ = ("batch", "future", "index", "routed")

    has_future: ClassVar[bool] = True
    is_withdrawn: ClassVar[bool] = False
    index: int

    def __init__(self, routed: RoutedMessage, future: _SubmittedFuture) -> None:
        self.routed = routed
        self.batch: _SharedBatch | None = None
        self.future = future

    def wake(self) -> bool:
        """Return False: there is no thread of a caller that could lead."""
        return False

    def leave(self) -> None:
        """Leave the queue. The future is completed later."""

    def join(self, batch: _SharedBatch) -> bool:
        """Become part of *batch*, unless the message was in another one or was cancelled. It can't be cancelled after that."""
        if self.batch is not None:
            return False
        self.batch = batch
        if self.future.set_running_or_notify_cancel():
            return True
        self.batch = _CANCELLED
        return False

    def complete(self) -> None:
        """Complete the future with the outcome. Does nothing the second time."""
        batch = self.batch
        assert batch is not None  # noqa: S101 - it is over
        try:
            if batch.error is None:
                self.future.set_result(batch.results[self.index])
            else:
                self.future.set_exception(batch.error)
        except InvalidStateError:
            pass  # it was cancelled, or another thread was faster


_CANCELLED = _SharedBatch()
_CANCELLED.lose()


class _SubmittedFuture(Future["ProducerResult"]):
    """Keeps callbacks back until nothing depends on the thread that completes the future."""

    batcher: Batcher

    def add_done_callback(self, fn: Callable[[Future[ProducerResult]], object]) -> None:
        if self.done():
            super().add_done_callback(fn)
            return
        super().add_done_callback(partial(self.batcher.call_back_later, fn))
        if self.done():
            # If it was completed in between, this thread has queued the callback.
            self.batcher.call_back_soon()


class _Stall:
    """Measures for how long no batch has begun."""

    __slots__ = ("_batches", "_since")

    def __init__(self) -> None:
        self._batches, self._since = -1, 0.0

    def seconds(self, batches: int) -> float:
        """Return the seconds since the first call with this number of *batches*."""
        if batches != self._batches:
            self._batches, self._since = batches, time.monotonic()
        return time.monotonic() - self._since


class _SubmitSender:
    """A thread that sends what was submitted."""

    __slots__ = ("is_away",)

    def __init__(self) -> None:
        self.is_away = False
        """Whether it has ended, or runs code of the application. Until then, it will look at the queue once more."""


class Batcher:
    """Sends the messages of concurrent callers together. May be shared by threads."""

    _sender: _SubmitSender | None

    def __init__(self, appender: Appends) -> None:
        self._appender = appender
        self._is_closed = False
        self._start_over()

    def call(self, routed: RoutedMessage, timeout: float | None) -> ProducerResult:
        """Send *routed* and wait until its transaction has committed.

        With a *timeout*, another thread sends it. TimeoutError: it was not sent and will not be.
        OutcomeUnknownError: it was being sent.
        """
        if self._pid != os.getpid():
            self._start_over()
        if self._is_closed:
            raise ProducerClosedError(self._appender.topic)
        if self._is_leader():
            # In a transaction of its own, or refused where the database has one writer, which this thread is.
            return self._appender.append_batch([routed])[0]
        if timeout is not None:
            return self._wait(self.submit(routed), timeout)
        waiting = _WaitingCall(routed)
        try:
            self._waiting.append(waiting)
            # If another one is first, it is about to lead, and takes this message, too.
            if not self._has_leader and self._is_first(waiting):
                self._lead_once()
            if (batch := waiting.batch) is None or not batch.is_over:
                del batch
                self._wait_for(waiting)
        except BaseException:
            waiting.is_withdrawn = True
            self._after_lead()
            raise
        return waiting.outcome()

    def submit(self, routed: RoutedMessage) -> Future[ProducerResult]:
        """Send *routed* in another thread, without waiting. If no thread can be started, this one sends it."""
        if self._pid != os.getpid():
            self._start_over()
        if self._is_closed:
            raise ProducerClosedError(self._appender.topic)
        future = _SubmittedFuture()
        future.batcher = self
        self._waiting.append(_WaitingFuture(routed, future))
        # The thread that leads looks after what was queued meanwhile, also while it is interrupted by this call.
        sender = self._sender
        if (sender is None or sender.is_away) and not self._is_leader():
            self._start_sender()
        return future

    def close(self) -> None:
        """Refuse new messages, and wait until all earlier ones are sent or have failed.

        If the database can't be reached, all waiting messages fail with the error of the first batch.
        """
        self._leave_fork()
        self._is_closed = True
        if self._is_leader():
            return  # what has interrupted this thread can't wait for it; it sends what waits when it goes on
        if self._waiting or self._has_leader:
            self._flush()
        self._complete()
        if self._callbacks:
            self.call_back_soon()
        self._threads.shut_down(_CALLBACK_SECONDS)

    def call_back_later(
        self, callback: Callable[[Future[ProducerResult]], object], future: Future[ProducerResult]
    ) -> None:
        """Call *callback* with *future*, which is done: now if it was cancelled, else when nothing depends on the thread."""
        if future.cancelled():
            callback(future)
        else:
            self._callbacks.append((callback, future))

    def call_back_soon(self) -> None:
        """Start a thread for the callbacks that wait, unless one is about to call them."""
        if self._callbacks and not self._has_sender():
            self._start_sender()

    # The lead.

    def _lead_once(self, *, seconds: float = 0.0, is_alone: bool = False) -> bool:
        """Lead one batch, then hand over the lead. Return False if another thread had it for *seconds*.

        This thread must not have it. *is_alone*: it comes again for the rest.
        """
        lead = self._lead
        # Python may raise KeyboardInterrupt after each call, also between one that takes a lock and a note that says so. So the
        # lock is released in any case: it refuses if another thread has it.
        try:
            try:
                if not lead.acquire(timeout=seconds):
                    return False
                self._has_leader = True
                try:
                    self._send()
                finally:
                    self._has_leader = False
                return True
            finally:
                try:  # noqa: SIM105 - with a block around it, an interrupt could come before the release
                    lead.release()
                except RuntimeError:
                    pass
        finally:
            if is_alone:
                self._complete()
            else:
                self._after_lead()
            if WITH_RECORDS:  # as LogHold, which would take 0.6 us more of each message
                emit_held_records()

    def _is_leader(self) -> bool:
        """Whether this thread has the lead: a signal handler, a finalizer or an event of the engine has interrupted it."""
        # What threading.Condition asks. A note of our own could be wrong after an interrupt.
        return self._lead._is_owned()  # type: ignore[attr-defined, no-any-return]  # noqa: SLF001 - see above

    def _is_first(self, waiting: _WaitingCall) -> bool:
        """Whether no caller before *waiting* in the queue is about to lead. Others may have been left by an interrupt."""
        for index in range(len(self._waiting)):
            try:
                one = self._waiting[index]
            except IndexError:
                break
            if one is waiting:
                return True
            if one.has_future:
                if self._has_sender():
                    break
            elif one.batch is None and not one.is_withdrawn:
                break
        return False

    def _after_lead(self) -> None:
        """Look after the others, when the lead was given back. May be called at any time without it."""
        if self._waiting:
            self._hand_over()
        if self._ended:
            self._complete()
            self.call_back_soon()

    def _hand_over(self) -> None:
        """Wake the caller whose message has waited longest to lead, unless a thread comes to look by itself."""
        if self._has_sender() or self._has_leader:
            return
        for index in range(len(self._waiting)):
            try:
                waiting = self._waiting[index]
            except IndexError:
                return  # another thread leads by now
            if waiting.batch is not None:
                continue  # was left by an interrupted leader; the next one removes it
            if waiting.has_future:
                self._start_sender()
                return
            if waiting.wake():
                return

    def _send(self) -> None:
        """Send one batch. With the lead."""
        waiting = self._first(MOST_TOGETHER)
        batch = _SharedBatch()
        is_complete = False
        try:
            messages = [one for one in waiting if one.join(batch)]
            is_complete = len(messages) == len(waiting)
            if messages:
                self._append(batch, messages)
        finally:
            batch.lose()
            if not is_complete:
                for one in waiting:
                    if one.batch is not None:
                        one.batch.lose()  # what another leader has left, who was interrupted
                # Those that were not taken, because this leader was interrupted, stay in the queue.
                waiting = list(takewhile(_has_left, waiting))
            self._settle(waiting)

    def _first(self, most: int) -> list[_WaitingCall | _WaitingFuture]:
        """Return those that have waited longest, *most* of them at most. With the lead."""
        try:
            return list(islice(self._waiting, most))
        except RuntimeError:
            # The garbage collector came in the middle, ran a finalizer, and another thread has appended meanwhile.
            return [self._waiting[index] for index in range(min(len(self._waiting), most))]

    def _append(self, batch: _SharedBatch, messages: list[_WaitingCall | _WaitingFuture]) -> None:
        self._batches += 1
        for index, one in enumerate(messages):
            one.index = index
        routed = [one.routed for one in messages if one.routed is not None]
        try:
            batch.results = self._appender.append_batch(routed)
        except Exception as error:  # noqa: BLE001 - every waiting caller gets it
            batch.error = error
            batch.is_over = True
            if isinstance(error, DatabaseUnavailableError) and self._is_ending():
                self._fail_all(error)
        else:
            batch.is_over = True

    def _settle(self, waiting: list[_WaitingCall | _WaitingFuture]) -> None:
        """Take *waiting*, the first in the queue, out of it, and wake the callers. With the lead.

        An interruption here leaves them to the next leader.
        """
        if len(waiting) == 1 and not waiting[0].has_future:  # a lone caller's
            waiting[0].leave()
            self._waiting.popleft()
            return
        futures = [one for one in waiting if isinstance(one, _WaitingFuture)]
        if futures:
            self._ended.append(futures)
        if len(futures) < len(waiting):
            for one in waiting:
                one.leave()
        popleft = self._waiting.popleft
        for _ in waiting:
            popleft()

    def _complete(self) -> None:
        """Complete the futures of batches that are over. Callbacks are only queued. Any thread may do it, twice too."""
        while True:
            try:
                futures = self._ended[0]
            except IndexError:
                return
            for one in futures:
                one.complete()
            with contextlib.suppress(ValueError):  # another thread was faster
                self._ended.remove(futures)

    def _wait_for(self, waiting: _WaitingCall) -> None:
        """Wait until the outcome of *waiting* is known. Lead if it has to."""
        stall = None  # usually the first sleep is the only one
        while True:
            waiting.sleep()
            if waiting.is_over():
                return
            if self._lead_once():
                if waiting.is_over():
                    return
                continue
            stall = stall or _Stall()
            if self._is_stalled(stall):
                raise self._stuck(waiting, self._appender.batch_seconds)

    def _is_stalled(self, stall: _Stall) -> bool:
        return stall.seconds(self._batches) > self._appender.batch_seconds

    def _stuck(self, waiting: _WaitingCall, seconds: float) -> DatabaseBusyError | OutcomeUnknownError:
        waiting.is_withdrawn = True
        fact = f"Another thread has been sending a batch to topic {self._appender.topic!r} for {seconds:.0f} seconds"
        if waiting.batch is None:
            return DatabaseBusyError(f"{fact}. This message was not sent, and will not be.")
        return OutcomeUnknownError(f"{fact}. The message is in the log or not. Look there before you send again.")

    # The threads that send what was submitted, and call callbacks.

    def _has_sender(self) -> bool:
        """Whether a thread will look at the queue before it ends. The caller has queued its message before it asks."""
        sender = self._sender
        return sender is not None and not sender.is_away

    def _start_sender(self) -> None:
        sender = _SubmitSender()
        if threading.current_thread() is threading.main_thread() and not threading.main_thread().is_alive():
            # In a function of `atexit`: some versions of Python would start a thread, and not wait for it.
            self._send_here()
            return
        try:
            self._threads.submit(partial(self._send_all, sender))
        except RuntimeError:
            self._send_here()
        else:
            self._sender = sender

    def _send_here(self) -> None:
        """Do what a sender would do, in this thread: no other can be started, or it would not live long enough."""
        # A finalizer that interrupts the leader may add a callback: what waits is sent when the leader goes on.
        while self._waiting and not self._is_leader() and self._lead_once(is_alone=True):
            pass
        self._call_back()

    def _send_all(self, sender: _SubmitSender) -> None:
        """Lead until nothing waits, and call callbacks."""
        stall = _Stall()
        try:
            while True:
                # At its end, log handlers run.
                with LogHold() as hold:
                    while self._waiting:
                        has_led = self._lead_once(seconds=_LOOK_SECONDS)
                        if not has_led and self._is_ending() and self._is_stalled(stall):
                            sender.is_away = True
                            self._cancel_submitted()
                            return
                        if self._callbacks or hold.has_records:
                            break
                    # First this, then the last look: a caller that has counted on this thread has queued a message before.
                    sender.is_away = True
                self._call_back()
                if not self._waiting:
                    return
                sender.is_away = False
                self._sender = sender
        except BaseException:
            sender.is_away = True
            self._after_lead()
            raise

    def _call_back(self) -> None:
        """Call the callbacks that wait, in order. If one blocks, another thread goes on with the next after a second."""
        if not self._callbacks:
            return
        if self._caller._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - as of the lead
            self._call_all()  # a callback has sent a message, in its own thread, as there is no other
            return
        try:
            try:
                if not self._next_caller.acquire(blocking=False):
                    return  # another thread is about to
                called = -1
                while called != self._called:
                    called = self._called
                    if self._caller.acquire(timeout=_LOOK_SECONDS):
                        break
            finally:
                # By the one that has it. No flag, no call: an interrupt could come between.
                try:  # noqa: SIM105
                    self._next_caller.release()
                except RuntimeError:
                    pass
            self._call_all()
        finally:
            try:  # noqa: SIM105 - as above
                self._caller.release()
            except RuntimeError:
                pass

    def _call_all(self) -> None:
        while self._callbacks:
            try:
                callback, future = self._callbacks.popleft()
            except IndexError:
                return
            self._called += 1
            try:
                callback(future)
            except BaseException as error:
                # Logged as a Future does it. Ctrl-C is for the main thread, where no other thread can be started.
                if not isinstance(error, Exception) and threading.current_thread() is threading.main_thread():
                    raise
                FUTURES_LOG.exception("exception calling callback for %r", future)

    # Closing.

    def _flush(self) -> None:
        """Wait until everything that is in the queue was sent or has failed."""
        flush, stall = _Flush(), _Stall()
        self._waiting.append(flush)
        try:
            while not flush.is_over():
                if self._lead_once(is_alone=True):
                    continue
                flush.sleep()
                if stall.seconds(self._batches) > _CLOSE_SECONDS and not flush.is_over():
                    message = (
                        f"A batch to topic {self._appender.topic!r} does not end, so what waits behind it was not sent."
                    )
                    raise DatabaseBusyError(message)
        except BaseException:
            flush.is_withdrawn = True
            self._after_lead()
            raise

    def _is_ending(self) -> bool:
        return self._is_closed or not threading.main_thread().is_alive()

    def _fail_all(self, error: Exception) -> None:
        """Fail everything that waits. With the lead: the producer, or the process, ends, and the database is away."""
        batch = _SharedBatch()
        batch.error = error
        batch.is_over = True
        self._log_lost(sum(one.join(batch) for one in self._first(len(self._waiting))), error)

    def _cancel_submitted(self) -> None:
        """Cancel what was submitted. Without the lead: the producer, or the process, ends, and another thread's batch does not."""
        submitted = [one for one in self._waiting.copy() if isinstance(one, _WaitingFuture)]
        message = f"A batch of another thread to topic {self._appender.topic!r} does not end."
        self._log_lost(sum(one.future.cancel() for one in submitted), DatabaseBusyError(message))

    def _log_lost(self, messages: int, error: Exception) -> None:
        if messages and not self._is_closed:
            log.error(
                "%d messages for topic %r were not sent before the end of the process: %s",
                messages,
                self._appender.topic,
                error,
                extra=log_fields("submitted lost", topic=self._appender.topic, messages=messages, error=error),
            )

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
        self._waiting: deque[_WaitingCall | _WaitingFuture] = deque()
        """Those whose outcome is not known yet, in order. Any thread may append; only the leader removes."""
        self._lead = threading.RLock()
        hold_records_under(self._lead)
        self._has_leader = False
        """Whether a thread has the lead. Only a hint, for speed: an interrupt may keep it from being set or cleared."""
        self._batches = 0
        self._ended: deque[list[_WaitingFuture]] = deque()
        """Futures of batches that are over, which may have to be completed."""
        self._threads = TaskThreads("sqlmq-submit")
        self._sender = None
        self._callbacks: deque[tuple[Callable[[Future[ProducerResult]], object], Future[ProducerResult]]] = deque()
        self._caller = threading.RLock()
        """Of the thread that calls callbacks."""
        self._next_caller = threading.RLock()
        """Of the one that goes on if a callback does not end."""
        self._called = 0


def _has_left(waiting: _WaitingCall | _WaitingFuture) -> bool:
    """Whether a message need not stay in the queue."""
    return waiting.routed is None or (waiting.is_withdrawn if waiting.batch is None else waiting.batch.is_over)


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
